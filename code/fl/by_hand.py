"""Federated Averaging by hand: what the job does, without FLARE, one process, to the bit the same.

McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset

from dl.train import Net, evaluate, load_data, make_loader, train
from tutorial_utils.algorithms.aggregator import settle
from tutorial_utils.learner import round_seed, to_numpy
from tutorial_utils.results import sha256
from tutorial_utils.study import drift, drift_of

Params = dict[str, np.ndarray]


def train_locally(
    net: Net, folder: Path, params: Params, seed: int, batch_size: int, **how: float
) -> int:
    """One site in one round: start from the given weights, train on its images, return the steps."""
    net.load_state_dict({name: torch.as_tensor(value) for name, value in params.items()})
    return train(net, make_loader(load_data(folder).train, batch_size, seed), **how)


def average(updates: Sequence[tuple[Params, int]]) -> Params:
    """The mean of the sites' weights, each counted as often as it made steps.

    In FLARE's order of arithmetic (multiply, add, then one multiplication by 1 / total): another order
    rounds otherwise, and the last bits differ.
    """
    counted = [(params, steps) for params, steps in updates if steps > 0]
    total = sum(steps for _, steps in counted)
    mean = {}
    for name in counted[0][0]:
        summed = sum(params[name] * float(steps) for params, steps in counted)
        # what all sites sent alike stays so to the last bit, and whole numbers stay whole
        mean[name] = settle(summed * (1.0 / total), [params[name] for params, _ in counted])
    return mean


def federated_averaging(
    folders: Sequence[Path],
    rounds: int,
    *,
    seed: int = 0,
    batch_size: int = 32,
    epochs: int = 1,
    lr: float = 0.01,
    momentum: float = 0.9,
    after_round: Callable[[int, Params], None] | None = None,
    leave: Callable[..., Params] | None = None,
) -> Params:
    """Scatter, train, gather, average, again. The folders' names are the sites' names.

    Args:
        after_round: called with the number of rounds done and the new global weights.
        leave: called as leave(received, sent, steps=, site=, round_number=); what it returns leaves the
            site in place of its weights `sent`, as after a filter.

    Returns: the global weights after the last round.
    """
    net = Net(seed)
    params = to_numpy(net.state_dict())
    for number in range(rounds):
        updates = []
        for folder in sorted(folders, key=lambda folder: folder.name):
            site_seed = round_seed(seed, folder.name, number)
            steps = train_locally(
                net, folder, params, site_seed, batch_size, epochs=epochs, lr=lr, momentum=momentum
            )
            sent = to_numpy(net.state_dict())
            if leave is not None:
                where = {"site": folder.name, "round_number": number}
                sent = leave(params, sent, steps=steps, **where)
            updates.append((sent, steps))
        params = average(updates)
        if after_round is not None:
            after_round(number + 1, params)
    return params


def score(state: Mapping[str, Any], folders: Sequence[Path]) -> tuple[float, int]:
    """Accuracy (0..1) of these weights on the test images of all the folders, and how many they are."""
    net = Net()
    net.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})
    test = ConcatDataset([load_data(folder).test for folder in folders])
    return evaluate(net, test)["accuracy"], len(test)


def federate(folders: Sequence[Path], rounds: int, *, seed: int, **how: float) -> list[dict[str, Any]]:
    """`federated_averaging`, to the bit, with a look at the sites' models before they are averaged.

    For studies (tutorial_utils.study), as `train_alone` is.

    Returns: a row for each round. round: averagings so far, from 1; accuracy: of the average, 0..1, on
        the test images of all folders; sha256: of the average; drift, and drift_of_biases, of the last
        layer's ten, which say how readily each class is answered: in the weights' own unit.
    """
    net, rows = Net(seed), []
    params = to_numpy(net.state_dict())
    for number in range(rounds):
        updates = []
        for folder in sorted(folders, key=lambda folder: folder.name):
            steps = train_locally(net, folder, params, round_seed(seed, folder.name, number), **how)
            updates.append((to_numpy(net.state_dict()), steps))
        params = average(updates)
        made = {"round": number + 1, "accuracy": score(params, folders)[0], "sha256": sha256(params)}
        rows.append(made | {"drift": drift(updates), "drift_of_biases": drift_of("fc3.bias", updates)})
    return rows


def train_alone(
    folder: Path, rounds: int, tests: Sequence[Path], *, epochs: int = 1, **how: float
) -> float:
    """Train on one folder for as many epochs as in so many rounds; the accuracy on all test images.

    It is a federation of one site and one round: the optimizer keeps its momentum throughout.
    """
    params = federated_averaging([folder], 1, epochs=rounds * epochs, **how)
    return score(params, tests)[0]
