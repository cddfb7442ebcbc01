"""The exercise of 08, checked as those in checks.py are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from checks.verdict import Verdict, failed, not_yet, open_task


def least_gain(answer: Callable[[pd.DataFrame, str, str], float] | None) -> Verdict:
    """08: the smallest of the gains of one model over another, each taken within one seed."""
    if answer is None:
        return open_task("write least_gain(frame, one, other) and put its name, without brackets, in answer.")
    try:
        made = [float(answer(frame.copy(), "new", "old")) for frame in _FRAMES]
    except Exception as error:
        return failed(error, "It gets a table with the columns model, seed and accuracy, and two models' names.")
    if np.allclose(made, (0.02, -0.03)):
        return Verdict(True, "It is above zero only if the one won with every seed.")
    for given, hint in _GAINS.items():
        if np.allclose(made, given, atol=1e-6, equal_nan=True):
            return not_yet(hint)
    return not_yet("For each seed subtract the other's accuracy from the one's, then take the smallest of these.")


def _frame(new: dict[int, float], old: dict[int, float]) -> pd.DataFrame:
    """The models' seeds stand in different orders, with a third model between them."""
    rows = [("new", *pair) for pair in new.items()] + [("third", 0, 0.9)] + [("old", *pair) for pair in old.items()]
    return pd.DataFrame(rows, columns=["model", "seed", "accuracy"])


_FRAMES = (
    _frame({0: 0.50, 1: 0.60, 2: 0.57}, {2: 0.48, 0: 0.46, 1: 0.58}),  # gains 0.04, 0.02, 0.09
    _frame({0: 0.40, 1: 0.52}, {1: 0.50, 0: 0.43}),  # gains -0.03, 0.02
)
_GAINS = {  # what a mistake makes of the two frames, and the hint to it
    (-0.01, -0.10): "You subtract row from row, and the rows are of different seeds: bring both into one order.",
    (np.nan, np.nan): "It comes to nan: pandas subtracts rows of the same label. Make seed the index of both first.",
    (-0.08, -0.10): "You take the worst of the one and the best of the other: subtract seed by seed first.",
    (0.04, -0.03): "You subtract the smallest accuracies, of different seeds: subtract seed by seed first.",
    (0.05, -0.005): "That is the mean of the gains, which hides a seed that lost: take the smallest.",
    (0.09, 0.02): "That is the largest of the gains: take the smallest, which a claim must survive.",
    (-0.09, -0.02): "The sign: a gain of the one is its accuracy minus the other's.",
    (0.02, 0.02): "Without its sign a loss looks like a gain: take no absolute value.",
    (2, -3): "Leave the accuracies as they are, 0 to 1: no factor of 100.",
}
