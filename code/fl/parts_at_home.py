"""The example's learner with a part of its net at home: which part, and of which net, are settings."""

from __future__ import annotations

from collections.abc import Sequence

from dl.norm_net import NormNet
from dl.train import pick_device
from fl.model_learner import CIFAR10ModelLearner


class PartsAtHomeLearner(CIFAR10ModelLearner):
    """dl/train.py as a federated learner that keeps some weights at its site.

    Args:
        data, epochs, lr, batch_size, momentum, seed: as in CIFAR10ModelLearner.
        keep_local: names or patterns of the weights that stay, such as ["fc3.*"]. With [] it is a
            CIFAR10ModelLearner.
        norm: train NormNet, which has BatchNorm, in place of Net.
    """

    def __init__(
        self,
        data: str,
        keep_local: Sequence[str] = (),
        norm: bool = False,
        epochs: int = 1,
        lr: float = 0.01,
        batch_size: int = 32,
        momentum: float = 0.9,
        seed: int = 0,
    ) -> None:
        super().__init__(data, epochs, lr, batch_size, momentum, seed)
        self.keep_local = tuple(keep_local)
        self.norm = norm

    def initialize(self) -> None:
        super().initialize()
        if self.norm:
            self.net = NormNet(self.seed).to(pick_device())
