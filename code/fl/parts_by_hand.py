"""Federated Averaging in which a part of the net stays at each site, by hand, in one process.

keep_local     what it is
[]             FedAvg: nothing stays
["norm*"]      FedBN, Li et al. 2021, arXiv:2102.07623: BatchNorm stays
["fc3.*"]      FedPer, Arivazhagan et al. 2019, arXiv:1912.00818: the last layer stays
["*"]          no federation: every site trains alone
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from dl.norm_net import NormNet
from dl.train import Net, evaluate, load_data, make_loader, train
from fl.by_hand import Params, average, train_locally
from tutorial_utils.learner import round_seed, to_numpy
from tutorial_utils.results import sha256
from tutorial_utils.study import Task, run_tasks
from tutorial_utils.values import match_names

Row = dict[str, Any]
NETS: dict[str, type[Net]] = {"plain": Net, "BatchNorm": NormNet}
WAYS = {  # by net and name: what stays at home
    ("plain", "FedAvg"): [],
    ("plain", "alone"): ["*"],
    ("plain", "FedPer"): ["fc3.*"],
    ("BatchNorm", "FedAvg"): [],
    ("BatchNorm", "alone"): ["*"],
    ("BatchNorm", "FedBN"): ["norm*"],
}


@dataclass(frozen=True)
class Parts:
    """Where the weights lie after some rounds.

    Attributes:
        shared: the server's model, whole: what never reached the server is there as it was at first.
        own: by site, what stayed there.
    """

    shared: Params
    own: Mapping[str, Params] = field(default_factory=dict)

    def at(self, site: str) -> Params:
        """The whole model of one site."""
        return self.shared | self.own.get(site, {})


def federate_parts(
    net: Net,
    folders: Sequence[Path],
    rounds: Iterable[int],
    keep_local: Sequence[str],
    *,
    seed: int,
    start: Parts | None = None,
    **how: float,
) -> Parts:
    """Scatter, train, gather what is shared, average it. The folders' names are the sites' names.

    Args:
        net: of this kind, and where `start` is None with these first weights.
        rounds: their numbers: after range(8) another federation can go on with range(8, 10).
        keep_local: names or patterns of the weights that stay, as in PTModelLearner.
        start: what an earlier federation has left.
        how: batch_size, epochs (in each round), lr, momentum.
    """
    parts = start or Parts(to_numpy(net.state_dict()))
    shared, own = parts.shared, dict(parts.own)
    kept = set(match_names(shared, keep_local))
    for number in rounds:
        updates = []
        for folder in sorted(folders, key=lambda folder: folder.name):
            site, received = folder.name, Parts(shared, own).at(folder.name)
            steps = train_locally(net, folder, received, round_seed(seed, site, number), **how)
            trained = to_numpy(net.state_dict())
            own[site] = {name: trained[name] for name in trained if name in kept}
            updates.append(({name: trained[name] for name in trained if name not in kept}, steps))
        shared = shared | average(updates)
    return Parts(shared, own)


def run_way(
    kind: type[Net],
    folders: Sequence[Path],
    rounds: int,
    keep_local: Sequence[str],
    *,
    seed: int,
    tuned: int = 0,
    **how: float,
) -> list[list[Row]]:
    """Federate, and score every site's model at every site (see `score_parts`).

    Args:
        tuned: so many of the last rounds are done a second time, without the server: each site trains
            on by itself, all weights its own. 0: none, and there is one list of rows.

    Returns: the rows of the federation, then those of the sites that trained on by themselves.
    """
    net, last = kind(seed), range(rounds - tuned, rounds)
    begun = federate_parts(net, folders, range(rounds - tuned), keep_local, seed=seed, **how)
    ends = [
        federate_parts(net, folders, last, parts, seed=seed, start=begun, **how)
        for parts in ([keep_local, ["*"]] if tuned else [keep_local])
    ]
    return [score_parts(net, end, folders) for end in ends]


def compare_ways(
    splits: Mapping[str, Sequence[Path]],
    seeds: Sequence[int],
    rounds: int,
    *,
    tuned: int,
    processes: int | None = None,
    **how: float,
) -> list[Row]:
    """All WAYS, and FedAvg "tuned" at home in its last rounds, for each split and seed; a core for each.

    Returns: the rows of `score_parts`, each with its split's name as `alpha`, seed, net and way.
    """
    tasks: list[Task] = []
    names = []
    for (alpha, folders), seed in product(splits.items(), seeds):
        for (net, way), keep_local in WAYS.items():
            named = how | {"seed": seed, "tuned": tuned if way == "FedAvg" else 0}
            tasks.append((run_way, (NETS[net], folders, rounds, keep_local), named))
            names.append({"alpha": alpha, "seed": seed, "net": net, "way": way})
    rows = []
    for name, made in zip(names, run_tasks(tasks, processes), strict=True):
        for end, way in zip(made, (name["way"], "tuned"), strict=False):
            rows += [name | {"way": way} | row for row in end]
    return rows


def score_parts(net: Net, parts: Parts, folders: Sequence[Path]) -> list[Row]:
    """Each site's whole model on its own validation images, and on the test images of every site.

    Returns: rows of model and site (whose model, whose images), split, right (how many images were named
        rightly) and images, and the sha256 of the model.
    """
    data = {folder.name: load_data(folder) for folder in folders}
    rows = []
    for model, own in data.items():
        load(net, whole := parts.at(model))
        about = {"model": model, "sha256": sha256(whole)}
        judged = [(model, "valid", own.valid), *((site, "test", one.test) for site, one in data.items())]
        for site, split, images in judged:
            rows.append(about | {"site": site, "split": split} | count_right(net, images))
    return rows


def welcome(
    kind: type[Net],
    folders: Sequence[Path],
    newcomer: Path,
    rounds: int,
    keep_local: Sequence[str],
    looks: Sequence[int],
    *,
    seed: int,
    **how: float,
) -> list[Row]:
    """Federate without one site, hand it the shared part, and let it train: a look after so many steps.

    What stays at home elsewhere the newcomer has as the net begins with it. 0 rounds: all of the net.

    Returns: a row for each look: steps, and right and images, of its own test images.
    """
    net, data, rows = kind(seed), load_data(newcomer), []
    given = federate_parts(net, folders, range(rounds), keep_local, seed=seed, **how)
    load(net, given.shared)

    def look(steps: int) -> bool:
        """Is it done? Asked before every step."""
        if steps in looks:
            rows.append({"steps": steps} | count_right(net, data.test))
            net.train()  # which scoring has ended
        return steps >= max(looks)

    asked, how = iter(range(max(looks) + 1)), dict(how)
    loader = make_loader(data.train, how.pop("batch_size"), round_seed(seed, newcomer.name, rounds))
    how["epochs"] = max(looks) // len(loader) + 1  # enough
    train(net, loader, **how, stop=lambda: look(next(asked)))
    return rows


def load(net: Net, params: Params) -> None:
    net.load_state_dict({name: torch.as_tensor(value) for name, value in params.items()})


def count_right(net: Net, images: Dataset) -> Row:
    """How many of the images the net names rightly, and how many there are."""
    return {"right": round(evaluate(net, images)["accuracy"] * len(images)), "images": len(images)}
