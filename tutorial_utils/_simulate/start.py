"""FLARE's simulator, started with shorter naps.

    python start.py JOB -w WORKSPACE -c SITES -t THREADS      # the arguments of FLARE's own command

While it starts, FLARE's simulator looks once a second whether its server is up, whether a site's process listens, and
before it starts the sites at all: some three seconds of a run. Nothing else in its module sleeps (nvflare 2.9.0).
The sites' processes are started by way of site_process.py. FLARE gives each the number of a port that was free a moment
ago, where the process listens seconds later: until then another program, or another run, may have been given it, and
FLARE talks to that. Here the number is kept (`keep_ports`). A site's process that ends before it has written a line is
noticed by nobody, and the run would wait for it: the simulator ends instead, and the runner says so.
FLARE 2.8's simulator does not read the job's meta.json, and the thread that notices a dead site fails for it: see
`give_meta`.
Where cards were dealt out (cards.py), each process is told its own. FLARE's option -gpu would run one site of a card at
a time, and start a process anew for every task.

Python puts the folder of a file that it runs on sys.path, FLARE hands that on to every site, and a module of the
reader's that is called as one beside this file would be shadowed there: so it is taken off first.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path[:] = sys.path[(not getattr(sys.flags, "safe_path", False)) :]

import json
import os
import runpy
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

VISIBLE = "CUDA_VISIBLE_DEVICES"
CARDS = "TUTORIAL_UTILS_CARDS"  # the environment variable by which the runner says whose card is which: {site: VISIBLE}
NAP_SECONDS = 0.05
SITE_PROCESS = Path(__file__).with_name("site_process.py")
LOG = "log.txt"  # FLARE's, in a site's folder, from its first line on
KEPT_PORTS = 256  # the last ones: with fewer threads than sites every task takes one
GRACE_SECONDS = 5.0  # for FLARE, which ends the run itself where it knows why


def nap(seconds: float) -> None:
    time.sleep(min(seconds, NAP_SECONDS))


def keep_ports(kept: deque[socket.socket], number: int) -> list[int]:
    """In place of FLARE's get_open_ports: free ports that no one else is given.

    A socket that is bound, and does not listen, keeps them. The site's process may listen there all the same, for it
    asks for SO_REUSEADDR as this does (Listener of Python's multiprocessing).
    """
    taken = [socket.socket() for _ in range(number)]
    for one in taken:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("", 0))
    kept.extend(taken)  # FLARE asks from a thread for each site, all at once: nothing but this touches what they share
    return [one.getsockname()[1] for one in taken]


def start_site(command: Sequence[str], **how: Any) -> subprocess.Popen:  # noqa: ANN401
    """FLARE's [python, -m, its worker, ...], by way of site_process.py."""
    folder = Path(command[list(command).index("-o") + 1]) if "-o" in command else None
    environment = with_card(how.pop("env", None) or os.environ, folder.name if folder else "")
    process = subprocess.Popen([command[0], str(SITE_PROCESS), *command[1:]], env=environment, **how)
    if folder:
        threading.Thread(target=watch_start, args=(process, folder, end), daemon=True).start()
    return process


def with_card(environment: Mapping[str, str], site: str) -> dict[str, str]:
    """The environment of a site's process, with its card alone where it was dealt one."""
    card = json.loads(environment.get(CARDS) or "{}").get(site)
    return dict(environment) if card is None else {**environment, VISIBLE: card}


def watch_start(process: subprocess.Popen, folder: Path, give_up: Callable[[str], None]) -> None:
    """Wait for the end of a site's process; give up where it comes before the first line of its log."""
    code = process.wait()
    if not (folder / LOG).exists():
        time.sleep(GRACE_SECONDS)
        give_up(f"{folder.name} failed before its first line: its process ended with code {code}. Run it again.")


def end(why: str) -> None:
    sys.stderr.write(f"{why}\n")
    sys.stderr.flush()
    os._exit(1)


def adapt(runner: Any) -> None:  # noqa: ANN401
    """Put these in the places of what FLARE's module simulator_runner uses."""
    runner.subprocess = SimpleNamespace(Popen=start_site, TimeoutExpired=subprocess.TimeoutExpired)
    runner.popen_in_new_session = partial(start_site, start_new_session=True)  # FLARE 2.8.3 starts a site by this
    runner.time = SimpleNamespace(time=time.time, sleep=nap)
    runner.get_open_ports = partial(keep_ports, deque(maxlen=KEPT_PORTS))


def give_meta(manager: type) -> None:
    """Let the simulator's RunManager read the job's meta.json as every other does: in FLARE 2.8 it does not."""
    if "create_job_processing_context_properties" in vars(manager):
        del manager.create_job_processing_context_properties


if __name__ == "__main__":
    from nvflare.private.fed.app.simulator import simulator_runner
    from nvflare.private.fed.simulator.simulator_server import SimulatorRunManager

    adapt(simulator_runner)
    give_meta(SimulatorRunManager)
    runpy.run_module("nvflare.private.fed.app.simulator.simulator", run_name="__main__", alter_sys=True)
