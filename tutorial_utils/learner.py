"""The federated half of a learner for any PyTorch script.

This file ships with every job, so it imports torch, nvflare, and of the package only metric.py,
values.py and keep.py, which ship with it (and model_learner.py, where FLARE has no such class).
"""

from __future__ import annotations

import inspect
import math
import os
import random
import zlib
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLMetaKey, ReturnCode
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.app_constant import AppConstants, ModelName, ValidateType
from torch import nn
from torch.utils.data import DataLoader

from tutorial_utils.keep import BestModel, SiteState
from tutorial_utils.metric import Metric
from tutorial_utils.values import LearnerError, as_number, match_names, plain, to_numpy

try:
    from nvflare.app_common.abstract.model_learner import ModelLearner
except ModuleNotFoundError:  # FLARE has let go of it
    ModelLearner = import_module("tutorial_utils.model_learner").ModelLearner  # FedJob ships what it sees imported

OF_THE_SERVER = "SRV_"  # FLARE's CrossSiteModelEval (nvflare 2.9.0) writes it before the names of the server's models


def round_seed(seed: int, site: str, round_number: int) -> int:
    """The seed of one site in one round: a function of these three and of nothing else.

    Round 0 uses `seed` itself, so that one site for one round does what the script does with that seed.
    """
    return seed if round_number == 0 else zlib.crc32(f"{seed}/{site}/{round_number}".encode())


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's random numbers alike: a script may draw from any of them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # it takes no more
    torch.manual_seed(seed)


class Watched:
    """A loader that counts its batches, and ends when the site is asked to stop. All else is the loader's own."""

    def __init__(self, loader: DataLoader, learner: PTModelLearner) -> None:
        self.loader = loader
        self.learner = learner

    def __iter__(self) -> Iterator[Any]:
        self.learner._batches = self.learner._batches or 0  # there is a loader, be it an empty one
        if self.learner.is_aborted():  # many epochs may be left, and a loader's start costs
            return
        for batch in self.loader:
            if self.learner.is_aborted():
                return
            self.learner._batches += 1
            yield batch

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name == "loader":  # not there yet: a copy is being made
            raise AttributeError(name)
        return getattr(self.loader, name)


class SiteAlgorithm(FLComponent):
    """What an algorithm adds at a site. Federated Averaging adds nothing; tutorial_utils/algorithms has others."""

    def receive(self, learner: PTModelLearner, params: dict[str, Any]) -> dict[str, Any]:
        """The weights in what the server sent."""
        return params

    def train(self, learner: PTModelLearner) -> object:
        """The learner's `local_train`, with what belongs around it."""
        return learner.local_train()

    def answer(self, learner: PTModelLearner, received: FLModel, result: FLModel) -> FLModel:
        """What goes back to the server."""
        return result


