"""The algorithms that `build_job` knows: what each puts at the sites and on the server. This file does not ship.

A new one is a class here, and its parts in a module beside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

from nvflare.app_common.abstract.shareable_generator import ShareableGenerator
from nvflare.app_common.shareablegenerators.full_model_shareable_generator import FullModelShareableGenerator
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather
from nvflare.app_common.workflows.scatter_and_gather_scaffold import ScatterAndGatherScaffold
from torch import nn

from tutorial_utils.algorithms.fedopt import DifferenceSite, ServerOptimizer, shapes_of
from tutorial_utils.algorithms.fedprox import FedProxSite
from tutorial_utils.algorithms.scaffold import CHANGE, WEIGHTS, ScaffoldSite
from tutorial_utils.errors import JobError
from tutorial_utils.learner import SiteAlgorithm


@dataclass(frozen=True)
class FedAvg:
    """Federated Averaging (McMahan et al. 2017, arXiv:1602.05629), and what the others change of it.

    Attributes:
        name: as a command line knows it, and the job is called.
        sends: the kind of data in a site's answer; where that has several parts, each one's by its name.
        workflow: FLARE's controller on the server.
    """

    name: ClassVar[str] = "fedavg"
    sends: ClassVar[str | Mapping[str, str]] = "WEIGHTS"
    workflow: ClassVar[type[ScatterAndGather]] = ScatterAndGather

    def site(self) -> SiteAlgorithm | None:
        """What stands beside the learner at a site, None for nothing."""
        return None

    def generator(self, net: nn.Module) -> ShareableGenerator:
        """What makes the new global model of the sites' mean, on the server."""
        return FullModelShareableGenerator()


@dataclass(frozen=True)
class FedProx(FedAvg):
    """See tutorial_utils/algorithms/fedprox.py. mu: strength of the pull to the global model, 0 or more."""

    mu: float = 0.01
    name: ClassVar[str] = "fedprox"

    def __post_init__(self) -> None:
        check("mu", self.mu, lambda mu: 0 <= mu < math.inf, "0 or more")

    def site(self) -> SiteAlgorithm:
        return FedProxSite(self.mu)


@dataclass(frozen=True)
class FedOpt(FedAvg):
    """See tutorial_utils/algorithms/fedopt.py. The defaults are those of FLARE's CIFAR-10 example."""

    server_lr: float = 1.0
    server_momentum: float = 0.6
    name: ClassVar[str] = "fedopt"
    sends: ClassVar[str] = "WEIGHT_DIFF"

    def __post_init__(self) -> None:
        check("server_lr", self.server_lr, lambda lr: 0 < lr < math.inf, "more than 0")
        check("server_momentum", self.server_momentum, lambda momentum: 0 <= momentum < 1, "from 0 to less than 1")

    def site(self) -> SiteAlgorithm:
        return DifferenceSite()

    def generator(self, net: nn.Module) -> ShareableGenerator:
        shapes = shapes_of(net)
        if not shapes:
            raise JobError(f"{self.name} has nothing to step: no weight of the net is trained (requires_grad).")
        return ServerOptimizer(shapes, self.server_lr, self.server_momentum)


@dataclass(frozen=True)
class Scaffold(FedAvg):
    """See tutorial_utils/algorithms/scaffold.py."""

    name: ClassVar[str] = "scaffold"
    sends: ClassVar[Mapping[str, str]] = {WEIGHTS: "WEIGHTS", CHANGE: "WEIGHT_DIFF"}
    workflow: ClassVar[type[ScatterAndGather]] = ScatterAndGatherScaffold

    def site(self) -> SiteAlgorithm:
        return ScaffoldSite()


ALGORITHMS: Mapping[str, type[FedAvg]] = {kind.name: kind for kind in (FedAvg, FedProx, FedOpt, Scaffold)}


def check(name: str, value: object, fits: Callable[[float], bool], wanted: str) -> None:
    """JobError for a setting that is no number, or one out of its range."""
    if isinstance(value, bool) or not isinstance(value, Real) or not fits(value):
        raise JobError(f"{name} is {value!r}: it must be {wanted}.")
