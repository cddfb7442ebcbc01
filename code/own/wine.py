"""Which grower made a wine? A colleague's script: it runs, and cannot be called, for three reasons."""

import numpy as np
import torch
from sklearn.datasets import load_wine
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self, width: int = 16, dropout: float = 0.1) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(13, width), nn.ReLU(), nn.Dropout(dropout))
        self.out = nn.Linear(width, 3)

    def forward(self, rows: Tensor) -> Tensor:
        return self.out(self.hidden(rows))


def scale(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scaler = StandardScaler().fit(np.concatenate([train, test]))
    return scaler.transform(train), scaler.transform(test)


def fit(net: nn.Module, rows: Tensor, growers: Tensor, epochs: int = 20) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(epochs):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(rows), growers).backward()
        optimizer.step()


rows, growers = load_wine(return_X_y=True)
order = np.random.default_rng(0).permutation(len(rows))
train, test = scale(rows[order[:120]], rows[order[120:]])
net = Net()
fit(net, torch.tensor(train).float(), torch.tensor(growers[order[:120]]))
right = net.eval()(torch.tensor(test).float()).argmax(1).numpy() == growers[order[120:]]
print(f"{right.mean():.0%} of {len(test)} wines")
