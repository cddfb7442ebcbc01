"""The same job out of the simulator: at a server and sites with certificates, here or anywhere.

federation = provision("code/fl/project.yml", sites)     # startup kits, a machine each, on this machine
with federation:
    run = federation.run(job)
connect("admin-kit").run(job)                            # at a server that runs already, elsewhere
run_in_poc(job, sites)                                   # FLARE's proof of concept, PocEnv
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tutorial_utils._deploy.federation import Federation
from tutorial_utils._deploy.kits import check_path, give_data, make_kits
from tutorial_utils._deploy.local import LocalFederation
from tutorial_utils._deploy.poc import run_in_poc
from tutorial_utils.errors import DeployedRunError, DeploymentError
from tutorial_utils.simulate import fresh_folder

__all__ = ["DeployedRunError", "DeploymentError", "Federation", "LocalFederation", "connect", "provision", "run_in_poc"]


def provision(
    project: str | Path, data: Sequence[str | Path], *, runs: str | Path = "runs", name: str | None = None
) -> LocalFederation:
    """Make the startup kits of a project with `nvflare provision`, and a machine of each: nothing runs yet.

    Everything lies in a fresh folder of `runs`, the server's storage too. The server gets a free port in place of the
    project file's. Each site gets a copy of its own dataset folder, and SITE_DATA names the folder that holds it: the
    job reads "$SITE_DATA".

    Args:
        project: a project file, as code/fl/project.yml.
        data: the dataset folders, named as the sites of the project file.
        name: of the folder, the project file's name by default.

    Raises: DeploymentError for a project or data that cannot work.
    """
    check_path(Path(runs).resolve())
    folder = fresh_folder(Path(runs).resolve(), name or Path(project).stem)
    try:
        kits = make_kits(Path(project), folder)
        return LocalFederation(kits, give_data(kits, data), folder)
    except BaseException:
        shutil.rmtree(folder)
        raise


def connect(kit: str | Path, *, runs: str | Path = "runs") -> Federation:
    """Log in at a server that runs already, with an admin's startup kit."""
    return Federation(kit, runs).connect()
