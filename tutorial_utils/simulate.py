"""Run a job in FLARE's simulator: believe its files, notice what goes wrong, leave no process behind."""

from __future__ import annotations

import logging
import shutil
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import tutorial_utils.versions  # noqa: F401  isort: skip  (it speaks before an import fails)
from nvflare.job_config.api import FedJob

from tutorial_utils._simulate.cards import deal_cards
from tutorial_utils._simulate.job_folder import JobFolder, is_plain, name_of, place_job
from tutorial_utils._simulate.resume import earlier_lines, find_earlier
from tutorial_utils._simulate.verdict import explain, find_lack
from tutorial_utils._simulate.watch import run_simulator
from tutorial_utils.errors import JobError, ResultsError, SimulationError, TutorialError
from tutorial_utils.results import Run

logger = logging.getLogger(__name__)


def simulate(
    job: FedJob | str | Path,
    *,
    sites: int | Sequence[str] | None = None,
    threads: int | None = None,
    gpus: Sequence[int] | None = None,
    min_sites: int | None = None,
    stall_timeout: float | None = 7200.0,
    resume_from: Run | SimulationError | str | Path | None = None,
    runs: str | Path = "runs",
    name: str | None = None,
    progress: bool = True,
) -> Run:
    """Run a job on this machine, one process a site, and return what it left behind.

    The runner makes its own copy of the job and adds a guard (tutorial_utils._simulate.guard) that checks every update
    before it is averaged. Every process ends with this call, however it ends.

    Args:
        job: a FedJob, or the folder of an exported one, in any of FLARE's formats.
        sites: how many (site-1, site-2, ...), or their names; by default those that the job is for: the names that it
            notes (`tutorial_utils.job.build_job` does) or has an app for, else as many as its min_clients.
        threads: sites that run at once; as many as there are sites unless you say fewer. With fewer, FLARE
            starts a new process for every task: slower several times over, and a learner keeps from task to task only
            what is in its `state`.
        gpus: numbers of the NVIDIA cards that are dealt out to the sites, one after the other and round again. They are
            torch's numbers here, 0 to torch.cuda.device_count() - 1. A site's process sees its own card alone, as
            "cuda" or "cuda:0"; several sites may share one. None: every site sees all cards that are seen here.
        min_sites: go on without a site whose process is lost while so many are left. None: a loss ends the run.
            A site that is alive is always waited for.
        stall_timeout: seconds without a task sent or answered after which the run is given up; longer than your
            longest round, or None to wait for ever. Time in which this machine sleeps does not count.
        resume_from: an earlier Run, its SimulationError or its folder: start after the last round that it kept. FedAvg
            and FedProx end in the bits of a run that was never cut, and a learner goes on with its `state`; a server's
            optimizer and SCAFFOLD's corrections start anew.
        runs: the folder of all runs; this one gets a fresh folder in it.
        name: of the run's folder, the job's name by default; a number is added where that exists.
        progress: show a progress bar (rounds done, the metric so far).

    Raises:
        TutorialError: before anything starts, for a job, a number or a card that cannot work.
        SimulationError: unless all that the job asks for is there and whole: the rounds (fewer where its workflow may
            stop early, each with as many answers as that waits for), the global model and the cross-site matrix.
    """
    folder = fresh_folder(Path(runs).resolve(), name or name_of(job))
    try:
        copy = place_job(job, folder / "job")
        run, asked = Run(folder, copy.choose_sites(sites), 0.0), copy.asked
        threads, cards = _check(copy, run.sites, threads, min_sites), deal_cards(gpus, run.sites)
        _prepare(copy, run, threads, min_sites, resume_from)
    except BaseException:
        shutil.rmtree(folder)  # nothing has run in it
        raise
    start = time.monotonic()
    try:
        failure = run_simulator(copy, run, threads, len(asked.rounds), stall_timeout, progress, cards)
    except BaseException:
        logger.warning("Stopped. simulate(job, resume_from=%r) goes on after the last finished round.", str(folder))
        raise
    run = Run(folder, run.sites, time.monotonic() - start)
    if failure:
        raise explain(run, failure)
    try:
        lack = find_lack(run, asked)
    except ResultsError as error:
        lack = str(error)
    if lack:
        raise explain(run, None, lack)
    return run


def fresh_folder(runs: Path, name: str) -> Path:
    """runs/name, or runs/name-2 and so on: what an earlier run left can never be taken for this one's."""
    if not is_plain(name):
        raise TutorialError(f"A run cannot be called {name!r}: name it without / (name=), and its folder with runs=.")
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


def _check(copy: JobFolder, sites: tuple[str, ...], threads: int | None, min_sites: int | None) -> int:
    """The number of threads; JobError for what cannot work."""
    threads = len(sites) if threads is None else threads
    if not 1 <= threads <= len(sites):
        raise JobError(f"threads is {threads}: it must be from 1 to the number of sites, {len(sites)}.")
    if min_sites is not None and not 1 <= min_sites <= len(sites):
        raise JobError(f"min_sites is {min_sites}: it must be from 1 to the number of sites, {len(sites)}.")
    copy.check_data(sites)
    if copy.encrypted:
        raise JobError(
            "The job is encrypted, and the simulator has no keys: run it in a federation of "
            "deploy.provision(..., encrypted=True)."
        )
    if threads < len(sites):
        warnings.warn(
            f"threads={threads} for {len(sites)} sites: FLARE starts a new process for every task, which takes "
            "several times as long (about five times in our trial). What a learner keeps in attributes of its own is "
            "lost between two tasks; what it puts into its `state` is not.",
            stacklevel=3,
        )
    return threads


def _prepare(
    copy: JobFolder,
    run: Run,
    threads: int,
    min_sites: int | None,
    resume_from: Run | SimulationError | str | Path | None,
) -> None:
    checkpoint = None
    if resume_from is not None:
        earlier = find_earlier(resume_from)
        checkpoint = earlier.checkpoint
        run.earlier_rounds_path.write_text(earlier_lines(earlier), encoding="utf-8")
        copy.go_on_from(checkpoint, earlier.rounds_kept)
    if min_sites is not None:
        copy.allow_loss(min_sites)
    copy.add_writers()
    resident = threads == len(run.sites)
    if resident:  # with fewer threads a site that waits would keep others from their turn
        copy.add_pace()
    resume = {"resume_from": str(checkpoint)} if checkpoint else {}
    copy.add_guard(min_sites=min_sites, resident=resident, sites=list(run.sites), **resume)
