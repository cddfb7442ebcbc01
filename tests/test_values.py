"""What may travel, and what may be kept."""

from __future__ import annotations

import math
from collections import OrderedDict, namedtuple
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tutorial_utils.values import LearnerError, as_number, match_names, plain, to_numpy


def test_arrays_are_copies_of_their_own() -> None:
    """Mutation that must not live: an update that changes while the net trains on."""
    net = nn.Linear(2, 1)
    arrays = to_numpy(net.state_dict())
    before = arrays["weight"].copy()
    with torch.no_grad():
        net.weight += 1
    np.testing.assert_array_equal(arrays["weight"], before)
    arrays["bias"] += 1
    assert not np.array_equal(net.bias.detach().numpy(), arrays["bias"])


@pytest.mark.parametrize("kind", ["float64", "float16", "int64", "uint8", "bool", "complex64"])
def test_arrays_keep_types_and_shapes(kind: str) -> None:
    state = {"0-d": torch.ones(()), "empty": torch.ones(0, 3), "whole": torch.ones(2, 3)}
    arrays = to_numpy({name: value.to(getattr(torch, kind)) for name, value in state.items()})
    assert [(str(value.dtype), value.shape) for value in arrays.values()] == [
        (kind, ()),
        (kind, (0, 3)),
        (kind, (2, 3)),
    ]
    assert all(isinstance(value, np.ndarray) for value in arrays.values())


def test_bfloat16_travels_as_float32_which_holds_it_exactly() -> None:
    weights = torch.randn(100, generator=torch.Generator().manual_seed(0)).bfloat16()
    (array,) = to_numpy({"w": weights}).values()
    assert array.dtype == np.float32
    assert torch.equal(torch.from_numpy(array).bfloat16(), weights)


def test_what_is_no_array_is_named() -> None:
    class Counting(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 1}

    with pytest.raises(LearnerError, match=r"^_extra_state in the net's state dict is a dict, and only arrays travel"):
        to_numpy(Counting(1, 1).state_dict())


@pytest.mark.parametrize(
    "value",
    [3, True, np.float64(3), np.int8(3), np.array(3.0), torch.tensor(3), torch.tensor([3.0])],
)
def test_a_number_of_any_library(value: object) -> None:
    number = as_number("loss", value)
    assert type(number) is float and number == float(value)


def test_nan_and_infinity_are_numbers() -> None:
    assert math.isnan(as_number("loss", torch.tensor(math.nan)))
    assert as_number("loss", -math.inf) == -math.inf


@pytest.mark.parametrize(
    "value",
    ["0.5", "", None, [1], {}, 1j, np.ones(2), torch.ones(2), np.str_("1"), b"1", object(), 10**400, print],
    ids=lambda value: f"{value!r:.12}",
)
def test_what_is_no_number(value: object) -> None:
    with pytest.raises(LearnerError, match=r"^loss is .*, where a number belongs\.$") as caught:
        as_number("loss", value)
    assert len(str(caught.value)) < 120


class Level(IntEnum):
    LOW = 1


class Mode(str, Enum):
    TRAIN = "train"


Pair = namedtuple("Pair", "a b")

KEPT: list[tuple[Any, Any]] = [
    (1, 1),
    (None, None),
    (True, True),
    ("text", "text"),
    (math.inf, math.inf),
    (np.float64(0.5), 0.5),
    (np.int32(2), 2),
    (np.bool_(True), True),
    (np.str_("text"), "text"),
    (Level.LOW, 1),
    (Mode.TRAIN, "train"),
    ([1, (2, [np.int8(3)])], [1, (2, [3])]),
    (Pair(1, np.float32(2)), (1, 2.0)),
    (OrderedDict(a={np.int64(1): 2}), {"a": {1: 2}}),
]


@pytest.mark.parametrize(("value", "expected"), KEPT)
def test_a_state_comes_back_as_it_was(value: object, expected: object, tmp_path: Path) -> None:
    torch.save(plain(value, "key"), tmp_path / "state.pt")
    found = torch.load(tmp_path / "state.pt", weights_only=True)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.LBFGS])
def test_an_optimizer_and_its_schedule_come_back(kind: type[torch.optim.Optimizer], tmp_path: Path) -> None:
    net = nn.Linear(2, 1)
    optimizer = kind(net.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = net(torch.ones(1, 2)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    schedule.step()
    state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    torch.save(plain(state, "key"), tmp_path / "state.pt")
    found = torch.load(tmp_path / "state.pt", weights_only=True)
    assert str(found["schedule"]) == str(state["schedule"])
    assert str(found["optimizer"]) == str(state["optimizer"])
    kind(net.parameters()).load_state_dict(found["optimizer"])


def test_tensors_are_copies_without_a_graph() -> None:
    net = nn.Linear(2, 1)
    kept = plain({"w": [net.weight]}, "key")["w"][0]
    assert type(kept) is torch.Tensor and not kept.requires_grad
    before = kept.clone()
    with torch.no_grad():
        net.weight += 1
    assert torch.equal(kept, before)


@pytest.mark.parametrize(
    "value",
    [{1}, np.ones(2), nn.Linear(1, 1), object(), [[{"a": {2}}]], print, 1j, b"bytes", np.datetime64("2025-01-01")],
)
def test_what_cannot_be_kept_is_named(value: object) -> None:
    with pytest.raises(LearnerError, match=r"^state\['key'\] holds an? \w+: keep numbers, texts, tensors, lists"):
        plain(value, "key")


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        ((), []),
        (("norm.*",), ["norm.weight", "norm.bias"]),
        ("norm.*", ["norm.weight", "norm.bias"]),  # a comma that was forgotten
        (["*.bias", "norm.bias"], ["norm.bias", "head.bias"]),
        ("head.bias", ["head.bias"]),
    ],
)
def test_patterns_name_what_they_match_in_the_net_s_order(patterns: str | tuple[str, ...], found: list[str]) -> None:
    assert match_names(["norm.weight", "norm.bias", "head.bias"], patterns) == found


@pytest.mark.parametrize("patterns", ["norm", ("norm.*", "Head.*"), ("",)])
def test_a_pattern_that_matches_nothing_is_a_sentence(patterns: str | tuple[str, ...]) -> None:
    with pytest.raises(LearnerError, match=r"^keep_local names '.*', and the net has only norm\.weight, head\.bias\.$"):
        match_names(["norm.weight", "head.bias"], patterns)
