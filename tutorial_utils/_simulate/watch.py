"""The simulator's processes: start them, watch them by what they write, end every one of them."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from tqdm.auto import tqdm

from tutorial_utils._flare import SIMULATOR_CODES, SIMULATOR_SETTINGS
from tutorial_utils._simulate import keeper
from tutorial_utils._simulate.guard import PROCESS_ENDED
from tutorial_utils._simulate.guard_processes import site_of
from tutorial_utils._simulate.job_folder import JobFolder
from tutorial_utils._simulate.start import CARDS
from tutorial_utils._simulate.verdict import stack_of
from tutorial_utils.errors import ResultsError
from tutorial_utils.results import Run, mean_by_round, read_rounds

logger = logging.getLogger(__name__)

START = Path(__file__).with_name("start.py")
POLL_SECONDS = 0.1
LOG_SECONDS = 1.0  # a site that failed still writes its traceback
END_SECONDS = 20.0  # that the simulator may take to write and to stop its processes, once its last workflow is done
STEP_SECONDS = 1.0  # at most, between two looks, are counted as time in which something could have happened
PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+@,=~-]+")
# FLARE has dozens of threads, and glibc gives them heaps of their own: with one for all a site takes 20 to 35 MB less.
MEMORY_SETTINGS = {"MALLOC_ARENA_MAX": "1"}


@dataclass
class Quiet:
    """For how long nothing has changed, in time that this process has lived through.

    A laptop that sleeps, or a process that is stopped, makes clocks jump: that is no time in which a site could have
    answered.
    """

    seconds: float = 0.0
    _last: float | None = None
    _seen: object = None

    def look(self, now: float, seen: object) -> float:
        """Seconds since what is seen has changed last. `now`: of a clock that never goes back."""
        step = 0.0 if self._last is None else min(now - self._last, STEP_SECONDS)
        self.seconds = self.seconds + step if seen == self._seen else 0.0
        self._last, self._seen = now, seen
        return self.seconds


def run_simulator(
    copy: JobFolder,
    run: Run,
    threads: int,
    rounds: int,
    stall_timeout: float | None,
    progress: bool,
    cards: Mapping[str, str],
) -> dict[str, Any] | None:
    """Run the simulator until it is over or something is wrong; return what is wrong, as far as one sees it.

    `cards`: of the sites that are to see one alone, see cards.py.
    """
    with _plain_paths(run.folder) as (folder, python), (run.folder / "simulator.log").open("wb") as log:
        command = [python, str(START)]
        command += [str(folder / "job" / copy.path.name), "-w", str(folder / "workspace")]
        command += ["-c", ",".join(run.sites), "-t", str(threads)]
        token = secrets.token_hex(8)
        bar = tqdm(total=rounds, desc="rounds", disable=not progress, leave=False)
        with bar, _kept(command, token, run.folder, log, cards) as process:
            return _wait(run, process, token, stall_timeout, bar)


def _wait(
    run: Run, process: subprocess.Popen, token: str, stall_timeout: float | None, bar: tqdm
) -> dict[str, Any] | None:
    quiet, ended, size = Quiet(), math.inf, 0
    while (code := process.poll()) is None:
        time.sleep(POLL_SECONDS)
        size = _advance(bar, run, size)
        state = run.state
        if state.get("failure"):
            time.sleep(LOG_SECONDS)
            return state["failure"]
        if state.get("phase") == "ended":
            ended = min(ended, time.monotonic())
            if _all_finalized(run) or time.monotonic() - ended > END_SECONDS:
                return None
        silent = quiet.look(time.monotonic(), state.get("time"))
        if stall_timeout is not None and silent > stall_timeout:
            return _describe_stall(run, token, silent)
    return _describe_end(run.state, code)


def _describe_end(state: dict[str, Any], code: int) -> dict[str, Any] | None:
    """Why the simulator ended by itself; None where the files have to tell."""
    if state.get("failure"):
        return state["failure"]
    if code not in SIMULATOR_CODES:
        return {
            "reason": f"the simulator's process ended with code {code}, killed perhaps or out of memory",
            "code": code,
        }
    if len(state.get("open", {})) == 1:  # with fewer threads than sites FLARE ends with the site that it has lost
        ((site, task),) = state["open"].items()
        return {"reason": PROCESS_ENDED, "site": site, "task": task["task"], "since": task["since"]}
    return None


def _all_finalized(run: Run) -> bool:
    sites = [site for site in run.sites if site not in run.state.get("lost", {})]
    return all((run.site_folder(site) / "guard" / "state.json").is_file() for site in sites)


def _describe_stall(run: Run, token: str, silent: float) -> dict[str, Any]:
    """Who has not answered, or has not come for its task, and where it is."""
    state, processes = run.state, _processes_of_sites(token)
    here = [site for site in run.sites if site not in state.get("lost", {})]
    waiting = {site: task["task"] for site, task in state.get("open", {}).items()}
    frozen = [site for site in here if _is_stopped(processes.get(site))]
    who = list(waiting) or frozen or [site for site in here if site not in state.get("asked", [])]
    stacks = _ask_for_stacks(run, {site: processes[site] for site in who or here if site in processes})
    after = f"for {silent:.0f} s (stall_timeout)"
    what = "not answered" if waiting else "not come for its task"
    if len(who) == 1:
        how = "is stopped (SIGSTOP, or a debugger)" if who[0] in frozen else "is alive"
        reason = f"it has {what} {after}, though its process {how}"
        return {"reason": reason, "site": who[0], "task": waiting.get(who[0]), "details": stacks}
    each = f": each of {', '.join(who)} has {what}" if who else ""
    return {"reason": f"nothing has happened {after}{each}", "details": stacks}


def _processes_of_sites(token: str) -> dict[str, psutil.Process]:
    return {site: process for process in keeper.family(token) if (site := site_of(process))}


def _is_stopped(process: psutil.Process | None) -> bool:
    try:
        return process is not None and process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
        return False


def _ask_for_stacks(run: Run, processes: dict[str, psutil.Process]) -> str:
    """Where each site's process is, as SiteGuard writes it when it gets the signal."""
    for process in processes.values():
        try:
            process.send_signal(signal.SIGUSR1)
        except psutil.Error:  # it has ended meanwhile
            continue
    time.sleep(LOG_SECONDS)
    return "\n".join(f"{site} is here:\n{stack}" for site in processes if (stack := stack_of(run, site)))


