"""The runs of gpu.py: the series' script at one site and at two, and FLARE's CIFAR-10 example at eight."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flare import quietly, read_stamps
from gpu_learner import PLACE, ExampleNet, PlacedExample, PlacedLearner
from niid import accuracies, find_earlier
from niid_data import draw_dirichlet
from torch import nn
from torch.utils.data import TensorDataset

from dl.train import Net, evaluate
from tutorial_utils.algorithms.registry import FedOpt
from tutorial_utils.data import Dataset, read_dataset, subset, write_dataset
from tutorial_utils.job import LearnerJob, build_job
from tutorial_utils.partition import assign, split_dataset
from tutorial_utils.results import Run
from tutorial_utils.simulate import simulate

SEED = 0
SITES = 8
EXAMPLE = {"epochs": 4, "lr": 0.01, "batch_size": 64, "momentum": 0.9}  # as published
DIFFERENCES = FedOpt(server_lr=1.0, server_momentum=0.0)  # FedAvg on differences, to the bit


@dataclass(frozen=True)
class Bench:
    """What is measured on.

    Attributes:
        device: "cuda" or "cpu".
        images: so many training images at most (of FLARE's example: and as many test images); None: all.
        runs: the folder of the runs.
    """

    dataset: Dataset
    device: str
    images: int | None
    runs: Path

    def run(self, job: LearnerJob, cards: Sequence[int] | None, earlier: Run | None = None) -> Run:
        how = {"runs": self.runs, "name": job.name, "resume_from": earlier, "progress": sys.stderr.isatty()}
        return simulate(job, gpus=cards, **how)


# --- the script of the series: who trains where, and to which bits ---


@dataclass(frozen=True)
class Case:
    """Two rounds of the script at sites that are alike.

    Attributes:
        device: that it was meant for.
        accuracy: of the last average, on all test images, computed on the CPU.
    """

    title: str
    device: str
    run: Run
    accuracy: float

    def summary(self) -> dict[str, Any]:
        told = {"case": self.title, "device": self.device, "seconds": self.run.seconds, "sha256": self.run.sha256}
        return told | {"accuracy": self.accuracy, "sites": look(self.run)}


def plan_places(device: str, count: int) -> list[tuple[str, int, str, list[int] | None]]:
    """Title, number of sites, device and cards of each case, on a machine with so many cards.

    The later ones are held against the second: the same once more, on the CPU, on two cards where there are two.
    """
    shared = "two sites on one card" if device == "cuda" else "two sites"
    one, both = ([0], [0, 1]) if device == "cuda" else (None, None)
    cases = [("one site", 1, device, one), (shared, 2, device, one), (f"{shared}, again", 2, device, one)]
    cases.append(("two sites on the CPU", 2, "cpu", None))
    return [*cases, ("two sites on two cards", 2, device, both)] if device == "cuda" and count > 1 else cases


def try_places(bench: Bench) -> list[Case]:
    return [run_script(bench, *case) for case in plan_places(bench.device, torch.cuda.device_count())]


def run_script(bench: Bench, title: str, sites: int, device: str, cards: Sequence[int] | None) -> Case:
    folders = split_dataset(subset(bench.dataset, bench.images).folder, sites, alpha=None, seed=SEED)
    learner = quietly(PlacedLearner, str(folders[0].parent), device=device, seed=SEED)
    name = title.replace(",", "").replace(" ", "-")
    job = build_job(learner, Net(SEED), sites=sites, rounds=2, name=name, cross_site="none")
    run = bench.run(job, cards)
    return Case(title, device, run, score(run, Net(SEED), draw_images(bench.dataset, ["test"], None)))


def hold(one: Case, other: Case) -> dict[str, Any]:
    """Two runs of one job: the same bits, or how far apart. `points`: by how much the other is the better one."""
    pairs = [(value, other.run.global_model[name]) for name, value in one.run.global_model.items()]
    apart = max((mine - theirs).abs().max().item() for mine, theirs in pairs)
    told = {"one": one.title, "other": other.title, "equal": one.run.sha256 == other.run.sha256}
    return told | {"apart": apart, "points": 100 * (other.accuracy - one.accuracy)}


def look(run: Run) -> dict[str, dict[str, Any]]:
    """What each site's learner saw of its device, and the seconds of its training, round by round."""
    seen = {}
    for site, stamps in sorted(read_stamps(run).items()):
        (place,) = run.site_folder(site).rglob(PLACE)
        train = [one["end"] - one["begin"] for one in stamps if one["phase"] == "train"]
        seen[site] = json.loads(place.read_text(encoding="utf-8")) | {"train": train}
    return seen


def score(run: Run, net: nn.Module, arrays: tuple[np.ndarray, np.ndarray]) -> float:
    net.load_state_dict(run.global_model)
    return evaluate(net, TensorDataset(*map(torch.from_numpy, arrays)))["accuracy"]


def draw_images(dataset: Dataset, splits: Sequence[str], images: int | None) -> tuple[np.ndarray, np.ndarray]:
    """So many images of these splits with their labels, drawn by chance; None: all of them."""
    arrays = [np.concatenate(part) for part in zip(*(dataset.arrays(split) for split in splits), strict=True)]
    order = np.random.default_rng(SEED).permutation(len(arrays[1]))[:images]
    return arrays[0][order], arrays[1][order]


# --- FLARE's CIFAR-10 example ---


def run_example(bench: Bench, alpha: float, rounds: int, *, whole: bool = False) -> dict[str, Any]:
    """The example at its published settings; `whole`: from where an earlier whole run was stopped.

    Returns: its accuracy (of 0, 1, 2 ... averages on the test images), its sizes, and in seconds the start and, from
        there to the end of the run, a round. Its first includes what the card does once, its last the processes' end.
    """
    size = bench.images or "all"
    folders = deal(bench, alpha, bench.runs / f"example-{alpha:g}-{size}-sites")
    learner = quietly(PlacedExample, str(folders[0].parent), device=bench.device, seed=SEED, **EXAMPLE)
    name = f"example-{alpha:g}-{size}-{bench.device}{'-whole' * whole}".replace(".", "-")
    net, about = ExampleNet(SEED), {"name": name, "cross_site": "none", "algorithm": DIFFERENCES}
    job = build_job(learner, net, sites=SITES, rounds=rounds, **about)
    earlier, begin = find_earlier(bench.runs, name) if whole else None, time.time()
    run = bench.run(job, range(torch.cuda.device_count()) if bench.device == "cuda" else None, earlier)
    start = min(stamps[0]["begin"] for stamps in read_stamps(run).values()) - begin
    counts = [read_dataset(folder).counts for folder in folders]
    last = score(run, net, draw_images(bench.dataset, ["test"], bench.images))
    return {
        "alpha": alpha,
        "rounds": rounds,
        "accuracy": [*accuracies(run, [count["valid"] for count in counts]), last],
        "sizes": [count["train"] for count in counts],
        "images": sum(count["valid"] for count in counts),
        "start": start,
        "round": (run.seconds - start) / (rounds - (earlier.rounds_kept if earlier else 0)),
        "sites": look(run),
        "sha256": run.sha256,
    }


def deal(bench: Bench, alpha: float, out: Path) -> list[Path]:
    """The folders of eight sites. All of train and valid is dealt out by NIID-Bench's draw, which is the example's too;
    the test images, by which the example scores, in equal parts: together a round's scores are the one on all."""
    dataset, folders = bench.dataset, []
    images, labels = draw_images(dataset, ["train", "valid"], bench.images)
    tests = draw_images(dataset, ["test"], bench.images)
    counts = np.bincount(labels, minlength=len(dataset.classes))
    shares = draw_dirichlet(counts, SITES, np.random.default_rng(SEED), alpha)
    about = {"name": dataset.name, "classes": dataset.classes, "source": dataset.source, "part_of": dataset.sha256}
    for number, places in enumerate(assign(labels, shares, SEED)):
        part, site = tuple(array[number::SITES] for array in tests), f"site-{number + 1}"
        splits = {"train": (images[places], labels[places]), "valid": part, "test": part}
        folders.append(write_dataset(out / site, splits, **about, site=site).folder)
    return folders
