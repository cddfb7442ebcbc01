"""Who holds which images: one dataset folder dealt out to sites, each a dataset folder of its own.

Every kind of partition is a matrix of shares [classes, sites]: which part of a class's images a site gets.
`assign` turns any such matrix into lists of images, `split_dataset` writes them. A new kind is a new matrix.
"""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import pandas as pd

from tutorial_utils.folder import FORMAT, SPLITS, Dataset, expand, explained, new_folder, read_dataset, write_dataset
from tutorial_utils.settings import TutorialError

TRIES = 1000


class PartitionError(TutorialError):
    """These sites cannot be made of these data; the text says why."""


def parse_alpha(text: str) -> float | None:
    """What a command line takes for alpha: a number, or "iid" (None)."""
    try:
        alpha = None if text.lower() == "iid" else float(text)
        _check(1, alpha)
    except (ValueError, PartitionError) as error:
        raise ArgumentTypeError(f"alpha is {text}: give a number from 1e-6 to 1e6, or iid") from error
    return alpha


def draw_shares(classes: int, sites: int, alpha: float | None, seed: int | Sequence[int]) -> np.ndarray:
    """The part of each class that goes to each site: [classes, sites], rows sum to 1.

    `alpha` is the concentration of a Dirichlet draw for each class (Yurochkin et al. 2019, arXiv:1905.12022):
    at 0.1 the sites hardly share a class, at 100 they are nearly alike. None gives all sites the same (IID).
    """
    _check(sites, alpha)
    if alpha is None:
        return np.full((classes, sites), 1 / sites)
    return _make_rng(seed).dirichlet(np.full(sites, float(alpha)), size=classes)


def assign(labels: np.ndarray, shares: np.ndarray, seed: int | Sequence[int]) -> list[np.ndarray]:
    """For each site the sorted indices of its images; each image is in exactly one site.

    `labels` [N] lie in 0..classes-1. A site's count of a class is its share of it, rounded up or down. What
    rounding takes from a site in one class it gets back in another, so that equal shares make equal sites.
    """
    whole = shares.ndim == 2 and shares.size and (shares >= 0).all() and np.allclose(shares.sum(axis=1), 1)
    if not whole or not np.isin(labels, np.arange(len(shares))).all():
        raise PartitionError("Shares need a row for every label, and every row must sum to 1, without negative ones.")
    rng, sites = _make_rng(seed), [[] for _ in range(shares.shape[1])]
    owed = rng.random(len(sites)) * 1e-6  # who gets the first odd image is left to chance
    for label, share in enumerate(shares):
        images = rng.permutation(np.flatnonzero(labels == label))
        due = share * len(images)
        counts = np.floor(due).astype(int)
        owed += due - counts
        rounded_up = np.argsort(np.where(due > counts, -owed, np.inf), kind="stable")
        rounded_up = rounded_up[: len(images) - counts.sum()]
        counts[rounded_up] += 1
        owed[rounded_up] -= 1
        for site, part in zip(sites, np.split(images, np.cumsum(counts)[:-1]), strict=True):
            site.append(part)
    return [np.sort(np.concatenate(site)) for site in sites]


def split_dataset(
    folder: str | Path,
    sites: int,
    *,
    alpha: float | None = 0.3,
    seed: int = 0,
    out: str | Path | None = None,
    min_images: int = 20,
) -> list[Path]:
    """Deal a dataset folder out to the folders site-1, site-2, ... in `out`, and return these.

    The same shares deal out train, valid and test: a site is chosen and tested on its own mix of labels, and
    all sites' tests together are the whole test set. Every site gets at least `min_images` of train, and one
    of valid and of test. The outcome depends on data and arguments alone; a split already there stays.

    DataError: no dataset in `folder`. PartitionError: these sites cannot be made, or `out` is in use.
    """
    _check(sites, alpha, seed, min_images)
    dataset, alpha = read_dataset(folder), None if alpha is None else float(alpha)
    kind = "iid" if alpha is None else f"alpha-{alpha:g}"
    name = f"{dataset.folder.resolve().name}-{sites}-sites-{kind}-seed-{seed}"
    out = expand(out) if out else dataset.folder.resolve().with_name(name)
    card = {"format": FORMAT, "sites": int(sites), "alpha": alpha}
    card |= {"seed": int(seed), "min_images": int(min_images), "sha256": dataset.sha256}
    if not _holds(out, card):
        _write(dataset, _plan(dataset, card), out, card)
        _holds(out, card)  # another process may have been quicker, with another split
    try:
        return [read_dataset(out / f"site-{k + 1}").folder for k in range(sites)]
    except TutorialError as error:
        cause = str(error).rstrip(".")
        raise PartitionError(f"{out} is damaged: delete the whole of it and split again ({cause}).") from error


