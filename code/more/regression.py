"""How far diabetes has gone on within a year, from ten measurements: a regression, as people have it.

    python code/more/regression.py FOLDER

FOLDER holds train.csv, valid.csv and test.csv: ten columns of measurements, then the one to learn.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 1))

    def forward(self, rows: Tensor) -> Tensor:
        return 150 + 100 * self.layers(rows).squeeze(1)


def load(folder: Path) -> dict[str, TensorDataset]:
    found = {}
    for split in ("train", "valid", "test"):
        table = np.loadtxt(folder / f"{split}.csv", np.float32, delimiter=",", skiprows=1, ndmin=2)
        found[split] = TensorDataset(torch.tensor(table[:, :-1] * 20), torch.tensor(table[:, -1]))
    return found


def make_loader(rows: TensorDataset) -> DataLoader:
    return DataLoader(rows, batch_size=16, shuffle=True)


def train(net: Net, loader: Iterable[tuple[Tensor, Tensor]], epochs: int, lr: float) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr)
    net.train()
    for _ in range(epochs):
        for rows, target in loader:
            optimizer.zero_grad()
            nn.functional.l1_loss(net(rows), target).backward()
            optimizer.step()


@torch.inference_mode()
def score(net: Net, rows: TensorDataset) -> dict[str, np.floating]:
    net.eval()
    inputs, target = rows.tensors
    wrong = (net(inputs) - target).numpy()
    return {"mae": np.abs(wrong).mean(), "rmse": np.sqrt((wrong**2).mean())}


def main(folder: Path, net: Net) -> Net:
    rows = load(folder)
    torch.manual_seed(0)
    train(net, make_loader(rows["train"]), epochs=2, lr=0.01)
    return net


if __name__ == "__main__":
    site = Path(sys.argv[1])
    print(score(main(site, Net()), load(site)["test"]))