@contextmanager
def _kept(
    command: Sequence[str], token: str, folder: Path, log: object, cards: Mapping[str, str]
) -> Iterator[subprocess.Popen]:
    """A command whose every process ends with this block, or with this process, however either is left."""
    keep = [sys.executable, keeper.__file__, token, *command]
    process = subprocess.Popen(
        keep,
        cwd=folder,
        env=os.environ | SIMULATOR_SETTINGS | MEMORY_SETTINGS | {CARDS: json.dumps(dict(cards))},
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.stdin.close()  # the keeper ends the family
        process.wait()
        if left := keeper.end_family(token):  # in case that the keeper itself was killed
            pids = ", ".join(str(one.pid) for one in left)
            logger.warning("These processes of the run cannot be ended, look at them with ps: %s", pids)


@contextmanager
def _plain_paths(folder: Path) -> Iterator[tuple[Path, str]]:
    """The folder and the interpreter by paths that FLARE can split at spaces: links, where theirs are not plain."""
    # ../venv/bin/python without its dots, and not resolved: what a virtual environment links to is not in it
    python = Path(os.path.abspath(sys.executable))  # noqa: PTH100
    if PLAIN_PATH.fullmatch(str(folder)) and PLAIN_PATH.fullmatch(str(python)):
        yield folder, str(python)
        return
    with tempfile.TemporaryDirectory(prefix="flare-") as name:
        link, home = Path(name, "run"), Path(name, "python")
        link.symlink_to(folder, target_is_directory=True)
        home.symlink_to(python.parents[1], target_is_directory=True)
        yield link, str(home / python.parent.name / python.name)


def _advance(bar: tqdm, run: Run, size: int) -> int:
    """Read the metrics file where it has grown since it had this size; return the size that was read."""
    path = run.job_folder / "metrics" / "round_metrics.jsonl"
    try:
        now = path.stat().st_size
        if now == size:
            return size
        rounds = read_rounds(path)
    except (OSError, ResultsError):  # no round is done yet, or FLARE is writing the line
        return size
    done = int(rounds["round"].max()) + 1
    if done > bar.n:
        bar.update(done - bar.n)
        with suppress(ResultsError):  # of several metrics none decides
            metric, means = run.metric, mean_by_round(rounds, run.metric.name)
            mean = metric.format(means.iloc[-1], metric.is_fraction(means))
            bar.set_postfix_str(f"{metric.name} {mean} on validation data")
    return now
