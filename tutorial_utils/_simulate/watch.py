"""The simulator's processes: start them, watch them by what they write, end every one of them."""

from __future__ import annotations

import math
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tutorial_utils._simulate import keeper
from tutorial_utils._simulate.guard import PROCESS_ENDED
from tutorial_utils._simulate.job_folder import JobFolder
from tutorial_utils._simulate.verdict import stack_of
from tutorial_utils.errors import ResultsError
from tutorial_utils.results import Run, mean_by_round, read_rounds

START = Path(__file__).with_name("start.py")
POLL_SECONDS = 0.1
LOG_SECONDS = 1.0  # a site that failed still writes its traceback
END_SECONDS = 20.0  # for what FLARE does after the last workflow, where the sites do not say that they are done
PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+@,=~-]+")
FLARE_CODES = (0, 2)  # that its simulator ends with by itself; they prove nothing
FLARE_SETTINGS = {"NVFLARE_DEAD_CLIENT_GRACE_PERIOD": "0", "NVFLARE_DEAD_CLIENT_CHECK_LEAD_TIME": "1"}
# FLARE has dozens of threads, and glibc gives them heaps of their own: with one for all a site takes 20 to 35 MB less.
MEMORY_SETTINGS = {"MALLOC_ARENA_MAX": "1"}


def run_simulator(
    copy: JobFolder, run: Run, threads: int, rounds: int, stall_timeout: float | None, progress: bool
) -> dict[str, Any] | None:
    """Run the simulator until it is over or something is wrong; return what is wrong, as far as one sees it."""
    with _plain_paths(run.folder) as (folder, python), (run.folder / "simulator.log").open("wb") as log:
        command = [python, str(START)]
        command += [str(folder / "job" / copy.path.name), "-w", str(folder / "workspace")]
        command += ["-c", ",".join(run.sites), "-t", str(threads)]
        token = secrets.token_hex(8)
        bar = tqdm(total=rounds, desc="rounds", disable=not progress, leave=False)
        with bar, _kept(command, token, run.folder, log) as process:
            return _wait(run, process, token, stall_timeout, bar)


def _wait(
    run: Run, process: subprocess.Popen, token: str, stall_timeout: float | None, bar: tqdm
) -> dict[str, Any] | None:
    started, ended, size = time.time(), math.inf, 0
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
        quiet = time.time() - state.get("time", started)
        if stall_timeout is not None and quiet > stall_timeout:
            return _describe_stall(run, token, quiet)
    return _describe_end(run.state, code)


def _describe_end(state: dict[str, Any], code: int) -> dict[str, Any] | None:
    """Why the simulator ended by itself; None where the files have to tell."""
    if state.get("failure"):
        return state["failure"]
    if code not in FLARE_CODES:
        return {"reason": f"the simulator's process ended with code {code}, killed perhaps or out of memory"}
    if len(state.get("open", {})) == 1:  # with fewer threads than sites FLARE ends with the site that it has lost
        ((site, task),) = state["open"].items()
        return {"reason": PROCESS_ENDED, "site": site, "task": task["task"]}
    return None


def _all_finalized(run: Run) -> bool:
    sites = [site for site in run.sites if site not in run.state.get("lost", {})]
    return all((run.site_folder(site) / "guard" / "state.json").is_file() for site in sites)


def _describe_stall(run: Run, token: str, quiet: float) -> dict[str, Any]:
    waiting = run.state.get("open", {})
    for process in keeper.family(token):
        if any(site in process.cmdline() for site in waiting):
            process.send_signal(signal.SIGUSR1)  # SiteGuard answers with the stack
    time.sleep(LOG_SECONDS)
    stacks = [f"{site} is here:\n{stack_of(run, site)}" for site in waiting]
    reason = f"it has not answered for {quiet:.0f} s (stall_timeout), though its process is alive"
    if len(waiting) == 1:
        ((site, task),) = waiting.items()
        return {"reason": "\n".join([reason, *stacks]), "site": site, "task": task["task"]}
    who = ", ".join(waiting) or "no site"
    reason = f"nothing has happened for {quiet:.0f} s (stall_timeout): {who} was asked for something"
    return {"reason": "\n".join([reason, *stacks])}


@contextmanager
def _kept(command: list[str], token: str, folder: Path, log: object) -> Iterator[subprocess.Popen]:
    """A command whose every process ends with this block, or with this process, however either is left."""
    keep = [sys.executable, keeper.__file__, token, *command]
    process = subprocess.Popen(
        keep,
        cwd=folder,
        env=os.environ | FLARE_SETTINGS | MEMORY_SETTINGS,
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
        keeper.end_family(token)  # in case that the keeper itself was killed


@contextmanager
def _plain_paths(folder: Path) -> Iterator[tuple[Path, str]]:
    """The folder and the interpreter by paths that FLARE can split at spaces: links, where theirs are not plain."""
    if PLAIN_PATH.fullmatch(str(folder)) and PLAIN_PATH.fullmatch(sys.executable):
        yield folder, sys.executable
        return
    with tempfile.TemporaryDirectory(prefix="flare-") as name:
        link, home = Path(name, "run"), Path(name, "python")
        link.symlink_to(folder, target_is_directory=True)
        home.symlink_to(sys.prefix, target_is_directory=True)
        yield link, str(home / Path(sys.executable).relative_to(sys.prefix))


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
        if "accuracy" in rounds:
            bar.set_postfix_str(f"validation accuracy {mean_by_round(rounds, 'accuracy').iloc[-1]:.1%}")
    return now
