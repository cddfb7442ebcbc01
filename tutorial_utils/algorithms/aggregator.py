"""An aggregator whose sums do not depend on which site was faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.aggregators.intime_accumulate_model_aggregator import (
    InTimeAccumulateWeightedAggregator,
)
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper
from nvflare.app_common.app_constant import AppConstants


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


class SettledMean(WeightedAggregationHelper):
    """FLARE's weighted mean, each entry settled; an update of no steps weighs nothing, not 0 times its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._counted: list[dict[str, np.ndarray]] = []

    def add(self, data: Mapping[str, Any], weight: float, contributor_name: str, contribution_round: int) -> None:
        if weight > 0:
            arrays = {name: np.asarray(value) for name, value in data.items()}
            super().add(
                {name: _widen(array) for name, array in arrays.items()}, weight, contributor_name, contribution_round
            )
            self._counted.append(arrays)

    def get_result(self) -> dict[str, np.ndarray]:
        counted, self._counted = self._counted, []
        means = super().get_result()
        return {name: settle(mean, [data[name] for data in counted if name in data]) for name, mean in means.items()}


def _widen(array: np.ndarray) -> np.ndarray:
    """float16 ends at 65,504, which a weight times its steps soon passes."""
    return array.astype(np.float32) if array.dtype == np.float16 else array


class OrderedAggregator(InTimeAccumulateWeightedAggregator):
    """FLARE's weighted average, added up in the order of the sites' names.

    FLARE adds each update as it arrives. Floating-point sums depend on their order, so with three or
    more sites two runs differ in the last bits. This one holds a round's updates until all are in: a
    few more copies of the weights in the server's memory, and the same bits in every run. What no site
    has sent (a part that stays at home) stays as it was in the global model.

    Args:
        expected_data_kind: "WEIGHTS", or "WEIGHT_DIFF" for differences; where an update has several
            parts, the kind of each by its name. Another kind is refused, and the run ends.
    """

    def __init__(self, expected_data_kind: str | dict[str, str] = "WEIGHTS") -> None:
        super().__init__(expected_data_kind=expected_data_kind)
        self._held: dict[str, Shareable] = {}

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.START_RUN:  # nvflare 2.9.0: made just now, one for each part
            for part in self.dxo_aggregators.values():
                part.aggregation_helper = SettledMean()

    def accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        site = shareable.get_peer_prop(ReservedKey.IDENTITY_NAME, "?")
        sent = shareable.get_cookie(AppConstants.CONTRIBUTION_ROUND)
        now = fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
        if sent != now:
            self.log_warning(fl_ctx, f"discarded {site}'s update of round {sent}: it came late, in round {now}")
            return False
        self._held[site] = shareable
        return True

    def aggregate(self, fl_ctx: FLContext) -> Shareable:
        held, self._held = self._held, {}
        accept = super().accept
        refused = [site for site in sorted(held) if not accept(held[site], fl_ctx)]
        if refused:
            kinds = ", ".join(self.expected_data_kind.values())
            self.system_panic(f"the aggregator refused {refused[0]}'s update: it expects {kinds}", fl_ctx)
        elif held and not any(part.aggregation_helper.get_len() for part in self.dxo_aggregators.values()):
            self.system_panic(
                "there is nothing to average: no site made a step (is a batch larger than a site's data, "
                "and drop_last set?)",
                fl_ctx,
            )
        return self._keep_the_rest(super().aggregate(fl_ctx), fl_ctx)

    def _keep_the_rest(self, result: Shareable, fl_ctx: FLContext) -> Shareable:
        """Beside the mean, the entries of the global model that no site has sent."""
        model, mean = fl_ctx.get_prop(AppConstants.GLOBAL_MODEL), from_shareable(result)
        parts = mean.data.values() if mean.data_kind == DataKind.COLLECTION else [mean]
        for part in parts:
            if model and part.data and part.data_kind == DataKind.WEIGHTS:
                part.data = {**model["weights"], **part.data}
        return mean.to_shareable()
