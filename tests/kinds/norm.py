"""A head trained on frozen features, with BatchNorm between: as people have it.

python norm.py FOLDER CHECKPOINT
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

Part = tuple[Tensor, Tensor]


def make_net(classes: int = 10) -> nn.ModuleDict:
    """Its parts by name. A function, no class: nothing that a job could build again from its arguments."""
    net = nn.ModuleDict(
        {
            "features": nn.Conv2d(3, 8, 4, stride=4),
            "norm": nn.BatchNorm2d(8),
            "head": nn.Linear(8 * 8 * 8, classes),
        }
    )
    net["features"].requires_grad_(False)
    return net


def predict(net: nn.ModuleDict, images: Tensor) -> Tensor:
    return net["head"](torch.relu(net["norm"](net["features"](images))).flatten(1))


def load(folder: Path) -> dict[str, Part]:
    found = {}
    for split in ("train", "valid", "test"):
        with np.load(folder / f"{split}.npz") as file:
            found[split] = torch.tensor(file["images"]) / 255, torch.tensor(file["labels"])
    return found


def train(net: nn.ModuleDict, images: Tensor, labels: Tensor, epochs: int = 1) -> int:
    trained = [param for param in net.parameters() if param.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9, weight_decay=1e-3)
    net.train()
    steps = 0
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(predict(net, images[batch]), labels[batch]).backward()
            optimizer.step()
            steps += 1
    return steps


@torch.no_grad()
def score(net: nn.ModuleDict, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    net.eval()
    return {"accuracy %": 100 * (predict(net, images).argmax(1) == labels).float().mean()}


def main(folder: Path, checkpoint: Path) -> nn.ModuleDict:
    net = make_net()
    net.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    torch.manual_seed(0)
    train(net, *load(folder)["train"])
    return net


if __name__ == "__main__":
    print(score(main(*map(Path, sys.argv[1:])), *load(Path(sys.argv[1]))["test"]))  # noqa: T201
