"""Who sees what, read off a run: the notes of its wiretaps, and the files of the server and each
site."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from nvflare.apis.dxo import DataKind, MetaKey
from nvflare.job_config.defs import FilterType

from dl.train import load_data
from privacy.wiretap import NOTES, Wiretap
from tutorial_utils.errors import ResultsError
from tutorial_utils.job import TASKS, LearnerJob
from tutorial_utils.results import Run

SAMPLE = 50  # images of a site that are looked for, byte by byte
Note = dict[str, Any]


def listen(job: LearnerJob) -> LearnerJob:
    """The same job with a wiretap at the server and at every site. It changes no bit of the result."""
    job.to_server(Wiretap(), tasks=TASKS, filter_type=FilterType.TASK_RESULT)
    job.to_clients(Wiretap(), tasks=TASKS, filter_type=FilterType.TASK_DATA)
    job.add_sources(Wiretap())
    return job


def read_notes(folder: Path) -> list[Note]:
    """What a wiretap wrote down. ResultsError where there was none."""
    path = folder / NOTES
    if not path.is_file():
        raise ResultsError(f"{path} is missing: build the job with privacy.audit.listen.")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def who_sees_what(run: Run, folders: Sequence[Path]) -> pd.DataFrame:
    """What of the first site was seen by the server and by the other sites, and what an admin can fetch.

    An admin may download what lies in the server's folder of the job; a project admin of FLARE's kits
    may.

    Args:
        run: of a job that `listen` prepared.
        folders: the site folders.

    Returns: a row for each thing: server, other sites, admin; in a cell what was found, or "no".
    """
    site, *others = run.sites
    came = [note for note in read_notes(run.job_folder) if note["from"] == site]
    reached = [note for other in others for note in read_notes(run.site_folder(other))]
    updates, models, scores = (parts_of(came, task) for task in ("train", "submit_model", "validate"))
    told = [part["meta"] for part in parts_of(reached)]
    theirs = [note for note in reached if note["owner"] == site]
    files, kept = read_files(run.job_folder), run.rounds[run.rounds["site"] == site]
    matrix = run.cross_site_path.read_text(encoding="utf-8") if run.cross_site_path.is_file() else ""
    table = {
        "images, labels": look_for_images(run, folders),
        "updates": (
            f"{len(updates)} x {updates[0]['numbers']:,}",
            say(holds(bytes_of(reached), updates), "received"),
            say(holds(files, updates), "in a file"),
        ),
        "steps": (
            say("steps" in part["meta"] for part in updates),
            say("steps" in meta for meta in told),
            say(kept["weight"].notna(), "in a file"),
        ),
        "validation scores": (
            say(MetaKey.INITIAL_METRICS in part["meta"] for part in updates),
            say(MetaKey.INITIAL_METRICS in meta for meta in told),
            say(kept[run.metric.name].notna(), "in a file"),
        ),
        "test scores": (
            f"of {len(scores)} models" if scores else "no",
            say(part["kind"] == DataKind.METRICS for part in parts_of(reached)),
            say(site in matrix, "in a file"),
        ),
        "own best model": (
            f"{models[0]['numbers']:,}" if models else "no",
            say(theirs, f"at {len(theirs)} of {len(others)}"),
            say(holds(files, models), "in a file"),
        ),
        "name": ("yes", say(theirs, "with its model"), say(len(kept), "in a file")),
    }
    columns = ["server", "other sites", "admin"]
    return pd.DataFrame.from_dict(table, orient="index", columns=columns)


def look_for_images(run: Run, folders: Sequence[Path]) -> tuple[str, str, str]:
    """Does the server, or another site, hold the bytes of one of a site's images, in any file of the
    run?"""
    site, *others = run.sites
    (home,) = [folder for folder in folders if folder.name == site]
    images = [image.numpy().tobytes() for image in load_data(home).train.tensors[0][:SAMPLE]]
    found = []
    for folder in ([run.workspace / "server"], [run.workspace / other for other in others]):
        files = [data for one in folder for data in read_files(one)]
        found.append(say(any(image in data for data in files for image in images), "in a file"))
    return found[0], found[1], found[0]


def read_files(folder: Path) -> list[bytes]:
    """All files below a folder but the wiretaps' notes; torch.save and FLARE write arrays as they
    are."""
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != NOTES]


def parts_of(notes: Iterable[Note], task: str | None = None) -> list[dict[str, Any]]:
    """The data in these messages, of one task or of all."""
    return [part for note in notes if task in (None, note["task"]) for part in note["parts"]]


def bytes_of(notes: Iterable[Note]) -> list[bytes]:
    return [bytes.fromhex(part["bytes"]) for note in notes for part in note["parts"]]


def holds(texts: Sequence[bytes], parts: Sequence[dict[str, Any]]) -> bool:
    """Is one of the arrays that a site sent in one of these texts, byte by byte?"""
    wanted = [needle for part in parts if (needle := bytes.fromhex(part["bytes"]))]
    return any(needle in text for needle in wanted for text in texts)


def say(found: object, how: str = "yes") -> str:
    """ "no" for nothing; else `how`. Of several things one is enough."""
    several = list(found) if isinstance(found, Iterable) else [found]
    return how if any(several) else "no"
