"""Where the job runs: in the simulator, in FLARE's proof of concept, or at a server with real sites."""

from __future__ import annotations

from pathlib import Path

from nvflare.job_config.api import FedJob

from tutorial_utils.errors import TutorialError
from tutorial_utils.results import Run
from tutorial_utils.simulate import simulate

PROJECT = Path(__file__).with_name("project.yml")
ENVIRONMENTS = {  # by the names that nvflare.recipe has for them: SimEnv, PocEnv, ProdEnv
    "sim": "the simulator: every site a process of this machine",
    "poc": "FLARE's proof of concept: a server and sites with certificates, on this machine",
    "prod": "a server that runs already, by an admin's --startup-kit; its sites read $SITE_DATA",
}


def run_here(
    env: str, job: FedJob, sites: int, folder: Path, threads: int | None, runs: Path, name: str
) -> Run:
    """Run the job on this machine, in "sim" or "poc"; `folder` holds the site folders."""
    if env == "sim":
        return simulate(job, threads=threads, runs=runs, name=name)
    from tutorial_utils import deploy  # a second that the simulator need not wait for

    data = [folder / f"site-{number}" for number in range(1, sites + 1)]
    return deploy.run_in_poc(job, PROJECT, data, runs=runs, name=f"{name}-poc")


def run_there(job: FedJob, kit: Path | None, runs: Path) -> Run:
    """Run the job at the server that an admin's startup kit names."""
    if kit is None:
        raise TutorialError("--env prod needs --startup-kit: the folder of an admin's startup kit.")
    from tutorial_utils import deploy

    federation = deploy.connect(kit, runs=runs)
    try:
        return federation.run(job)
    finally:
        federation.close()


def describe(run: Run) -> str:
    """What an admin knows of a run whose data lie elsewhere."""
    matrix = run.cross_site.map("{:.1%}".format).rename_axis(index=None, columns=None)
    lines = [
        f"{len(run.sites)} sites, {run.rounds['round'].max() + 1} rounds, {run.seconds:.0f} seconds",
        "",
        "Cross-site matrix: accuracy of each model (column) on the test images of each site (row):",
        matrix.rename(columns=lambda model: model.replace(" ", "-")).to_string(),
        "",
        f"SHA-256  {run.sha256}",
        f"Model    {run.global_model_path}",
    ]
    return "\n".join(lines)
