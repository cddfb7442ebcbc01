"""The exercise of notebook 02: half the sum, over the classes, of how far apart the shares of a class are."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from checks.reply import Reply, exercise_function, find_hint, not_yet, right

ROWS = (  # of two sites each: the same mix, no class in common, something between
    ([30, 10], [60, 20]),
    ([5, 0], [0, 9]),
    ([4, 4, 2, 0], [5, 5, 20, 20]),
)
RIGHT = (0, 1, 0.6)


def tables() -> list[pd.DataFrame]:
    return [pd.DataFrame(rows, index=["site-1", "site-2"]) for rows in ROWS]


def shares(counts: pd.DataFrame) -> pd.DataFrame:
    return counts.div(counts.sum(axis=1), axis=0)


def apart(shares: pd.DataFrame) -> pd.Series:
    return (shares.iloc[0] - shares.iloc[1]).abs()


BY_ROW = "The same mix, at one site twice as many images, must give 0: divide each row by its own sum."
MISTAKES: dict[str, Callable[[pd.DataFrame], float]] = {
    "Plus and minus cancel out: take the absolute value of each difference before you add.": lambda counts: 0,
    "Nearly: two sites that share no class come out as 2. Take half of the sum.": lambda counts: apart(
        shares(counts)
    ).sum(),
    "That is the class in which they differ most: add up over the classes, and take half.": lambda counts: apart(
        shares(counts)
    ).max(),
    "You take a mean over the classes: add them up, and take half.": lambda counts: apart(shares(counts)).mean(),
    "You take a mean over the classes, and half of it: take half of the sum.": lambda counts: (
        apart(shares(counts)).mean() / 2
    ),
    "You square the differences: take the absolute value of each.": lambda counts: (
        (apart(shares(counts)) ** 2).sum() / 2
    ),
    "You square the differences, and take the root: take the absolute value of each.": lambda counts: (
        (apart(shares(counts)) ** 2).sum() ** 0.5
    ),
    "That is what the two have in common: 1 where they are alike. How far are they apart?": lambda counts: (
        shares(counts).min().sum()
    ),
}
OTHERWISE = "For each class, how far apart are the two shares? Add these up over the classes and take half."


@exercise_function("your function", "It gets a table like count_labels(sites), and returns one number.")
def label_difference(answer: Callable[[pd.DataFrame], float], counts: pd.DataFrame) -> Reply:
    made = [float(answer(table)) for table in tables()]
    mistakes = [(hint, [mistake(table) for table in tables()]) for hint, mistake in MISTAKES.items()]
    hint = find_hint(made, RIGHT, mistakes, OTHERWISE)
    if hint is None:
        yours = float(answer(counts.copy()))
        return right(f"0 for sites of the same mix, 1 for sites that share no class, {yours:.2f} for yours.")
    return not_yet(BY_ROW if hint == OTHERWISE and abs(made[0]) > 1e-9 else hint)
