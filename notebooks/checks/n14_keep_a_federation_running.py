"""The exercise of notebook 14: the arguments with which a federation goes on from a run, and bears one loss."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checks.reply import Reply, exercise, not_yet, right
from tutorial_utils.results import Run

KNOWN = {"resume_from", "min_sites", "installed", "progress", "name"}


@exercise(
    "put the keyword arguments of federation.run(job, **answer) into answer, as a dict.",
    "It is a dict: the names of arguments, and their values.",
)
def go_on(answer: Mapping[str, Any], run: Run) -> Reply:
    if not isinstance(answer, Mapping):
        return not_yet("answer must be a dict: the names of arguments, and their values.")
    if unknown := [name for name in answer if name not in KNOWN]:
        return not_yet(f"federation.run has no argument {unknown[0]!r}: help(federation.run) lists what it has.")
    if answer.get("resume_from") is None:
        return not_yet("Without resume_from the job begins with the first weights, and two institutes' work is lost.")
    if folder_of(answer["resume_from"]) != run.folder:
        return not_yet("Go on from the run of all three, joined: its Run, or its folder.")
    if answer.get("min_sites") is None:
        return not_yet("Without min_sites the first loss ends the job.")
    return _least(answer["min_sites"], len(run.sites))


def folder_of(earlier: object) -> Path | None:
    """The folder of what resume_from takes: a Run, its error, or a path."""
    found = getattr(earlier, "run", earlier)
    if isinstance(found, Run):
        return found.folder
    return Path(found).resolve() if isinstance(found, str | Path) else None


def _least(sites: object, everybody: int) -> Reply:
    if isinstance(sites, bool) or not isinstance(sites, int):
        return not_yet(f"min_sites is {sites!r}: it must be a whole number of sites.")
    if sites == everybody - 1:
        return right("After a second loss the job ends with a sentence, and you go on from that error.")
    if sites == everybody:
        return not_yet("With all three asked for, the first loss ends the job.")
    if sites == 1:
        return not_yet("With min_sites=1 the job bears two losses: it would learn from one site alone.")
    return not_yet(f"min_sites is {sites}: it must lie between 1 and the number of sites, {everybody}.")
