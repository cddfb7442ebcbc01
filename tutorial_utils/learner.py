"""The federated half of a learner for any PyTorch script, and a way to drive a learner without a simulator.

This file ships with every job, so it imports torch and nvflare and nothing else of the package.
"""

from __future__ import annotations

import tempfile
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from nvflare.apis.fl_constant import FLMetaKey, ReturnCode
from nvflare.apis.fl_context import FLContextManager
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.abstract.model_learner import ModelLearner
from nvflare.app_common.app_constant import AppConstants, ModelName, ValidateType
from torch import nn


class LearnerError(Exception):
    """A learner was asked for something that it cannot do. The text says what to do instead."""


def round_seed(seed: int, site: str, round_number: int) -> int:
    """The seed of one site in one round: a function of these three and of nothing else.

    Round 0 uses `seed` itself, so that one site for one round does what the script does with that seed.
    """
    return seed if round_number == 0 else zlib.crc32(f"{seed}/{site}/{round_number}".encode())


def save_safely(value: object, path: Path) -> None:
    """torch.save; a process that is killed while saving leaves the old file whole."""
    half_written = path.with_suffix(".tmp")
    torch.save(value, half_written)
    half_written.replace(path)


class BestModel:
    """The best model that a site has trained in this job. On disk: a process that FLARE starts anew goes on with it.

    Args:
        folder: the app's own folder at the site, where FLARE keeps the job (the learner's `app_root`).
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "best_local_model.pt"

    def offer(self, score: float, round_number: int | None, params: Mapping[str, Any]) -> None:
        """Keep these weights (tensors or arrays) if no earlier ones scored as high."""
        if self.path.is_file() and self.load()["score"] >= score:
            return
        kept = {name: torch.as_tensor(value).cpu() for name, value in params.items()}
        save_safely({"score": score, "round": round_number, "params": kept}, self.path)

    def load(self) -> dict[str, Any]:
        """Its `score`, `round` and `params` (tensors). LearnerError before the first round."""
        if not self.path.is_file():
            raise LearnerError("This site has no best model yet: train at least one round first.")
        return torch.load(self.path, weights_only=True)


class PTModelLearner(ModelLearner):
    """All of a learner that is not the script: FLARE calls it, it calls three methods of the subclass.

    A subclass writes:
        initialize(): call super().initialize(), then set `self.net` and read the site's own data.
        local_train() -> int: train `self.net` in place, asking `self.is_aborted()` between batches; return
            the number of steps done.
        local_validate(split) -> dict of metrics: score `self.net` on "valid" or "test"; `key_metric` is one.

    Args:
        seed: where the random numbers of every site and round come from (see `round_seed`).
        threads: torch threads of this process. One gives the same bits on every machine, and lets several
            sites share one; raise it where a site has a machine for itself.
    """

    key_metric = "accuracy"  # decides which local model is the best one; higher is better

    def __init__(self, seed: int = 0, threads: int = 1) -> None:
        super().__init__()
        self.seed = seed
        self.threads = threads
        self.net: nn.Module | None = None

    def initialize(self) -> None:
        """Called by FLARE once in each process, before the first task."""
        torch.set_num_threads(self.threads)
        self.info(f"{self.site_name} starts on {self.threads} torch thread(s)")

    def local_train(self) -> int:
        raise NotImplementedError("write local_train() in your subclass: train self.net, return the steps.")

    def local_validate(self, split: str) -> dict[str, float]:
        raise NotImplementedError("write local_validate(split) in your subclass: return a dict of metrics.")

    def train(self, model: FLModel) -> FLModel | str:
        """Start from the global model, train on the site's own images, return all weights and the steps."""
        self.load_params(model.params)
        torch.manual_seed(self.seed_of_round())
        steps = self.local_train()
        if self.is_aborted():
            self.warning(f"stopped after {steps} steps")
            return ReturnCode.TASK_ABORTED
        self.keep_if_best()
        self.info(f"round {self.current_round}: {steps} steps")
        meta = {FLMetaKey.NUM_STEPS_CURRENT_ROUND: steps}
        return FLModel(params_type=ParamsType.FULL, params=self.params(), meta=meta)

    def validate(self, model: FLModel) -> FLModel:
        """Score a model: on "valid" to choose the best global one, on "test" in cross-site evaluation."""
        why = self.get_shareable_header(AppConstants.VALIDATE_TYPE)
        self.load_params(model.params)
        split = "valid" if why == ValidateType.BEFORE_TRAIN_VALIDATE else "test"
        return FLModel(metrics=self.local_validate(split))

    def get_model(self, model_name: str) -> FLModel:
        """The best model that this site has trained in this job. It is what the other sites will score."""
        if model_name != ModelName.BEST_MODEL:
            raise LearnerError(f"There is no model named {model_name!r}: ask for {ModelName.BEST_MODEL!r}.")
        best = BestModel(self.app_root).load()
        meta = {"round": best["round"]}
        return FLModel(params_type=ParamsType.FULL, params=to_numpy(best["params"]), meta=meta)

    def configure(self, model: FLModel) -> None:
        """Change settings while running: each name in `model.params` must be one that the constructor set."""
        for name, value in (model.params or {}).items():
            if name not in vars(self):
                raise LearnerError(f"{type(self).__name__} has no setting {name!r}.")
            setattr(self, name, value)
            self.info(f"{name} is now {value}")

    def abort(self) -> None:
        """Called by FLARE from another thread. Training sees `is_aborted()` before its next batch."""
        self.warning("was asked to stop")

    def finalize(self) -> None:
        """Called by FLARE at the end of the job."""
        self.net = None
        self.info("is done")

    def seed_of_round(self) -> int:
        return round_seed(self.seed, self.site_name, self.current_round or 0)

    def params(self) -> dict[str, np.ndarray]:
        return to_numpy(self.net.state_dict())

    def load_params(self, params: Mapping[str, np.ndarray]) -> None:
        self.net.load_state_dict({name: torch.as_tensor(value) for name, value in params.items()})

    def best_path(self) -> Path:
        return BestModel(self.app_root).path

    def keep_if_best(self) -> None:
        """Keep the net on disk if it is the best so far, by the validation images."""
        score = self.local_validate("valid")[self.key_metric]
        BestModel(self.app_root).offer(score, self.current_round, self.params())


