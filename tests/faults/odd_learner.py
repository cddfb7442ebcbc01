"""What is unusual and no fault: a learner and a net with all of it at once."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dl.train import evaluate, load_data, make_loader, train
from tutorial_utils.learner import PTModelLearner
from tutorial_utils.metric import Metric

if "TUTORIAL_UTILS_RUN" in os.environ:  # at a site: here the runner's own tests have it elsewhere
    import watch

PIXELS, WIDTH, CLASSES = 3072, 16, 10


class OddNet(nn.Module):
    """BatchNorm, a frozen layer, a mask of minus infinity, and a head in half precision."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.frozen = nn.Linear(PIXELS, WIDTH).requires_grad_(False)
            self.norm = nn.BatchNorm1d(WIDTH)
            self.head = nn.Linear(WIDTH, CLASSES)
            self.scale = nn.Parameter(torch.ones(CLASSES, dtype=torch.float16))
        self.register_buffer("mask", torch.full((CLASSES, CLASSES), float("-inf")).triu(1))

    def forward(self, images: Tensor) -> Tensor:
        seen = torch.relu(self.norm(self.frozen(images.flatten(1) / 255)))
        return self.head(seen) * self.scale.float() + self.mask[-1]


class OddLearner(PTModelLearner):
    """Keeps what counts in BatchNorm at home, and says what it measures: NaN at some sites, in every round.

    Args:
        slow: names of sites that take their time.
        blind: names of sites that cannot measure anything.
        idle: names of sites that make no step.
        seconds: that a slow one takes in each round, from round 1 on.
    """

    metric = Metric("score", higher_is_better=False)
    keep_local = ("norm.running_*", "norm.num_batches_tracked")

    def __init__(
        self,
        data: str,
        slow: Sequence[str] = (),
        blind: Sequence[str] = (),
        idle: Sequence[str] = (),
        seconds: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.data = data
        self.slow = slow
        self.blind = blind
        self.idle = idle
        self.seconds = seconds

    def initialize(self) -> None:
        super().initialize()
        self.info(f"watch is {watch.WHOSE}")
        self.net = OddNet()
        self.images = load_data(self.site_folder(self.data))

    def local_train(self) -> Any:
        self.state["rounds"] = self.state.get("rounds", 0) + 1
        if self.site_name in self.slow and self.current_round >= 1:
            time.sleep(self.seconds)
        if self.site_name in self.idle:
            return 0
        return train(self.net, make_loader(self.images.train, 64, self.seed_of_round()))

    def local_validate(self, split: str) -> dict[str, float]:
        if self.site_name in self.blind:
            return {"score": float("nan")}
        return {"score": evaluate(self.net, getattr(self.images, split))["loss"]}
