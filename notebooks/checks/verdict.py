"""What a check of an exercise says, and the sentences that all checks share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a check says. `right` is None where nothing was attempted."""

    right: bool | None
    text: str

    def __repr__(self) -> str:
        return {None: "Not attempted yet: ", True: "Right. ", False: "Not yet. "}[self.right] + self.text


def open_task(task: str) -> Verdict:
    return Verdict(None, task)


def not_yet(text: str) -> Verdict:
    return Verdict(False, text)


def failed(error: Exception, wanted: str) -> Verdict:
    if "not callable" in str(error):
        return not_yet("Put the name of your function in answer, without brackets: answer = my_function.")
    return not_yet(f"Your function ends in {type(error).__name__}: {error}. {wanted}")
