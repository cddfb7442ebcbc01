"""Run a command, and end every process that it started when it ends, or when whoever asked for it is gone.

    python keeper.py TOKEN COMMAND...

FLARE starts its processes in sessions of their own: they outlive a parent that is killed. The keeper stands between.
It reads its standard input, a pipe that closes when the asking process ends in any way, SIGKILL included.
It imports psutil alone, so that it is there at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psutil

MARK = "TUTORIAL_UTILS_RUN"  # every process of a run inherits this environment variable
LOOK_AGAIN_SECONDS = 0.05


def family(token: str, mark: str = MARK) -> Iterator[psutil.Process]:
    """The live processes that bear a mark, whoever their parent is by now; the one that asks is never among them."""
    for process in psutil.process_iter():
        try:
            marked = process.pid != os.getpid() and process.environ().get(mark) == token
            if marked and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (psutil.Error, OSError):  # another user's, or gone by now
            continue


def end_family(token: str) -> None:
    """Kill until none is left: one of them may start another while it is being ended."""
    while members := list(family(token)):
        for process in members:
            try:
                process.kill()
            except psutil.Error:
                continue
        psutil.wait_procs(members, timeout=LOOK_AGAIN_SECONDS)


def keep(token: str, command: list[str]) -> int:
    """Run the command until it ends or standard input closes; return its code, negative for a signal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the asking process decides, and closes the pipe
    abandoned = threading.Event()
    threading.Thread(target=_wait_for_end_of_input, args=(abandoned,), daemon=True).start()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=os.environ | {MARK: token})
    while child.poll() is None and not abandoned.is_set():
        time.sleep(LOOK_AGAIN_SECONDS)
    end_family(token)
    return child.wait()


def _wait_for_end_of_input(abandoned: threading.Event) -> None:
    while os.read(0, 1):  # not sys.stdin: a thread that waits in it would break the interpreter's end
        continue
    abandoned.set()


if __name__ == "__main__":
    code = keep(sys.argv[1], sys.argv[2:])
    sys.exit(code if code >= 0 else 128 - code)
