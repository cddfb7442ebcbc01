"""What leaves a site: cut, noised, or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_constant import ReturnCode
from nvflare.app_common.filters.exclude_vars import ExcludeVars
from nvflare.app_common.filters.svt_privacy import SVTPrivacy

from tutorial_utils.filters import ClipAndNoise, norm, weights_in
from tutorial_utils.privacy import compare_updates, difference, pass_through
from tutorial_utils.values import LearnerError

RECEIVED = {"a": np.float32([[0.1, -0.2], [3.0, 1e-3]]), "b": np.float32([1.0]), "n": np.array(7)}
# of length 5: 3 in a, 4 in b
SENT = {"a": RECEIVED["a"] + np.float32([[3, 0], [0, 0]]), "b": np.float32([5.0]), "n": np.array(9)}


def leave(*filters: Any, sent: dict[str, np.ndarray] = SENT, **more: Any) -> dict[str, np.ndarray]:
    return pass_through(filters, RECEIVED, sent, **more)[0]


def moved(left: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: left[name].astype(float) - RECEIVED[name] for name in ("a", "b")}


@pytest.mark.parametrize("one", [ClipAndNoise(), ClipAndNoise(clip=1e3), ClipAndNoise(clip=1e9)])
def test_nothing_to_cut_and_no_noise_are_the_very_bits(one: ClipAndNoise) -> None:
    """A difference that is taken and added again in float32 would not be."""
    rng = np.random.default_rng(0)
    received = {"a": rng.normal(size=500).astype(np.float32)}
    sent = {"a": rng.normal(scale=1e-3, size=500).astype(np.float32)}
    assert ((sent["a"] - received["a"]) + received["a"]).tobytes() != sent["a"].tobytes()
    left, _ = pass_through([one], received, sent)
    assert left["a"].tobytes() == sent["a"].tobytes() and left["a"].dtype == np.float32


def test_an_update_that_is_too_long_is_shortened_and_keeps_its_direction() -> None:
    left = leave(ClipAndNoise(clip=1.0))
    assert norm(moved(left)) == pytest.approx(1.0, rel=1e-5)
    np.testing.assert_allclose(moved(left)["a"], [[0.6, 0], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(moved(left)["b"], [0.8], atol=1e-6)
    assert left["a"].dtype == np.float32


def test_whole_numbers_are_no_weights() -> None:
    left = leave(ClipAndNoise(clip=1.0, noise=100.0, seed=0))
    assert left["n"] == 9 and left["n"].dtype == SENT["n"].dtype


@pytest.mark.parametrize("differences", [False, True])
def test_noise_has_the_spread_that_was_asked_for(differences: bool) -> None:
    received = {"a": np.zeros(40_000, np.float32)}
    sent = {"a": np.zeros(40_000, np.float32)}
    left, _ = pass_through([ClipAndNoise(clip=2.0, noise=1.5, seed=1)], received, sent, differences=differences)
    assert left["a"].std() == pytest.approx(3.0, rel=0.02) and abs(left["a"].mean()) < 0.06


def test_a_seed_makes_the_noise_a_function_of_seed_site_and_round() -> None:
    def drawn(seed: int | None, site: str = "site-1", round_number: int = 0) -> bytes:
        return leave(ClipAndNoise(1.0, 1.0, seed=seed), site=site, round_number=round_number)["a"].tobytes()

    assert drawn(0) == drawn(0)
    assert len({drawn(0), drawn(1), drawn(0, "site-2"), drawn(0, round_number=1), drawn(0, "site-11")}) == 5


def test_without_a_seed_no_two_draws_are_alike() -> None:
    one = ClipAndNoise(1.0, 1.0)
    assert leave(one)["a"].tobytes() != leave(one)["a"].tobytes()


def test_differences_are_cut_as_they_come() -> None:
    left = leave(ClipAndNoise(clip=1.0), differences=True)
    assert norm(moved(left)) == pytest.approx(1.0, rel=1e-5)


def test_what_did_not_come_in_does_not_leave() -> None:
    """A site's own best model, say: it is no answer to weights."""
    one = ClipAndNoise(clip=1.0)
    with pytest.raises(LearnerError, match="did not come in with this task"):
        pass_through([one], {}, SENT)
    pass_through([one], RECEIVED, SENT)
    with pytest.raises(LearnerError, match="did not come in"):  # and not with what an earlier task brought
        pass_through([one], {}, SENT)


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_what_is_not_finite_does_not_leave(odd: float) -> None:
    with pytest.raises(LearnerError, match="not finite"):
        leave(ClipAndNoise(clip=1.0), sent=SENT | {"b": np.float32([odd])})


def test_an_error_of_the_learner_passes_as_it_is() -> None:
    answer = DXO(DataKind.WEIGHTS, data=SENT).to_shareable()
    answer.set_return_code(ReturnCode.EXECUTION_EXCEPTION)
    assert ClipAndNoise(1.0).process(answer, None) is answer


def test_a_learner_may_write_into_what_it_was_handed() -> None:
    task = DXO(DataKind.WEIGHTS, data={"a": np.zeros(3)}).to_shareable()
    kept = weights_in(task)
    task["DXO"]["data"]["a"][:] = 5 if "DXO" in task else 0
    assert not kept["a"].any()


@pytest.mark.parametrize("parts", [None, DXO(DataKind.METRICS, data={"x": 1.0}).to_shareable()])
def test_a_task_may_have_no_weights(parts: Any) -> None:
    assert weights_in(parts) == {}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"clip": 0}, "clip is 0: it must be a number above 0"),
        ({"clip": float("inf")}, "or None for updates of any length"),
        ({"clip": "1"}, "clip is '1'"),
        ({"clip": 1.0, "noise": -1}, "noise is -1: it must be a number, 0 or more."),
        ({"clip": 1.0, "noise": float("nan")}, "noise is nan"),
        ({"noise": 1.0}, "noise is 1.0 without a clip"),
        ({"clip": True}, "clip is True"),
    ],
)
def test_settings_that_make_no_sense(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(LearnerError) as caught:
        ClipAndNoise(**arguments)
    assert said in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_flare_s_svt_keeps_no_direction_and_notes_an_epsilon_of_hundreds() -> None:
    """What notebook 12 says of it; a FLARE that mends it wants another sentence there."""
    rng = np.random.default_rng(0)
    received = {"a": np.zeros(50_000, np.float32)}
    sent = {"a": rng.normal(scale=1e-2, size=50_000).astype(np.float32)}
    np.random.seed(0)
    left, noted = pass_through([SVTPrivacy()], received, sent, steps=70, differences=True)
    found = compare_updates(difference(sent, received), difference(left, received))
    assert abs(found["cosine"]) < 0.05 and 0.05 < found["moved"] < 0.11
    assert noted["svt_privacy_budget"]["epsilon_total"] > 100


def test_what_a_filter_takes_out_is_not_there() -> None:
    assert set(leave(ExcludeVars(["a"]))) == {"b", "n"}
