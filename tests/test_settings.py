"""The knobs of the series."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, asdict, fields, replace
from typing import Any

import numpy as np
import pytest

from fl.model_learner import CIFAR10ModelLearner
from tutorial_utils.errors import TutorialError
from tutorial_utils.learner import settings_of
from tutorial_utils.settings import FAST, FULL, Settings, Training, current, suited_to


@pytest.mark.parametrize(
    "good",
    [
        {},
        {"epochs": 5, "lr": 1, "batch_size": 1, "momentum": 0, "seed": 0},
        {"lr": np.float32(0.1), "epochs": np.int64(2)},
        {"momentum": 0.999, "seed": 2**32 - 1},
    ],
)
def test_what_makes_sense(good: dict[str, Any]) -> None:
    assert asdict(Training(**good)) == asdict(Training()) | good
    assert Settings(**good).training == Training(**good)


@pytest.mark.parametrize(
    ("name", "values", "wanted"),
    [
        ("epochs", (0, -1, 1.0, True, "1", None, math.nan), "it must be a whole number, 1 or more."),
        ("batch_size", (0, 2.5, False, np.float64(8)), "it must be a whole number, 1 or more."),
        ("seed", (-1, 0.0, "0", None), "it must be a whole number, 0 or more."),
        ("lr", (0, -0.1, math.nan, math.inf, "0.1", True, None, 1j), "it must be a number more than 0."),
        ("momentum", (-3, 1, 1.5, math.nan, "0.9", None), "it must be a number from 0 to less than 1."),
    ],
)
def test_what_makes_none_is_one_sentence(name: str, values: tuple, wanted: str) -> None:
    for value in values:
        for kind in (Training, Settings):
            with pytest.raises(TutorialError) as caught:
                kind(**{name: value})
            assert str(caught.value) == f"{name} is {value!r}: {wanted}"


def test_settings_cannot_be_changed_and_a_copy_is_checked() -> None:
    with pytest.raises(FrozenInstanceError):
        FULL.rounds = 3
    assert replace(FULL, rounds=3).rounds == 3
    with pytest.raises(TutorialError, match="lr is -1"):
        replace(FULL, lr=-1)


@pytest.mark.parametrize(("said", "expected"), [("1", FAST), ("0", FULL), ("", FULL), ("yes", FULL), (None, FULL)])
def test_fast_is_said_by_the_environment(said: str | None, expected: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUTORIAL_FAST", raising=False)
    if said is not None:
        monkeypatch.setenv("TUTORIAL_FAST", said)
    assert current() == expected


def test_fast_needs_no_download_and_the_digits_small_batches() -> None:
    assert FAST.dataset == "digits" and FAST.images is None
    assert FAST.batch_size < FULL.batch_size and FAST.rounds < FULL.rounds


def test_settings_are_suited_to_the_data_that_were_found() -> None:
    digits = suited_to(FULL, "digits")
    assert digits == replace(FULL, dataset="digits", images=None, batch_size=FAST.batch_size)
    assert suited_to(FULL, "cifar10") == replace(FULL, dataset="cifar10")


def test_what_a_training_is_told_is_what_the_learner_takes() -> None:
    """Seven settings, spelt once: each is an argument of the example's learner, with the same default."""
    taken = settings_of(CIFAR10ModelLearner)
    for field in fields(Training):
        assert taken[field.name].default == field.default


def test_a_notebook_shows_them_as_a_short_table() -> None:
    html = replace(FULL, rounds=7)._repr_html_()
    assert html.index("dataset") < html.index("epochs")
    assert '<th scope="row">rounds</th><td>7</td>' in html
    assert all(f">{field.name}</th>" in html for field in fields(Settings)) and html.count("<tr>") == 6
