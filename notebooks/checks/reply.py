"""What a check of an exercise says to an attempt, and what all checks share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np


@dataclass(frozen=True, repr=False)
class Reply:
    """What a check says. `right` is None where nothing was attempted."""

    right: bool | None
    text: str

    def __repr__(self) -> str:
        return {None: "Not attempted yet: ", True: "Right. ", False: "Not yet. "}[self.right] + self.text


Check = Callable[..., Reply]


def right(text: str) -> Reply:
    return Reply(True, text)


def not_yet(text: str) -> Reply:
    return Reply(False, text)


def exercise(task: str, wanted: str) -> Callable[[Check], Check]:
    """Make a check of a function that judges an attempt: an open exercise passes, and no attempt makes it raise.

    Args:
        task: what to do, said while the answer is None.
        wanted: what the answer is, said after an error.
    """

    def decorate(judge: Check) -> Check:
        @wraps(judge)
        def check(answer: object, *given: Any, **named: Any) -> Reply:  # noqa: ANN401
            if answer is None:
                return Reply(None, task)
            try:
                return judge(answer, *given, **named)
            except (Exception, SystemExit) as error:  # a reader's code may raise anything
                return not_yet(f"It ends in {type(error).__name__}: {str(error).rstrip('.')}. {wanted}")

        return check

    return decorate


def exercise_function(name: str, wanted: str) -> Callable[[Check], Check]:
    """The same, where the answer is a function."""

    def decorate(judge: Check) -> Check:
        def check(answer: object, *given: Any, **named: Any) -> Reply:  # noqa: ANN401
            if not callable(answer):
                return not_yet("Put the name of your function in answer, without brackets: answer = my_function.")
            return judge(answer, *given, **named)

        task = f"write {name} and put its name, without brackets, in answer."
        return exercise(task, wanted)(wraps(judge)(check))

    return decorate


def find_hint(
    made: Sequence[Any], wanted: Sequence[Any], mistakes: Iterable[tuple[str, Sequence[Any]]], otherwise: str
) -> str | None:
    """The hint to what an attempt made of several cases; None if it is right.

    Args:
        made, wanted: a number a case, or an array.
        mistakes: hints, and what each mistake makes of the same cases.
        otherwise: the hint to what no known mistake makes.
    """
    made, wanted = np.asarray(made, dtype=float), np.asarray(wanted, dtype=float)
    if made.shape != wanted.shape:
        return otherwise
    if np.allclose(made, wanted, equal_nan=True):
        return None
    known = [*mistakes, ("Leave it a part of 1: no factor of 100.", 100 * wanted)]
    if len(made) > 1:
        known.append(("It gives the same whatever it gets: use its arguments, and no name of the notebook.", made[:1]))
    return next((hint for hint, result in known if np.allclose(made, result, equal_nan=True)), otherwise)
