"""Did a run do all that was asked? If not, why, in one sentence and the site's own traceback.

From FLARE's artifacts, its JSON logs and the guards' files; a return code proves nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tutorial_utils._simulate.guard import PROCESS_ENDED, find_fault
from tutorial_utils.errors import SimulationError
from tutorial_utils.results import Run


def find_lack(run: Run, rounds: Sequence[int], evaluates: bool) -> str | None:
    """What is missing from a run's files, None if it is whole; ResultsError where one cannot be read.

    Args:
        rounds: the numbers of the rounds that the job asks for.
        evaluates: does the job end in a cross-site evaluation?
    """
    lost = run.state.get("lost", {})
    took_part = run.rounds.groupby("round")["site"].agg(set)
    for number in rounds:
        expected = {site for site in run.sites if site not in lost or lost[site]["round"] > number}
        if absent := sorted(expected - took_part.get(number, set())):
            return f"round {number} has no result of {', '.join(absent)}"
    if run.rounds_kept <= rounds[-1]:
        return f"the model of round {rounds[-1]} was not saved"
    shapes = json.loads((run.checkpoint / "checkpoint.json").read_text(encoding="utf-8"))["shapes"]
    if fault := find_fault(run.global_model, shapes):
        return f"the global model is wrong: {fault}"
    return _find_hole(run, [site for site in run.sites if site not in lost]) if evaluates else None


def _find_hole(run: Run, sites: Sequence[str]) -> str | None:
    matrix = run.cross_site.reindex(index=sites, columns=["global", *sites])
    holes = matrix.isna().stack()
    if not holes.any():
        return None
    return "the cross-site matrix lacks " + ", ".join(f"{model} on {site}" for site, model in holes[holes].index)


def explain(run: Run, failure: Mapping[str, Any] | None, lack: str | None = None) -> SimulationError:
    """The error for a run.

    Args:
        failure: what the guard saw: reason, site (or None), task. None: look into the sites' logs.
        lack: what is missing, for the case that nobody left a better reason.
    """
    failure = failure or {}
    site = failure.get("site")
    found = first_error(run, site) if site else {} if failure else _earliest_error(run)
    if failure.get("reason") not in (None, PROCESS_ENDED) and "traceback" not in found:
        found = {}  # the server knows the cause, and what the site wrote follows from the end of the run
    cause = found.get("cause") or failure.get("reason") or lack
    site = site or found.get("who")
    sentence = f"{site or 'The run'} failed{_when(run, site, failure.get('task'))}: {cause}"
    lines = [sentence.rstrip(".") + ".", f"Its files are in {run.folder}."]
    if kept := run.rounds_kept:
        lines.append(f"{kept} finished round{'s are' if kept > 1 else ' is'} safe: resume_from= goes on after that.")
    return SimulationError("\n".join([*lines, "", found.get("traceback", "")]).rstrip(), run)


def _when(run: Run, site: str | None, task: str | None) -> str:
    number = run.state.get("round")
    if site in run.sites and site not in run.state.get("served", []):
        return " before its first task"
    if task in ("validate", "submit_model"):
        return f" in the cross-site evaluation ({task})"
    return "" if number is None else f" in round {number}"


def first_error(run: Run, who: str) -> dict[str, str]:
    """The first traceback in one log, else its first error: who, time, cause, and traceback if there is one."""
    path = run.workspace / who / "log.json"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    errors = [record for line in lines if (record := _record(line)).get("levelname") in ("ERROR", "CRITICAL")]
    for record in errors:
        text = str(record.get("message", "")).strip()
        if "Traceback (most recent call last)" in text:
            trace = text[text.index("Traceback (most") :]
            cause = trace.splitlines()[-1].strip()
            return {"who": who, "time": str(record.get("asctime")), "cause": cause, "traceback": trace}
    if errors:
        cause = str(errors[0].get("message", "")).strip()
        return {"who": who, "time": str(errors[0].get("asctime")), "cause": cause}
    return {}


def _record(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:  # the last line of a process that was killed while it wrote
        return {}
    return record if isinstance(record, dict) else {}


def _earliest_error(run: Run) -> dict[str, str]:
    failures = [failure for site in run.sites if (failure := first_error(run, site))]
    return min(failures, key=lambda failure: failure["time"], default=None) or first_error(run, "server")


def stack_of(run: Run, site: str) -> str:
    """Where a site that hangs was when the runner asked it (see SiteGuard)."""
    path: Path = run.site_folder(site) / "guard" / "stack.txt"
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
