"""Which NVIDIA card each site is to see: `simulate(gpus=...)`. start.py says it to the sites' processes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import cycle
from numbers import Integral

import torch

from tutorial_utils._simulate.start import VISIBLE
from tutorial_utils.errors import JobError


def deal_cards(gpus: Iterable[int] | None, sites: Sequence[str]) -> dict[str, str]:
    """For each site, what CUDA_VISIBLE_DEVICES is to be in its process; {} for None: what it is here.

    Here that variable may leave only some of the machine's cards, or have them in another order: torch's number 0 is
    then the first of those that it names, and so it is handed on by its name there.

    Raises: JobError, a sentence, for no list of numbers, an empty one, and a card that torch does not see.
    """
    if gpus is None:
        return {}
    cards = list(gpus) if isinstance(gpus, Iterable) else [gpus]
    if not cards:
        raise JobError("gpus is empty: name the cards, [0] say, or leave gpus out, and every site sees them all.")
    sound = isinstance(gpus, Iterable) and all(isinstance(one, Integral) and not isinstance(one, bool) for one in cards)
    if not sound or min(cards) < 0:
        raise JobError(f"gpus is {gpus!r}: it must be a list of numbers of cards, 0 or more, such as [0, 1].")
    count = torch.cuda.device_count()
    if max(cards) >= count:
        raise JobError(f"gpus names card {max(cards)}, and torch sees {_say(count)}.")
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",")]
    names = named if any(named) else [str(number) for number in range(count)]
    return {site: names[card] for site, card in zip(sites, cycle(cards), strict=False)}


def _say(count: int) -> str:
    if count == 0:
        return "none here: leave gpus out"
    if count == 1:
        return "one here: name 0, or leave gpus out"
    return f"{count} here, 0 to {count - 1}: name those, or leave gpus out"
