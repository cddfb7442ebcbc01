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
from tutorial_utils.learner import round_seed, to_numpy

Params = dict[str, np.ndarray]


def train_locally(
    net: Net, folder: Path, params: Params, seed: int, batch_size: int, **how: float
) -> int:
    """One site in one round: start from the given weights, train on its images, return the steps."""
    net.load_state_dict({name: torch.from_numpy(value) for name, value in params.items()})
    return train(net, make_loader(load_data(folder).train, batch_size, seed), **how)


def average(updates: Sequence[tuple[Params, int]]) -> Params:
    """The mean of the sites' weights, each counted as often as it made steps.

    In FLARE's order of arithmetic (multiply, add, then one multiplication by 1 / total): another order
    rounds otherwise, and the last bits differ.
    """
    total = sum(steps for _, steps in updates)
    names = updates[0][0]
    return {
        name: sum(params[name] * float(steps) for params, steps in updates) * (1.0 / total)
        for name in names
    }


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
) -> Params:
    """Scatter, train, gather, average, again. The folders' names are the sites' names.

    Args:
        after_round: called with the number of rounds done and the new global weights.

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
            updates.append((to_numpy(net.state_dict()), steps))
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
