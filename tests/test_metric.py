"""Which of two scores is better, and how one is shown."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, asdict
from itertools import product

import numpy as np
import pytest

from tutorial_utils.metric import Metric

HIGHER, LOWER = Metric("auc"), Metric("loss", higher_is_better=False)
SENSELESS = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize(("metric", "best", "worst"), [(HIGHER, 2.0, 1.0), (LOWER, 1.0, 2.0)])
def test_the_direction_decides(metric: Metric, best: float, worst: float) -> None:
    assert metric.better(best, worst) and not metric.better(worst, best)
    assert not metric.better(best, best), "an equal one is not better"
    assert metric.better(np.float32(best), worst)


@pytest.mark.parametrize(("metric", "odd", "score"), [*product((HIGHER, LOWER), SENSELESS, (0.0, -1e300, 1e300))])
def test_what_is_not_finite_never_wins_and_always_loses(metric: Metric, odd: float, score: float) -> None:
    assert metric.better(score, odd)
    assert not metric.better(odd, score)
    assert not any(metric.better(odd, other) for other in SENSELESS)


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        (HIGHER, [0.0, 0.5, 1.0], True),
        (HIGHER, [0.5, math.nan, math.inf], True),
        (HIGHER, [0.5, 1.01], False),
        (HIGHER, [-0.01], False),
        (LOWER, [0.2, 0.5], False),
        (Metric("error", higher_is_better=False, fraction=True), [7.0], True),
        (Metric("r2", fraction=False), [0.5], False),
    ],
)
def test_a_fraction_is_what_lies_in_0_to_1_unless_it_is_said(
    metric: Metric, values: list[float], expected: bool
) -> None:
    assert metric.is_fraction(values) is expected
    assert metric.is_fraction(np.array(values)) == expected, "any iterable"
    assert metric.is_fraction(iter(values)) == expected


@pytest.mark.parametrize(
    ("value", "percent", "text"),
    [
        (0.61349, True, "61.3%"),
        (1.0, True, "100.0%"),
        (np.float32(0.5), True, "50.0%"),
        (0.61349, False, "0.6135"),
        (1234.56, False, "1235"),
        (1e-7, False, "1e-07"),
        (-3, False, "-3"),
        (math.nan, True, "n/a"),
        (math.nan, False, "n/a"),
    ],
)
def test_as_a_reader_sees_it(value: float, percent: bool, text: str) -> None:
    assert HIGHER.format(value, percent) == text


def test_it_can_be_written_down_and_not_be_changed() -> None:
    assert Metric(**asdict(LOWER)) == LOWER != HIGHER
    with pytest.raises(FrozenInstanceError):
        LOWER.higher_is_better = True
