"""Models that are given, for a job that scores and does not train. This file ships with such a job."""

from __future__ import annotations

from pathlib import Path

import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.model_locator import ModelLocator

from tutorial_utils.values import to_numpy


class GivenModels(ModelLocator):
    """Finds the models that came with the job: custom/models/NAME.pt, a state dict each."""

    def get_model_names(self, fl_ctx: FLContext) -> list[str]:
        return sorted(path.stem for path in self._folder(fl_ctx).glob("*.pt"))

    def locate_model(self, model_name: str, fl_ctx: FLContext) -> DXO:
        state = torch.load(self._folder(fl_ctx) / f"{model_name}.pt", map_location="cpu", weights_only=True)
        return DXO(DataKind.WEIGHTS, data=to_numpy(state))

    def _folder(self, fl_ctx: FLContext) -> Path:
        return Path(fl_ctx.get_prop(FLContextKey.APP_ROOT), "custom", "models")
