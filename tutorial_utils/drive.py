"""A learner, driven in this process as FLARE would: to try it, to hold it against its script, to train it alone."""

from __future__ import annotations

import copy
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from nvflare.apis.fl_constant import FLMetaKey, ReturnCode
from nvflare.apis.fl_context import FLContextManager
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.abstract.model_learner import ModelLearner
from nvflare.app_common.app_constant import AppConstants, ModelName, ValidateType
from torch import nn

from tutorial_utils.learner import LearnerError, PTModelLearner, SiteAlgorithm, as_number, metric_of, to_numpy

if TYPE_CHECKING:
    from tutorial_utils.job import LearnerJob

Params = Mapping[str, Any]


@dataclass
class Drive:
    """What a test drive saw.

    Attributes:
        received: metrics of the model that the learner received, one dict a round.
        steps: steps done, one number a round; None where the learner says a weight alone.
        weights: what each update weighs in the average, one number a round.
        params: the weights after the last round.
        best: what get_model("best_model") gave, None after an abort.
        test: metrics of the last weights on the test data, as in cross-site evaluation.
        return_code: "OK", or the code that the learner returned from train (TASK_ABORTED, say).
    """

    received: list[dict[str, float]] = field(default_factory=list)
    steps: list[int | None] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    params: dict[str, np.ndarray] = field(default_factory=dict)
    best: FLModel | None = None
    test: dict[str, float] | None = None
    return_code: str = ReturnCode.OK


def test_drive(
    learner: ModelLearner,
    net: nn.Module | Params,
    *,
    site: str = "site-1",
    rounds: int = 1,
    algorithm: SiteAlgorithm | None = None,
    configure: Mapping[str, Any] | None = None,
    abort_after: float | None = None,
) -> Drive:
    """Call a learner as FLARE would, in this process: an error is raised here, with its own traceback.

    One site, no server: each round starts from the weights that the round before left. There is no engine
    either: `engine`, `workspace` and `args` are None, get_component finds nothing, and a panic stops nothing.

    Args:
        learner: any ModelLearner; it is initialized and finalized here.
        net: the first weights: a net, or a state dict (tensors or arrays).
        algorithm: the site's part of an algorithm that needs no server to answer it, such as FedProx's.
        configure: sent to the learner's configure() before the first round.
        abort_after: seconds until the learner is asked to stop, from another thread, as FLARE does it.

    Raises: whatever the learner raises; LearnerError where it returns something that a job would choke on: no steps,
        no number where a metric belongs or the one that decides missing, weights that the net has not.
    """
    drive = Drive(params=_first(net))
    signal = Signal()
    if algorithm is not None:
        learner.algorithm = algorithm
    with placed(learner, site, signal):

        def stop() -> None:
            signal.trigger("test drive")
            learner.abort()

        timer = threading.Timer(abort_after, stop) if abort_after is not None else None
        try:
            if configure is not None:
                learner.configure(FLModel(params=dict(configure)))
            if timer:
                timer.start()
            _drive_rounds(learner, rounds, drive)
        finally:
            if timer:
                timer.cancel()
    return drive


test_drive.__test__ = False  # pytest would take it for a test


@dataclass(frozen=True)
class Proof:
    """A learner beside its script: one site, one round, the same first weights and the same seed.

    Attributes:
        equal: every bit of every entry is the same.
        first: the name of the first entry that differs, None if none does.
        apart: the largest difference between two numbers of any entry.
    """

    equal: bool
    first: str | None
    apart: float

    def __str__(self) -> str:
        if self.equal:
            return "The learner's weights are the script's, in every bit."
        return f"The first entry that differs is {self.first}; the largest difference of all is {self.apart:.1g}."


def compare_with_script(
    learner: ModelLearner, net: nn.Module | Params, trained: nn.Module | Params, *, site: str = "site-1"
) -> Proof:
    """Drive the learner for one round, and hold its weights against those that the script has trained.

    It can hold to the bit where the script, on this site's data: starts from the same first weights; seeds `random`,
    numpy and torch with the learner's seed once, after the net is made and the data are read, just before training;
    and runs on as many torch threads as the learner. What is drawn between seed and training (an augmentation, a
    dropout mask, an order of batches) must be drawn in both in the same order.

    Args:
        net: the first weights, of both.
        trained: the script's weights after as many epochs as the learner trains in a round.

    Raises: LearnerError where the two have other entries or shapes; what the learner raises.
    """
    driven = copy.deepcopy(learner)
    driven.keep_local = ()  # what would stay at the site is compared too
    made, wanted = test_drive(driven, net, site=site).params, _first(trained)
    if made.keys() != wanted.keys():
        name = sorted(made.keys() ^ wanted.keys())[0]
        raise LearnerError(f"{name} is an entry of one of the two nets alone: compare the same net.")
    first, apart = None, 0.0
    for name in wanted:
        if made[name].shape != wanted[name].shape:
            raise LearnerError(f"{name} has the shape {made[name].shape} here and {wanted[name].shape} in the script.")
        if not np.array_equal(made[name], wanted[name], equal_nan=wanted[name].dtype.kind == "f"):
            first = first or name
            apart = max(apart, float(np.max(np.abs(made[name].astype(float) - wanted[name]))))
    return Proof(first is None, first, apart)


