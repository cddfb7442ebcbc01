"""What becomes of the sites' updates: tutorial_utils/algorithms/aggregator.py."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.app_constant import AppConstants

from tutorial_utils.algorithms.aggregator import OrderedAggregator, settle


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


class Server:
    """A server with the aggregator, as ScatterAndGather drives it."""

    def __init__(self, kind: str | dict[str, str] = "WEIGHTS", weights: dict[str, np.ndarray] | None = None) -> None:
        self.panics: list[str] = []
        engine = SimpleNamespace(fire_event=self._event)
        self.fl_ctx = FLContextManager(engine, "server", "job", {}, {}).new_context()
        self.aggregator = OrderedAggregator(kind)
        self.aggregator.handle_event(EventType.START_RUN, self.fl_ctx)
        self.start_round(0)
        model = make_model_learnable(weights or {}, {})
        self.fl_ctx.set_prop(AppConstants.GLOBAL_MODEL, model, private=True, sticky=True)

    def _event(self, event: str, fl_ctx: FLContext) -> None:
        if event == EventType.FATAL_SYSTEM_ERROR:
            self.panics.append(fl_ctx.get_prop(FLContextKey.EVENT_DATA))

    def start_round(self, number: int) -> None:
        self.fl_ctx.set_prop(AppConstants.CURRENT_ROUND, number, private=True, sticky=True)

    def send(self, site: str, data: dict[str, Any], steps: float = 1, number: int = 0, kind: str = "WEIGHTS") -> bool:
        update = DXO(kind, data, {MetaKey.NUM_STEPS_CURRENT_ROUND: steps}).to_shareable()
        update.set_peer_props({ReservedKey.IDENTITY_NAME: site})
        update.add_cookie(AppConstants.CONTRIBUTION_ROUND, number)
        return self.aggregator.accept(update, self.fl_ctx)

    def average(self) -> dict[str, np.ndarray]:
        return from_shareable(self.aggregator.aggregate(self.fl_ctx)).data


def test_any_order_of_arrival_gives_the_bits_of_the_order_of_names() -> None:
    """Mutation that must not live: sites that are added as they come."""
    draw = np.random.default_rng(0)
    sent = {f"site-{number}": draw.normal(size=200).astype(np.float32) for number in range(1, 8)}
    steps = {site: int(draw.integers(1, 50)) for site in sent}
    total = sum(steps.values())
    expected = sum((sent[site] * float(steps[site]) for site in sorted(sent)), np.zeros(200, np.float32))
    made = []
    for order in (sorted(sent), sorted(sent, reverse=True), draw.permutation(sorted(sent))):
        server = Server()
        assert all(server.send(str(site), {"w": sent[site]}, steps[site]) for site in order)
        made.append(server.average()["w"].tobytes())
    assert set(made) == {(expected * (1.0 / total)).tobytes()}, "FLARE's arithmetic, to the bit"


def test_a_late_update_is_discarded_with_a_line_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    server.start_round(1)
    with caplog.at_level(logging.WARNING):
        assert server.send("site-1", {"w": np.float32([1])}, number=1)
        assert not server.send("site-2", {"w": np.float32([9])}, number=0)
    assert server.average()["w"] == 1 and server.panics == []
    assert "discarded site-2's update of round 0: it came late, in round 1" in caplog.text


def test_an_update_counts_in_its_own_round_alone() -> None:
    server = Server()
    server.send("site-1", {"w": np.float32([1])})
    server.send("site-2", {"w": np.float32([3])})
    assert server.average()["w"] == 2
    server.start_round(1)
    server.send("site-1", {"w": np.float32([7])}, number=1)
    assert server.average()["w"] == 7 and server.panics == []


def test_an_update_of_another_kind_ends_the_run() -> None:
    server = Server()
    server.send("site-1", {"w": np.float32([1])})
    server.send("site-2", {"w": np.float32([1])}, kind="WEIGHT_DIFF")
    server.average()
    assert server.panics == ["the aggregator refused site-2's update: it expects WEIGHTS"]


def test_what_no_site_sends_stays_as_it_was() -> None:
    norm = np.float32([0.1, 0.2])
    server = Server(weights={"w": np.float32([0]), "norm": norm})
    server.send("site-1", {"w": np.float32([1])}, steps=1)
    server.send("site-2", {"w": np.float32([3])}, steps=3)
    average = server.average()
    assert average["w"] == 2.5 and average["norm"].tobytes() == norm.tobytes()


def test_of_differences_nothing_is_kept() -> None:
    server = Server("WEIGHT_DIFF", {"w": np.float32([5]), "norm": np.float32([5])})
    server.send("site-1", {"w": np.float32([1])}, kind="WEIGHT_DIFF")
    assert set(server.average()) == {"w"}, "the model's own weights are no difference"


def test_a_site_that_made_no_step_weighs_nothing() -> None:
    server = Server()
    server.send("site-1", {"w": np.float32([1]), "mask": np.float32([-np.inf])}, steps=4)
    server.send("site-2", {"w": np.float32([9]), "mask": np.float32([-np.inf])}, steps=0)
    average = server.average()
    assert average["w"] == 1 and np.isneginf(average["mask"]), "0 times minus infinity is no number"


def test_where_no_site_made_a_step_the_run_ends_with_the_reason() -> None:
    server = Server(weights={"w": np.float32([1])})
    server.send("site-1", {"w": np.float32([1])}, steps=0)
    server.average()
    assert len(server.panics) == 1 and "no site made a step" in server.panics[0]


def test_half_precision_is_summed_in_single() -> None:
    server = Server()
    for site, value in (("site-1", 1.0), ("site-2", 1.5)):
        server.send(site, {"w": np.float16([value])}, steps=40_000)
    average = server.average()["w"]
    assert average.dtype == np.float16 and average == 1.25, "80,000 is more than float16 holds"


def test_counters_stay_integers_and_one_site_stays_itself() -> None:
    server = Server()
    own = np.random.default_rng(0).normal(size=100).astype(np.float32)
    server.send("site-1", {"w": own, "batches": np.array(31)}, steps=31)
    average = server.average()
    assert average["batches"].dtype == np.int64 and average["batches"] == 31
    assert average["w"].tobytes() == own.tobytes()
