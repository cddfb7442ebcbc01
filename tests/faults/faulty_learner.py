"""A learner that works until it does not: for drills, before a real site fails."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.fl_constant import ReturnCode
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fl.model_learner import CIFAR10ModelLearner

WEIGHTS = "fc3.bias"  # the small layer that a fault is put into


class FaultyLearner(CIFAR10ModelLearner):
    """CIFAR10ModelLearner with one fault at one site, from one round on.

    Args:
        fault: one of
            "raise in initialize", "raise in train", "raise in validate", "raise in get_model";
            "die": the process ends at once, as if it were out of memory;
            "sleep": it never answers; "slow": it takes two seconds for each round;
            "abort", "refuse": it returns the code TASK_ABORTED, or another one;
            "nan", "shape", "lack": its update holds NaN, a wrong shape, or lacks a layer;
            "difference": it sends differences where the job expects weights.
        site, at_round: where and when. Evaluation comes after the last round.
        *args, **kwargs: as in CIFAR10ModelLearner.
    """

    def __init__(self, *args: Any, fault: str = "", site: str = "site-2", at_round: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fault = fault
        self.site = site
        self.at_round = at_round

    def initialize(self) -> None:
        self._break("raise in initialize", None, self._raise)
        super().initialize()

    def validate(self, model: FLModel) -> FLModel:
        self._break("raise in validate", self.current_round, self._raise)
        return super().validate(model)

    def get_model(self, model_name: str) -> FLModel:
        self._break("raise in get_model", None, self._raise)
        return super().get_model(model_name)

    def train(self, model: FLModel) -> FLModel | str:
        now = self.current_round
        self._break("raise in train", now, self._raise)
        self._break("die", now, lambda: os._exit(1))
        self._break("sleep", now, lambda: time.sleep(1e9))
        self._break("slow", now, lambda: time.sleep(2))
        result = super().train(model)
        if self._break("abort", now):
            return ReturnCode.TASK_ABORTED
        if self._break("refuse", now):
            return "NOT_TODAY"
        if self._break("nan", now):
            result.params[WEIGHTS] = result.params[WEIGHTS] * np.nan
        if self._break("shape", now):
            result.params[WEIGHTS] = result.params[WEIGHTS][:-1]
        if self._break("lack", now):
            del result.params[WEIGHTS]
        if self._break("difference", now):
            result.params = {name: value - model.params[name] for name, value in result.params.items()}
            result.params_type = ParamsType.DIFF
        return result

    def _break(self, fault: str, now: int | None, act: Callable[[], object] = lambda: None) -> bool:
        """Is it this fault, here and now? Then note the time, and act."""
        late = now is None or now >= self.at_round
        if fault != self.fault or self.site_name != self.site or not late:
            return False
        Path(self.app_root, "fault.txt").write_text(str(time.time()), encoding="utf-8")
        act()
        return True

    def _raise(self) -> None:
        raise ValueError("the disk of this site is full")
