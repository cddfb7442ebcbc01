"""What a run that goes on takes from the one before: in the simulator and at real sites."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tutorial_utils._simulate.guard_files import ROUNDS, read_lines
from tutorial_utils._simulate.job_folder import JobFolder
from tutorial_utils.errors import JobError, TutorialError
from tutorial_utils.results import Run

PLACE, LINES = "custom/earlier", "lines.jsonl"  # in the app of a server elsewhere


def find_earlier(resume_from: Run | TutorialError | str | Path) -> Run:
    """The earlier run, of itself, its error or its folder. JobError where no round of it is safe."""
    found = getattr(resume_from, "run", resume_from)
    earlier = found if isinstance(found, Run) else Run(Path(found).resolve(), (), 0.0)
    if not earlier.checkpoint:
        raise JobError(f"{earlier.folder} holds no finished round to go on from: run without resume_from.")
    return earlier


def earlier_lines(earlier: Run) -> str:
    """FLARE's lines of the rounds that are kept: it writes a round's line before its model is safe."""
    taken = sorted(earlier.job_folder.glob(f"app_*/{PLACE}/{LINES}"))  # as a server that ended has left them
    first = taken if taken and not earlier.earlier_rounds_path.is_file() else [earlier.earlier_rounds_path]
    paths = (*first, earlier.job_folder / "metrics" / "round_metrics.jsonl")
    kept = [line for path in paths for line in read_lines(path) if line["round"] < earlier.rounds_kept]
    return "".join(f"{json.dumps(line)}\n" for line in kept)


def take_along(copy: JobFolder, earlier: Run) -> str:
    """Put an earlier run's checkpoint, and the lines of its rounds, into the job, for a server elsewhere.

    Returns: where the checkpoint lies, from the folder of the server's app.
    """
    place, checkpoint = copy.server_app / PLACE, earlier.checkpoint
    shutil.copytree(checkpoint, place / checkpoint.name)
    if (rounds := checkpoint.parent / ROUNDS).is_file():
        shutil.copyfile(rounds, place / ROUNDS)
    (place / LINES).write_text(earlier_lines(earlier), encoding="utf-8")
    return f"{PLACE}/{checkpoint.name}"


def lines_taken_along(copy: JobFolder) -> Path:
    """The lines of an earlier run's rounds: a file where the job goes on from one."""
    return copy.server_app / PLACE / LINES
