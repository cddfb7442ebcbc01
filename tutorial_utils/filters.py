"""A filter of what leaves a site: an update is cut to a length, and noise is added, before anyone else
sees it.

This file ships with the job. It imports numpy, torch and nvflare alone, and of the package values.py,
which ships too.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from numbers import Real

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants

from tutorial_utils.values import LearnerError


class ClipAndNoise(DXOFilter):
    """The Gaussian mechanism on a site's update, at the site (McMahan et al. 2018, arXiv:1710.06963).

    The update is what training changed: all weights seen as one point, minus those that came in. It is
    shortened to `clip` where it is longer, then normal noise of standard deviation `noise` * `clip` is
    added to every weight. How much privacy that is, over how many rounds, says
    `tutorial_utils.privacy.epsilon`. Whatever sends whole weights or differences can be filtered, the
    learner stays as it is; where an answer has several parts (SCAFFOLD's), each is cut by itself and
    counts as a release of its own.

    Nothing to cut and no noise: the weights leave as they are, to the bit. Whole numbers (a counter of
    BatchNorm) are no weights and leave as they are. A variance of BatchNorm may come out below zero:
    keep such layers at the site (`keep_local`), or use GroupNorm.

    Args:
        clip: the longest that an update may be (L2 norm, in the weights' own unit); None: any length.
        noise: the noise multiplier, 0 or more.
        seed: None: noise that nobody can draw again, from the operating system's entropy. A number makes
            the noise a function of (seed, site, round), for tests and studies: whoever reads it in the
            job takes the noise off.
    """

    def __init__(self, clip: float | None = None, noise: float = 0.0, seed: int | None = None) -> None:
        super().__init__(supported_data_kinds=[DataKind.WEIGHTS, DataKind.WEIGHT_DIFF], data_kinds_to_filter=None)
        check_noise(clip, noise)
        self.clip = clip
        self.noise = noise
        self.seed = seed
        self._received: Mapping[str, np.ndarray] = {}
        self._round = 0

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Keep what came in: FLARE 2.9.0 has dropped it when it filters the result, and its
        ConvertWeights fails."""
        if event_type == EventType.BEFORE_TASK_EXECUTION:
            task = fl_ctx.get_prop(FLContextKey.TASK_DATA)
            self._received, self._round = (
                weights_in(task),
                task.get_header(AppConstants.CURRENT_ROUND) or 0,
            )

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        """None where nothing is changed. LearnerError where there is no update to cut: then nothing
        leaves."""
        if self.clip is None:
            return None
        names = [name for name, value in dxo.data.items() if np.asarray(value).dtype.kind == "f"]
        weights = {name: np.asarray(dxo.data[name]) for name in names}
        base = self._base(dxo, names)
        update = {name: weights[name].astype(float) - base[name] for name in names}
        length = norm(update)
        if not math.isfinite(length):
            raise LearnerError("the update is not finite and cannot be cut: nothing leaves.")
        if length <= self.clip and not self.noise:
            return None
        scale, draw = min(1.0, self.clip / length) if length else 1.0, self._generator(dxo, fl_ctx)
        cut = {name: scale * update[name] + self._noise(update[name].shape, draw) for name in names}
        left = {name: np.asarray(base[name] + cut[name], weights[name].dtype) for name in names}
        dxo.data = dict(dxo.data) | left
        return dxo

    def _base(self, dxo: DXO, names: list[str]) -> dict[str, np.ndarray | float]:
        """What each entry is measured from: the weights that came in; 0 where differences are sent."""
        if dxo.data_kind == DataKind.WEIGHT_DIFF:
            return dict.fromkeys(names, 0.0)
        if lack := sorted(set(names) - set(self._received)):
            raise LearnerError(
                f"{lack[0]} leaves the site and did not come in with this task: it is no update that could "
                "be cut, and nothing leaves."
            )
        return {name: np.asarray(self._received[name], float) for name in names}

    def _generator(self, dxo: DXO, fl_ctx: FLContext) -> np.random.Generator:
        if self.seed is None:
            return np.random.default_rng()
        key = f"{self.seed}/{fl_ctx.get_identity_name()}/{self._round}/{dxo.data_kind}"
        return np.random.default_rng(zlib.crc32(key.encode()))

    def _noise(self, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray | float:
        return draw.normal(0.0, self.noise * self.clip, shape) if self.noise else 0.0


def weights_in(task: Shareable | None) -> dict[str, np.ndarray]:
    """Copies of the weights in a task, {} where it has none: a learner may write into those that it was
    handed."""
    try:
        dxo = from_shareable(task)
    except (AttributeError, TypeError, ValueError):
        return {}
    parts = dxo.data.values() if dxo.data_kind == DataKind.COLLECTION else [dxo]
    found = [part.data for part in parts if part.data_kind == DataKind.WEIGHTS]
    return {name: np.array(value) for data in found for name, value in data.items()}


def norm(update: Mapping[str, np.ndarray]) -> float:
    """The length (L2) of an update, all of its arrays seen as one point."""
    return math.sqrt(sum(float(np.square(np.asarray(value, float)).sum()) for value in update.values()))


def check_noise(clip: object, noise: object) -> None:
    """LearnerError for a length or a noise that makes no sense."""
    if clip is not None and not (_is_number(clip) and 0 < clip < math.inf):
        raise LearnerError(f"clip is {clip!r}: it must be a number above 0, or None for updates of any length.")
    if not (_is_number(noise) and 0 <= noise < math.inf):
        raise LearnerError(f"noise is {noise!r}: it must be a number, 0 or more.")
    if noise and clip is None:
        raise LearnerError(
            f"noise is {noise!r} without a clip: the noise is measured by the longest update, say clip=."
        )


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
