"""Who holds which rows: one table dealt out to sites, a folder with train.csv, valid.csv and test.csv each."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tutorial_utils._frame import Labels, Sites, Whole, find_groups, find_labels, read_whole
from tutorial_utils._split import holds, make_card, name_folder, name_sites, write_card
from tutorial_utils.errors import DataError, PartitionError, TutorialError
from tutorial_utils.folder import SPLITS, expand, explained, new_folder
from tutorial_utils.shares import ALPHA, TRIES, assign, check_settings, draw_shares

FORMAT = 1
CARD = "table.json"


def split_table(
    table: pd.DataFrame | str | Path,
    sites: Sites = None,
    *,
    label: str | None = None,
    by: str | None = None,
    alpha: float | None = ALPHA,
    valid: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    out: str | Path | None = None,
    min_rows: int = 20,
) -> list[Path]:
    """Deal the rows of a table out to sites, and return their folders, named as the sites, in `out`.

    Each folder holds train.csv, valid.csv, test.csv and the card table.json (see `read_table`). Every row goes to one
    site and one file, where rows keep their order. The outcome depends on table and arguments (and on numpy's version,
    which stands in split.json, with a hash of who holds what); a split already there stays.

    Args:
        table: a pandas frame, or a CSV file with a header, whose texts are passed on as they stand. A frame's index is
            dropped, unless it has a name: then it becomes a column.
        sites: a number or a list of names, as for `split_dataset`. With `by` left out, or a dict of the column's
            values and the site that each goes to ({"Mercy Hospital": "mercy"}).
        label: the column that a net is to learn. Train, valid and test of a site get the same mix of it. Texts and
            whole numbers are classes; other numbers, and whole ones of more than 20 values with fewer than ten rows
            each, are measured: dealt out IID, and mixed by their quarters.
        by: the column that says whose row it is: each of its values is a site, in the order of the alphabet.
        alpha: how much the sites' labels differ (see `draw_shares`), None for IID; for classes alone, and without `by`.
        valid, test: the parts of a site's rows that go there, at least one row each; the others train.
        out: the folder to make. By default it lies beside the CSV file; for a frame it must be named.
        min_rows: the fewest train rows of a site. With `by` it does not count: who has few rows has few.

    PartitionError: these sites cannot be made, or `out` is in use. DataError: the table cannot be read.
    """
    check_settings(alpha=alpha, seed=seed, min_rows=min_rows)
    _check_parts(valid, test)
    whole = read_whole(table)
    labels = find_labels(whole, label)
    if by is not None or label is None or labels.measured:
        if alpha not in (None, ALPHA):
            raise PartitionError("alpha deals out the classes of a label: without these, or with by, leave it out.")
        alpha = None
    names, held = find_groups(whole, by, sites) if by is not None else (name_sites(sites), None)
    card = {"sites": list(names), "label": label, "by": by, "alpha": None if alpha is None else float(alpha)}
    card |= {"seed": int(seed), "valid": float(valid), "test": float(test)}
    card |= {"min_rows": 1 if by is not None else int(min_rows), "sha256": _sha256(_to_csv(whole.text))}
    plan = _plan(labels, held, card)
    out = _place(table, out, card)
    card = make_card(card, plan)
    if not holds(out, card):
        _write(whole, labels, plan, out, card)
        holds(out, card)  # another process may have been quicker, with another split
    return [_read_site(out, name) for name in names]


def read_table(folder: str | Path, dtype: Mapping[str, Any] | None = None) -> dict[str, pd.DataFrame]:
    """The frames {"train": ..., "valid": ..., "test": ...} of a site, each file of it verified by its SHA-256.

    A CSV file knows no types: `dtype` says what pandas may not guess, such as {"zip code": str}. Numbers come back to
    the bit. DataError says what is wrong.
    """
    folder = expand(folder)
    card = read_card(folder)
    with explained(f"{folder} is damaged", "delete it and split again"):
        for split in SPLITS:
            if _sha256((folder / f"{split}.csv").read_bytes()) != card["sha256"][split]:
                raise ValueError(f"{split}.csv is not the file that was written, its SHA-256 differs")
    with explained(f"{folder} cannot be read so", "change dtype"):
        how = {"float_precision": "round_trip", "low_memory": False, "dtype": dtype}
        return {split: pd.read_csv(folder / f"{split}.csv", **how) for split in SPLITS}


def is_table(folder: Path) -> bool:
    return (folder / CARD).is_file()


def read_card(folder: Path) -> dict[str, Any]:
    """table.json of a site's folder: site, columns, label, labels (train rows of each class), counts, sha256."""
    with explained(f"{folder} is damaged", "delete it and split again"):
        if not is_table(folder):
            raise DataError(f"{folder} has no {CARD}: split_table makes such folders.")
        card = json.loads((folder / CARD).read_bytes())
        if card["format"] != FORMAT:
            raise DataError(f"{folder} was made by another version: delete it and split again.")
        for key in ("counts", "sha256"):
            if set(card[key]) != set(SPLITS):
                raise ValueError(f"{CARD} has something else where {key} belong")
        if not all(type(count) is int and count >= 0 for count in [*card["labels"].values(), *card["counts"].values()]):
            raise ValueError(f"{CARD} has something else where a count belongs")
        return card


