"""Who holds which images: one dataset folder dealt out to sites, each a dataset folder of its own.

shares.py says who gets how much of each class, `split_dataset` writes it. table.py does the same for tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from tutorial_utils._split import holds, make_card, name_folder, name_sites, write_card
from tutorial_utils.errors import PartitionError, TutorialError
from tutorial_utils.folder import SPLITS, Dataset, expand, explained, new_folder, read_dataset, write_dataset
from tutorial_utils.shares import (
    ALPHA,
    KINDS,
    TRIES,
    assign,
    check_settings,
    deal_labels,
    draw_shares,
    draw_sizes,
    parse_alpha,
)
from tutorial_utils.table import count_rows, is_table, split_table

__all__ = ["ALPHA", "assign", "count_labels", "deal_labels", "draw_shares", "draw_sizes", "parse_alpha"]
__all__ += ["split_dataset", "split_table"]


def split_dataset(
    folder: str | Path,
    sites: int | Sequence[str],
    *,
    alpha: float | None = ALPHA,
    labels_per_site: int | None = None,
    quantity_alpha: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    min_images: int = 20,
) -> list[Path]:
    """Deal a dataset folder out to sites, a dataset folder each, named as the site, in `out`; return these.

    The same shares deal out train, valid and test: a site is chosen and tested on its own mix of labels, and
    all sites' tests together are the whole test set. Every site gets at least `min_images` of train, and one
    of valid and of test. The outcome depends on data and arguments (and on numpy's version, which stands in
    split.json, with a hash of who holds what); a split already there stays.

    `sites` is a number (site-1, site-2, ...) or a list of names. A site's images depend on its place in the list,
    not on its name: the first of two names gets what site-1 of 2 gets.

    Name one kind of partition: `alpha` (see draw_shares), `labels_per_site` (deal_labels) or `quantity_alpha`
    (draw_sizes); the last two take the place of alpha's default.

    DataError: no dataset in `folder`. PartitionError: these sites cannot be made, or `out` is in use.
    """
    check_settings(labels_per_site=labels_per_site, quantity_alpha=quantity_alpha)
    check_settings(alpha=alpha, seed=seed, min_images=min_images)
    names = name_sites(sites)
    if alpha == ALPHA and (labels_per_site, quantity_alpha) != (None, None):
        alpha = None
    kinds = {"alpha": alpha, "labels_per_site": labels_per_site, "quantity_alpha": quantity_alpha}
    if sum(value is not None for value in kinds.values()) > 1:
        raise PartitionError(f"{', '.join(kinds)} are three kinds of partition: name one of them.")
    dataset = read_dataset(folder)
    card = {"sites": list(names), "seed": int(seed), "min_images": int(min_images)}
    card |= {name: None if value is None else KINDS[name][0](value) for name, value in kinds.items()}
    card["sha256"] = dataset.sha256
    name = name_folder(dataset.folder.name, names, _kind(card)[2], seed)
    out = expand(out) if out else dataset.folder.with_name(name)
    plan = _plan(dataset, card)
    card = make_card(card, plan)
    if not holds(out, card):
        _write(dataset, plan, out, card)
        holds(out, card)  # another process may have been quicker, with another split
    return [_read_site(out, name, dataset) for name in names]


def count_labels(folders: Sequence[str | Path]) -> pd.DataFrame:
    """Training images (or rows of a table) by label: a row for each folder, named as it, a column for each class.

    The folders are dataset folders, or those that `split_table` makes.
    """
    rows = []
    for folder in map(expand, folders):
        if is_table(folder):
            counts = count_rows(folder)
        else:
            part = read_dataset(folder)
            counts = dict(
                zip(part.classes, np.bincount(part.arrays("train")[1], minlength=len(part.classes)), strict=True)
            )
        rows.append(pd.Series(counts, name=folder.name))
    return pd.DataFrame(rows).fillna(0).astype(int)


def _kind(card: dict) -> tuple[str, float | None, str]:
    """The setting that says how to deal, its value, and both in words."""
    name, value = next(((name, card[name]) for name in KINDS if card[name] is not None), ("alpha", None))
    return name, value, "iid" if value is None else f"{name.split('_')[0]} {value:g}"


def _plan(dataset: Dataset, card: dict) -> dict[str, list[np.ndarray]]:
    """For each of SPLITS the images of each site, from the first draw that leaves no site too small."""
    sites, seed, (kind, value, words) = len(card["sites"]), card["seed"], _kind(card)
    least = {"train": card["min_images"], "valid": 1, "test": 1}
    labels = {split: dataset.arrays(split)[1] for split in SPLITS}
    enough = all(sites * least[split] <= len(labels[split]) for split in SPLITS)
    for attempt in range((1 if value is None else TRIES) if enough else 0):
        shares = KINDS[kind][1](len(dataset.classes), sites, value, (seed, attempt))
        plan = {split: assign(labels[split], shares, (seed, k)) for k, split in enumerate(SPLITS)}
        if all(len(part) >= least[split] for split in SPLITS for part in plan[split]):
            return plan
    wish = f"{card['min_images']} train images, a valid and a test one at each of {sites} sites"
    raise PartitionError(f"No split with {words} leaves {wish}: ask for fewer sites, or sites more alike.")


def _write(dataset: Dataset, plan: dict[str, list[np.ndarray]], out: Path, card: dict) -> None:
    with explained(f"{out} cannot be written", "name another folder"), new_folder(out) as temp:
        arrays = {split: dataset.arrays(split) for split in SPLITS}
        about = {"name": dataset.name, "classes": dataset.classes, "source": dataset.source, "part_of": dataset.sha256}
        for k, name in enumerate(card["sites"]):
            parts = {s: (arrays[s][0][plan[s][k]], arrays[s][1][plan[s][k]]) for s in SPLITS}
            write_dataset(temp / name, parts, **about, site=name)
        write_card(temp, card)


def _read_site(out: Path, name: str, dataset: Dataset) -> Path:
    """The folder of a site, read and verified."""
    try:
        site = read_dataset(out / name)
        if (site.site, site.part_of) != (name, dataset.sha256):
            raise PartitionError(f"{out / name} is a part of other data.")
    except TutorialError as error:
        cause = str(error).rstrip(".")
        raise PartitionError(f"{out} is damaged: delete the whole of it and split again ({cause}).") from error
    return site.folder
