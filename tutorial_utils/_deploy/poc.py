"""FLARE's proof of concept, PocEnv, with its workspace in a folder of ours and its processes in a family of ours."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nvflare.job_config.api import FedJob

from tutorial_utils._deploy.admin import PlacedJob
from tutorial_utils._deploy.federation import Federation, place
from tutorial_utils._deploy.kits import check_path, copy_project
from tutorial_utils._deploy.services import Kept
from tutorial_utils._simulate import keeper
from tutorial_utils.errors import DeploymentError
from tutorial_utils.results import Run
from tutorial_utils.simulate import fresh_folder

LOGIN_SECONDS = 60.0
WAIT_FOR_EVER = "import time; time.sleep(1e9)"


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

    The workspace is in a fresh folder of `runs`, so that a POC workspace of yours is left alone; the server gets a
    free port. SITE_DATA names the folder of the dataset folders, for all sites: they are one machine's.

    Args: as for `deploy.provision`; the sites are those that have a dataset folder.
    """
    from nvflare.recipe import PocEnv  # takes --export out of the command line of whoever imports it

    sites = [Path(folder).name for folder in data]
    check_path(Path(runs).resolve())
    folder = fresh_folder(Path(runs).resolve(), name or (job.name if isinstance(job, FedJob) else Path(job).name))
    found, copy = copy_project(Path(project), folder, sites)
    admin = next(one["name"] for one in found["participants"] if one["type"] == "admin")
    placed = PlacedJob(place(job, folder / "submitted"))
    family = Kept([sys.executable, "-c", WAIT_FOR_EVER], folder / "console.txt")
    try:
        settings = {"NVFLARE_POC_WORKSPACE": str(folder / "poc"), "SITE_DATA": str(Path(data[0]).resolve().parent)}
        with _environment({**settings, keeper.MARK: family.token}), _printing_to(folder / "poc.log"):
            login = {"login_timeout": LOGIN_SECONDS}
            environment = PocEnv(num_clients=len(sites), project_conf_path=str(copy), username=admin, extra=login)
            job_id = environment.deploy(placed)
        federation = Federation(folder / "poc" / found["name"] / "prod_00" / admin, folder / "jobs").connect()
        try:
            return federation.watch(job_id, progress=progress)
        finally:
            federation.close()
    except RuntimeError as error:  # of PocEnv: it could not log in
        raise DeploymentError(f"FLARE's PocEnv gives up ({error}): see {folder}/poc.log.") from error
    finally:
        family.stop()


@contextlib.contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    with path.open("w", encoding="utf-8") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        yield


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Variables of this process for a while: what is started in it inherits them."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
