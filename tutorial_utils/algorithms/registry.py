"""What a job of each algorithm is made of, and which settings it takes. For job.py; it does not ship."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from nvflare.app_common.abstract.model_learner import ModelLearner

from fl.model_learner import CIFAR10ModelLearner
from tutorial_utils.algorithms.fedopt import DifferenceLearner
from tutorial_utils.algorithms.fedprox import FedProxLearner
from tutorial_utils.algorithms.scaffold import CHANGE, WEIGHTS, ScaffoldLearner
from tutorial_utils.errors import TutorialError


class Algorithm(NamedTuple):
    """One way to train together.

    Attributes:
        learner: what a site runs.
        sends: the kind of data in its answer; where that has several parts, each one's by its name.
        settings: beyond those of every algorithm: name, and what stands for it where none is given.
    """

    learner: type[ModelLearner]
    sends: str | dict[str, str] = "WEIGHTS"
    settings: Mapping[str, float] = {}


ALGORITHMS = {
    "fedavg": Algorithm(CIFAR10ModelLearner),
    "fedprox": Algorithm(FedProxLearner, settings={"mu": 0.01}),
    # server_lr and server_momentum are those of FLARE's CIFAR-10 example
    "fedopt": Algorithm(DifferenceLearner, "WEIGHT_DIFF", {"server_lr": 1.0, "server_momentum": 0.6}),
    "scaffold": Algorithm(ScaffoldLearner, {WEIGHTS: "WEIGHTS", CHANGE: "WEIGHT_DIFF"}),
}
RANGES = {  # what a number may be, and how to say it
    "mu": (lambda mu: 0 <= mu < math.inf, "0 or more"),
    "server_lr": (lambda lr: 0 < lr < math.inf, "more than 0"),
    "server_momentum": (lambda momentum: 0 <= momentum < 1, "from 0 to less than 1"),
}


def choose(algorithm: str, client: str, more: dict[str, Any]) -> dict[str, float]:
    """Check the choice, and take the algorithm's own settings out of `more`.

    Returns: these settings, completed by their defaults. TutorialError for what does not go together.
    """
    if algorithm not in ALGORITHMS:
        raise TutorialError(f"There is no algorithm {algorithm!r}: choose one of {', '.join(ALGORITHMS)}.")
    if algorithm != "fedavg" and client != "learner":
        raise TutorialError(f"{algorithm} is written for client='learner', not for {client!r}.")
    own = ALGORITHMS[algorithm].settings
    for name in RANGES:
        if name in more and name not in own and "learner" not in more:
            (owner,) = (key for key, other in ALGORITHMS.items() if name in other.settings)
            raise TutorialError(f"{name} is a setting of {owner}, and the algorithm is {algorithm}.")
    chosen = {name: more.pop(name, default) for name, default in own.items()}
    for name, value in chosen.items():
        fits, wanted = RANGES[name]
        if not (isinstance(value, (int, float)) and fits(value)):
            raise TutorialError(f"{name} is {value}: it must be {wanted}.")
    return chosen
