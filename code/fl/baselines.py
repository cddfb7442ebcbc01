"""What a federation is measured against: training on one dataset folder, with nobody to average with."""

from __future__ import annotations

from pathlib import Path

from dl.train import Net, load_data, make_loader, train
from fl.fedavg import Params
from tutorial_utils.learner import to_numpy


def train_alone(
    folder: Path,
    epochs: int,
    *,
    seed: int = 0,
    batch_size: int = 32,
    lr: float = 0.01,
    momentum: float = 0.9,
) -> Params:
    """The script's training in one go, from the same first weights as a federation with this seed.

    Args:
        folder: a site's folder for a local-only model, the whole dataset's for the centralised one.
        epochs: as many as a federation makes in all, rounds times local epochs, for a fair comparison.

    Returns: the weights after the last epoch.
    """
    net = Net(seed)
    train(net, make_loader(load_data(folder).train, batch_size, seed), epochs, lr, momentum)
    return to_numpy(net.state_dict())
