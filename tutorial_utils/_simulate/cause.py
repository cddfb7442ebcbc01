"""Why did it fail? What the logs of FLARE's participants, and what their processes have printed, say about it.

A log holds more than the cause: errors that were handled long before, and what follows from the end of a run. So only
what was written while the failing task was at work counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tutorial_utils import _flare
from tutorial_utils._simulate.guard import ANSWERED, PROCESS_ENDED
from tutorial_utils.results import Run

TRACE = "Traceback (most recent call last)"
RAISED = f"{ANSWERED} EXECUTION_EXCEPTION"
SLACK_SECONDS = 0.5  # between a site's line in its log and what the server notices
RECENT_SECONDS = 5.0  # an error just before its process ended is why it did
READS_COMMAND_LINE = re.compile(r"^(\S+\.py): error: ([^:\n]*)", re.MULTILINE)  # as argparse ends a process
CRASH = re.compile(r"^Fatal Python error: .*|^Segmentation fault.*", re.MULTILINE)
FRAMES = re.compile(rf"^.*{re.escape(TRACE)}:\n(?=  File )", re.MULTILINE)
PRINTED_TRACE = re.compile(rf"^{re.escape(TRACE)}", re.MULTILINE)  # FLARE's own lines begin with the time
KILLED = 128  # and the number of a signal: how a process's code says that it was killed


@dataclass(frozen=True)
class Cause:
    """What one error says.

    Attributes:
        text: one line.
        who: in whose log it stands; None: it was printed by one of the processes.
        time: seconds since 1970.
        traceback: "" if it left none.
    """

    text: str
    who: str | None = None
    time: float = 0.0
    traceback: str = ""


def find_cause(run: Run, failure: Mapping[str, Any]) -> Cause | None:
    """What the logs know of a failure, better than the guard that saw it; None if nothing.

    Args:
        failure: reason; site, since and time where the guard has seen it. {}: nobody has seen one.
    """
    site, reason = failure.get("site"), failure.get("reason")
    if site:
        return _find_at_site(run, site, reason, failure)
    if reason is None or failure.get("code", 0) in range(1, KILLED):
        return _find_anywhere(run)
    if "code" in failure:
        return find_printed(run, crash_only=True)
    found = find_in_log(run, "server", failure.get("since", 0.0), failure.get("time", math.inf))
    return found and (Cause(reason, None, found.time, found.traceback) if found.text in reason else None)


def _find_at_site(run: Run, site: str, reason: str, failure: Mapping[str, Any]) -> Cause | None:
    began = site in run.state.get("served", [])
    until = failure.get("time", math.inf)
    found = find_in_log(run, site, failure.get("since", 0.0) if began else 0.0, until)
    if reason == RAISED and not (found and found.traceback):  # its clock is another one, where it is elsewhere
        found = find_in_log(run, site)
    if reason.startswith(ANSWERED):
        return found if found and found.traceback else None
    if reason != PROCESS_ENDED:
        return None  # the server knows: what the site wrote follows from the end of the run
    if not began:
        return found if found and found.traceback else find_printed(run) or found or find_at_waiting(run)
    if found and found.traceback and found.time >= until - RECENT_SECONDS:
        return found
    if printed := find_printed(run, crash_only=True):
        return printed
    return found and Cause(f"{reason}; the last error in its log: {found.text}", site, found.time)


def _find_anywhere(run: Run) -> Cause | None:
    """Where no failure was seen: what kept a site, or the server, from beginning."""
    at_site, at_server = find_at_waiting(run), find_in_log(run, "server")
    if at_site:
        return at_site
    return at_server if at_server and at_server.traceback else find_printed(run) or at_server


def find_at_waiting(run: Run) -> Cause | None:
    """The first error of the sites that have not begun: one of them may send no log, and another the same error."""
    waiting = [site for site in run.sites if site not in run.state.get("served", [])]
    found = [cause for site in waiting if (cause := find_in_log(run, site)) and cause.traceback]
    return min(found, key=lambda cause: cause.time, default=None)


def find_in_log(run: Run, who: str, since: float = 0.0, until: float = math.inf) -> Cause | None:
    """The last error that a participant logged in this time: one with a traceback if there is any.

    FLARE logs an error again where it hands it on, inside another one: then it is the first of these.
    """
    errors = [
        _read(who, time, text)
        for time, text in _flare.read_errors(run.workspace / who / _flare.LOG)
        if not time or since - SLACK_SECONDS <= time <= until + SLACK_SECONDS
    ]
    traced = [error for error in errors if error.traceback]
    if not traced:
        return errors[-1] if errors else None
    found = traced.pop()
    while traced and traced[-1].text in found.traceback:
        found = traced.pop()
    return found


def find_printed(run: Run, crash_only: bool = False) -> Cause | None:
    """What a process of the run has printed as its end."""
    path = run.folder / "simulator.log"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if crash := CRASH.search(text):
        return Cause(crash[0])
    if crash_only:
        return None
    if found := READS_COMMAND_LINE.search(text):
        return Cause(
            f"a module that the job brings reads the command line when it is imported ({found[1]}: {found[2]}): "
            'put that under  if __name__ == "__main__":'
        )
    starts = [found.start() for found in PRINTED_TRACE.finditer(text)]
    return Cause(_message_of(text[starts[-1] :]), traceback=text[starts[-1] :].strip()) if starts else None


def _read(who: str, time: float, text: str) -> Cause:
    if TRACE not in text:
        return Cause(text.splitlines()[0] if text else "", who, time)
    trace = text[text.index(TRACE) :]
    return Cause(_message_of(trace), who, time, trace)


def _message_of(trace: str) -> str:
    """The line of a traceback that says what went wrong: below the frames of the last one, above a hint or a list."""
    begin = max((found.end() for found in FRAMES.finditer(trace)), default=0)
    lines = trace[begin:].splitlines()
    starts = [number for number, line in enumerate(lines) if line and not line[0].isspace()]
    if not starts:
        return lines[-1].strip() if lines else TRACE
    message, below = lines[starts[0]].strip(), lines[starts[0] + 1 :]
    return f"{message} {below[0].strip()}" if message.endswith(":") and below else message
