"""A whole federation in this process, without server and messages: many seeds in the time of one simulation.

rehearse(job).params  # the bits of simulate(job)
compare_seeds(lambda seed: build_job(MyLearner("data/sites", seed=seed), ...), range(10), pooled="everyone")
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants, ValidateType

from tutorial_utils._answers import as_arrays, read_metrics, read_update, read_weight
from tutorial_utils.algorithms.aggregator import SettledMean
from tutorial_utils.drive import make_task, placed, score_models, test_drive
from tutorial_utils.job import LearnerJob
from tutorial_utils.learner import LearnerError, metric_of


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal left.

    Attributes:
        params: the global model after the last round, as arrays by name.
        rounds: as `Run.rounds`: a row a round and site, of the model that the site received.
    """

    params: dict[str, np.ndarray]
    rounds: pd.DataFrame


def rehearse(job: LearnerJob, *, rounds: int | None = None) -> Rehearsal:
    """Federated Averaging with a job's own learner at every site, one site after the other.

    On one machine's CPU it makes the bits that `simulate(job)` makes: the same seeds, the same states that stay at the
    sites, and the sum by the same class in the same order. What else a job may have is no part of it: another
    algorithm or aggregator, filters, the choice of a best model, the cross-site evaluation (`score_models` scores).

    Args:
        job: made by `build_job`; its data must lie on this machine.
        rounds: by default the job's.

    Raises: what a learner raises, with its own traceback; LearnerError as `test_drive` does.
    """
    rounds = job.rounds if rounds is None else rounds
    if not rounds:
        raise LearnerError("This job trains nothing, it scores models: ask for a number of rounds.")
    before = {AppConstants.VALIDATE_TYPE: ValidateType.BEFORE_TRAIN_VALIDATE}
    params: dict[str, Any] = as_arrays(job.net)
    rows = []
    with ExitStack() as stack:
        learners = {
            site: stack.enter_context(placed(copy.deepcopy(job.learner), site, Signal())) for site in sorted(job.sites)
        }
        for number in range(rounds):
            mean = SettledMean()
            for site, learner in learners.items():
                learner.current_round, learner.total_rounds = number, rounds
                received = make_task(learner, params, before)
                seen = read_metrics(learner, learner.validate(received))
                result = learner.train(received)
                if isinstance(result, str):
                    raise LearnerError(f"train() at {site} returned {result}: there are no weights to average.")
                whole, weight = read_update(params, result), read_weight(result)
                mean.add({name: whole[name] for name in result.params}, weight, site, number)
                rows.append({"round": number, "site": site, **seen, "weight": weight})
            params = {**params, **mean.get_result()}
    table = pd.DataFrame(rows)
    table.attrs["metric"] = asdict(metric_of(job.learner))
    return Rehearsal(params, table)


def compare_seeds(make_job: Callable[[int], LearnerJob], seeds: Iterable[int], *, pooled: str) -> pd.DataFrame:
    """The federation against what each site can do alone, and against all rows in one place, seed by seed.

    All begin with the job's first weights and train for as many rounds, and each model is taken after its last one.

    Args:
        make_job: a job for a seed (of its learner, and of its first weights).
        seeds: at least three show a range; the range is no test of significance.
        pooled: the name of one more folder beside the sites' own, with the rows of all of them: what nobody may have.

    Returns: columns seed, model ("federated", "NAME alone" of each site, "centralised"), test data of (the sites, and
        "everyone"), and the metric that decides.
    """
    rows = []
    for seed in seeds:
        job = make_job(seed)
        models = {"federated": rehearse(job).params}
        for site in (*job.sites, pooled):
            alone = test_drive(copy.deepcopy(job.learner), job.net, site=site, rounds=job.rounds)
            models["centralised" if site == pooled else f"{site} alone"] = alone.params
        scores = score_models(job.learner, models, [*job.sites, pooled]).rename(index={pooled: "everyone"})
        name = metric_of(job.learner).name
        long = scores.reset_index().melt("test data of", var_name="model", value_name=name)
        rows.append(long.assign(seed=seed))
    table = pd.concat(rows, ignore_index=True)
    table.attrs |= scores.attrs
    return table
