"""An aggregator whose sums do not depend on which site was faster."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.aggregators.intime_accumulate_model_aggregator import (
    InTimeAccumulateWeightedAggregator,
)


def settle(mean: np.ndarray, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of one entry of the sites' weights, as the model takes it.

    What is equal at all sites stays as it is, to the bit: x * steps * (1 / steps) is x only to the last digits, and of
    infinite values it is none. Whole numbers (a counter of BatchNorm) and truth values stay what they are, rounded.

    Args:
        mean: the weighted mean of `arrays`, of any type; float16 is to be summed in float32.
        arrays: the entry of each site that counts, at least one, of one shape.
    """
    first = np.asarray(arrays[0])
    kind = np.result_type(*arrays)
    floats = kind.kind in "fc"
    if all(np.array_equal(first, other, equal_nan=floats) for other in arrays[1:]):
        return first
    return np.asarray(mean if floats else np.rint(mean)).astype(kind, copy=False)


class OrderedAggregator(InTimeAccumulateWeightedAggregator):
    """FLARE's weighted average, added up in the order of the sites' names.

    FLARE adds each update as it arrives. Floating-point sums depend on their order, so with three or
    more sites two runs differ in the last bits. This one holds a round's updates until all are in: a
    few more copies of the weights in the server's memory, and the same bits in every run.

    Args:
        expected_data_kind: "WEIGHTS", or "WEIGHT_DIFF" for differences; where an update has several
            parts, the kind of each by its name. Another kind is refused, and the run ends.
    """

    def __init__(self, expected_data_kind: str | dict[str, str] = "WEIGHTS") -> None:
        super().__init__(expected_data_kind=expected_data_kind)
        self._held: dict[str, Shareable] = {}

    def accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        site = shareable.get_peer_prop(ReservedKey.IDENTITY_NAME, "?")
        self._held[site] = shareable
        return True

    def aggregate(self, fl_ctx: FLContext) -> Shareable:
        for site in sorted(self._held):
            if not super().accept(self._held[site], fl_ctx):
                kinds = ", ".join(self.expected_data_kind.values())
                self.system_panic(f"the aggregator refused {site}'s update: it expects {kinds}", fl_ctx)
        self._held = {}
        return super().aggregate(fl_ctx)
