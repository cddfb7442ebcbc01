"""The exercise of notebook 09: the names of the arrays in which a number changed by more than a limit, or is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from checks.reply import Reply, exercise_function, not_yet, right

Arrays = dict[str, np.ndarray]
LIMIT = 1.0
MOVES = (  # how far conv and bias move; which names are due; the hint if others come
    (0.0, 0.0, [], "Nothing has changed, and you complain: look at update[name] - before[name], not at the weights."),
    (0.6, 0.6, [], "No single number moved by more than the limit, and you complain: take each for itself."),
    (1.0, -1.0, [], "All moved by just the limit, and you complain: only more than the limit is too far."),
    ([0.0, 2.0, 0.0, 0.0], 0.0, ["conv"], "One number of conv moved by 2, and you are content: one is enough."),
    (0.0, [0.0, -2.0], ["bias"], "A number of bias fell by 2: down counts as much as up, so take the absolute value."),
    (0.0, [np.nan, 0.0], ["bias"], "NaN slips through: NaN > limit is False. Ask for it, or whether all are <= limit."),
    ([np.inf] * 4, 0.0, ["conv"], "An infinite number of conv slips through: it is farther off than any limit."),
    ([2.0] * 4, [np.nan, 0.0], ["bias", "conv"], "Both are wrong now: name each of them, not the first alone."),
)


def make_before() -> Arrays:
    return {"conv": np.array([5.0, -5.0, 5.0, -5.0]), "bias": np.zeros(2)}


def relative(update: Arrays, before: Arrays, limit: float) -> list[str]:
    return [k for k in before if not np.all(np.abs(update[k] - before[k]) <= limit * np.abs(before[k]))]


def norm(update: Arrays, before: Arrays, limit: float) -> list[str]:
    return [k for k in before if not np.linalg.norm(update[k] - before[k]) <= limit]


def total(update: Arrays, before: Arrays, limit: float) -> list[str]:
    return [k for k in before if not np.abs(update[k] - before[k]).sum() <= limit]


def mean(update: Arrays, before: Arrays, limit: float) -> list[str]:
    return [k for k in before if not np.abs(update[k] - before[k]).mean() <= limit]


SINGLE = "No single number moved by more than the limit: take each for itself"
MISTAKES: Sequence[tuple[str, Callable[[Arrays, Arrays, float], list[str]]]] = (
    (
        "You measure the change against the weights themselves, and one of 0 could not move at all: take it as it is.",
        relative,
    ),
    (f"{SINGLE}, no norm.", norm),
    (f"{SINGLE}, no sum.", total),
    ("One number of conv moved by 2: one is enough, so take no mean.", mean),
)


@exercise_function("too_far(update, before, limit)", "It gets two dicts of arrays, by the same names, and a number.")
def too_far(answer: Callable[[Arrays, Arrays, float], Sequence[str]]) -> Reply:
    outcomes = []
    for conv, bias, *_ in MOVES:
        made = answer(_moved(conv, bias), make_before(), LIMIT)
        if not isinstance(made, list | tuple | set):
            return not_yet(f"It returns {made!r:.40}: return a list of names, an empty one where all is well.")
        if len(set(made)) < len(made):
            return not_yet("It names an array more than once: one number is enough, and each name comes once.")
        outcomes.append(sorted(made))
    return _judge(outcomes)


def _moved(conv: object, bias: object) -> Arrays:
    before = make_before()
    return {"conv": before["conv"] + conv, "bias": before["bias"] + bias}


def _judge(outcomes: list[list[str]]) -> Reply:
    wrong = [hint for made, (_, _, due, hint) in zip(outcomes, MOVES, strict=True) if made != due]
    if not wrong:
        return right("One number is enough, up or down, and one that is no number is found as well.")
    for hint, mistake in MISTAKES:  # a number that is none may slip through as well: that is another mistake
        makes = [sorted(mistake(_moved(conv, bias), make_before(), LIMIT)) for conv, bias, *_ in MOVES]
        if all(made == expected for made, expected in list(zip(outcomes, makes, strict=True))[:5]):
            return not_yet(hint)
    return not_yet(wrong[0])
