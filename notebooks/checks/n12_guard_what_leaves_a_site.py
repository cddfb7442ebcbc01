"""The exercise of notebook 12: noise and rounds that keep to an epsilon and to an accuracy, or none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from checks.reply import Reply, exercise_function, find_hint, not_yet, right
from tutorial_utils.privacy import epsilon

Choice = tuple[float, int] | None
Trials = dict[tuple[float, int], tuple[float, ...]]  # (noise, rounds): the accuracy of each seed


def table(trials: Trials) -> pd.DataFrame:
    rows = [(*key, seed, one) for seed in range(3) for key, of in trials.items() for one in [of[seed]]]
    return pd.DataFrame(rows, columns=["noise", "rounds", "seed", "accuracy"])


def cases() -> list[tuple[pd.DataFrame, float, float]]:
    """Trials, the most that epsilon may be, and the least that the accuracy of every seed may be."""
    close = {(4.0, 10): (0.70, 0.71, 0.72), (2.0, 3): (0.76, 0.74, 0.75), (3.0, 10): (0.73, 0.90, 0.88)}
    close[5.0, 10] = (0.70, 0.71, 0.95)
    far = {(1.0, 20): (0.95, 0.96, 0.94), (2.0, 20): (0.60, 0.62, 0.61), (8.0, 20): (0.30, 0.31, 0.29)}
    many = {(1.5, 1): (0.66, 0.67, 0.68), (3.5, 12): (0.81, 0.80, 0.82), (2.0, 12): (0.91, 0.90, 0.92)}
    return [(table(close), 6.0, 0.72), (table(far), 4.0, 0.50), (table(many), 6.0, 0.65)]


def pick(
    trials: pd.DataFrame,
    most: float,
    floor: float,
    *,
    cost: Callable[[float, int], float] = epsilon,
    of_seeds: str = "min",
    best: Callable[[pd.DataFrame], pd.Series] = lambda rows: rows["accuracy"],
    none_is_none: bool = True,
) -> Choice:
    """The right answer, and with other arguments the likely wrong ones."""
    rows = trials.groupby(["noise", "rounds"], as_index=False)["accuracy"].agg(of_seeds)
    rows["epsilon"] = [cost(noise, rounds) for noise, rounds in zip(rows["noise"], rows["rounds"], strict=True)]
    fits = rows[(rows["epsilon"] <= most) & (rows["accuracy"] >= floor)]
    if fits.empty:
        if none_is_none:
            return None
        fits = rows[rows["epsilon"] <= most]
    if fits.empty:
        return None
    row = fits.loc[best(fits).idxmax()]
    return float(row["noise"]), int(row["rounds"])


MISTAKES: dict[str, Callable[[pd.DataFrame, float, float], Choice]] = {
    "That is the epsilon of one round: every round is a release, ask for epsilon(noise, rounds).": lambda t, e, a: pick(
        t, e, a, cost=lambda noise, rounds: epsilon(noise, 1)
    ),
    "Rounds times the epsilon of one is far above what they cost together: ask for epsilon(noise, rounds).": (
        lambda t, e, a: pick(t, e, a, cost=lambda noise, rounds: rounds * epsilon(noise, 1))
    ),
    "The mean of the seeds hides one that falls below the floor: take the lowest.": lambda t, e, a: pick(
        t, e, a, of_seeds="mean"
    ),
    "The best seed is luck: take the lowest.": lambda t, e, a: pick(t, e, a, of_seeds="max"),
    "You keep to the epsilon, and to no accuracy: say None where nothing reaches the floor.": lambda t, e, a: pick(
        t, e, a, none_is_none=False
    ),
    "You keep to the accuracy, and to no epsilon: more noise or fewer rounds bring it down.": lambda t, e, a: pick(
        t, np.inf, a
    ),
    "That is the most private of what is allowed: of those take the most accurate.": lambda t, e, a: pick(
        t, e, a, best=lambda rows: -rows["epsilon"]
    ),
}
OTHERWISE = (
    "For each (noise, rounds) take the lowest accuracy of its seeds, drop what costs more epsilon or falls below the "
    "floor, and return the pair that is left with the highest of these, or None."
)


@exercise_function(
    "choose(trials, most_epsilon, least_accuracy)",
    "It gets a table with the columns noise, rounds, seed and accuracy, and two numbers; it returns (noise, rounds).",
)
def choose(answer: Callable[[pd.DataFrame, float, float], Choice]) -> Reply:
    made = [as_numbers(answer(trials.copy(), most, floor)) for trials, most, floor in cases()]
    wanted = [as_numbers(pick(*case)) for case in cases()]
    mistakes = [(hint, [as_numbers(mistake(*case)) for case in cases()]) for hint, mistake in MISTAKES.items()]
    if hint := find_hint(made, wanted, mistakes, OTHERWISE):
        return not_yet(hint)
    return right("And where it says None, the honest answer to the board is: not with these sites.")


def as_numbers(choice: Choice) -> tuple[float, float]:
    if choice is None:
        return np.nan, np.nan
    noise, rounds = choice
    return float(noise), float(rounds)
