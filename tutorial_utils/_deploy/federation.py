"""A federation as an admin sees it: submit a job, watch it, abort it, and bring home a Run like the simulator's."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
from nvflare.job_config.api import FedJob
from tqdm.auto import tqdm

from tutorial_utils._deploy import pulse
from tutorial_utils._deploy.admin import Admin, NotPermittedError
from tutorial_utils._deploy.apps import address, choose_sites
from tutorial_utils._deploy.logs import bring_error_logs
from tutorial_utils._deploy.names import safe_name
from tutorial_utils._deploy.orphans import OrphanError, tell_of_orphan
from tutorial_utils._deploy.result import judge, unpack
from tutorial_utils._deploy.waiting import POLL_SECONDS, Lookout, has_ended, wait_for_end
from tutorial_utils._simulate import guard
from tutorial_utils._simulate.guard_files import write_json
from tutorial_utils._simulate.job_folder import JobFolder, name_of, place_job
from tutorial_utils._simulate.resume import find_earlier, take_along
from tutorial_utils.errors import DeployedRunError, DeploymentError
from tutorial_utils.results import Run
from tutorial_utils.simulate import fresh_folder

logger = logging.getLogger(__name__)

LOGIN_SECONDS = 30.0
ABORT_SECONDS = 60.0
RECORD = "deployed.json"  # in a Run's folder
Resumable = Run | DeployedRunError | str | Path


class Federation:
    """A running server and its sites, through an admin's startup kit.

    Args:
        kit: the admin's startup kit, a folder that holds startup/fed_admin.json.
        folder: where jobs and their results are put, one folder a job.
    """

    def __init__(self, kit: str | Path, folder: str | Path = "runs") -> None:
        self.admin = Admin(Path(kit))
        self.folder = Path(folder).resolve()
        self._rounds: dict[str, int] = {}

    def connect(self, limit: float = LOGIN_SECONDS) -> Federation:
        """Log in at the server, once it answers; DeploymentError if it does not within `limit` seconds."""
        self.admin.connect(limit)
        return self

    def close(self) -> None:
        """Log out. Jobs go on."""
        self.admin.close()

    def sites(self) -> tuple[str, ...]:
        """The sites that are connected now."""
        return self.admin.sites()

    def jobs(self) -> pd.DataFrame:
        """Every job that the server knows, in the order of submission: job_id, name, status, duration."""
        metas = self.admin.ask(lambda session: session.list_jobs(detailed=True))
        metas = sorted(metas, key=lambda meta: meta.get("submit_time", 0))
        return pd.DataFrame(metas, columns=["job_id", "name", "status", "duration"])

    def submit(
        self,
        job: FedJob | str | Path,
        *,
        min_sites: int | None = None,
        installed: bool = False,
        resume_from: Resumable | None = None,
    ) -> str:
        """Hand a job, or the folder of an exported one, to the server; return the id that it gives the job.

        What goes out is a copy with a guard (tutorial_utils._deploy.pulse), which checks every update, and asks
        the sites whether they live. It goes to the sites that the job names, else to all that are connected.

        Args:
            min_sites: go on without a lost site while so many are left. None: a loss ends the job.
            installed: the sites have the job's code (see `deploy.review`), and it goes to the server alone.
            resume_from: an earlier Run of this federation, its DeployedRunError or its folder: start after the last
                round that was safe, as `simulate` does. A site finds its learner's state and its best model in the
                folder of the earlier job in its own kit; where that is gone the job ends with a sentence.
        """
        earlier = None if resume_from is None else find_earlier(resume_from)
        copy = place(job, fresh_folder(self.folder / "submitted", name_of(job)), min_sites, earlier)
        sites = choose_sites(copy.path, self._who_is_there())
        if sites is None and (installed or min_sites is not None):
            raise DeploymentError("The server does not tell you its sites: name them in the job (sites=[...]).")
        if min_sites is not None:
            if not 1 <= min_sites <= len(sites):
                raise DeploymentError(f"min_sites is {min_sites}: it must be from 1 to the job's sites, {len(sites)}.")
            copy.allow_loss(min_sites)
        if sites is not None:
            address(copy.path, sites, with_code=not installed)
        job_id = self.admin.submit(copy.path)
        self._rounds[job_id] = len(copy.asked.rounds)
        return job_id

    def _who_is_there(self) -> tuple[str, ...] | None:
        """The connected sites; None where the server's rules keep them from this admin."""
        try:
            return self.sites()
        except NotPermittedError:
            return None

    def abort(self, job_id: str) -> str:
        """End a job; return its status once the server says that it has ended."""
        lookout = self._look_out(job_id)
        try:
            lookout.look()  # says so if there is no such job
            self.admin.ask(lambda session: session.abort_job(job_id))
            return wait_for_end(lookout, ABORT_SECONDS)["status"]
        except OrphanError as orphan:
            raise DeploymentError(f"{orphan.what}, and the job is gone: watch({job_id!r}) says what is left.") from None

    def progress(self, job_id: str) -> dict[str, Any]:
        """What a running job has done: phase, done (rounds), lost (sites); {} before it runs and after."""
        return self.admin.progress(job_id)

    def wait_for_round(self, job_id: str, done: int, limit: float = 600.0) -> None:
        """Return when a job has finished so many rounds; DeploymentError if it ends before or `limit` s pass."""
        deadline, lookout = time.monotonic() + limit, self._look_out(job_id)
        while True:
            try:
                meta, told = lookout.look(lambda meta: self.progress(job_id))
            except OrphanError as orphan:
                raise DeploymentError(f"{orphan.what}, and the job is gone: watch({job_id!r}) says more.") from None
            ended = has_ended(meta)  # between two looks perhaps, and nobody is there any more to ask: see what it left
            now = self._count_rounds(job_id) if ended else told.get("done", 0)
            if now >= done:
                return
            if ended or time.monotonic() > deadline:
                raise DeploymentError(
                    f"The job has finished {now} of {done} rounds, it is {meta['status']}: watch() says more."
                )
            time.sleep(POLL_SECONDS)

    def _count_rounds(self, job_id: str) -> int:
        with tempfile.TemporaryDirectory() as folder:
            return pulse.count_rounds(self.admin.download(job_id, Path(folder)) / "workspace")

    def run(
        self,
        job: FedJob | str | Path,
        *,
        min_sites: int | None = None,
        installed: bool = False,
        resume_from: Resumable | None = None,
        progress: bool = True,
        name: str | None = None,
    ) -> Run:
        """Submit a job and watch it to its end: `submit`, then `watch`."""
        job_id = self.submit(job, min_sites=min_sites, installed=installed, resume_from=resume_from)
        return self.watch(job_id, progress=progress, name=name)

    def watch(
        self, job_id: str, *, stall_timeout: float | None = 7200.0, progress: bool = True, name: str | None = None
    ) -> Run:
        """Wait for the end of a job, download its result and return it as a Run.

        Args:
            stall_timeout: seconds without a finished round after which one stops watching (the job goes on).
            progress: show a progress bar of the rounds.
            name: of the Run's folder, the job's name by default.

        Raises:
            DeployedRunError: unless every round, the global model and the cross-site matrix are there and whole; also
                where the server was ended, or started again, and the job has gone with its processes.
            DeploymentError: where the server is silent, does not start the job, or nothing happens any more.
        """
        try:
            with tqdm(total=self._rounds.get(job_id), desc="rounds", disable=not progress, leave=False) as bar:
                meta = wait_for_end(
                    self._look_out(job_id), stall_timeout, lambda meta: self._advance(bar, meta, job_id)
                )
        except KeyboardInterrupt:
            logger.warning("Stopped watching, the job goes on: watch(%r) watches again, abort() ends it.", job_id)
            raise
        except OrphanError as orphan:
            run = self._lay(job_id, name or safe_name(orphan.name))
            raise tell_of_orphan(orphan, run, self._bring_from_server(job_id, run), job_id) from None
        return self._bring_home(job_id, meta, name or safe_name(meta["name"]))

    def _look_out(self, job_id: str) -> Lookout:
        return Lookout(self.admin, job_id, self._server_ended)

    def _advance(self, bar: tqdm, meta: dict[str, Any], job_id: str) -> object:
        if meta["status"] != "RUNNING":
            return None
        told = self.progress(job_id)
        if told.get("done", 0) > bar.n:
            bar.update(told["done"] - bar.n)
        lost = told.get("lost")
        bar.set_postfix_str(f"without {', '.join(lost)}" if lost else "")  # a lost site may come back
        return bar.n, told.get("phase")

    def _bring_home(self, job_id: str, meta: dict[str, Any], name: str) -> Run:
        """Lay what the server kept of a job as the simulator lays a run, and judge it."""
        folder = self._lay(job_id, name).folder
        run = unpack(self.admin.download(job_id, folder / "download"), folder, meta)
        shutil.rmtree(folder / "download")
        self._collect_site_logs(job_id, run)
        judge(run, meta["status"])
        return run

    def _lay(self, job_id: str, name: str) -> Run:
        """A fresh folder for what comes of a job, which bears the server's name for it."""
        folder = fresh_folder(self.folder, name)
        write_json(folder / RECORD, {"job_id": job_id})
        return Run(folder, (), 0.0)

    def _server_ended(self) -> bool:
        """Has the server's process ended, as far as one can see from here?"""
        return False

    def _bring_from_server(self, job_id: str, run: Run) -> Run | None:
        """What the server's machine holds of a job that ended with it; None: one has to ask there."""
        return None

    def _collect_site_logs(self, job_id: str, run: Run) -> None:
        """The sites' logs stay with the sites, but for the errors that they have told the server."""
        bring_error_logs(self.admin, job_id, run)


