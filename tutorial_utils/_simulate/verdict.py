"""Did a run do all that its job asks for? If not, why, in one sentence and the site's own traceback.

From FLARE's artifacts, its JSON logs and the guards' files; a return code proves nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutorial_utils._simulate.asked import Asked
from tutorial_utils._simulate.cause import find_cause
from tutorial_utils._simulate.guard_checks import find_fault
from tutorial_utils._simulate.guard_files import FOLDER, RECORD, ROUNDS, read_lines
from tutorial_utils.errors import EncryptedError, SimulationError
from tutorial_utils.results import Run

GLOBAL_MODEL = "SRV_FL_global_model.pt"
SERVER_MODELS = {GLOBAL_MODEL: "global", "SRV_best_FL_global_model.pt": "best global"}
FROM_SERVER = "SRV_"


def find_lack(run: Run, asked: Asked) -> str | None:
    """What is missing from a run's files, None if it is whole; ResultsError where one cannot be read."""
    return (
        (_find_lack_of_rounds(run, asked) if asked.rounds else None)
        or (_find_fault_of_model(run, asked) if asked.rounds and asked.saves else None)
        or (_find_hole(run, asked) if asked.evaluates else None)
        or (_find_lack_of_statistics(run, asked.statistics) if asked.statistics else None)
    )


def _find_lack_of_rounds(run: Run, asked: Asked) -> str | None:
    """Every round has the answers that the job asks for; of sites that were lost, those before their loss."""
    seen = {line["round"]: line["sites"] for line in read_lines(run.job_folder / FOLDER / ROUNDS)}
    told = any(site["metrics"] for sites in seen.values() for site in sites.values())
    took_part = {} if seen and not told else run.rounds.groupby("round")["site"].agg(set).to_dict()
    for number, sites in seen.items():  # FLARE's file leaves out who reports no number
        took_part[number] = took_part.get(number, set()) | {site for site in sites if not sites[site]["metrics"]}
    for number in asked.rounds:
        if asked.may_stop and number > max(took_part, default=asked.rounds.start):
            return None
        who = took_part.get(number, set())
        expected = {site for site in run.sites if not _was_lost(run.state, site, number)}
        least = min(asked.answers or len(expected), len(expected))
        if least == len(expected) and expected - who:
            return f"round {number} has no result of {', '.join(sorted(expected - who))}"
        if len(who) < least:
            them = f"{len(who)} site{'s' * (len(who) > 1)} ({', '.join(sorted(who))})" if who else "no site"
            return f"round {number} has results of {them}, and the job asks for {least}"
    return None


def _was_lost(state: Mapping[str, Any], site: str, number: int) -> bool:
    """Was a site lost in this round, for good or until it came back? A loss before the first round has no number."""
    gaps = [(gap["from"], gap["back"]) for gap in state.get("gaps", ()) if gap["site"] == site]
    gaps += [(lost["round"], math.inf) for name, lost in state.get("lost", {}).items() if name == site]
    return any((since or 0) <= number < back for since, back in gaps)


def _find_fault_of_model(run: Run, asked: Asked) -> str | None:
    if run.rounds_kept <= (0 if asked.may_stop else asked.rounds[-1]):
        return "no model was saved" if asked.may_stop else f"the model of round {asked.rounds[-1]} was not saved"
    record = json.loads((run.checkpoint / RECORD).read_text(encoding="utf-8"))
    try:
        model = run.global_model
    except EncryptedError:  # that it is there is all that can be seen here
        return None
    as_sent = {name: model[name] for name in record["infinite"] if name in model}
    fault = find_fault(model, record["shapes"], as_sent, record["absent"])
    return f"the global model is wrong: {fault}" if fault else None


def _find_hole(run: Run, asked: Asked) -> str | None:
    """Every site has scored every model that is there. A score may be no number: that is what the site found."""
    path = run.job_folder / "cross_site_val" / "cross_val_results.json"
    rows = _read_matrix(path)
    if isinstance(rows, str):
        return rows
    here = [site for site in asked.participants or run.sites if site not in run.state.get("lost", {})]
    wanted = [GLOBAL_MODEL] if asked.global_models and asked.saves else []
    wanted += sorted({model for row in rows.values() for model in row if model.startswith(FROM_SERVER)} - {*wanted})
    wanted += here if asked.local_models else []
    if not wanted:
        return "the cross-site matrix is empty"
    holes = [(model, site) for site in here for model in wanted if not rows.get(site, {}).get(model)]
    lack = ", ".join(f"{SERVER_MODELS.get(model, model.removeprefix(FROM_SERVER))} on {site}" for model, site in holes)
    return f"the cross-site matrix lacks {lack}" if holes else None


def _find_lack_of_statistics(run: Run, file: str) -> str | None:
    """Every column of every site is there."""
    path = run.job_folder / file
    try:
        columns = json.loads(path.read_text(encoding="utf-8"))
        lack = [(column, site) for column, told in columns.items() for site in run.sites if site not in told["count"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{path} does not hold its statistics"
    return f"the statistics lack {lack[0][0]} of {lack[0][1]}" if lack else None


def _read_matrix(path: Path) -> dict[str, dict[str, Any]] | str:
    """FLARE's file as it is, or what is wrong with it."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return f"{path} is missing: the job ended before it wrote its cross-site matrix"
    except ValueError as error:
        return f"{path} does not hold its cross-site matrix ({error})"
    sound = isinstance(rows, dict) and all(isinstance(row, dict) for row in rows.values())
    return rows if sound else f"{path} does not hold its cross-site matrix"


def explain(run: Run, failure: Mapping[str, Any] | None, lack: str | None = None) -> SimulationError:
    """The error for a run.

    Args:
        failure: what was seen: reason, site (or None), task, and details for the end. None: look into the logs.
        lack: what is missing, for the case that nobody left a better reason.
    """
    failure = failure or {}
    found = find_cause(run, failure)
    text = found.text if found else failure.get("reason") or lack
    who = (found and found.who in run.sites and found.who) or failure.get("site") or (found and found.who)
    name = {None: "The run", "server": "The server"}.get(who, who)
    lines = [f"{name} failed{_when(run, who, failure.get('task'))}: {text}".rstrip(".") + "."]
    lines.append(f"Its files are in {run.folder}.")
    lines += [safe_rounds(run)] * bool(run.rounds_kept)
    details = failure.get("details") or (found.traceback if found else "")
    return SimulationError("\n".join([*lines, "", details]).rstrip(), run)


def safe_rounds(run: Run) -> str:
    """What can be done after a failure; "" where no round is safe."""
    kept = run.rounds_kept
    return f"{kept} finished round{'s are' if kept > 1 else ' is'} safe: resume_from= goes on after that." * bool(kept)


def _when(run: Run, who: str | None, task: str | None) -> str:
    number = run.state.get("round")
    if not run.state:
        return " before it began"
    if who in run.sites and who not in run.state.get("served", []):
        return " before its first task"
    if task in ("validate", "submit_model"):
        return f" in the cross-site evaluation ({task})"
    return "" if number is None else f" in round {number}"


def stack_of(run: Run, site: str) -> str:
    """Where a site that hangs was when the runner asked it (see SiteGuard); "" where it has not answered."""
    path = run.site_folder(site) / FOLDER / "stack.txt"
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