class PTModelLearner(ModelLearner):
    """All of a learner that is not the script: FLARE calls it, it calls three methods of the subclass.

    A subclass says `metric = Metric("auc")`: which number chooses models, and whether higher is better. It writes:
        initialize(): call super().initialize(), then set `self.net` and read the site's own data.
        local_train() -> int: train `self.net` in place, and return the steps done, or (steps, weight) where an update
            shall not count by its steps in the average. Between batches either ask `self.is_aborted()`, or take
            the batches from `self.watched(loader)`, which asks, and counts the steps: then nothing need be returned.
        local_validate(split) -> dict of numbers: score `self.net` on "valid" or "test"; NaN where there is none.

    It may say: `keep_local = ("norm.*", "head.*")`, names (or patterns) of weights that never leave the site;
    `valid_split`, `test_split`, other names for the two. What it puts into `self.state` (numbers, texts, tensors, lists
    and dicts of them) in local_train is there in the next round, in a new process and in a resumed run.

    Args:
        seed: where the random numbers of every site and round come from (see `round_seed`).
        threads: torch threads of this process. One gives the same bits on every machine, and lets several
            sites share one; raise it where a site has a machine for itself.
    """

    metric: Metric | None = None
    keep_local: tuple[str, ...] = ()
    valid_split, test_split = "valid", "test"

    def __init__(self, seed: int = 0, threads: int = 1) -> None:
        super().__init__()
        self.seed = seed
        self.threads = threads
        self.net: nn.Module | None = None
        self.state: dict[str, Any] = {}
        self.algorithm = SiteAlgorithm()
        self._batches: int | None = None  # seen by watched loaders in this round
        self._is_started = False

    def initialize(self) -> None:
        """Called by FLARE once in each process, before the first task."""
        metric_of(self)
        torch.set_num_threads(self.threads)
        self.algorithm = self.get_component("algorithm") or self.algorithm
        self._is_started = True
        self.info(f"{self.site_name} starts on {self.threads} torch thread(s)")

    def local_train(self) -> int | tuple[int, float] | None:
        raise NotImplementedError("write local_train() in your subclass: train self.net, return the steps.")

    def local_validate(self, split: str) -> dict[str, float]:
        raise NotImplementedError("write local_validate(split) in your subclass: return a dict of metrics.")

    def train(self, model: FLModel) -> FLModel | str:
        """Start from the global model, train on the site's own data, return all weights and the steps."""
        self.load_params(self.algorithm.receive(self, model.params))
        seed_everything(self.seed_of_round())
        self._batches = None
        trained = self.algorithm.train(self)
        if self.is_aborted():
            self.warning(f"stopped after {(self._batches or 0) if trained is None else trained} steps")
            return ReturnCode.TASK_ABORTED
        steps, weight = self.count(trained)
        self.keep_if_best()
        self._remember()
        self.info(f"round {self.current_round}: {steps} steps")
        meta = {FLMetaKey.NUM_STEPS_CURRENT_ROUND: weight, "steps": steps, "kept_local": self.local_names()}
        result = FLModel(params_type=ParamsType.FULL, params=self._shared(self.params()), meta=meta)
        return self.algorithm.answer(self, model, result)

    def validate(self, model: FLModel) -> FLModel:
        """Score a model: on "valid" to choose the best global one, on "test" in cross-site evaluation."""
        before_training = self.get_shareable_header(AppConstants.VALIDATE_TYPE) == ValidateType.BEFORE_TRAIN_VALIDATE
        self.load_params(self.algorithm.receive(self, model.params))
        if self.get_shareable_header(AppConstants.MODEL_OWNER) == self.site_name:  # its own comes home: with the rest
            self.net.load_state_dict(self._local(BestModel(self.app_root, self.metric).load()["params"]), strict=False)
        return FLModel(metrics=self._score(self.valid_split if before_training else self.test_split))

    def get_model(self, model_name: str) -> FLModel:
        """The best model that this site has trained in this job. It is what the other sites will score."""
        if model_name != ModelName.BEST_MODEL:
            raise LearnerError(f"There is no model named {model_name!r}: ask for {ModelName.BEST_MODEL!r}.")
        best = BestModel(self.app_root, self.metric).load()
        meta = {"round": best["round"], "kept_local": self.local_names()}
        return FLModel(params_type=ParamsType.FULL, params=to_numpy(self._shared(best["params"])), meta=meta)

    def configure(self, model: FLModel) -> None:
        """Change settings while running: `model.params` names arguments of the constructor, each of its own kind."""
        changes = {}
        for name, value in (model.params or {}).items():
            if name not in settings_of(type(self)):
                raise LearnerError(f"{type(self).__name__} has no setting {name!r}.")
            attribute = name if hasattr(self, name) else f"_{name}"  # as a job reads it
            now = getattr(self, attribute)
            if now is not None and type(value) is not type(now) and (type(now), type(value)) != (float, int):
                raise LearnerError(f"{name} is {now!r}, and {value!r} is no {type(now).__name__}.")
            changes[attribute] = value
        for name, value in changes.items():
            setattr(self, name, value)
            self.info(f"{name} is now {value}")

    def abort(self) -> None:
        """Called by FLARE from another thread. Training sees `is_aborted()` before its next batch."""
        self.warning("was asked to stop")

    def finalize(self) -> None:
        """Called by FLARE at the end of the job."""
        self.net = None
        self.info("is done")

    def site_folder(self, data: str) -> Path:
        """`data`/name-of-this-site; an environment variable in it ("$SITE_DATA") and ~ mean what they mean here."""
        return Path(os.path.expandvars(data)).expanduser() / self.site_name

    def watched(self, loader: DataLoader) -> Watched:
        """The loader, counted and stopped: for a script that cannot be asked to return its steps, or to stop."""
        return Watched(loader, self)

    def seed_of_round(self) -> int:
        return round_seed(self.seed, self.site_name, self.current_round or 0)

    def params(self) -> dict[str, np.ndarray]:
        return to_numpy(self.net.state_dict())

    def load_params(self, params: Mapping[str, Any]) -> None:
        """Put weights that came into the net, beside those that stay here. Another site's may lack what stays there.

        Those that stay here begin as the first model has them (a checkpoint's, say), where that has the same shapes.
        """
        own = self._net().state_dict()
        kept = SiteState(self.app_root).load(before=self.current_round) or {"state": self.state, "local": {}}
        self.state, local = kept["state"], kept["local"]
        here = {name for name in self.local_names() if name in local or np.shape(params.get(name)) != own[name].shape}
        came = {name: torch.as_tensor(value) for name, value in params.items() if name not in here}
        if strange := sorted(came.keys() - own.keys()):
            raise LearnerError(f"The model that came has {strange[0]}, which this net has not: is it another net?")
        owner = self.get_shareable_header(AppConstants.MODEL_OWNER) or OF_THE_SERVER
        if owner.startswith(OF_THE_SERVER) and (lack := sorted(self._shared(own).keys() - came.keys())):
            raise LearnerError(f"The model that came lacks {lack[0]}, which this net has: is it another net?")
        self.net.load_state_dict(own | local | came)

    def _net(self) -> nn.Module:
        if self.net is None or not self._is_started:  # not started, it would train without the algorithm asked for
            what = "set self.net" if self._is_started else "call super().initialize()"
            raise LearnerError(f"{type(self).__name__}.initialize() must {what}.")
        return self.net

    def local_names(self) -> list[str]:
        """The entries of the state dict that `keep_local` names."""
        return match_names(self.net.state_dict(), self.keep_local)

    def _local(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {name: params[name] for name in self.local_names() if name in params}

    def _shared(self, params: Mapping[str, Any]) -> dict[str, Any]:
        local = set(self.local_names())
        return {name: value for name, value in params.items() if name not in local}

    def _remember(self) -> None:
        """Write down what the next round needs: the learner's state, and the weights that stay here."""
        kept, local = SiteState(self.app_root), self._local(self.net.state_dict())
        if self.state or local or kept.load(before=None):  # a state that was emptied is one too
            kept.save(self.current_round or 0, {name: plain(value, name) for name, value in self.state.items()}, local)

    def _score(self, split: str) -> dict[str, float]:
        """`local_validate`, seeded, as plain numbers, the one that decides among them."""
        seed_everything(self.seed_of_round())  # a script may draw where it validates
        found = self.local_validate(split)
        if not isinstance(found, Mapping) or self.metric.name not in found:
            names = ", ".join(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
            raise LearnerError(
                f"local_validate must report {self.metric.name!r}, the metric that decides: it gave {names}."
            )
        return {name: as_number(name, value) for name, value in found.items()}

    def keep_if_best(self) -> None:
        """Keep the net on disk if it is the best so far, by the validation data."""
        score = self._score(self.valid_split)[self.metric.name]
        BestModel(self.app_root, self.metric).offer(score, self.current_round, self.params())

    def count(self, trained: object) -> tuple[int, float]:
        """Steps and weight in what local_train returned; the weight is the steps unless it says otherwise."""
        trained = self._batches if trained is None else trained
        if trained is None:
            raise LearnerError("local_train() returned nothing: return the steps, or draw from self.watched(loader).")
        steps, weight = trained if isinstance(trained, tuple) and len(trained) == 2 else (trained, trained)
        steps, weight = as_number("the steps", steps), as_number("the weight", weight)
        if not (0 <= steps < math.inf and steps == int(steps) and 0 <= weight < math.inf):
            raise LearnerError(f"local_train() returned {trained}: steps are a whole number, a weight is 0 or more.")
        if not steps:
            self.warning("made no step: is a batch larger than the site's data, and drop_last set?")
        return int(steps), int(weight) if weight == int(weight) else weight


def metric_of(learner: object) -> Metric:
    """The metric that a learner's class names. LearnerError where it names none."""
    metric = getattr(learner, "metric", None)
    if not isinstance(metric, Metric):
        example = 'metric = Metric("accuracy", higher_is_better=True)'
        raise LearnerError(f"{type(learner).__name__} does not say which number decides: write {example} in the class.")
    return metric


def settings_of(kind: type) -> dict[str, inspect.Parameter]:
    """The arguments of a constructor, and of those that it hands its *args and **kwargs on to."""
    found: dict[str, inspect.Parameter] = {}
    for ancestor in kind.__mro__:
        if ancestor is ModelLearner:
            break
        if "__init__" in vars(ancestor):
            parameters = list(inspect.signature(ancestor.__init__).parameters.values())[1:]
            named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
            found = {p.name: p for p in named} | found
            if len(named) == len(parameters):
                break
    return found
