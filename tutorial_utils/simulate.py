"""Run a job in FLARE's simulator with a progress bar, and believe its files, not its return code."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch
from nvflare.job_config.api import FedJob
from tqdm.auto import tqdm

from tutorial_utils.results import ResultsError, Run, mean_by_round, read_rounds
from tutorial_utils.settings import TutorialError

POLL_SECONDS = 0.2


class SimulationError(TutorialError):
    """A run that did not do all that was asked. The text names the cause and ends with the site's traceback.

    Attributes:
        workspace: the simulator's workspace, kept for inspection.
    """

    def __init__(self, message: str, run: Run) -> None:
        super().__init__(message)
        self.run = run
        self.workspace = run.workspace

    def log(self, who: str = "server") -> str:
        """The log of one site, or of the "server"."""
        return self.run.log(who)


def simulate(
    job: FedJob,
    *,
    sites: int | None = None,
    rounds: int | None = None,
    threads: int | None = None,
    runs: str | Path = "runs",
    name: str | None = None,
    progress: bool = True,
) -> Run:
    """Run a job on this machine, one process a site, and return what it left behind.

    Args:
        job: any FedJob with a MetricsArtifactWriter.
        sites, rounds: from the job's meta_props["custom_props"] where it has them (`fl.job.build_job` does).
        threads: sites that run at once; as many as there are sites unless you say fewer. With fewer, FLARE
            starts a new process for every task: slower several times over, the same result.
        runs: the folder of all runs; this one gets a fresh folder in it.
        name: of the run's folder, the job's name by default; a number is added where that exists.
        progress: show a progress bar (rounds done, accuracy so far).

    Raises:
        SimulationError: unless every round, the global model and the cross-site matrix are there and whole.
    """
    props = (job.job.meta_props or {}).get("custom_props", {})
    sites = sites or props.get("sites")
    rounds = rounds or props.get("rounds")
    if not sites:
        raise TutorialError("How many sites? Say simulate(job, sites=2), or build the job with fl.job.build_job.")
    if threads is not None and not 1 <= threads <= sites:
        raise TutorialError(f"threads is {threads}: it must be from 1 to the number of sites, {sites}.")
    names = tuple(f"site-{number}" for number in range(1, sites + 1))
    folder = _fresh_folder(Path(runs).resolve(), name or job.name)
    job.export_job(str(folder / "job"))
    start = time.monotonic()
    run = Run(folder, names, 0.0)
    code = _run_simulator(run, job.name, threads or sites, rounds, progress)
    run = Run(folder, names, time.monotonic() - start)
    _check(run, rounds, code)
    return run


def _fresh_folder(runs: Path, name: str) -> Path:
    """runs/name, or runs/name-2 and so on: what an earlier run left can never be taken for this one's."""
    for number in range(1, 10_000):
        folder = runs / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise TutorialError(
                f"Cannot write to {runs} ({error.strerror}): name another folder with runs=."
            ) from error
        return folder
    raise TutorialError(f"{runs} holds too many runs named {name}: delete some.")


def _run_simulator(run: Run, job_name: str, threads: int, rounds: int | None, progress: bool) -> int:
    command = [sys.executable, "-m", "nvflare.private.fed.app.simulator.simulator", f"job/{job_name}"]
    command += ["-w", "workspace", "-c", ",".join(run.sites), "-t", str(threads)]
    with (run.folder / "simulator.log").open("wb") as log, _process(command, run.folder, log) as process:
        with tqdm(total=rounds, desc="rounds", disable=not progress, leave=False) as bar:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                _advance(bar, run)
        return process.returncode


@contextmanager
def _process(command: list[str], folder: Path, log: object) -> Iterator[subprocess.Popen]:
    """A process whose whole family ends with this block, however it is left."""
    process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):  # it may end by itself at any moment
            family = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            for child in family:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        process.wait()


def _advance(bar: tqdm, run: Run) -> None:
    try:
        rounds = read_rounds(run.job_folder / "metrics" / "round_metrics.jsonl")
    except ResultsError:  # no round is done yet, or FLARE is writing the line
        return
    done = int(rounds["round"].max()) + 1
    if done > bar.n:
        bar.update(done - bar.n)
        if "accuracy" in rounds:
            bar.set_postfix_str(f"validation accuracy {mean_by_round(rounds).iloc[-1]:.1%}")


def _check(run: Run, rounds: int | None, code: int) -> None:
    """Raise unless all that was asked for is in the run's files."""
    try:
        lack = _missing(run, rounds) or (f"the simulator ended with code {code}." if code else None)
    except ResultsError as error:
        lack = str(error)
    if lack:
        failure = _first_failure(run)
        cause = f"{failure['who']}: {failure['message']}" if failure else lack
        text = f"The run failed: {cause}\nIts files are in {run.folder}."
        raise SimulationError(f"{text}\n{failure.get('traceback', '')}".rstrip(), run)


def _missing(run: Run, rounds: int | None) -> str | None:
    table = run.rounds
    for number in range(rounds or int(table["round"].max()) + 1):
        absent = set(run.sites) - set(table.loc[table["round"] == number, "site"])
        if absent:
            return f"round {number} has no result of {', '.join(sorted(absent))}."
    for name, value in run.global_model.items():
        if not torch.isfinite(value).all():
            return f"the global model's {name} holds numbers that are not finite."
    if "CrossSiteModelEval" in json.dumps(_server_config(run)):
        matrix = run.cross_site.reindex(index=run.sites, columns=["global", *run.sites])
        holes = matrix.isna().stack()
        if holes.any():
            return "the cross-site matrix lacks " + ", ".join(f"{m} on {s}" for s, m in holes[holes].index) + "."
    return None


def _server_config(run: Run) -> dict:
    (path,) = (run.folder / "job").glob("*/*/config/config_fed_server.json")
    return json.loads(path.read_text(encoding="utf-8"))


def _first_failure(run: Run) -> dict[str, str]:
    """The first error in the sites' logs (else in the server's), from the JSON that FLARE keeps beside them."""
    failures = [failure for site in run.sites if (failure := _first_error(run, site))]
    return min(failures, key=lambda failure: failure["time"], default=_first_error(run, "server"))


def _first_error(run: Run, who: str) -> dict[str, str]:
    path = run.workspace / who / "log.json"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    records = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    errors = [record for record in records if record.get("levelname") in ("ERROR", "CRITICAL")]
    if not errors:
        return {}
    failure = {"who": who, "time": errors[0]["asctime"], "message": errors[0]["message"].strip()}
    for record in errors:
        if record["message"].startswith("Traceback"):
            return failure | {"traceback": record["message"].strip()}
    return failure
