"""What the card of a split says, split.json: who was dealt what, out of which data, by which numpy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tutorial_utils.errors import PartitionError, TutorialError
from tutorial_utils.folder import explained
from tutorial_utils.sites import check_site_names

FORMAT = 2
CARD = "split.json"
Plan = Mapping[str, Sequence[np.ndarray]]


def name_sites(sites: int | Sequence[str]) -> tuple[str, ...]:
    """The sites' names (see `check_site_names`); PartitionError where they make no sense."""
    try:
        return check_site_names(sites)
    except TutorialError as error:
        raise PartitionError(str(error)) from error


def name_folder(whole: str, names: Sequence[str], how: str, seed: int) -> str:
    """The folder of a split: "digits-2-sites-iid-seed-0", with names "digits-hospital-a+hospital-b-iid-seed-0".

    No name has a "+" in it; where the names are long, their number and a part of their hash stand for them.
    """
    who = f"{len(names)}-sites"
    if tuple(names) != check_site_names(len(names)):
        joined = "+".join(names)
        who = joined if len(joined) <= 60 else f"{who}-{hashlib.sha256(joined.encode()).hexdigest()[:8]}"
    return f"{whole}-{who}-{how.replace(' ', '-')}-seed-{seed}"


def make_card(settings: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The settings of a split and what came of them: `plan` is the hash of who holds what.

    numpy promises no equal random numbers from version to version: the hash tells two splits apart, the version why.
    """
    digest = hashlib.sha256()
    for parts in plan.values():
        for part in parts:
            digest.update(np.concatenate([[len(part)], part]).astype("<i8").tobytes())
    return {"format": FORMAT, **settings, "plan": digest.hexdigest(), "numpy": np.__version__}


def write_card(folder: Path, card: Mapping[str, Any]) -> None:
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def holds(out: Path, card: Mapping[str, Any]) -> bool:
    """Does `out` hold this very split? False if nothing is there; PartitionError if it is anything else."""
    with explained(f"{out} cannot be used", "name another folder"):
        if not out.exists() or not any(out.iterdir()):
            return False
        if not (out / CARD).is_file():
            raise PartitionError(f"{out} is no split (it has no {CARD}): name another folder.")
        there = json.loads((out / CARD).read_bytes())
        if there.get("format") != FORMAT:
            raise PartitionError(f"{out} was dealt by another version: delete the whole of it and split again.")
        other = [key for key in card if key != "numpy" and there.get(key) != card[key]]
    if other == ["plan"] and there.get("numpy") != np.__version__:
        versions = f"numpy {there.get('numpy')!s:.20}, and numpy {np.__version__} deals otherwise"
        raise PartitionError(f"{out} was dealt by {versions}: delete the whole of it, or name another folder.")
    if other:
        raise PartitionError(f"{out} holds another split ({_tell(other, there, card)}): name another folder.")
    return True


def _tell(keys: Iterable[str], there: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """What is there and what was asked for. The hash of the plan tells a reader nothing, and follows from the rest."""
    told = {key: f"{key} {_short(there.get(key))}, not {_short(card[key])}" for key in keys if key != "plan"}
    told |= {"sha256": "the sha256 of other data"} if "sha256" in told else {}
    return "; ".join(told.values()) or "other parts at the same sites"


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else repr(value)
    return text if len(text) <= 40 and text.isprintable() else f"{text[:37]!a}..."
