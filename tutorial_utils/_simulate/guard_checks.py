"""May what a site has sent be averaged? What the guard asks of every update.

This file ships with the job. It imports numpy and nvflare alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.app_common.app_constant import AppConstants

KEPT_LOCAL = "kept_local"  # in an update's meta: the names that its learner keeps at home
MOST_NAMES = 5
CIPHER = "CKKSVector"  # TenSEAL's class: what FLARE's HEModelEncryptor (nvflare 2.9.0) makes of an entry


def find_fault(
    update: Mapping[str, Any] | None,
    shapes: Mapping[str, Sequence[int]],
    sent: Mapping[str, Any] | None = None,
    may_lack: Collection[str] = (),
) -> str | None:
    """What is wrong with weights (or differences) that should have these names and shapes, None if nothing is.

    Args:
        sent: the weights that the site received: what was not finite there may come back as it was. None: all
            must be finite.
        may_lack: names of what may stay at the site.
    """
    if not isinstance(update, Mapping) or (shapes and not update):
        return "it holds no weights"
    if lack := sorted(name for name in shapes if name not in update and name not in may_lack):
        return f"it lacks {_list(lack)}"
    if extra := sorted(str(name) for name in update if name not in shapes):
        return f"it has {_list(extra)}, which the model does not have"
    faults = (_look_at(name, value, shapes[name], (sent or {}).get(name)) for name, value in update.items())
    return next(filter(None, faults), None)


def find_fault_of_update(
    update: DXO,
    parts: Collection[str],
    shapes: Mapping[str, Sequence[int]],
    sent: Mapping[str, Any],
    filtered: Sequence[str] = (),
) -> str | None:
    """What is wrong with all that a site has sent, None if nothing is.

    Args:
        parts: names of the parts that the aggregator expects (weights, and SCAFFOLD's controls, say); none: one.
        shapes, sent: of the global model that the site has received; no shapes where the server has none yet.
        filtered: regular expressions for what a filter of the job may take out.
    """
    if fault := _look_at_weight(update.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND, 1.0)):
        return fault
    at_home = set(update.get_meta_prop(KEPT_LOCAL) or ())
    if not shapes and not parts:
        shapes = shapes_of(update.data)
    may_lack = at_home | {name for name in shapes for pattern in filtered if re.search(pattern, name)}
    for name, part in ({name: update.data.get(name) for name in parts} or {"": update}).items():
        data, kind = (part.data, part.data_kind) if isinstance(part, DXO) else (None, None)
        if leak := sorted(at_home & set(data or ())):
            fault = f"it holds {leak[0]}, which its learner says stays at home (kept_local)"
        elif name in ("", AppConstants.MODEL_WEIGHTS) or not data:
            fault = find_fault(data, shapes, sent if kind == DataKind.WEIGHTS else None, may_lack)
        else:  # no controls for what is not trained
            fault = find_fault(data, {key: shapes[key] for key in data if key in shapes})
        if fault:
            return f"in {name}, {fault}" if name else fault
    return None


def shapes_of(weights: Mapping[str, Any]) -> dict[str, list[int]]:
    """As JSON keeps them."""
    return {name: list(np.shape(value)) for name, value in weights.items()}


def find_absent(update: DXO, parts: Collection[str], shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """The names of the model that a good update leaves out."""
    whole = update.data[AppConstants.MODEL_WEIGHTS] if AppConstants.MODEL_WEIGHTS in parts else update
    return set(shapes) - set(whole.data)


def find_infinite(weights: Mapping[str, Any]) -> list[str]:
    """The names of what is not finite throughout."""
    arrays = ((name, np.asarray(value)) for name, value in weights.items())
    return [name for name, array in arrays if array.dtype.kind == "f" and not np.isfinite(array).all()]


def find_unreported(metric: str, place: str, reports: Sequence[Mapping[str, Any]]) -> str | None:
    """What is wrong where no update reports the metric by which models are chosen, in this place of its meta."""
    told = [report.get(place) for report in reports if report.get(place) is not None]
    names = {name for one in told for name in (one if isinstance(one, Mapping) else [metric])}
    if metric in names:
        return None
    them = f"they report {_list(sorted(map(str, names)))}" if names else "they report no metric"
    return f"no site reports {metric}, by which the best model is chosen: {them}"


def tells(metrics: object) -> bool:
    """Does FLARE note anything of these metrics? Numbers that are not finite it leaves out."""
    values = metrics.values() if isinstance(metrics, Mapping) else ()
    return any(isinstance(value, (str, bool)) or math.isfinite(_as_float(value)) for value in values)


def _look_at(name: str, value: Any, shape: Sequence[int], sent: object) -> str | None:  # noqa: ANN401
    if type(value).__name__ == CIPHER:  # nobody here can see more of it than how many numbers it holds
        wanted = math.prod(shape)
        return None if value.size() == wanted else f"{name} holds {value.size()} encrypted numbers instead of {wanted}"
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        kind = getattr(value, "dtype", type(value).__name__)
        return f"{name} holds {kind}, which numpy does not know: send it as float32"
    if array.shape != tuple(shape):
        return f"{name} has the shape {array.shape} instead of {tuple(shape)}"
    if array.dtype.kind not in "fiub":
        return f"{name} holds {array.dtype}, and no numbers that can be averaged"
    odd = ~np.isfinite(array)
    as_sent = sent is not None and np.array_equal(array[odd], np.asarray(sent)[odd], equal_nan=True)
    return f"{name} holds numbers that are not finite" if odd.any() and not as_sent else None


def _look_at_weight(weight: object) -> str | None:
    fits = 0 <= _as_float(weight) < math.inf
    return None if fits else f"it weighs {weight!r:.40} in the average, which must be a number, 0 or more"


def _as_float(value: Any) -> float:  # noqa: ANN401
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