def train_alone(job: LearnerJob, *, rounds: int | None = None) -> pd.DataFrame:
    """What each site of a job could do alone: as many rounds, from the same first weights, and no average.

    Each site trains here, one after the other, with the job's own learner: equal steps, the same seeds, a fresh
    optimizer each round as in the federation. The job's algorithm has no part in it.

    Args:
        job: made by `build_job`; its data must lie on this machine.
        rounds: by default the job's.

    Returns: the metric that decides, as in `Run.cross_site`: a row for each site whose test data were used, a column
        for the model of each site.
    """
    whole = copy.deepcopy(job.learner)
    whole.keep_local = ()  # alone, all of the model is at home
    models = {
        site: test_drive(copy.deepcopy(whole), job.net, site=site, rounds=rounds or job.rounds).params
        for site in job.sites
    }
    return score_models(whole, models, job.sites)


def score_models(learner: PTModelLearner, models: Mapping[str, Params], sites: Sequence[str]) -> pd.DataFrame:
    """The metric that decides, of each model (columns, by name) on the test data of each site (rows)."""
    metric = metric_of(learner)
    cells: dict[str, dict[str, float]] = {}
    for site in sites:
        judge = copy.deepcopy(learner)
        with placed(judge, site, Signal()):
            judge.current_round = judge.total_rounds = None  # as in cross-site evaluation
            found = {name: judge.validate(_task(judge, params, {})).metrics for name, params in models.items()}
        cells[site] = {name: scores[metric.name] for name, scores in found.items()}
    frame = pd.DataFrame(cells, index=list(models), columns=list(sites), dtype=float).T
    return frame.rename_axis(index="test data of", columns="model")


@contextmanager
def placed(learner: ModelLearner, site: str, signal: Signal) -> Iterator[ModelLearner]:
    """A learner at a site, initialized; finalized at the end."""
    with tempfile.TemporaryDirectory() as folder:
        place(learner, site, folder, signal)
        learner.initialize()
        try:
            yield learner
        finally:
            learner.finalize()


def place(learner: ModelLearner, site: str, folder: str | Path, signal: Signal) -> None:
    """Set what FLARE's executor sets on a learner before its first task; `folder` is the app's own at the site."""
    if not hasattr(learner, "abort_signal"):
        raise LearnerError("call super().__init__() in the constructor of your learner.")
    engine = SimpleNamespace(fire_event=lambda event_type, fl_ctx: None)  # logging a warning fires an event
    contexts = FLContextManager(engine, site, "test_drive", public_stickers={}, private_stickers={})
    learner.fl_ctx = contexts.new_context()
    learner.site_name, learner.job_id = site, "test_drive"
    learner.app_root = learner.job_root = learner.workspace_root = str(folder)
    learner.abort_signal = signal


def _first(net: nn.Module | Params) -> dict[str, np.ndarray]:
    state = net.state_dict() if isinstance(net, nn.Module) else net
    return to_numpy({name: value if not _is_array(value) else torch.as_tensor(value) for name, value in state.items()})


def _is_array(value: object) -> bool:
    return isinstance(value, (np.ndarray, np.generic))


def _drive_rounds(learner: ModelLearner, rounds: int, drive: Drive) -> None:
    learner.total_rounds = rounds
    before = {AppConstants.VALIDATE_TYPE: ValidateType.BEFORE_TRAIN_VALIDATE}
    for learner.current_round in range(rounds):
        model = _task(learner, drive.params, before)
        drive.received.append(_metrics(learner.validate(model)))
        result = learner.train(model)
        if isinstance(result, str):
            drive.return_code = result
            return
        drive.params = _added(drive.params, result)
        weight = (result.meta or {}).get(FLMetaKey.NUM_STEPS_CURRENT_ROUND)
        if not weight:
            said = "no steps" if weight is None else "0 steps"
            raise LearnerError(
                f"train() reports {said}: the average weighs an update by them, so it would count for nothing."
            )
        drive.weights.append(as_number("the weight", weight))
        drive.steps.append((result.meta or {}).get("steps", weight))
    learner.current_round = learner.total_rounds = None  # as in cross-site evaluation
    drive.best = learner.get_model(ModelName.BEST_MODEL)
    drive.test = _metrics(learner.validate(_task(learner, drive.params, {})))


def _added(sent: dict[str, np.ndarray], result: object) -> dict[str, np.ndarray]:
    """What a server of one site would make of an update: a difference is added, what stays at the site is as it was."""
    if not isinstance(result, FLModel) or not result.params:
        kind = type(result).__name__
        raise LearnerError(f"train() must return an FLModel with params or a return code, not {kind}.")
    if strange := sorted(set(result.params) - set(sent)):
        raise LearnerError(
            f"train() sends {', '.join(strange)}, which the net has not: send entries of its state dict."
        )
    declared = set((result.meta or {}).get("kept_local", ()))
    if lack := sorted(set(sent) - set(result.params) - declared):
        raise LearnerError(f"train() does not send {', '.join(lack)}: name in keep_local what shall stay at the site.")
    is_difference = result.params_type == ParamsType.DIFF
    return sent | {name: sent[name] + value if is_difference else value for name, value in result.params.items()}


def _task(learner: ModelLearner, params: Params, headers: dict[str, str]) -> FLModel:
    learner.shareable = Shareable()
    for name, value in headers.items():
        learner.shareable.set_header(name, value)
    now, total = learner.current_round, learner.total_rounds
    return FLModel(params_type=ParamsType.FULL, params=dict(params), current_round=now, total_rounds=total, meta={})


def _metrics(result: object) -> dict[str, float]:
    if not isinstance(result, FLModel) or not result.metrics:
        raise LearnerError(f"validate() must return an FLModel with metrics; it returned {type(result).__name__}.")
    return {name: as_number(name, value) for name, value in result.metrics.items()}