def place(
    job: FedJob | str | Path, folder: Path, min_sites: int | None = None, earlier: Run | None = None
) -> JobFolder:
    """Our own copy of a job in a fresh folder, with the guard, and with the parts that write what a Run reads."""
    copy = place_job(job, folder)
    settings, site_settings = {"min_sites": min_sites}, {}
    if earlier:
        copy.go_on_from(earlier.checkpoint, earlier.rounds_kept)
        settings["resume_from"] = take_along(copy, earlier)
        site_settings = {"resume_from": _job_of(earlier), "rounds": earlier.rounds_kept}
    copy.add_writers()
    settings["filtered"] = copy.filtered()
    kinds = f"{pulse.__name__}.ServerPulse", f"{pulse.__name__}.SitePulse"
    copy.add("guard", (kinds[0], settings), (kinds[1], site_settings), guard, pulse)
    return copy


def _job_of(earlier: Run) -> str:
    """The server's name for it, by which the sites know their folders of it."""
    path = earlier.folder / RECORD
    if not path.is_file():
        raise DeploymentError(
            f"{earlier.folder} is no run of a federation, and its sites have kept nothing of it: begin with its "
            "weights, build_job(checkpoint=run.checkpoint / 'FL_global_model.pt')."
        )
    return json.loads(path.read_text(encoding="utf-8"))["job_id"]
