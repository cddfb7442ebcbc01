"""A learner so small that a test can call it a hundred times: a line through a site's few points."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tutorial_utils.learner import PTModelLearner
from tutorial_utils.metric import Metric

POINTS, BATCH = 10, 2
STEPS = POINTS // BATCH


def make_net(seed: int = 0) -> nn.Module:
    """`0` normalizes the two inputs, `1` is the line."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))


def points_of(site: str) -> tuple[Tensor, Tensor]:
    """[POINTS, 2] and [POINTS, 1], each site's own."""
    draw = torch.Generator().manual_seed(sum(site.encode()))
    inputs = torch.randn(POINTS, 2, generator=draw)
    return inputs, inputs.sum(1, keepdim=True) + 1


class TinyLearner(PTModelLearner):
    """Least squares: lower is better."""

    metric = Metric("loss", higher_is_better=False)

    def __init__(self, lr: float = 0.05, epochs: int = 1, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.lr = lr
        self.epochs = epochs

    def initialize(self) -> None:
        super().initialize()
        self.net = make_net()
        self.inputs, self.targets = points_of(self.site_name)

    def local_train(self) -> object:
        self.net.train()
        optimizer = torch.optim.SGD(self.net.parameters(), lr=self.lr)
        loader = self.watched(DataLoader(TensorDataset(self.inputs, self.targets), BATCH))
        for _ in range(self.epochs):
            for inputs, targets in loader:
                optimizer.zero_grad()
                nn.functional.mse_loss(self.net(inputs), targets).backward()
                optimizer.step()
        return None

    def local_validate(self, split: str) -> dict[str, float]:
        self.net.eval()
        with torch.inference_mode():
            return {"loss": nn.functional.mse_loss(self.net(self.inputs), self.targets).item()}


class CardLearner(TinyLearner):
    """Tells which card its process may see."""

    def local_validate(self, split: str) -> dict[str, float]:
        return super().local_validate(split) | {"card": float(os.environ["CUDA_VISIBLE_DEVICES"])}
