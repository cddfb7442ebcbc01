"""The learners of gpu.py: the series' own and FLARE's CIFAR-10 example, both with a clock, and a look at their card."""

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from measure import peak_memory
from niid_learner import Augmented
from timed_learner import TimedLearner
from torch import Tensor, nn
from torch.optim import Optimizer

from dl.train import make_loader, train
from fl.model_learner import CIFAR10ModelLearner
from tutorial_utils.algorithms.steps import at_each_step

PLACE = "place.json"
MEAN, DEVIATION = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)  # of CIFAR-10's bytes by channel, as FLARE's example has it
CHANNELS = (3, 32, 64, 128, 128, 256, 256)


class PlacedLearner(TimedLearner):
    """On the device that it is told, "cuda" or "cpu"; it notes which that turned out to be, and its memory's peak."""

    def __init__(
        self,
        data: str,
        device: str = "cuda",
        epochs: int = 1,
        lr: float = 0.01,
        batch_size: int = 32,
        momentum: float = 0.9,
        seed: int = 0,
    ) -> None:
        super().__init__(data, epochs, lr, batch_size, momentum, seed)
        self.device = device

    def initialize(self) -> None:
        super().initialize()
        self.net.to(self.device)

    def note(self, phase: str, begin: float) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()  # a card works on while Python is done
        super().note(phase, begin)
        device = next(self.net.parameters()).device
        (Path(self.app_root) / PLACE).write_text(json.dumps(look_at(device)), encoding="utf-8")


def look_at(device: torch.device) -> dict[str, Any]:
    """What this process sees of its device. Bytes: its own tensors at their peak (on the CPU: the whole process), and
    what all processes together, with all that CUDA itself takes, hold of the card now."""
    seen = {"visible": os.environ.get("CUDA_VISIBLE_DEVICES")}
    if device.type != "cuda":
        return seen | {"device": device.type, "peak": peak_memory(), "card": None}
    free, total = torch.cuda.mem_get_info(device)
    peak = torch.cuda.max_memory_allocated(device)
    return seen | {"device": torch.cuda.get_device_name(device), "peak": peak, "card": total - free}


class ExampleNet(nn.Module):
    """The net of FLARE's CIFAR-10 example: [N, 3, 32, 32] floats in -1..1 to [N, classes] scores.

    Six convolutions of 3x3 pixels, a pooling after each pair, three linear layers: 3,491,530 weights. It takes what
    dl.train's normalize gives, and makes of it what the example has: each channel with mean 0 and deviation 1.
    """

    def __init__(self, seed: int = 0, classes: int = 10) -> None:
        super().__init__()
        self.seed = seed
        self.classes = classes
        for name, values in {"mean": MEAN, "deviation": DEVIATION}.items():  # no weights: they stay here
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = []
            for number, (taken, made) in enumerate(pairwise(CHANNELS), start=1):
                layers += [nn.Conv2d(taken, made, 3, padding=1), nn.ReLU()]
                layers += [nn.MaxPool2d(2)] * (number % 2 == 0) + [nn.Dropout2d(0.05)] * (number == 4)
            self.features = nn.Sequential(*layers, nn.Flatten())
            self.scores = nn.Sequential(
                nn.Dropout(0.1),
                nn.Linear(4 * 4 * CHANNELS[-1], 512),
                nn.ReLU(),
                nn.Linear(512, 512),
                nn.ReLU(),
                nn.Dropout(0.1),
                nn.Linear(512, classes),
            )

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images + 1) * 127.5
        return self.scores(self.features((pixels - self.mean) / self.deviation))


class ExampleSite(CIFAR10ModelLearner):
    """A site of FLARE's CIFAR-10 example: its net, its crop and flip, and one optimizer for all rounds."""

    def initialize(self) -> None:
        super().initialize()
        self.net = ExampleNet(self.seed).to(memory_format=torch.channels_last)

    def local_train(self) -> int:
        seed = self.seed_of_round()
        loader, made = Augmented(make_loader(self.images.train, self.batch_size, seed), seed), []

        def go_on(optimizer: Optimizer) -> None:
            """Before the first step: with the momentum that the last round has left."""
            if not made:
                made.append(optimizer)
                if "optimizer" in self.state:
                    optimizer.load_state_dict(self.state["optimizer"])

        with at_each_step(self.net, before=go_on):
            steps = train(self.net, loader, self.epochs, self.lr, self.momentum, stop=self.is_aborted)
        if made:
            self.state["optimizer"] = made[0].state_dict()
        return steps


class PlacedExample(PlacedLearner, ExampleSite):
    """The same, with PlacedLearner's clock around its training."""