def to_numpy(state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Weights as numpy arrays, copies of their own: FLARE exchanges these, and adds them in one fixed way."""
    return {name: value.detach().cpu().numpy().copy() for name, value in state.items()}


@dataclass
class Drive:
    """What a test drive saw.

    Attributes:
        received: metrics of the model that the learner received, one dict a round.
        steps: steps done, one number a round.
        params: the weights after the last round.
        best: what get_model("best_model") gave, None after an abort.
        test: metrics of the last weights on the test images, as in cross-site evaluation.
        return_code: "OK", or the code that the learner returned from train (TASK_ABORTED, say).
    """

    received: list[dict[str, float]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    params: dict[str, np.ndarray] = field(default_factory=dict)
    best: FLModel | None = None
    test: dict[str, float] | None = None
    return_code: str = ReturnCode.OK


def test_drive(
    learner: ModelLearner,
    params: Mapping[str, Any],
    *,
    site: str = "site-1",
    rounds: int = 1,
    configure: Mapping[str, Any] | None = None,
    abort_after: float | None = None,
) -> Drive:
    """Call a learner as FLARE would, in this process: an error is raised here, with its own traceback.

    One site, no server: each round starts from the weights that the round before left. There is no engine
    either: `engine`, `workspace` and `args` are None, and get_component finds nothing.

    Args:
        learner: any ModelLearner; it is initialized and finalized here.
        params: the first weights, a state dict (tensors or arrays).
        configure: sent to the learner's configure() before the first round.
        abort_after: seconds until the learner is asked to stop, from another thread, as FLARE does it.

    Raises: whatever the learner raises; LearnerError where it returns something that FLARE would refuse.
    """
    drive = Drive(params=to_numpy({name: torch.as_tensor(value) for name, value in params.items()}))
    signal = Signal()
    with tempfile.TemporaryDirectory() as folder:
        _place(learner, site, folder, signal)

        def stop() -> None:
            signal.trigger("test drive")
            learner.abort()

        timer = threading.Timer(abort_after, stop) if abort_after is not None else None
        learner.initialize()
        try:
            if configure is not None:
                learner.configure(FLModel(params=dict(configure)))
            if timer:
                timer.start()
            _drive_rounds(learner, rounds, drive)
        finally:
            if timer:
                timer.cancel()
            learner.finalize()
    return drive


test_drive.__test__ = False  # pytest would take it for a test


def _place(learner: ModelLearner, site: str, folder: str, signal: Signal) -> None:
    """Set what FLARE's executor sets on a learner before its first task."""
    if not hasattr(learner, "abort_signal"):
        raise LearnerError("call super().__init__() in the constructor of your learner.")
    engine = SimpleNamespace(fire_event=lambda event_type, fl_ctx: None)  # logging a warning fires an event
    contexts = FLContextManager(engine, site, "test_drive", public_stickers={}, private_stickers={})
    learner.fl_ctx = contexts.new_context()
    learner.site_name, learner.job_id = site, "test_drive"
    learner.app_root = learner.job_root = learner.workspace_root = folder
    learner.abort_signal = signal


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
        if not isinstance(result, FLModel) or not result.params:
            kind = type(result).__name__
            raise LearnerError(f"train() must return an FLModel with params or a return code, not {kind}.")
        sent, drive.params = drive.params, result.params
        if result.params_type == ParamsType.DIFF:  # the server adds the difference to what it sent
            drive.params = {name: sent[name] + value for name, value in result.params.items()}
        drive.steps.append((result.meta or {}).get(FLMetaKey.NUM_STEPS_CURRENT_ROUND))
    learner.current_round = learner.total_rounds = None  # as in cross-site evaluation
    drive.best = learner.get_model(ModelName.BEST_MODEL)
    drive.test = _metrics(learner.validate(_task(learner, drive.params, {})))


def _task(learner: ModelLearner, params: Mapping[str, np.ndarray], headers: dict[str, str]) -> FLModel:
    learner.shareable = Shareable()
    for name, value in headers.items():
        learner.shareable.set_header(name, value)
    now, total = learner.current_round, learner.total_rounds
    return FLModel(params_type=ParamsType.FULL, params=dict(params), current_round=now, total_rounds=total, meta={})


def _metrics(result: FLModel) -> dict[str, float]:
    if not isinstance(result, FLModel) or not result.metrics:
        raise LearnerError(f"validate() must return an FLModel with metrics; it returned {type(result).__name__}.")
    return result.metrics
