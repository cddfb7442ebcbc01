"""The exercise of notebook 01: of the images of each class, the part that was recognised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from checks.reply import Reply, exercise_function, find_hint, not_yet, right

CLASSES = ("cat", "dog", "frog", "ship")
LABELS = (0, 0, 0, 0, 1, 1, 3, 3, 3, 3, 3)  # no frog
PREDICTED = (0, 0, 0, 2, 1, 0, 3, 3, 3, 3, 0)
RIGHT = (0.75, 0.5, np.nan, 0.8)
OWN = "Take the images whose label is the class: which part of them is predicted to be it?"
AS_PREDICTED = f"You divide by how often a class is predicted. {OWN}"
ALL_IMAGES = f"You divide by the number of all images. {OWN}"
TOGETHER = f"You take all images together. {OWN}"
NO_IMAGE = "All right but one: a class without an image has no accuracy, so nan."
MISTAKES = (
    (AS_PREDICTED, (3 / 5, 1, 0, 1)),
    (AS_PREDICTED, (3 / 5, 1, np.nan, 1)),
    (TOGETHER, (8 / 11, 8 / 11, 8 / 11, 8 / 11)),
    (TOGETHER, (8 / 11, 8 / 11, np.nan, 8 / 11)),
    (ALL_IMAGES, (3 / 11, 1 / 11, 0, 4 / 11)),
    (ALL_IMAGES, (3 / 11, 1 / 11, np.nan, 4 / 11)),
    (NO_IMAGE, (0.75, 0.5, 0, 0.8)),
    (NO_IMAGE, (0.75, 0.5, 1, 0.8)),
    ("That is the part that was missed: take the part that was recognised.", (0.25, 0.5, np.nan, 0.2)),
    ("That counts the images that were recognised: divide by how many images the class has.", (3, 1, np.nan, 4)),
    ("That counts the images that were recognised: divide by how many images the class has.", (3, 1, 0, 4)),
)


@exercise_function("your function", "It must return a dict by name, or a list, also where a class has no image.")
def class_accuracy(answer: Callable[..., Mapping[str, float] | Sequence[float]]) -> Reply:
    made = answer(np.array(LABELS), np.array(PREDICTED), CLASSES)
    if isinstance(made, Mapping) or (isinstance(made, pd.Series) and set(made.index) == set(CLASSES)):
        made = [made[name] for name in CLASSES]
    got = np.asarray(made, dtype=float)
    if got.shape != (4,):
        return not_yet(
            f"For four classes you return an array of shape {got.shape}: return one number for each name in classes."
        )
    if hint := find_hint([got], [RIGHT], ((hint, [numbers]) for hint, numbers in MISTAKES), OWN):
        return not_yet(hint)
    return right("Each class is judged on its own images, and a class without one is not judged.")
