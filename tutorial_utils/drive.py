"""A learner, driven in this process as FLARE would: to try it, to hold it against its script, to train it alone."""

from __future__ import annotations

import copy
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContextManager
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.app_constant import AppConstants, ModelName, ValidateType
from torch import nn

from tutorial_utils._answers import Params, as_arrays, read_metrics, read_model, read_update, read_weight
from tutorial_utils.learner import LearnerError, ModelLearner, PTModelLearner, SiteAlgorithm, metric_of, settings_of

if TYPE_CHECKING:
    from tutorial_utils.job import LearnerJob

# What FLARE's executor sets on a learner (nvflare 2.9.0), and what PTModelLearner adds to that.
PLACED = {"fl_ctx", "shareable", "abort_signal", "args", "engine", "job_id", "site_name", "workspace", "workspace_root"}
PLACED |= {"job_root", "app_root", "current_round", "total_rounds", "algorithm", "state"}


@dataclass
class Drive:
    """What a test drive saw.

    Attributes:
        received: metrics of the model that the learner received, one dict a round.
        steps: steps done, one number a round; the weight where the learner says but one number.
        weights: what each update weighs in the average, one number a round.
        params: the weights after the last round.
        best: what get_model("best_model") gave, None after an abort.
        test: metrics of the last weights on the test data, as in cross-site evaluation.
        return_code: "OK", or the code that the learner returned from train (TASK_ABORTED, say).
    """

    received: list[dict[str, float]] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
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
        learner: any ModelLearner; it is initialized and finalized here. What it read then stays, to be looked at; its
            settings and state are afterwards what they were before.
        net: the first weights: a net, or a state dict (tensors or arrays).
        algorithm: the site's part of an algorithm that needs no server to answer it, such as FedProx's.
        configure: sent to the learner's configure() before the first round.
        abort_after: seconds until the learner is asked to stop, from another thread, as FLARE does it.

    Raises: whatever the learner raises; LearnerError where it returns something that a job would choke on: no steps,
        no number where a metric belongs or the one that decides missing, weights that the net has not, that have
        another shape or are not finite.
    """
    drive = Drive(params=as_arrays(net))
    signal = Signal()
    with _unchanged(learner), placed(learner, site, signal):
        if algorithm is not None:
            learner.algorithm = algorithm

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
    made, wanted = _train_whole(learner, net, site, 1), as_arrays(trained)
    if made.keys() != wanted.keys():
        name = sorted(made.keys() ^ wanted.keys())[0]
        raise LearnerError(f"{name} is an entry of one of the two nets alone: compare the same net.")
    for name, value in made.items():
        for what, here, there in (
            ("has the shape", value.shape, wanted[name].shape),
            ("is", value.dtype, wanted[name].dtype),
        ):
            if here != there:
                raise LearnerError(f"{name} {what} {here} here and {there} in the script: compare the same net.")
    first, apart = None, 0.0
    for name in wanted:
        if made[name].tobytes() != wanted[name].tobytes():
            first = first or name
            apart = float(np.max([apart, np.max(np.abs(made[name].astype(float) - wanted[name]))]))  # NaN stays NaN
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
    rounds = job.rounds if rounds is None else rounds
    if not rounds:
        raise LearnerError("This job trains nothing, it scores models: ask for a number of rounds.")
    models = {site: _train_whole(job.learner, job.net, site, rounds) for site in job.sites}
    return score_models(job.learner, models, job.sites)


def _train_whole(learner: ModelLearner, net: nn.Module | Params, site: str, rounds: int) -> dict[str, np.ndarray]:
    """The weights after some rounds of one site, those that would stay there too. The learner stays as it is."""
    learner = copy.deepcopy(learner)
    learner.keep_local = ()
    drive = test_drive(learner, net, site=site, rounds=rounds)
    if drive.return_code != ReturnCode.OK:
        raise LearnerError(f"train() returned {drive.return_code}: there are no weights to look at.")
    return drive.params


def score_models(learner: PTModelLearner, models: Mapping[str, Params], sites: Sequence[str]) -> pd.DataFrame:
    """The metric that decides, of each model (columns, by name) on the test data of each site (rows)."""
    metric = metric_of(learner)
    cells: dict[str, dict[str, float]] = {}
    for site in sites:
        judge = copy.deepcopy(learner)
        judge.keep_local = ()  # these models are whole
        with placed(judge, site, Signal()):
            judge.current_round = judge.total_rounds = None  # as in cross-site evaluation
            found = {name: judge.validate(make_task(judge, params, {})).metrics for name, params in models.items()}
        cells[site] = {name: scores[metric.name] for name, scores in found.items()}
    frame = pd.DataFrame(cells, index=list(models), columns=list(sites), dtype=float).T
    frame.attrs["metric"] = asdict(metric)  # by which plots draw it, as Run.cross_site
    return frame.rename_axis(index="test data of", columns="model")


@contextmanager
def _unchanged(learner: ModelLearner) -> Iterator[None]:
    """What FLARE sets on a learner, its settings and its state are afterwards as they were."""
    names, now = PLACED | settings_of(type(learner)).keys(), vars(learner)
    kept = copy.deepcopy({name: value for name, value in now.items() if name.removeprefix("_") in names})
    kept |= {name: value for name, value in now.items() if name == "net"}  # finalize() lets go of it
    try:
        yield
    finally:
        vars(learner).update(kept)


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
    if not isinstance(learner, ModelLearner):
        raise LearnerError(f"{type(learner).__name__} is no ModelLearner, and only such a one can be driven here.")
    if not hasattr(learner, "abort_signal"):
        raise LearnerError("call super().__init__() in the constructor of your learner.")
    engine = SimpleNamespace(fire_event=lambda event_type, fl_ctx: None)  # logging a warning fires an event
    contexts = FLContextManager(engine, site, "test_drive", public_stickers={}, private_stickers={})
    learner.fl_ctx = contexts.new_context()
    learner.site_name, learner.job_id = site, "test_drive"
    learner.app_root = learner.job_root = learner.workspace_root = str(folder)
    learner.abort_signal = signal


def _drive_rounds(learner: ModelLearner, rounds: int, drive: Drive) -> None:
    learner.total_rounds = rounds
    before = {AppConstants.VALIDATE_TYPE: ValidateType.BEFORE_TRAIN_VALIDATE}
    for learner.current_round in range(rounds):
        model = make_task(learner, drive.params, before)
        drive.received.append(read_metrics(learner, learner.validate(model)))
        result = learner.train(model)
        if isinstance(result, str):
            drive.return_code = result
            return
        drive.params = read_update(drive.params, result)
        drive.weights.append(read_weight(result))
        drive.steps.append((result.meta or {}).get("steps", drive.weights[-1]))
    learner.current_round = learner.total_rounds = None  # as in cross-site evaluation
    drive.best = read_model(learner.get_model(ModelName.BEST_MODEL))
    drive.test = read_metrics(learner, learner.validate(make_task(learner, drive.params, {})))


def make_task(learner: ModelLearner, params: Params, headers: dict[str, str]) -> FLModel:
    """A model as a task brings it; the headers are where a learner looks for them."""
    learner.shareable = Shareable()
    for name, value in headers.items():
        learner.shareable.set_header(name, value)
    now, total = learner.current_round, learner.total_rounds
    params = copy.deepcopy(dict(params))  # FLARE hands out a copy, with which a learner may do what it likes
    return FLModel(params_type=ParamsType.FULL, params=params, current_round=now, total_rounds=total, meta={})
