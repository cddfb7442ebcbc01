"""The exercise of notebook 08: the smallest of the gains of one model over another, each within one seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from checks.reply import Reply, exercise_function, find_hint, not_yet, right


def frame(new: dict[int, float], old: dict[int, float]) -> pd.DataFrame:
    """The models' seeds stand in different orders, with a third model between them."""
    rows = [("new", *pair) for pair in new.items()]
    rows += [("third", seed, accuracy) for seed, accuracy in zip(new, (0.90, 0.10, 0.50), strict=True)]
    rows += [("old", *pair) for pair in old.items()]
    return pd.DataFrame(rows, columns=["model", "seed", "accuracy"])


def frames() -> list[pd.DataFrame]:
    return [
        frame({0: 0.50, 1: 0.60, 2: 0.55}, {2: 0.54, 0: 0.44, 1: 0.51}),  # gains 0.06, 0.09, 0.01
        frame({0: 0.40, 1: 0.52, 5: 0.45}, {5: 0.40, 1: 0.50, 0: 0.43}),  # gains -0.03, 0.02, 0.05
    ]


RIGHT = (0.01, -0.03)


def of(table: pd.DataFrame, model: str) -> np.ndarray:
    return table[table.model == model].accuracy.to_numpy()


def gains(table: pd.DataFrame) -> pd.Series:
    by_seed = table.pivot(index="seed", columns="model", values="accuracy")
    return by_seed["new"] - by_seed["old"]


MISTAKES: dict[str, Callable[[pd.DataFrame], float]] = {
    "You subtract row from row, and the rows are of different seeds: bring both into one order.": lambda t: (
        of(t, "new") - of(t, "old")
    ).min(),
    "You sort the scores of each model by themselves, so that different seeds meet: sort by seed, or join on it.": (
        lambda t: (np.sort(of(t, "new")) - np.sort(of(t, "old"))).min()
    ),
    "It comes to nan: pandas subtracts rows of the same label. Make seed the index of both first.": lambda t: np.nan,
    "You take the worst of the one and the best of the other: subtract seed by seed first.": lambda t: (
        of(t, "new").min() - of(t, "old").max()
    ),
    "You subtract the smallest accuracies, of different seeds: subtract seed by seed first.": lambda t: (
        of(t, "new").min() - of(t, "old").min()
    ),
    "That is the mean of the gains, which hides a seed that lost: take the smallest.": lambda t: gains(t).mean(),
    "That is the median of the gains, which hides a seed that lost: take the smallest.": lambda t: gains(t).median(),
    "That is the largest of the gains: take the smallest, which a claim must survive.": lambda t: gains(t).max(),
    "The sign: a gain of the one is its accuracy minus the other's.": lambda t: (-gains(t)).min(),
    "Without its sign a loss looks like a gain: take no absolute value.": lambda t: gains(t).abs().min(),
    "That is the seed of the smallest gain: return the gain itself.": lambda t: gains(t).idxmin(),
}
OTHERWISE = "For each seed subtract the other's accuracy from the one's, then take the smallest of these."


@exercise_function(
    "least_gain(frame, one, other)", "It gets a table with the columns model, seed and accuracy, and two models' names."
)
def least_gain(answer: Callable[[pd.DataFrame, str, str], float]) -> Reply:
    made = [float(answer(table, "new", "old")) for table in frames()]
    mistakes = [(hint, [mistake(table) for table in frames()]) for hint, mistake in MISTAKES.items()]
    if hint := find_hint(made, RIGHT, mistakes, OTHERWISE):
        return not_yet(hint)
    return right("It is above zero only if the one won with every seed.")
