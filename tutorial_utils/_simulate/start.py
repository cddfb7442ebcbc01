"""FLARE's simulator, started with shorter naps.

    python start.py JOB -w WORKSPACE -c SITES -t THREADS      # the arguments of FLARE's own command

While it starts, FLARE's simulator looks once a second whether its server is up, whether a site's process listens, and
before it starts the sites at all: some three seconds of a run. Nothing else in its module sleeps (nvflare 2.9.0).
The sites' processes are started by way of site_process.py.

Python puts the folder of a file that it runs on sys.path, FLARE hands that on to every site, and a module of the
reader's that is called as one beside this file would be shadowed there: so it is taken off first.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path[:] = sys.path[(not getattr(sys.flags, "safe_path", False)) :]

import runpy
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nvflare.private.fed.app.simulator import simulator_runner

NAP_SECONDS = 0.05
SITE_PROCESS = Path(__file__).with_name("site_process.py")


def nap(seconds: float) -> None:
    time.sleep(min(seconds, NAP_SECONDS))


def start_site(command: Sequence[str], **how: Any) -> subprocess.Popen:  # noqa: ANN401
    """FLARE's [python, -m, its worker, ...], by way of site_process.py."""
    return subprocess.Popen([command[0], str(SITE_PROCESS), *command[1:]], **how)


if __name__ == "__main__":
    simulator_runner.subprocess = SimpleNamespace(Popen=start_site, TimeoutExpired=subprocess.TimeoutExpired)
    simulator_runner.time = SimpleNamespace(time=time.time, sleep=nap)
    runpy.run_module("nvflare.private.fed.app.simulator.simulator", run_name="__main__", alter_sys=True)
