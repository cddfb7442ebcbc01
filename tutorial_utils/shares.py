"""Who gets how much: every kind of partition is a matrix of shares [classes, sites].

A share is the part of a class's images (or rows) that a site gets. `assign` turns any such matrix into lists of
images. A new kind of partition is a new matrix, and a line in KINDS.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np

from tutorial_utils.errors import PartitionError

TRIES = 1000  # draws after which a split is given up
ALPHA = 0.3


def parse_alpha(text: str) -> float | None:
    """What a command line takes for alpha: a number, or "iid" (None)."""
    try:
        alpha = None if text.lower() == "iid" else float(text)
        check_settings(alpha=alpha)
    except (ValueError, PartitionError) as error:
        raise ArgumentTypeError(f"alpha is {text}: give a number from 1e-6 to 1e6, or iid") from error
    return alpha


def draw_shares(classes: int, sites: int, alpha: float | None, seed: int | Sequence[int]) -> np.ndarray:
    """The part of each class that goes to each site: [classes, sites], rows sum to 1.

    `alpha` is the concentration of a Dirichlet draw for each class (Yurochkin et al. 2019, arXiv:1905.12022):
    at 0.1 the sites hardly share a class, at 100 they are nearly alike. None gives all sites the same (IID).
    """
    check_settings(sites=sites, alpha=alpha)
    if alpha is None:
        return np.full((classes, sites), 1 / sites)
    return make_rng(seed).dirichlet(np.full(sites, float(alpha)), size=classes)


def deal_labels(classes: int, sites: int, labels_per_site: int, seed: int | Sequence[int]) -> np.ndarray:
    """Shares [classes, sites] where each site holds so many labels, chosen by chance, and no other.

    The sites that hold a label get equal parts of it, and every label is held as often as any other, or once more
    (Li et al. 2022, arXiv:2102.02079, draw them without this). PartitionError if some label would go nowhere.
    """
    check_settings(sites=sites, labels_per_site=labels_per_site)
    if not (least := -(-classes // sites)) <= labels_per_site <= classes:
        raise PartitionError(f"{sites} sites and {classes} labels: labels_per_site must lie in {least}..{classes}.")
    rng, held = make_rng(seed), np.zeros((classes, sites))
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
    rng, sites = make_rng(seed), [[] for _ in range(shares.shape[1])]
    # What rounding owes each site: nothing yet. Less than a millionth of an image, drawn by chance, decides between
    # sites that are owed the same, or the first of them would get every odd image.
    owed = rng.random(len(sites)) * 1e-6
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


def check_settings(**settings: object) -> None:
    """PartitionError for the first setting that makes no sense: an alpha is a number, all others count something."""
    for name, value in settings.items():
        real, least = name.endswith("alpha"), int(name != "seed")
        fits = isinstance(value, Real if real else Integral) and not isinstance(value, bool)
        if not (fits and (1e-6 <= value <= 1e6 if real else value >= least)) and not (value is None and name in KINDS):
            wanted = "lie in 1e-6..1e6, or be iid (None in Python)" if real else f"be a whole number, {least} or more"
            raise PartitionError(f"{name} is {value!r}: it must {wanted}.")


def make_rng(seed: int | Sequence[int]) -> np.random.Generator:
    """numpy's generator; PartitionError for a seed that is no whole number."""
    for part in seed if isinstance(seed, (tuple, list)) else (seed,):
        check_settings(seed=part)
    return np.random.default_rng(seed)
