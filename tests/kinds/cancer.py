"""Is a growth malignant? Thirty measurements, two classes, and the area under the ROC curve: as people have it.

python cancer.py FOLDER       # with development.npz and holdout.npz in it
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

PARTS = ("train", "development", "holdout")


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(30, width)
        self.out = nn.Linear(width, 1)

    def forward(self, rows: Tensor) -> Tensor:
        return self.out(torch.relu(self.hidden(rows))).squeeze(1)


def load(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    found = {}
    for part in PARTS:
        with np.load(folder / f"{part}.npz") as file:
            found[part] = torch.tensor(file["rows"]).float(), torch.tensor(file["malignant"]).float()
    return found


def train(net: Net, rows: Tensor, malignant: Tensor, epochs: int) -> int:
    """With noise from numpy and an order from `random`: not all scripts draw from torch alone."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    steps = 0
    for _ in range(epochs):
        order = list(range(len(rows)))
        random.shuffle(order)
        for start in range(0, len(order), 16):
            batch = order[start : start + 16]
            noise = torch.tensor(np.random.normal(0, 0.05, (len(batch), 30))).float()
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(net(rows[batch] + noise), malignant[batch]).backward()
            optimizer.step()
            steps += 1
    return steps


@torch.no_grad()
def score(net: Net, rows: Tensor, malignant: Tensor) -> dict[str, float]:
    found = torch.sigmoid(net(rows))
    both = len(malignant.unique()) == 2  # without one of them there is no curve
    auc = roc_auc_score(malignant, found) if both else float("nan")
    return {"auc": auc, "brier": ((found - malignant) ** 2).mean().item()}


def main(folder: Path, first: dict[str, Tensor]) -> Net:
    net, rows = Net(8), load(folder)
    net.load_state_dict(first)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    train(net, *rows["train"], epochs=1)
    return net


if __name__ == "__main__":
    print(score(main(Path(sys.argv[1]), Net(8).state_dict()), *load(Path(sys.argv[1]))["holdout"]))  # noqa: T201
