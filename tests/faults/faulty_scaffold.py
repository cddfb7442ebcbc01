"""A SCAFFOLD site whose controls, or whose weights, go wrong in one round."""

from __future__ import annotations

import numpy as np
from nvflare.apis.dxo import DataKind
from nvflare.app_common.abstract.fl_model import FLModel

from tutorial_utils.algorithms.scaffold import CHANGE, WEIGHTS, ScaffoldLearner


class FaultyScaffoldLearner(ScaffoldLearner):
    """At site-2, from round 1 on. `fault`: "nan" in its controls, or "difference" where weights belong."""

    def __init__(
        self,
        data: str,
        fault: str,
        epochs: int = 1,
        lr: float = 0.01,
        batch_size: int = 32,
        momentum: float = 0.9,
        seed: int = 0,
    ) -> None:
        super().__init__(data, epochs, lr, batch_size, momentum, seed)
        self.fault = fault

    def train(self, model: FLModel) -> FLModel | str:
        result = super().train(model)
        if self.site_name == "site-2" and self.current_round >= 1:
            if self.fault == "nan":
                result.params[CHANGE].data["fc3.bias"] *= np.nan
            if self.fault == "difference":
                result.params[WEIGHTS].data_kind = DataKind.WEIGHT_DIFF
        return result
