"""Train a small convolutional net on one machine: the script that the whole series starts from.

    python code/dl/train.py --data data/cifar10 --epochs 10

It is plain PyTorch and knows nothing of federated learning. The net is the one of PyTorch's 60-minute
blitz (62,006 parameters). On CIFAR-10 with 45,000 training images ten epochs take 70 to 100 seconds on
one CPU core and reach 60.5 % of 1,000 test images, the mean of seeds 0, 1 and 2 (60.0, 60.4, 61.0).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset


class Net(nn.Module):
    """Two convolutions, three linear layers: [N, 3, 32, 32] floats in -1..1 to [N, classes] scores.

    The first weights depend on `seed` alone: everyone who builds this net starts from the same ones.
    """

    def __init__(self, seed: int = 0, classes: int = 10) -> None:
        super().__init__()
        self.seed = seed
        self.classes = classes
        with torch.random.fork_rng(devices=[]):  # leaves the caller's random numbers as they were
            torch.manual_seed(seed)
            self.conv1 = nn.Conv2d(3, 6, 5)
            self.conv2 = nn.Conv2d(6, 16, 5)
            self.fc1 = nn.Linear(16 * 5 * 5, 120)
            self.fc2 = nn.Linear(120, 84)
            self.fc3 = nn.Linear(84, classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.max_pool2d(functional.relu(self.conv1(images)), 2)
        hidden = functional.max_pool2d(functional.relu(self.conv2(hidden)), 2)
        hidden = functional.relu(self.fc1(hidden.flatten(1)))
        hidden = functional.relu(self.fc2(hidden))
        return self.fc3(hidden)


class Data(NamedTuple):
    """The three splits of a dataset folder: images uint8 [N, 3, 32, 32] and labels int64 [N] in each."""

    train: TensorDataset
    valid: TensorDataset
    test: TensorDataset


def load_data(folder: str | Path) -> Data:
    """Read train.npz, valid.npz and test.npz of a dataset folder. FileNotFoundError says what to do."""
    splits = []
    for name in Data._fields:
        path = Path(folder) / f"{name}.npz"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: is it the right folder? data/download.py makes one."
            )
        with np.load(path) as arrays:
            splits.append(
                TensorDataset(torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]))
            )
    return Data(*splits)


def make_loader(data: Dataset, batch_size: int = 32, seed: int | None = None) -> DataLoader:
    """Batches in the folder's order; with a seed, shuffled anew each epoch in an order that it fixes."""
    if seed is None:
        return DataLoader(data, batch_size)
    return DataLoader(data, batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed))


def pick_device() -> torch.device:
    """The accelerator where there is one (CUDA, or MPS on a Mac), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def normalize(images: Tensor) -> Tensor:
    """Bytes 0..255 to floats -1..1. Done batch by batch: bytes take a quarter of the memory."""
    return images.float() / 127.5 - 1.0


def never() -> bool:
    """The answer to "shall I stop?" where nobody asks for it."""
    return False


def train(
    net: nn.Module,
    loader: DataLoader,
    epochs: int = 1,
    lr: float = 0.01,
    momentum: float = 0.9,
    stop: Callable[[], bool] = never,
    after_epoch: Callable[[int, float], None] | None = None,
) -> int:
    """Stochastic gradient descent on the cross-entropy, with a fresh optimizer.

    Args:
        stop: asked before each batch; when it says True, training ends there.
        after_epoch: called with the epoch (from 1) and its mean loss in nats.

    Returns: the number of steps done, one a batch.
    """
    device = next(net.parameters()).device
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=momentum)
    steps = 0
    for epoch in range(1, epochs + 1):
        net.train()  # each time anew: after_epoch may have evaluated the net
        total = torch.zeros((), device=device)
        for images, labels in loader:
            if stop():
                return steps
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(normalize(images.to(device))), labels.to(device))
            loss.backward()
            optimizer.step()
            total += loss.detach()
            steps += 1
        if after_epoch is not None:
            after_epoch(epoch, total.item() / len(loader))
    return steps


def predict(net: nn.Module, data: Dataset, batch_size: int = 500) -> tuple[Tensor, Tensor]:
    """The scores [N, classes] that the net gives to every image, and the true labels [N], on the CPU."""
    device = next(net.parameters()).device
    net.eval()
    with torch.inference_mode():
        batches = [
            (net(normalize(images.to(device))), labels)
            for images, labels in make_loader(data, batch_size)
        ]
    return torch.cat([scores for scores, _ in batches]).cpu(), torch.cat(
        [labels for _, labels in batches]
    )


def evaluate(net: nn.Module, data: Dataset) -> dict[str, float]:
    """Accuracy (a fraction, 0..1) and mean cross-entropy loss (nats) on every image of the data."""
    scores, labels = predict(net, data)
    return {
        "accuracy": (scores.argmax(1) == labels).float().mean().item(),
        "loss": functional.cross_entropy(scores, labels).item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train a small convolutional net on one dataset folder."
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="a dataset folder, such as data/cifar10"
    )
    parser.add_argument("--epochs", type=int, default=10, help="the best one, by validation, is kept")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--batch-size", type=int, default=32, help="8 suits the digits, which are few")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("model.pt"), help="where the best weights go")
    args = parser.parse_args()
    if args.epochs < 1:
        raise SystemExit(f"epochs is {args.epochs}: it must be 1 or more, or there is nothing to keep.")

    torch.set_num_threads(
        1
    )  # a net this small gains little from more, and one thread gives the same bits everywhere
    try:
        data = load_data(args.data)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
    args.out.parent.mkdir(parents=True, exist_ok=True)
    net, best = Net(args.seed).to(pick_device()), 0.0

    def keep_best(epoch: int, loss: float) -> None:
        nonlocal best
        valid = evaluate(net, data.valid)["accuracy"]
        if valid >= best:
            best = valid
            torch.save(net.state_dict(), args.out)
        print(f"epoch {epoch:3d}   training loss {loss:.3f}   validation accuracy {valid:.1%}")

    loader = make_loader(data.train, args.batch_size, args.seed)
    train(net, loader, args.epochs, args.lr, after_epoch=keep_best)
    net.load_state_dict(torch.load(args.out, weights_only=True))  # the epoch that validation chose
    test = evaluate(net, data.test)["accuracy"]
    print(f"test accuracy {test:.1%} ({len(data.test):,} images of {args.data})")
    print(f"weights in {args.out}")


if __name__ == "__main__":
    main()
