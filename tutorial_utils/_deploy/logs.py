"""What the sites have told of their errors: FLARE's kits stream each site's error log to the server, if it allows that.

Read in FLARE 2.9.0: a site's SiteLogStreamer sends error_log.txt, live and once more at the job's end; the server keeps
it beside the job, as ERRORLOG_<site>, for whoever may download the job. "allow_log_streaming": false in the site's
local/resources.json keeps it at the site (the same line in a project file is lost: a false counts as absent there).
"""

from __future__ import annotations

import json
import re
import time

from tutorial_utils._deploy.admin import Admin
from tutorial_utils.results import Run

WAIT_SECONDS = 3.0  # a site that failed sends its last lines after the job has ended
LOOK_AGAIN_SECONDS = 0.3
# "2026-11-26 00:30:49,646 - ModelLearnerExecutor - ERROR - [identity=site-2, ...] - the message, perhaps of many lines"
RECORD = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) - (.*?) - ([A-Z]+) - (?:\[.*?\])? ?- ", re.MULTILINE)


def bring_error_logs(admin: Admin, job_id: str, run: Run) -> None:
    """Put each site's error log into its folder of the run: error_log.txt, and log.json as the simulator's is.

    Where the guard knows a site that failed and lives, its log is waited for.
    """
    failed = (run.state.get("failure") or {}).get("site")
    deadline = time.monotonic() + WAIT_SECONDS
    while failed not in (logs := admin.error_logs(job_id)) and failed in run.sites and time.monotonic() < deadline:
        time.sleep(LOOK_AGAIN_SECONDS)
    for site in set(logs) & set(run.sites):  # nothing else that the server names becomes a path
        folder = run.workspace / site
        folder.mkdir(exist_ok=True)
        (folder / "error_log.txt").write_text(logs[site], encoding="utf-8")
        lines = [json.dumps(record) for record in parse_log(logs[site])]
        (folder / "log.json").write_text("\n".join(lines), encoding="utf-8")


def parse_log(text: str) -> list[dict[str, str]]:
    """The records of a log of FLARE's, with the fields that its log.json has; one record where it is no such log."""
    starts = list(RECORD.finditer(text))
    if not starts:
        return [{"asctime": "", "levelname": "ERROR", "message": text.strip()}] if text.strip() else []
    ends = [start.start() for start in starts[1:]] + [len(text)]
    return [
        {"asctime": found[1], "name": found[2], "levelname": found[3], "message": text[found.end() : end].strip()}
        for found, end in zip(starts, ends, strict=True)
    ]
