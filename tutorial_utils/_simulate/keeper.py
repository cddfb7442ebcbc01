"""Run a command, and end every process that it started when it ends, or when whoever asked for it is gone.

    python keeper.py TOKEN COMMAND...

FLARE starts its processes in sessions of their own: they outlive a parent that is killed. The keeper stands between.
It reads its standard input, a pipe that closes when the asking process ends in any way, SIGKILL included.
It imports psutil alone, so that it is there at once.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # see start.py: the modules beside this file are not for whatever it imports
    sys.path[:] = sys.path[(not getattr(sys.flags, "safe_path", False)) :]

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import psutil

MARK = "TUTORIAL_UTILS_RUN"  # every process of a run inherits this environment variable
LOOK_AGAIN_SECONDS = 0.05
END_SECONDS = 10.0  # after which a process that does not end by SIGKILL is left: it waits for a disk, say


def family(token: str, mark: str = MARK) -> Iterator[psutil.Process]:
    """The processes that inherited a mark and live, even where their parent does not; never the one that asks."""
    for process in psutil.process_iter():
        try:
            marked = process.pid != os.getpid() and process.environ().get(mark) == token
            if marked and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (psutil.Error, OSError):  # another user's, or gone by now
            continue


def end_family(token: str, limit: float = END_SECONDS) -> list[psutil.Process]:
    """Kill until none is left, for one of them may start another meanwhile; return those that live after `limit` s."""
    deadline = time.monotonic() + limit
    while (members := list(family(token))) and time.monotonic() < deadline:
        for process in members:
            try:
                process.kill()
            except psutil.Error:
                continue
        psutil.wait_procs(members, timeout=LOOK_AGAIN_SECONDS)
    return members


def keep(token: str, command: list[str]) -> int:
    """Run the command until it ends or standard input closes; return its code, negative for a signal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the asking process decides, and closes the pipe
    abandoned = threading.Event()
    threading.Thread(target=_wait_for_end_of_input, args=(abandoned,), daemon=True).start()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=os.environ | {MARK: token})
    while child.poll() is None and not abandoned.is_set():
        time.sleep(LOOK_AGAIN_SECONDS)
    end_family(token)
    try:
        return child.wait(1)
    except subprocess.TimeoutExpired:  # it does not end: whoever asked is told by end_family
        return -signal.SIGKILL


def _wait_for_end_of_input(abandoned: threading.Event) -> None:
    while os.read(0, 1):  # not sys.stdin: a thread that waits in it would break the interpreter's end
        continue
    abandoned.set()


if __name__ == "__main__":
    code = keep(sys.argv[1], sys.argv[2:])
    sys.exit(code if code >= 0 else 128 - code)
