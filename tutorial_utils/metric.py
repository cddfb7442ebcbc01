"""Which number decides, and in which direction: said once by the learner, followed by all that chooses or draws.

This file ships with every job, and imports nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A number that a learner's `local_validate` reports, by which models are chosen.

    Args:
        name: its key in the dict that `local_validate` returns.
        higher_is_better: False for a loss or an error.
        fraction: show it as %. None: where higher is better and every value lies in 0..1.
    """

    name: str
    higher_is_better: bool = True
    fraction: bool | None = None

    def better(self, score: float, than: float) -> bool:
        """Does a score beat another one? What is not finite never does, and is beaten by all that is."""
        if not math.isfinite(score) or not math.isfinite(than):
            return math.isfinite(score)
        return score > than if self.higher_is_better else score < than

    def is_fraction(self, values: Iterable[float]) -> bool:
        """Are these values shown as %?"""
        if self.fraction is not None:
            return self.fraction
        finite = [value for value in values if math.isfinite(value)]
        return self.higher_is_better and all(0 <= value <= 1 for value in finite)

    def format(self, value: float, percent: bool) -> str:
        """As a reader sees it: 61.3%, or four digits that count; "n/a" for what is no number."""
        if math.isnan(value):
            return "n/a"
        return f"{value:.1%}" if percent else f"{value:.4g}"
