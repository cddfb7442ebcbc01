"""Which digit is it? An LSTM reads its rows from top to bottom; its steps shrink with every epoch.

    python code/more/lstm.py FOLDER

FOLDER holds train.csv, valid.csv and test.csv: 64 columns of pixels (8 rows of 8), then the digit.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 32, batch_first=True)
        self.out = nn.Linear(32, 10)

    def forward(self, rows: Tensor) -> Tensor:
        read, _ = self.lstm(rows)
        return self.out(read[:, -1])


def load(folder: Path) -> dict[str, TensorDataset]:
    found = {}
    for split in ("train", "valid", "test"):
        table = np.loadtxt(folder / f"{split}.csv", np.float32, delimiter=",", skiprows=1, ndmin=2)
        rows = torch.tensor(table[:, :-1] / 16).view(-1, 8, 8)
        found[split] = TensorDataset(rows, torch.tensor(table[:, -1]).long())
    return found


def make_loader(rows: TensorDataset) -> DataLoader:
    return DataLoader(rows, batch_size=16, shuffle=True)


def make_schedule(net: Net) -> ExponentialLR:
    return ExponentialLR(torch.optim.Adam(net.parameters(), lr=0.02), gamma=0.8)


def train(
    net: Net, loader: Iterable[tuple[Tensor, Tensor]], schedule: ExponentialLR, epochs: int
) -> None:
    for _ in range(epochs):
        for rows, digits in loader:
            schedule.optimizer.zero_grad()
            nn.functional.cross_entropy(net(rows), digits).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            schedule.optimizer.step()
        schedule.step()


@torch.inference_mode()
def score(net: Net, rows: TensorDataset) -> dict[str, float]:
    inputs, digits = rows.tensors
    return {"accuracy": (net(inputs).argmax(1) == digits).float().mean().item()}


def main(folder: Path, net: Net, epochs: int = 1) -> Net:
    rows = load(folder)
    torch.manual_seed(0)
    train(net, make_loader(rows["train"]), make_schedule(net), epochs)
    return net


if __name__ == "__main__":
    site = Path(sys.argv[1])
    print(score(main(site, Net(), epochs=10), load(site)["test"]))
