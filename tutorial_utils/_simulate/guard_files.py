"""What a run keeps on disk so that it can go on after a cut: on the server after every round, and at each site.

This file ships with the job. It imports nothing but the standard library.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = "guard"  # under the run's folder of the server and of each site
ROUNDS = "rounds.jsonl"  # one line a round: who took part
HALF_MADE = "checkpoint.tmp"
RECORD = "checkpoint.json"
BEST_LOCAL_MODEL = "best_local_model.pt"
STATES = "learner_state_"  # and the round after whose training it was written


def write_json(path: Path, value: object) -> None:
    """Whoever reads the file finds the old text or the new one, never half of it."""
    half_written = path.with_suffix(".tmp")
    half_written.write_text(json.dumps(value, indent=1), encoding="utf-8")
    half_written.replace(path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file that has one a line; a last one that was cut is none. [] where there is no file."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def keep_checkpoint(folder: Path, models: Sequence[Path], record: dict[str, object]) -> None:
    """Put the models and the record into folder/checkpoint-ROUNDS; then drop the older ones.

    Under its own name a checkpoint is whole: it is made under another one. FLARE's persistor replaces its files
    and never writes into one, so a hard link is a copy; where the file system has none (exFAT, SMB), it is copied.
    """
    half_made, new = folder / HALF_MADE, folder / f"checkpoint-{record['rounds']}"
    shutil.rmtree(half_made, ignore_errors=True)
    half_made.mkdir()
    for model in models:
        try:
            (half_made / model.name).hardlink_to(model)
        except OSError:
            shutil.copy2(model, half_made)
    write_json(half_made / RECORD, record)
    half_made.rename(new)
    for old in folder.glob("checkpoint-*"):
        if old != new:
            shutil.rmtree(old)


def take_over(checkpoint: Path, folder: Path, app_folder: Path) -> None:
    """An earlier run's checkpoint, in a new run: cut off before its first round, this one can go on from it too.

    With it, who took part in the rounds that it holds.
    """
    rounds = json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))["rounds"]
    earlier = [line for line in read_lines(checkpoint.parent / ROUNDS) if line["round"] < rounds]
    (folder / ROUNDS).write_text("".join(f"{json.dumps(line)}\n" for line in earlier), encoding="utf-8")
    for model in checkpoint.glob("*.pt"):
        shutil.copy2(model, app_folder)
    shutil.rmtree(folder / HALF_MADE, ignore_errors=True)
    shutil.copytree(checkpoint, folder / HALF_MADE)
    (folder / HALF_MADE).rename(folder / checkpoint.name)


def bring_back(earlier: Path, app_folder: Path, rounds: int) -> None:
    """What a site kept in an earlier run: its best model, and the learner's state of the rounds that count.

    Args:
        earlier: the site's app folder in that run.
        rounds: how many of its rounds are kept: the state of a later one belongs to a round that is run again.
    """
    states = [path for path in earlier.glob(f"{STATES}*.pt") if _round_of(path) < rounds]
    for kept in [earlier / BEST_LOCAL_MODEL, *states]:
        if kept.is_file() and not (app_folder / kept.name).exists():
            shutil.copy2(kept, app_folder)


def _round_of(state: Path) -> int:
    return int(state.stem.removeprefix(STATES))
