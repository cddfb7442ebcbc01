"""A learner whose update takes a slow line seconds: 1 MB."""

from __future__ import annotations

import torch
from torch import nn

from tiny import TinyLearner

WIDTH = 62_500  # 4 numbers each, of 4 bytes


def make_wide_net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))


class WideLearner(TinyLearner):
    """TinyLearner with a net of a hidden layer, and small steps for it."""

    def __init__(self, lr: float = 1e-5, epochs: int = 1, seed: int = 0) -> None:
        super().__init__(lr, epochs, seed)

    def initialize(self) -> None:
        super().initialize()
        self.net = make_wide_net()
