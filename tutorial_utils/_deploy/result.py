"""What the server kept of a job, laid out as the simulator lays a run, and judged."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from tutorial_utils._deploy.names import safe_name
from tutorial_utils._simulate.cause import find_at_waiting
from tutorial_utils._simulate.job_folder import JobFolder
from tutorial_utils._simulate.resume import lines_taken_along
from tutorial_utils._simulate.verdict import explain, find_lack, safe_rounds
from tutorial_utils.errors import DeployedRunError, DeploymentError, ResultsError
from tutorial_utils.results import Run

DETAIL = re.compile(r"(?P<who>[^\s:]+): (?P<what>.+)", re.DOTALL)  # "site-1: OK", and lines of other kinds among them
NOT_PERMITTED = "BYOC not permitted"
BROKEN = ("FINISHED:EXECUTION_EXCEPTION", "FINISHED:ABNORMAL")  # FLARE's status where the server's process is killed
KILLED = "the server's process of the job ended (killed, out of memory, or it left by itself)"


def sites_of(meta: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Of a job's meta: the sites that took it, and why others did not.

    DeploymentError for a name that would lead out of a folder.
    """
    told = {
        found["who"]: found["what"] for line in meta.get("job_deploy_detail") or [] if (found := DETAIL.match(line))
    }
    told.pop("server", None)
    if strange := [site for site in told if safe_name(site) != site]:
        raise DeploymentError(f"The server names a site {strange[0]!r}, which no site is called: ask who runs it.")
    refused = {site: what.removeprefix("NVFLARE_ERROR: ") for site, what in told.items() if what != "OK"}
    return tuple(sorted(set(told) - set(refused)) or sorted(told)), refused


def seconds_of(meta: dict[str, Any]) -> float:
    """How long a job ran; 0 where it did not."""
    duration = pd.to_timedelta(meta.get("duration") or "", errors="coerce")
    return 0.0 if pd.isna(duration) else duration.total_seconds()


def unpack(result: Path, folder: Path, meta: dict[str, Any]) -> Run:
    """Lay a downloaded result into `folder`; DeployedRunError for a job that never ran."""
    sites, refused = sites_of(meta)
    run = Run(folder, sites, seconds_of(meta))
    if not (result / "workspace").is_dir():
        why = "; ".join(f"{site} says: {what}" for site, what in sorted(refused.items()))
        lines = [f"The job ended with {meta['status']}, before it ran at the server{f' ({why})' if why else ''}."]
        if NOT_PERMITTED in why:
            lines.append("A site whose byoc is none takes no code: install it there, and submit(..., installed=True).")
        raise DeployedRunError("\n".join(lines), run, meta["status"])
    run.job_folder.parent.mkdir(parents=True)
    shutil.move(result / "workspace", run.job_folder)
    shutil.move(result / "job", folder / "job")
    if (earlier := lines_taken_along(job_of(run))).is_file():
        shutil.copyfile(earlier, run.earlier_rounds_path)
    for log in run.job_folder.glob("log.*"):
        shutil.copy2(log, run.workspace / "server")
    return run


def job_of(run: Run) -> JobFolder:
    """The job as it was submitted, which FLARE keeps with the result."""
    return JobFolder(next((run.folder / "job").iterdir()))


def judge(run: Run, status: str) -> None:
    """DeployedRunError unless the run is whole."""
    failure, lack = run.state.get("failure"), None
    if not failure and status.endswith("ABORTED"):
        when = "" if run.state.get("round") is None else f" in round {run.state['round']}"
        text = f"The job was aborted{when}. Its files are in {run.folder}. {safe_rounds(run)}"
        raise DeployedRunError(text.strip(), run, status)
    if not failure:
        try:
            lack = find_lack(run, job_of(run).asked)
        except ResultsError as error:
            lack = str(error)
        if lack is None and run.state.get("phase") == "ended":
            return  # whatever the status is: it is no COMPLETED where a site was lost on purpose
        if status in BROKEN and run.state.get("phase", "ended") != "ended" and not find_at_waiting(run):
            failure = {"reason": KILLED, "site": None}
    error = explain(run, failure, f"{lack or 'it did not come to its end'} (FLARE's status is {status})")
    lines = str(error).splitlines()
    site = (failure or {}).get("site")
    if "Traceback" not in str(error) and site and not (run.workspace / site).is_dir():
        lines.insert(2, f"{site} has sent no log: the people there can read it, in the job's folder of their kit.")
    raise DeployedRunError("\n".join(lines), run, status) from None
