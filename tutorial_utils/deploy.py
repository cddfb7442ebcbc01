"""The same job out of the simulator: at a server and sites with certificates, here or anywhere.

federation = provision("code/fl/project.yml", sites)     # startup kits, a machine each, on this machine
with federation:
    run = federation.run(job)
connect("admin-kit").run(job)                            # at a server that runs already, elsewhere
review(job)                                              # what it brings to a site that runs no code of others
run_in_poc(job, sites)                                   # FLARE's proof of concept, PocEnv
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import tutorial_utils.versions  # noqa: F401  isort: skip  (it speaks before an import fails)
from nvflare.job_config.api import FedJob

from tutorial_utils._deploy.apps import Review, look_through
from tutorial_utils._deploy.federation import Federation, place
from tutorial_utils._deploy.heartbeat import Heartbeat
from tutorial_utils._deploy.kits import check_path, find_data, give_data, make_kits, names_in, read_project
from tutorial_utils._deploy.local import LocalFederation
from tutorial_utils._deploy.poc import run_in_poc
from tutorial_utils._simulate.job_folder import name_of
from tutorial_utils.encrypt import check_tenseal
from tutorial_utils.errors import DeployedRunError, DeploymentError
from tutorial_utils.simulate import fresh_folder
from tutorial_utils.sites import check_site_names

__all__ = [
    "DeployedRunError",
    "DeploymentError",
    "Federation",
    "Heartbeat",
    "LocalFederation",
    "Review",
    "connect",
    "provision",
    "review",
    "run_in_poc",
]


def provision(
    project: str | Path,
    data: Sequence[str | Path],
    *,
    sites: int | Sequence[str] | None = None,
    runs: str | Path = "runs",
    name: str | None = None,
    encrypted: bool = False,
    heartbeat: Heartbeat | None = None,
) -> LocalFederation:
    """Make the startup kits of a project with `nvflare provision`, and a machine of each: nothing runs yet.

    Everything lies in a fresh folder of `runs`, the server's storage too. The server gets a free port in place of the
    project file's. Each site gets a copy of its own dataset folder, and SITE_DATA names the folder that holds it: the
    job reads "$SITE_DATA".

    Args:
        project: a project file, as code/fl/project.yml.
        data: the dataset folders, named as the sites.
        sites: the names of the sites, or their number, in place of the project file's.
        name: of the folder, the project file's name by default.
        encrypted: put keys into the kits, which a job of tutorial_utils.encrypt needs; TenSEAL must be there.
        heartbeat: how often a site shows that it lives, and after how long a silence it is lost; Heartbeat() by
            default. The kits carry it.

    Raises: DeploymentError for a project or data that cannot work, TutorialError for a name that FLARE cannot take.
    """
    if encrypted:
        check_tenseal(DeploymentError)
    names = check_site_names(names_in(read_project(Path(project)), "client") if sites is None else sites)
    folders = find_data(names, data)
    check_path(Path(runs).resolve())
    folder = fresh_folder(Path(runs).resolve(), name or Path(project).stem)
    try:
        kits = make_kits(Path(project), folder, names, encrypted, heartbeat)
        return LocalFederation(kits, give_data(kits, folders), folder)
    except BaseException:
        shutil.rmtree(folder)
        raise


def review(
    job: FedJob | str | Path, *, min_sites: int | None = None, runs: str | Path = "runs", name: str | None = None
) -> Review:
    """Write a job into a fresh folder of `runs` as `submit` would send it, and say what it brings to a site.

    For a site that runs no code of others: it reads `code`, copies it into local/custom of its startup kit, and adds
    `classes` to class_allow_list in local/resources.json. Then `submit(job, installed=True)` runs there.

    Args: as for `Federation.submit`; `name` of the folder, the job's with "-review" by default.

    Raises: JobError for a job that brings no code.
    """
    folder = fresh_folder(Path(runs).resolve(), name or f"{name_of(job)}-review")
    try:
        return look_through(place(job, folder, min_sites).path)
    except BaseException:
        shutil.rmtree(folder)
        raise


def connect(kit: str | Path, *, runs: str | Path = "runs") -> Federation:
    """Log in at a server that runs already, with an admin's startup kit."""
    return Federation(kit, runs).connect()
