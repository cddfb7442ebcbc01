"""The exercise of notebook 06: the sites' own models at home, minus the same models away, both as means."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from checks.reply import Reply, exercise_function, find_hint, not_yet, right

SITES = ["site-1", "site-2", "site-10"]
OWN = ([0.9, 0.5, 0.1], [0.4, 0.8, 0.3], [0.2, 0.6, 0.4])  # rows: whose images, columns: whose model


def matrices() -> list[pd.DataFrame]:
    """One matrix three times: in order, the columns in another order, with the global models' columns, and a second."""
    own = pd.DataFrame(OWN, index=SITES, columns=SITES)
    by_text = own[sorted(SITES)]
    both = pd.DataFrame({"global": 0.65, "best global": 0.75}, index=SITES)
    second = pd.DataFrame([[0.5, 0.6], [0.2, 0.7]], index=SITES[:2], columns=SITES[:2])
    return [own, by_text, both.join(by_text), second]


RIGHT = (0.35, 0.35, 0.35, 0.2)


def home(own: pd.DataFrame) -> np.ndarray:
    return np.diag(own[own.index])


def away(own: pd.DataFrame) -> np.ndarray:
    return own[own.index].to_numpy()[~np.eye(len(own), dtype=bool)]


def all_models(matrix: pd.DataFrame) -> float:
    cells = [matrix.loc[site, model] for site in matrix.index for model in matrix if model != site]
    return home(matrix).mean() - np.mean(cells)


def by_place(matrix: pd.DataFrame) -> float:
    own = matrix.drop(columns=["global", "best global"], errors="ignore").to_numpy()
    return np.diag(own).mean() - own[~np.eye(len(own), dtype=bool)].mean()


def by_place_of_all(matrix: pd.DataFrame) -> float:
    cells = matrix.to_numpy()
    return np.diag(cells).mean() - cells[~np.eye(*cells.shape, dtype=bool)].mean()


ORDER = "The columns may stand in another order than the rows (site-10!): find each model by name."
GLOBAL = "The columns global and best global are no site's model: keep to cross_site[cross_site.index]."
MISTAKES: dict[str, Callable[[pd.DataFrame], float]] = {
    "You have the mean at home: now subtract the mean away, of the same models on the other sites' images.": lambda m: (
        home(m).mean()
    ),
    "The sign: at home minus away, so that a model that is better at home gives a positive gap.": lambda m: (
        away(m).mean() - home(m).mean()
    ),
    "You subtract the mean of all cells: leave those at home out of the cells away.": lambda m: (
        home(m).mean() - m[m.index].to_numpy().mean()
    ),
    "You subtract sums: take the mean of the cells at home and the mean of the cells away.": lambda m: (
        home(m).sum() - away(m).sum()
    ),
    "You take medians: take the mean of the cells at home and the mean of the cells away.": lambda m: (
        np.median(home(m)) - np.median(away(m))
    ),
    ORDER: by_place,
    f"{ORDER} And the columns global and best global are no site's model.": by_place_of_all,
    GLOBAL: all_models,
}
OTHERWISE = "Mean of the cells at home (three of nine, say), minus mean of the others."


@exercise_function("diagonal_gap(cross_site)", "It gets a matrix, here of three sites, and returns one number.")
def diagonal_gap(answer: Callable[[pd.DataFrame], float]) -> Reply:
    made = [float(answer(matrix)) for matrix in matrices()]
    mistakes = [(hint, [mistake(matrix) for matrix in matrices()]) for hint, mistake in MISTAKES.items()]
    if hint := find_hint(made, RIGHT, mistakes, OTHERWISE):
        return not_yet(hint)
    return right("It finds each site's own model by name, with global columns or without.")
