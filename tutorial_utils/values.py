"""What may travel, and what may be kept: numbers and arrays, of whatever library they come from.

This file ships with every job, and imports numpy and torch alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from fnmatch import fnmatch

import numpy as np
import torch
from torch import Tensor


class LearnerError(Exception):
    """A learner was asked for something that it cannot do. The text says what to do instead."""


def to_numpy(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Weights as numpy arrays, copies of their own: FLARE exchanges these, and adds them in one fixed way.

    numpy knows no bfloat16: such weights travel as float32, which holds each of them exactly. LearnerError names an
    entry that is no tensor (a module's extra state): only arrays travel.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise LearnerError(
                f"{name} in the net's state dict is a {kind}, and only arrays travel: leave it out of it."
            )
    whole = {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in state.items()}
    return {name: value.detach().cpu().numpy().copy() for name, value in whole.items()}


def match_names(names: Iterable[str], patterns: str | Sequence[str]) -> list[str]:
    """Those of the names that one of the patterns matches. LearnerError for a pattern that matches none."""
    names, patterns = list(names), [patterns] if isinstance(patterns, str) else patterns
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise LearnerError(f"keep_local names {pattern!r}, and the net has only {', '.join(names)}.")
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]


def as_number(what: str, value: object) -> float:
    """Anything that float() takes but a text: a number of Python, numpy or torch."""
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise LearnerError(f"{what} is {value!r:.60}, where a number belongs.") from None


def plain(value: object, where: str) -> object:
    """A value of `state` as torch can save and safely load it. LearnerError for what it could not."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, (np.generic, Enum)):
        value = value.item() if isinstance(value, np.generic) else value.value
    if value is None or type(value) in (bool, int, float, str):
        return value
    for kind in (list, tuple):
        if isinstance(value, kind):
            return kind(plain(one, where) for one in value)
    if isinstance(value, Mapping):
        return {plain(key, where): plain(one, where) for key, one in value.items()}
    kind = type(value).__name__
    raise LearnerError(
        f"state[{where!r}] holds a {kind}: keep numbers, texts, tensors, lists and dicts (state_dict() helps)."
    )
