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

from tutorial_utils.errors import PartitionError, TutorialError
from tutorial_utils.folder import FORMAT, SPLITS, Dataset, expand, explained, new_folder, read_dataset, write_dataset

TRIES = 1000
ALPHA = 0.3


def parse_alpha(text: str) -> float | None:
    """What a command line takes for alpha: a number, or "iid" (None)."""
    try:
        alpha = None if text.lower() == "iid" else float(text)
        _check(alpha=alpha)
    except (ValueError, PartitionError) as error:
        raise ArgumentTypeError(f"alpha is {text}: give a number from 1e-6 to 1e6, or iid") from error
    return alpha


def draw_shares(classes: int, sites: int, alpha: float | None, seed: int | Sequence[int]) -> np.ndarray:
    """The part of each class that goes to each site: [classes, sites], rows sum to 1.

    `alpha` is the concentration of a Dirichlet draw for each class (Yurochkin et al. 2019, arXiv:1905.12022):
    at 0.1 the sites hardly share a class, at 100 they are nearly alike. None gives all sites the same (IID).
    """
    _check(sites=sites, alpha=alpha)
    if alpha is None:
        return np.full((classes, sites), 1 / sites)
    return _make_rng(seed).dirichlet(np.full(sites, float(alpha)), size=classes)


def deal_labels(classes: int, sites: int, labels_per_site: int, seed: int | Sequence[int]) -> np.ndarray:
    """Shares [classes, sites] where each site holds so many labels, chosen by chance, and no other.

    The sites that hold a label get equal parts of it, and every label is held as often as any other, or once more
    (Li et al. 2022, arXiv:2102.02079, draw them without this). PartitionError if some label would go nowhere.
    """
    _check(sites=sites, labels_per_site=labels_per_site)
    if not (least := -(-classes // sites)) <= labels_per_site <= classes:
        raise PartitionError(f"{sites} sites and {classes} labels: labels_per_site must lie in {least}..{classes}.")
    rng, held = _make_rng(seed), np.zeros((classes, sites))
    for site in range(sites):
        rarest = np.lexsort((rng.random(classes), held.sum(axis=1)))  # ties are broken by chance
        held[rarest[:labels_per_site], site] = 1
    return held / held.sum(axis=1, keepdims=True)


def draw_sizes(classes: int, sites: int, alpha: float, seed: int | Sequence[int]) -> np.ndarray:
    """Shares [classes, sites] of sites that differ in size and have the same mix of labels.

    The sizes are one Dirichlet draw with the concentration `alpha`: small, and one site has nearly all.
    """
    return np.tile(draw_shares(1, sites, alpha, seed), (classes, 1))


# the settings of which one says how to deal: what the value is, and what makes the matrix of it
KINDS = {"alpha": (float, draw_shares), "labels_per_site": (int, deal_labels), "quantity_alpha": (float, draw_sizes)}


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
    alpha: float | None = ALPHA,
    labels_per_site: int | None = None,
    quantity_alpha: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    min_images: int = 20,
) -> list[Path]:
    """Deal a dataset folder out to the folders site-1, site-2, ... in `out`, and return these.

    The same shares deal out train, valid and test: a site is chosen and tested on its own mix of labels, and
    all sites' tests together are the whole test set. Every site gets at least `min_images` of train, and one
    of valid and of test. The outcome depends on data and arguments alone; a split already there stays.

    Name one kind of partition: `alpha` (see draw_shares), `labels_per_site` (deal_labels) or `quantity_alpha`
    (draw_sizes); the last two take the place of alpha's default.

    DataError: no dataset in `folder`. PartitionError: these sites cannot be made, or `out` is in use.
    """
    _check(labels_per_site=labels_per_site, quantity_alpha=quantity_alpha)
    _check(sites=sites, alpha=alpha, seed=seed, min_images=min_images)
    if alpha == ALPHA and (labels_per_site, quantity_alpha) != (None, None):
        alpha = None
    kinds = {"alpha": alpha, "labels_per_site": labels_per_site, "quantity_alpha": quantity_alpha}
    if sum(value is not None for value in kinds.values()) > 1:
        raise PartitionError(f"{', '.join(kinds)} are three kinds of partition: name one of them.")
    dataset = read_dataset(folder)
    card = {"format": FORMAT, "sites": int(sites), "seed": int(seed), "min_images": int(min_images)}
    card |= {name: None if value is None else KINDS[name][0](value) for name, value in kinds.items()}
    card["sha256"] = dataset.sha256
    name = f"{dataset.folder.resolve().name}-{sites}-sites-{_kind(card)[2].replace(' ', '-')}-seed-{seed}"
    out = expand(out) if out else dataset.folder.resolve().with_name(name)
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


def _check(**settings: object) -> None:
    """PartitionError for the first setting that makes no sense: an alpha is a number, all others count something."""
    for name, value in settings.items():
        real, least = name.endswith("alpha"), int(name != "seed")
        fits = isinstance(value, Real if real else Integral) and not isinstance(value, bool)
        if not (fits and (1e-6 <= value <= 1e6 if real else value >= least)) and not (value is None and name in KINDS):
            wanted = "lie in 1e-6..1e6, or be iid (None in Python)" if real else f"be a whole number, {least} or more"
            raise PartitionError(f"{name} is {value!r}: it must {wanted}.")


def _make_rng(seed: int | Sequence[int]) -> np.random.Generator:
    for part in seed if isinstance(seed, (tuple, list)) else (seed,):
        _check(seed=part)
    return np.random.default_rng(seed)


def _kind(card: dict) -> tuple[str, float | None, str]:
    """The setting that says how to deal, its value, and both in words."""
    name, value = next(((name, card[name]) for name in KINDS if card[name] is not None), ("alpha", None))
    return name, value, "iid" if value is None else f"{name.split('_')[0]} {value:g}"


def _plan(dataset: Dataset, card: dict) -> dict[str, list[np.ndarray]]:
    """For each of SPLITS the images of each site, from the first draw that leaves no site too small."""
    sites, seed, (kind, value, words) = card["sites"], card["seed"], _kind(card)
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
