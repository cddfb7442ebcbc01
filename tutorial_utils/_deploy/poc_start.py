"""FLARE's proof of concept in a process of its own: PocEnv makes the kits, starts the machines, submits the job.

It prints, reads the environment, and takes --export out of the command line of whoever imports it: none of that shall
happen in a kernel. The machines are this process's family and end with it, so it stays until it is ended.

    python -c "from tutorial_utils._deploy.poc_start import main; main()" SETTINGS.json

SETTINGS.json: job (a folder), min_clients, project (a file), sites (a number), admin, answer. What came of it is
written to the file `answer`: {"job_id": ...} or {"error": ...}.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

from nvflare.job_config.api import FedJob
from nvflare.recipe import PocEnv

from tutorial_utils._simulate.guard_files import write_json

LOGIN_SECONDS = 60.0


class PlacedJob(FedJob):
    """A job folder as the FedJob that an ExecEnv of nvflare.recipe wants: exporting it is copying it."""

    def __init__(self, folder: Path, min_clients: int) -> None:
        super().__init__(name=folder.name, min_clients=min_clients)
        self.folder = folder

    def export_job(self, job_root: str) -> None:
        shutil.copytree(self.folder, Path(job_root, self.folder.name))


def start(settings: dict[str, Any]) -> str:
    """Start everything and return the server's name for the job."""
    environment = PocEnv(
        num_clients=settings["sites"],
        project_conf_path=settings["project"],
        username=settings["admin"],
        extra={"login_timeout": LOGIN_SECONDS},
    )
    return environment.deploy(PlacedJob(Path(settings["job"]), settings["min_clients"]))


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        answer = {"job_id": start(settings)}
    except (Exception, SystemExit) as error:  # FLARE's commands leave by sys.exit
        answer = {"error": f"{type(error).__name__}: {error}"}
    write_json(Path(settings["answer"]), answer)
    threading.Event().wait()
