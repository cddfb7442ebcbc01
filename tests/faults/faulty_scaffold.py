"""A SCAFFOLD site whose controls, or whose weights, go wrong in one round."""

from __future__ import annotations

from typing import Any

import numpy as np
from nvflare.apis.dxo import DataKind
from nvflare.app_common.abstract.fl_model import FLModel

from fl.model_learner import CIFAR10ModelLearner
from tutorial_utils.algorithms.scaffold import CHANGE, WEIGHTS


class FaultyScaffoldLearner(CIFAR10ModelLearner):
    """At site-2, from round 1 on. `fault`: "nan" in its controls, or "difference" where weights belong."""

    def __init__(self, *args: Any, fault: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fault = fault

    def train(self, model: FLModel) -> FLModel | str:
        result = super().train(model)
        if self.site_name == "site-2" and self.current_round >= 1:
            if self.fault == "nan":
                result.params[CHANGE].data["fc3.bias"] *= np.nan
            if self.fault == "difference":
                result.params[WEIGHTS].data_kind = DataKind.WEIGHT_DIFF
        return result
