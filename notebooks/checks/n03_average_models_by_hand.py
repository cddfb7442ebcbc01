"""The exercise of notebook 03: the mean of the sites' weights, each site counted as often as it made steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from checks.reply import Reply, exercise_function, find_hint, not_yet, right

Update = tuple[dict[str, np.ndarray], int]
STEPS, NAMES = (10, 30, 60), ("conv", "bias")
MISTAKES = {  # how much each of the three sites counts
    "You count every site alike: one that made 60 steps must count six times as often as one of 10.": (1 / 3,) * 3,
    "The counts add up to 100 and not to 1: divide by the sum of the steps.": (10, 30, 60),
    "You divide by the number of sites: divide by the sum of the steps.": (10 / 3, 10, 20),
    "You add up the sites and do not divide: a mean has counts that add up to 1.": (1, 1, 1),
    "You stop after two sites: there may be any number of updates.": (0.25, 0.75, 0),
    "The site of the fewest steps counts most: multiply by the steps, and divide by their sum.": (6 / 9, 2 / 9, 1 / 9),
    "That is the last site alone: add to what the sites before it gave.": (0, 0, 0.6),
}
OTHERWISE = "For each name: multiply each site's array by its steps, add, divide by the sum of the steps."


def make_updates() -> list[Update]:
    numbers = np.random.default_rng(0).normal(size=(3, 2, 4))
    return [(dict(zip(NAMES, arrays, strict=True)), steps) for arrays, steps in zip(numbers, STEPS, strict=True)]


def mean(updates: Sequence[Update], counts: Sequence[float]) -> list[np.ndarray]:
    arrays = [[params[name] for name in NAMES] for params, _ in updates]
    return list(np.tensordot(counts, arrays, 1))


@exercise_function("average(updates)", "It gets a list of (params, steps), here of three sites.")
def weighted_average(answer: Callable[[list[Update]], Mapping[str, np.ndarray]]) -> Reply:
    given, updates = make_updates(), make_updates()
    made = answer(given)
    if not isinstance(made, Mapping) or set(made) != set(NAMES):
        return not_yet(f"It returns a {type(made).__name__}: return a dict, one array for each name in params.")
    got = [np.array(made[name], dtype=float) for name in NAMES]
    mistakes = [(hint, mean(updates, counts)) for hint, counts in MISTAKES.items()]
    if hint := find_hint(got, mean(updates, (0.1, 0.3, 0.6)), mistakes, OTHERWISE):
        return not_yet(hint)
    if not np.array_equal(mean(given, (1, 2, 3)), mean(updates, (1, 2, 3))):
        return not_yet("The mean is right, and the updates are not what they were: begin with a dict of your own.")
    return right("Sites of 10, 30 and 60 steps count as 1 to 3 to 6.")
