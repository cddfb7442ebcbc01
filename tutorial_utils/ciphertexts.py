"""What encrypted weights need beside FLARE's own parts, at the sites and at the server (see encrypt.py).

This file ships with an encrypted job. It imports numpy, nvflare and values.py, which ships too, and no TenSEAL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.workflows.cross_site_model_eval import CrossSiteModelEval

from tutorial_utils.values import LearnerError


def shapes_of(state: Mapping[str, Any]) -> dict[str, list]:
    """By entry of a state dict, its type (numpy's name) and its shape, as a job can write them down."""
    return {name: [str(value.dtype).removeprefix("torch."), list(value.shape)] for name, value in state.items()}


def to_array(numbers: Sequence[float], kind: str, shape: Sequence[int]) -> np.ndarray:
    """Decrypted numbers as an array of this type and shape. Whole numbers come out with a rest of 1e-7: rounded."""
    array = np.asarray(numbers, dtype=np.float64).reshape(shape)
    kind = "float32" if kind == "bfloat16" else kind  # numpy has none
    return (array if np.dtype(kind).kind == "f" else np.rint(array)).astype(kind)


class RestoreShapes(DXOFilter):
    """At a site: what FLARE's HEModelDecryptor (nvflare 2.9.0) leaves as flat lists, as arrays again.

    Arrays stay as they are: the first model comes in plain.

    Args:
        shapes: of the model's entries, from `shapes_of`.
    """

    def __init__(self, shapes: dict[str, list]) -> None:
        kinds = [DataKind.WEIGHTS]
        super().__init__(supported_data_kinds=kinds, data_kinds_to_filter=kinds)
        self.shapes = shapes

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO:
        flat = {name: value for name, value in dxo.data.items() if isinstance(value, list) and name in self.shapes}
        dxo.data |= {name: to_array(value, *self.shapes[name]) for name, value in flat.items()}
        return dxo


class OnlyFinite(DXOFilter):
    """At a site, before the encryption: LearnerError where a weight is no number, so that nothing leaves.

    Encrypted, nobody could see it, and everyone's mean would be lost. TenSEAL itself encrypts NaN and infinity without
    a word up to 0.3.16; FLARE's own extra, nvflare[HE], brings 0.3.15 or 0.3.16 (nvflare 2.9.0).
    """

    def __init__(self) -> None:
        kinds = [DataKind.WEIGHTS, DataKind.WEIGHT_DIFF]
        super().__init__(supported_data_kinds=kinds, data_kinds_to_filter=kinds)

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> None:
        for name, value in dxo.data.items():
            if not np.isfinite(value).all():
                raise LearnerError(f"{name} is not finite, and encrypted nobody could see that: nothing leaves.")


class CiphertextEval(CrossSiteModelEval):
    """FLARE's cross-site evaluation of models that the server cannot read: kept, and handed on, as bytes.

    Of an encrypted object the server would make a copy for each site, which TenSEAL allows to who has the key alone.
    FLARE's HECrossSiteModelEval means to do the same, by a method that nobody calls any more (nvflare 2.9.0).
    """

    def _save_dxo_content(self, name: str, save_dir: str, dxo: DXO, fl_ctx: FLContext) -> str:
        data = dxo.data.items()
        dxo.data = {key: value.serialize() if hasattr(value, "serialize") else value for key, value in data}
        return super()._save_dxo_content(name, save_dir, dxo, fl_ctx)
