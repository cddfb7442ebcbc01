"""NIID-Bench's data: its own draws of who holds what (partition.py of its repository), and what scores the models.

A draw is a matrix of shares [classes, sites], as in tutorial_utils.shares. Its two differ from the series' own: a site
that holds more than an equal part gets nothing of the classes that follow, and a label may have one holder or many.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tutorial_utils.data import Dataset, write_dataset
from tutorial_utils.partition import assign

SITES, LEAST = 10, 10  # images
HELD_OUT = ("valid", "test")  # nobody trains on them
THEIR_COUNTS = np.full(10, 5000)  # of each class; they keep no images back


def draw_iid(counts: np.ndarray, sites: int, rng: np.random.Generator) -> np.ndarray:
    return np.full((len(counts), sites), 1 / sites)


def draw_dirichlet(
    counts: np.ndarray,
    sites: int,
    rng: np.random.Generator | np.random.RandomState,
    alpha: float = 0.5,
    shuffled: bool = False,
) -> np.ndarray:
    """Dirichlet shares of each class; a site with an equal part already is passed over. Drawn until all have 10.

    `shuffled` spends random numbers on the order of each class's images first, as theirs do: so their draws come again.
    """
    while True:
        shares, held = np.zeros((len(counts), sites)), np.zeros(sites)
        for label, count in enumerate(counts):
            if shuffled:
                rng.shuffle(np.arange(count))
            drawn = rng.dirichlet(np.full(sites, alpha)) * (held < counts.sum() / sites)
            shares[label] = drawn / drawn.sum()
            held += shares[label] * count
        if held.min() >= LEAST:
            return shares


def draw_as_flower(counts: np.ndarray, sites: int, rng: np.random.Generator) -> np.ndarray:
    """The one draw that all of Flower's figures at Dirichlet 0.5 are from, whatever `rng`: its dataset_seed is 42."""
    return draw_dirichlet(THEIR_COUNTS, sites, np.random.default_rng(42), shuffled=True)


def draw_as_niid_bench(counts: np.ndarray, sites: int, rng: np.random.Generator) -> np.ndarray:
    """What NIID-Bench's program draws unless told otherwise, whatever `rng`: its init_seed is 0."""
    return draw_dirichlet(THEIR_COUNTS, sites, np.random.RandomState(0), shuffled=True)


def skew(shares: np.ndarray) -> float:
    """What part of a site's images stands in the way of everyone's mix: 0 for sites alike, the mean over all images.

    The total variation distance of the site's labels from everyone's; classes of equal size.
    """
    sizes = shares.sum(axis=0)
    return float((np.abs(shares - sizes / len(shares)).sum(axis=0) / 2).sum() / sizes.sum())


def draw_two_labels(counts: np.ndarray, sites: int, rng: np.random.Generator) -> np.ndarray:
    """Site k holds label k and one more, chosen by chance; who holds a label gets an equal part of it."""
    labels = len(counts)
    held = np.zeros((labels, sites))
    for site in range(sites):
        own = site % labels
        held[[own, rng.choice([label for label in range(labels) if label != own])], site] = 1
    return held / held.sum(axis=1, keepdims=True)


DRAWS = {
    "IID": draw_iid,
    "Dirichlet 0.5": draw_dirichlet,
    "two labels a site": draw_two_labels,
}


def make_sites(dataset: Dataset, split: str, seed: int, out: Path) -> list[Path]:
    """The folders of ten sites below `out`, made where they are not there.

    A site trains on its part of the training images. The images of valid and test together, which nobody trains on,
    are dealt by the same shares: so a round's scores, put together, are the global model's on all of them.
    """
    rng = np.random.default_rng(seed)
    parts = {
        "train": dataset.arrays("train"),
        "valid": tuple(map(np.concatenate, zip(*held_out(dataset), strict=True))),
    }
    shares = DRAWS[split](np.bincount(parts["train"][1], minlength=len(dataset.classes)), SITES, rng)
    dealt = {name: assign(labels, shares, (seed, k)) for k, (name, (_, labels)) in enumerate(parts.items())}
    folders = [out / f"site-{number + 1}" for number in range(SITES)]
    for number, folder in enumerate(folders):
        arrays = {name: tuple(array[dealt[name][number]] for array in part) for name, part in parts.items()}
        about = {"name": dataset.name, "classes": dataset.classes, "source": dataset.source}
        write_dataset(folder, arrays | {"test": arrays["valid"]}, **about, part_of=dataset.sha256, site=folder.name)
    return folders


def held_out(dataset: Dataset) -> list[tuple[np.ndarray, np.ndarray]]:
    return [dataset.arrays(name) for name in HELD_OUT]