def count_labels(folders: Sequence[Path]) -> pd.DataFrame:
    """Training images by label: a row for each dataset folder, a column for each class."""
    rows = {}
    for folder in folders:
        part = read_dataset(folder)
        rows[folder.name] = np.bincount(part.arrays("train")[1], minlength=len(part.classes))
    return pd.DataFrame.from_dict(rows, orient="index", columns=part.classes)


def _check(sites: int, alpha: float | None, seed: int = 0, min_images: int = 1) -> None:
    for name, value, least in (("sites", sites, 1), ("min_images", min_images, 1), ("seed", seed, 0)):
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise PartitionError(f"{name} is {value!r}: it must be a whole number, {least} or more.")
    number = isinstance(alpha, Real) and not isinstance(alpha, bool)
    if alpha is not None and not (number and 1e-6 <= alpha <= 1e6):
        raise PartitionError(f"alpha is {alpha!r}: it must lie in 1e-6..1e6, or be iid (None in Python).")


def _make_rng(seed: int | Sequence[int]) -> np.random.Generator:
    for part in seed if isinstance(seed, (tuple, list)) else (seed,):
        _check(1, None, part)
    return np.random.default_rng(seed)


def _plan(dataset: Dataset, card: dict) -> dict[str, list[np.ndarray]]:
    """For each of SPLITS the images of each site, from the first draw that leaves no site too small."""
    sites, alpha, seed = card["sites"], card["alpha"], card["seed"]
    least = {"train": card["min_images"], "valid": 1, "test": 1}
    labels = {split: dataset.arrays(split)[1] for split in SPLITS}
    enough = all(sites * least[split] <= len(labels[split]) for split in SPLITS)
    for attempt in range((1 if alpha is None else TRIES) if enough else 0):
        shares = draw_shares(len(dataset.classes), sites, alpha, (seed, attempt))
        plan = {split: assign(labels[split], shares, (seed, k)) for k, split in enumerate(SPLITS)}
        if all(len(part) >= least[split] for split in SPLITS for part in plan[split]):
            return plan
    kind = "iid" if alpha is None else f"alpha {alpha:g}"
    wish = f"{card['min_images']} train images, a valid and a test one at each of {sites} sites"
    raise PartitionError(f"No split with {kind} leaves {wish}: ask for fewer sites or a larger alpha.")


def _write(dataset: Dataset, plan: dict[str, list[np.ndarray]], out: Path, card: dict) -> None:
    with explained(f"{out} cannot be written: name another folder"), new_folder(out) as temp:
        arrays = {split: dataset.arrays(split) for split in SPLITS}
        about = {"name": dataset.name, "classes": dataset.classes, "source": dataset.source}
        for k in range(card["sites"]):
            parts = {s: (arrays[s][0][plan[s][k]], arrays[s][1][plan[s][k]]) for s in SPLITS}
            write_dataset(temp / f"site-{k + 1}", parts, **about, site=f"site-{k + 1}")
        (temp / "split.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def _holds(out: Path, card: dict) -> bool:
    """Does `out` hold this very split? False if nothing is there; PartitionError if it is anything else."""
    with explained(f"{out} cannot be used: name another folder"):
        if not out.exists() or not any(out.iterdir()):
            return False
        if not (out / "split.json").is_file():
            raise PartitionError(f"{out} is no split (it has no split.json): name another folder.")
        there = json.loads((out / "split.json").read_bytes())
        other = {key: f"{key} {there.get(key)!r:.20}, not {card[key]}" for key in card if there.get(key) != card[key]}
        other |= {"sha256": "the sha256 of other data"} if "sha256" in other else {}
    if other:
        raise PartitionError(f"{out} holds another split ({'; '.join(other.values())}): name another folder.")
    return True
