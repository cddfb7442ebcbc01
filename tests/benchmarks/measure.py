"""Run a contestant from outside: its wall time, its processes' peak memory, and nothing left behind.

The statistics and the tables of the benchmark are here too.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from tutorial_utils._simulate import keeper

MARK = "TUTORIAL_BENCH_RUN"  # every process of a contestant inherits this environment variable
LOOK_SECONDS = 0.25
GRACE_SECONDS = 5.0  # to end by themselves, for processes that outlive the contestant
SITE = re.compile(r"^site-\d+$")
GB, MB = 1e9, 1e6


@dataclass
class Outcome:
    """How a contestant's run went.

    Attributes:
        seconds: from the start of its process to its end.
        begin, end: the same on the wall clock (time.time).
        failure: None, or a sentence on why it did not finish.
        peaks: bytes of resident memory at the highest, for each process of a site ("site-1", or "worker-PID").
        machine: bytes by which the whole machine's used memory rose, at the highest.
        left: how many processes had to be ended after it.
    """

    seconds: float = 0.0
    begin: float = 0.0
    end: float = 0.0
    failure: str | None = None
    peaks: dict[str, int] = field(default_factory=dict)
    machine: int = 0
    left: int = 0


class Watcher:
    """Follows all processes that descend from one, also those that leave its session or lose their parent."""

    def __init__(self, pid: int, token: str) -> None:
        self.root = psutil.Process(pid)
        self.token = token
        self.seen: dict[psutil.Process, str | None] = {}
        self.peaks: dict[str, int] = {}
        self.used_before = psutil.virtual_memory().used
        self.used = self.used_before

    def look(self) -> None:
        self.used = max(self.used, psutil.virtual_memory().used)
        with suppress(psutil.Error):
            for process in self.root.children(recursive=True):
                if self.seen.get(process) is None:  # right after the fork it still has its parent's command line
                    self.seen[process] = role(process)
        for process, name in self.seen.items():
            if name:
                with suppress(psutil.Error, OSError):
                    self.peaks[name] = max(self.peaks.get(name, 0), peak_memory(process.pid))

    def survivors(self) -> list[psutil.Process]:
        return [process for process in {*keeper.family(self.token, MARK), *self.seen} if is_alive(process)]

    def end_all(self) -> int:
        """End what is still there, and what it starts meanwhile: how many processes that were."""
        count = 0
        while survivors := self.survivors():
            count += len(survivors)
            for process in survivors:
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(survivors, timeout=1)
        return count


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def role(process: psutil.Process) -> str | None:
    """The name of the site whose work this process does, None for every other process."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return None
    if "--client" in words:  # FLARE's simulator_worker
        return words[words.index("--client") + 1]
    if "spawn_main(" in " ".join(words):
        return f"worker-{process.pid}"
    return None


def peak_memory(pid: int | None = None) -> int:
    """The most resident memory that a process ever had, in bytes (where the kernel does not say: what it has now)."""
    status = Path(f"/proc/{pid or 'self'}/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return psutil.Process(pid).memory_info().rss


def run_measured(command: Sequence[str], folder: Path, limit: float) -> Outcome:
    """Run it with folder/output.txt for its words, and end every process of it after it or after `limit` seconds."""
    token = uuid.uuid4().hex
    environment = os.environ | {MARK: token, "TMPDIR": str(folder)}  # temporary files go with the folder
    outcome = Outcome(begin=time.time())
    start = time.perf_counter()
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        watcher = Watcher(process.pid, token)
        try:
            code = wait(process, watcher, start + limit)
            outcome.seconds, outcome.end = time.perf_counter() - start, time.time()
            if code is not None:
                await_end(watcher)
        finally:
            outcome.left = watcher.end_all()
            process.kill()
            process.wait()
    outcome.peaks, outcome.machine = watcher.peaks, watcher.used - watcher.used_before
    outcome.failure = describe(code, folder, limit)
    return outcome


def wait(process: subprocess.Popen, watcher: Watcher, deadline: float) -> int | None:
    """The process's code, None when the time was up."""
    while time.perf_counter() < deadline:
        watcher.look()
        with suppress(subprocess.TimeoutExpired):
            return process.wait(LOOK_SECONDS)
    return None


def await_end(watcher: Watcher) -> None:
    deadline = time.monotonic() + GRACE_SECONDS
    while watcher.survivors() and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)


def describe(code: int | None, folder: Path, limit: float) -> str | None:
    if code is None:
        return f"took more than {limit:.0f} s and was ended"
    if code == 0 and (folder / "model.npz").is_file():
        return None
    words = (folder / "output.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(words) if line.strip()), "it said nothing")
    return f"failed (code {code}): {last[:200]}"


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of some repeats."""

    median: float
    low: float
    high: float
    repeats: int

    def text(self, digits: int = 1) -> str:
        if self.repeats == 1:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def spread(values: Iterable[float]) -> Spread | None:
    """None of nothing: a contestant that never finished has no numbers."""
    kept = list(values)
    return Spread(statistics.median(kept), min(kept), max(kept), len(kept)) if kept else None


def ratios(values: Sequence[float | None], base: Sequence[float | None]) -> Spread | None:
    """Each repeat over the same repeat of `base`: they ran right after each other, so the machine's moods cancel."""
    return spread(
        mine / theirs for mine, theirs in zip(values, base, strict=True) if mine is not None and theirs is not None
    )


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that reads well on a terminal and pastes into a README. The first column is text, the others numbers."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "|".join("-" * (width + 1) + ("-" if column == 0 else ":") for column, width in enumerate(widths))
    return "\n".join([line(cells[0]), f"|{rule}|", *(line(row) for row in cells[1:])])


def machine() -> dict[str, str | int]:
    """What the numbers were measured on."""
    facts: dict[str, str | int] = {
        "cores": len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process(), "cpu_affinity") else os.cpu_count(),
        "cpu": cpu_name(),
        "memory_gb": round(psutil.virtual_memory().total / GB),
        "system": platform.system(),
        "python": platform.python_version(),
    }
    for package in ("torch", "nvflare", "numpy"):
        with suppress(PackageNotFoundError):
            facts[package] = version(package)
    return facts


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
