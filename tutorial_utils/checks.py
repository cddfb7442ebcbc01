"""Answers to the exercises, checked: each function looks at an attempt and says right, or gives a hint.

An attempt that is still None is "not attempted yet", and passes: a notebook with open exercises runs to its end.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a check says. `right` is None where nothing was attempted."""

    right: bool | None
    text: str

    def __repr__(self) -> str:
        return {None: "Not attempted yet: ", True: "Right. ", False: "Not yet. "}[self.right] + self.text


def _open(task: str) -> Verdict:
    return Verdict(None, task)


def _hint(text: str) -> Verdict:
    return Verdict(False, text)


def harder_site(answer: str | None, cross_site: pd.DataFrame) -> Verdict:
    """00: on whose test images is the global model worse?"""
    if answer is None:
        return _open('put the name of a site, such as "site-1", in answer.')
    if answer not in cross_site.index:
        return _hint(f"{answer!r} is no site: choose one of {', '.join(cross_site.index)}.")
    column = cross_site["global"]
    if answer != column.idxmin():
        return _hint("Look down the column named global: each row is one site's test images. Which is lower?")
    return Verdict(True, f"The global model reaches {column.min():.1%} there and {column.max():.1%} elsewhere.")
