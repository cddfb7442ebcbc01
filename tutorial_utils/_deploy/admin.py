"""What an admin does at a running server, through `nvflare.fuel.flare_api`: log in, submit, ask, abort, download."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from nvflare.fuel.flare_api.api_spec import (
    InternalError,
    InvalidTarget,
    JobNotFound,
    JobNotRunning,
    NoConnection,
    NoReply,
    SessionClosed,
    TargetType,
)
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session
from nvflare.job_config.api import FedJob

from tutorial_utils._deploy.pulse import GROUP
from tutorial_utils._simulate.job_folder import JobFolder
from tutorial_utils.errors import DeploymentError

LOGIN_SECONDS = 10.0
ASK_AGAIN_SECONDS = 0.3
GONE = (NoConnection, SessionClosed)
NOT_UP = (InternalError, InvalidTarget, JobNotFound, JobNotRunning, NoReply, KeyError)  # before the job runs and after
T = TypeVar("T")


class PlacedJob(FedJob):
    """A job folder as the FedJob that an ExecEnv of nvflare.recipe wants: exporting it is copying it."""

    def __init__(self, copy: JobFolder) -> None:
        super().__init__(name=copy.path.name, min_clients=copy.min_clients)
        self.copy = copy

    def export_job(self, job_root: str) -> None:
        shutil.copytree(self.copy.path, Path(job_root, self.copy.path.name))


class Admin:
    """An admin's way to a server, wherever it runs.

    Args:
        kit: the admin's startup kit, the folder that holds startup/.
    """

    def __init__(self, kit: Path) -> None:
        try:
            settings = json.loads((kit / "startup" / "fed_admin.json").read_text(encoding="utf-8"))["admin"]
        except (OSError, ValueError, KeyError) as error:
            raise DeploymentError(
                f"{kit} is no admin's startup kit: name the folder that holds startup/fed_admin.json."
            ) from error
        self.kit, self.user = kit.resolve(), settings["username"]
        self.address = settings["host"], settings["port"]
        self._session: Session | None = None

    def connect(self, limit: float, alive: Callable[[], str | None] = lambda: None) -> None:
        """Log in as soon as the server answers. `alive` may say why it never will."""
        deadline = time.monotonic() + limit
        while not self._answers():
            if reason := alive():
                raise DeploymentError(reason)
            if time.monotonic() > deadline:
                raise DeploymentError(f"The server has not answered for {limit:.0f} s: is it up, and its port open?")
            time.sleep(ASK_AGAIN_SECONDS)
        while True:
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    self._session = new_secure_session(self.user, str(self.kit), timeout=LOGIN_SECONDS)
                return
            except Exception as error:  # a port that answers is not yet a server that does
                if reason := alive():
                    raise DeploymentError(reason) from error
                if time.monotonic() > deadline:
                    raise DeploymentError(f"The server does not let {self.user} in: {error}.") from error
                time.sleep(ASK_AGAIN_SECONDS)

    def _answers(self) -> bool:
        try:
            socket.create_connection(self.address, timeout=1).close()
        except OSError:
            return False
        return True

    def ask(self, question: Callable[[Session], T]) -> T:
        """Ask the server; log in again where it has ended the session (FLARE does after minutes without a word)."""
        for last in (False, True):
            if self._session is None:
                self.connect(LOGIN_SECONDS)
            try:
                return question(self._session)
            except GONE as error:
                self.close()
                if last:
                    raise DeploymentError(f"The server does not answer ({error}): is it up?") from error
        raise AssertionError  # the second turn returns or raises

    def close(self) -> None:
        session, self._session = self._session, None
        if session:
            with contextlib.suppress(Exception):  # the server may be gone
                session.close()

    def submit(self, copy: JobFolder) -> str:
        """Submit a job as ProdEnv does it, and return the server's name for it."""
        from nvflare.recipe import ProdEnv  # takes --export out of the command line of whoever imports it

        environment = ProdEnv(str(self.kit), login_timeout=LOGIN_SECONDS, username=self.user)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return environment.deploy(PlacedJob(copy))
        except RuntimeError as error:
            raise DeploymentError(f"The server refuses the job: {error}.") from error

    def sites(self) -> tuple[str, ...]:
        """The sites that are connected now."""
        return tuple(sorted(site.name for site in self.ask(lambda session: session.get_system_info()).client_info))

    def meta(self, job_id: str) -> dict[str, Any]:
        """What the server knows of a job: name, status, duration, and where it was sent."""
        try:
            return self.ask(lambda session: session.get_job_meta(job_id))
        except JobNotFound as error:
            raise DeploymentError(f"The server knows no job {job_id!r}: jobs() lists them.") from error

    def progress(self, job_id: str) -> dict[str, Any]:
        """phase, done (rounds), lost (sites), as the guard on the server tells; {} before it can and after."""
        with contextlib.suppress(*NOT_UP):
            return self.ask(lambda session: session.show_stats(job_id, TargetType.SERVER))["server"][GROUP]
        return {}

    def download(self, job_id: str, folder: Path) -> Path:
        """The job's result as FLARE packs it: job/ and workspace/."""
        return Path(self.ask(lambda session: session.download_job_result(job_id, str(folder))))
