"""What becomes of the sites' updates: tutorial_utils/algorithms/aggregator.py."""

from __future__ import annotations

import numpy as np
import pytest

from tutorial_utils.algorithms.aggregator import settle


@pytest.mark.parametrize(
    "array",
    [
        np.float32([0.1, 0.7, 1e-30]),
        np.float64(0.3),
        np.float16([60000, -60000]),
        np.float32([-np.inf, 0, np.nan]),
        np.array(7, np.int64),
        np.array([True, False]),
    ],
)
def test_what_no_site_changed_stays_as_it_was_to_the_bit(array: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        mean = (array * 3.0 + array * 4.0) * (1 / 7)
    settled = settle(mean, [array, array.copy()])
    assert settled.dtype == array.dtype and settled.shape == array.shape
    assert settled.tobytes() == array.tobytes()


def test_one_site_s_average_is_its_own_weights() -> None:
    own = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    assert not np.array_equal(own * 31.0 * (1 / 31.0), own), "the arithmetic alone would move it"
    assert settle(own * 31.0 * (1 / 31.0), [own]).tobytes() == own.tobytes()


@pytest.mark.parametrize(
    ("arrays", "mean", "expected"),
    [
        ([np.array(2), np.array(5)], np.float64(3.5001), np.array(4)),
        ([np.uint8([0, 255]), np.uint8([3, 255])], np.array([2.9, 255.0]), np.uint8([3, 255])),
        ([np.array([True, True]), np.array([False, True])], np.array([0.4, 1.0]), np.array([False, True])),
        ([np.float16([1, 2]), np.float16([3, 2])], np.float32([2.5, 2]), np.float16([2.5, 2])),
        ([np.float32([1]), np.float32([2])], np.float32([1.25]), np.float32([1.25])),
        ([np.float64(1), np.float64(2)], np.float64(1.25), np.array(1.25)),
    ],
)
def test_a_mean_keeps_the_type_of_what_is_averaged(arrays: list, mean: np.ndarray, expected: np.ndarray) -> None:
    settled = settle(mean, arrays)
    assert settled.dtype == expected.dtype and settled.shape == expected.shape
    np.testing.assert_array_equal(settled, expected)
