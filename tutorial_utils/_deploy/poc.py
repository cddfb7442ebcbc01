"""FLARE's proof of concept, PocEnv, with its workspace in a folder of ours and its processes in a family of ours."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nvflare.job_config.api import FedJob

from tutorial_utils._deploy.apps import address, choose_sites
from tutorial_utils._deploy.federation import Federation, place
from tutorial_utils._deploy.kits import admin_of, check_path, copy_project
from tutorial_utils._deploy.services import Kept
from tutorial_utils._simulate.guard_files import write_json
from tutorial_utils._simulate.job_folder import name_of
from tutorial_utils.errors import DeploymentError
from tutorial_utils.results import Run
from tutorial_utils.simulate import fresh_folder
from tutorial_utils.sites import check_site_names

START_SECONDS = 300.0
LOOK_AGAIN_SECONDS = 0.2
HERE = Path(__file__).resolve().parents[2]  # so that the child finds this package, however we did
CODE = f"import sys; sys.path.append({str(HERE)!r}); from tutorial_utils._deploy.poc_start import main; main()"


def run_in_poc(
    job: FedJob | str | Path,
    project: str | Path,
    data: Sequence[str | Path],
    *,
    runs: str | Path = "runs",
    name: str | None = None,
    progress: bool = True,
) -> Run:
    """Run a job in FLARE's proof of concept: PocEnv makes the kits, starts the machines, submits, and all ends here.

    PocEnv works in a process of its own, and its workspace is in a fresh folder of `runs`: a POC workspace of yours,
    your environment and your standard output are left alone. The server gets a free port. SITE_DATA names the folder
    of the dataset folders, for all sites: they are one machine's.

    Args:
        job, project, runs, name: as for `deploy.provision` and `Federation.run`.
        data: the dataset folders, side by side in one folder; each stands for a site of its name.

    Raises: as `Federation.run`.
    """
    folders = [Path(one).resolve() for one in data]
    sites = check_site_names([one.name for one in folders])
    if len({one.parent for one in folders}) > 1:
        raise DeploymentError("In the proof of concept all sites read one SITE_DATA: put their folders side by side.")
    check_path(Path(runs).resolve())
    folder = fresh_folder(Path(runs).resolve(), name or name_of(job))
    try:
        found, project_file = copy_project(Path(project), folder, sites)
        copy = place(job, folder / "submitted")
        address(copy.path, choose_sites(copy.path, sites), with_code=True)
    except BaseException:
        shutil.rmtree(folder)  # nothing has run in it
        raise
    admin = admin_of(found)
    answer = folder / "answer.json"
    settings = {"job": str(copy.path), "min_clients": copy.min_clients, "project": str(project_file)}
    settings |= {"sites": len(sites), "admin": admin, "answer": str(answer)}
    write_json(folder / "settings.json", settings)
    temporary = folder / "tmp"  # where FLARE leaves empty folders of the logs that have come in
    temporary.mkdir()
    environment = {"NVFLARE_POC_WORKSPACE": str(folder / "poc"), "SITE_DATA": str(folders[0].parent)}
    environment |= {"TMPDIR": str(temporary)}
    machines = Kept([sys.executable, "-c", CODE, str(folder / "settings.json")], folder / "poc.log", environment)
    try:
        job_id = _wait_for(answer, machines, folder / "poc.log")
        federation = Federation(folder / "poc" / found["name"] / "prod_00" / admin, folder / "jobs").connect()
        try:
            return federation.watch(job_id, progress=progress)
        finally:
            federation.close()
    finally:
        machines.stop()


def _wait_for(answer: Path, machines: Kept, log: Path) -> str:
    """The job's id, once PocEnv has submitted it."""
    deadline = time.monotonic() + START_SECONDS
    while not answer.is_file():
        if not machines.alive or time.monotonic() > deadline:
            raise DeploymentError(f"FLARE's PocEnv does not come up: see {log}.")
        time.sleep(LOOK_AGAIN_SECONDS)
    told = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in told:
        raise DeploymentError(f"FLARE's PocEnv gives up ({told['error']}): see {log}.")
    return told["job_id"]
