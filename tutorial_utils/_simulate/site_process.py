"""FLARE's process of a site in the simulator, with more patience where the machine is busy.

    python site_process.py -m nvflare.private.fed.app.simulator.simulator_worker ...      # FLARE's own words

A site's process gives up, and with it the run, when it has not reached the server ten seconds after it began to try
(nvflare 2.9.0): the server's process may be swapped out for longer, or the laptop asleep. Nothing is waited for where
the server answers.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # see start.py: the modules beside this file are not for whatever it imports
    sys.path[:] = sys.path[(not getattr(sys.flags, "safe_path", False)) :]

import time

from nvflare.fuel.f3.mpm import MainProcessMonitor
from nvflare.private.fed.app.simulator import simulator_worker

CONNECT_SECONDS = 120.0


def main() -> None:
    """What stands under __main__ in FLARE's module."""
    simulator_worker.CELL_CONNECT_CHECK_TIMEOUT = CONNECT_SECONDS
    sys.argv = [str(simulator_worker.__file__), *sys.argv[3:]]
    args = simulator_worker.parse_arguments()
    MainProcessMonitor.run(main_func=simulator_worker.main, run_dir=args.workspace, args=args)
    time.sleep(2)


if __name__ == "__main__":
    main()
