"""The knobs of the series: which data, how many rounds, how large a batch. One for reading, one for testing."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real

from tutorial_utils.errors import TutorialError


@dataclass(frozen=True)
class Training:
    """How a site trains in a round. TutorialError for what makes no sense.

    Attributes:
        epochs: passes over a site's own data in one round.
        batch_size, lr, momentum: of the stochastic gradient descent.
        seed: where every random number comes from.
    """

    epochs: int = 1
    lr: float = 0.01
    batch_size: int = 32
    momentum: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {"epochs": 1, "batch_size": 1, "seed": 0}.items():
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
                raise TutorialError(f"{name} is {value!r}: it must be a whole number, {least} or more.")
        for name, fits, wanted in (
            ("lr", lambda lr: 0 < lr < math.inf, "more than 0"),
            ("momentum", lambda momentum: 0 <= momentum < 1, "from 0 to less than 1"),
        ):
            value = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool) or not fits(value):
                raise TutorialError(f"{name} is {value!r}: it must be a number {wanted}.")


@dataclass(frozen=True)
class Settings(Training):
    """Everything that a run of the series can be told.

    Attributes:
        dataset: what `data.prepare` is asked for: "auto" (CIFAR-10, else the digits), "cifar10" or "digits".
        images: how many training images to take, all if None. 10,000 keep each notebook within minutes.
        sites: how many sites hold the data.
        alpha: concentration of the Dirichlet split by label; small means that the sites differ.
        rounds: how often the sites' models are averaged.
        seeds: of the runs whose lowest and highest result a figure shows as its spread.
        epochs, lr, batch_size, momentum, seed: as in Training.
    """

    dataset: str = "auto"
    images: int | None = 10_000
    sites: int = 2
    alpha: float = 0.3
    rounds: int = 10
    seeds: tuple[int, ...] = (0, 1, 2)

    def _repr_html_(self) -> str:
        """A notebook shows them as a short table, two values a line; a terminal as one line of Python."""
        names = [field.name for field in fields(self)]
        first = [name for name in names if name not in Training.__dataclass_fields__]  # the data before the training
        names = [*first, *(name for name in names if name not in first)]
        pairs = [f'<th scope="row">{name}</th><td>{getattr(self, name)}</td>' for name in names]
        lines = ["".join(pairs[at : at + 2]) for at in range(0, len(pairs), 2)]
        return f"<table><tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"

    @property
    def training(self) -> Training:
        """The part that a site needs."""
        return Training(**{field.name: getattr(self, field.name) for field in fields(Training)})


FULL = Settings()
FAST = Settings(dataset="digits", images=None, rounds=5, batch_size=8)


def current() -> Settings:
    """FAST where the environment says TUTORIAL_FAST=1 (the test suite does), else FULL."""
    return FAST if os.environ.get("TUTORIAL_FAST") == "1" else FULL


def suited_to(settings: Settings, dataset_name: str) -> Settings:
    """The same settings for the data that were found.

    The digits are a thousand images: at a batch of 32 five rounds are too few steps to learn anything.
    """
    if dataset_name != "digits":
        return replace(settings, dataset=dataset_name)
    return replace(settings, dataset=dataset_name, images=None, batch_size=FAST.batch_size)