def count_rows(folder: Path) -> dict[str, int]:
    """The train rows of each class; of each quarter of a label that is measured; of all where there is no label."""
    read_table(folder)
    return read_card(folder)["labels"]


def _check_parts(valid: float, test: float) -> None:
    for name, part in {"valid": valid, "test": test}.items():
        if isinstance(part, bool) or not isinstance(part, Real) or not 0 < part < 1:
            raise PartitionError(f"{name} is {part!r}: it must be a part of the rows, between 0 and 1.")
    if valid + test >= 1:
        raise PartitionError(f"valid is {valid} and test {test}: together they must leave something to train on.")


def _plan(labels: Labels, held: list[np.ndarray] | None, card: dict[str, Any]) -> dict[str, list[np.ndarray]]:
    """For each of SPLITS the rows of each site, from the first draw that leaves no site too small."""
    sites, alpha, least = card["sites"], card["alpha"], card["min_rows"]
    if held is not None:
        for name, rows in zip(sites, held, strict=True):
            if len(rows) < len(SPLITS):
                raise PartitionError(f"{name} has {len(rows)} rows, too few for train, valid and test: leave it out.")
        return _cut(labels, held, card)
    enough = len(sites) * (least + 2) <= len(labels.codes)
    for attempt in range((1 if alpha is None else TRIES) if enough else 0):
        shares = draw_shares(len(labels.names), len(sites), alpha, (card["seed"], attempt))
        held = assign(labels.codes, shares, (card["seed"], 0))
        if all(len(rows) >= least + 2 for rows in held):
            plan = _cut(labels, held, card)
            if all(len(rows) >= least for rows in plan["train"]):
                return plan
    how = "iid" if alpha is None else f"alpha {alpha:g}"
    wish = f"{least} train rows, a valid and a test one at each of {len(sites)} sites"
    raise PartitionError(f"No split with {how} leaves {wish}: ask for fewer sites, or sites more alike.")


def _cut(labels: Labels, held: list[np.ndarray], card: dict[str, Any]) -> dict[str, list[np.ndarray]]:
    """Each site's rows cut into SPLITS, class by class, none of them empty."""
    parts = [1 - card["valid"] - card["test"], card["valid"], card["test"]]
    shares, plan = np.tile(parts, (len(labels.names), 1)), {split: [] for split in SPLITS}
    for site, rows in enumerate(held):
        cut = assign(labels.codes[rows], shares, (card["seed"], 1, site))
        for empty in (k for k in range(len(SPLITS)) if not len(cut[k])):
            most = max(range(len(SPLITS)), key=lambda k: len(cut[k]))
            cut[empty], cut[most] = cut[most][-1:], cut[most][:-1]
        for split, part in zip(SPLITS, cut, strict=True):
            plan[split].append(rows[part])
    return plan


def _place(table: pd.DataFrame | str | Path, out: str | Path | None, card: dict[str, Any]) -> Path:
    if out:
        return expand(out)
    if isinstance(table, pd.DataFrame):
        raise PartitionError("A frame lies in no folder: say where the sites are to be made (out=...).")
    how = "iid" if card["alpha"] is None else f"alpha {card['alpha']:g}"
    if card["by"] is not None:
        how = f"by {re.sub(r'[^A-Za-z0-9_-]+', '-', card['by'])}"
    path = expand(table)
    return path.with_name(name_folder(path.stem, card["sites"], how, card["seed"]))


def _write(whole: Whole, labels: Labels, plan: dict[str, list[np.ndarray]], out: Path, card: dict[str, Any]) -> None:
    with explained(f"{out} cannot be written", "name another folder"), new_folder(out) as temp:
        for k, name in enumerate(card["sites"]):
            (temp / name).mkdir()
            texts = {split: _to_csv(whole.text.iloc[plan[split][k]]) for split in SPLITS}
            for split, text in texts.items():
                (temp / name / f"{split}.csv").write_bytes(text)
            counts = np.bincount(labels.codes[plan["train"][k]], minlength=len(labels.names))
            about = {"format": FORMAT, "site": name, "columns": list(whole.text.columns), "label": card["label"]}
            about |= {"labels": dict(zip(labels.names, counts.tolist(), strict=True))}
            about |= {"counts": {split: len(plan[split][k]) for split in SPLITS}}
            about |= {"sha256": {split: _sha256(text) for split, text in texts.items()}}
            (temp / name / CARD).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        write_card(temp, card)


def _read_site(out: Path, name: str) -> Path:
    """The folder of a site, read and verified."""
    try:
        read_table(out / name)
        if read_card(out / name).get("site") != name:
            raise PartitionError(f"{out / name} is another site's.")
    except TutorialError as error:
        cause = str(error).rstrip(".")
        raise PartitionError(f"{out} is damaged: delete the whole of it and split again ({cause}).") from error
    return out / name


def _to_csv(frame: pd.DataFrame) -> bytes:
    with explained("The table cannot be written as CSV", "mend what is named, or leave it out"):
        return frame.to_csv(index=False, lineterminator="\n").encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
