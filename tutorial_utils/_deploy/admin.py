"""What an admin does at a running server, through `nvflare.fuel.flare_api`: log in, submit, ask, abort, download."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from nvflare.fuel.flare_api.api_spec import (
    AuthenticationError,
    AuthorizationError,
    InternalError,
    InvalidTarget,
    JobNotFound,
    JobNotRunning,
    NoConnection,
    NoReply,
    SessionClosed,
    TargetType,
)
from nvflare.fuel.flare_api.flare_api import Session

from tutorial_utils import _flare
from tutorial_utils._deploy.pulse import GROUP
from tutorial_utils._deploy.reach import answers, leave
from tutorial_utils.errors import DeploymentError

logger = logging.getLogger(__name__)

LOGIN_SECONDS = 10.0
ASK_AGAIN_SECONDS = 0.3
GONE = (NoConnection, SessionClosed)
NOT_UP = (InternalError, InvalidTarget, JobNotFound, JobNotRunning, NoReply, KeyError)  # before the job runs and after
ERROR_LOG = "ERRORLOG_"  # FLARE's name for what it keeps of a site's error log: this and the site's name
T = TypeVar("T")


class NotPermittedError(DeploymentError):
    """The server's rules do not let this admin do it."""


class NoServerError(DeploymentError):
    """The server cannot be reached, or does not answer."""


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
        self._settings = settings
        self.logins = 0  # one more than before: the server, or the way to it, was gone meanwhile
        self._session: Session | None = None

    def connect(self, limit: float, alive: Callable[[], str | None] = lambda: None) -> None:
        """Log in as soon as the server answers. `alive` may say why it never will."""
        self.close()  # a session that nobody closes goes on trying for ever, and no process that holds it ends
        deadline = time.monotonic() + limit
        while not answers(self._settings, self.kit / "startup"):
            if reason := alive():
                raise DeploymentError(reason)
            if time.monotonic() > deadline:
                raise NoServerError(f"The server has not answered for {limit:.0f} s: is it up, and its port open?")
            time.sleep(ASK_AGAIN_SECONDS)
        while True:
            try:
                self._session = self._log_in()
                self.logins += 1
                return
            except Exception as error:  # a port that answers is not yet a server that does
                if reason := alive():
                    raise DeploymentError(reason) from error
                if time.monotonic() > deadline:
                    refused = isinstance(error, AuthenticationError | AuthorizationError)
                    kind = DeploymentError if refused else NoServerError
                    raise kind(f"The server does not let {self.user} in: {error}.") from error
                time.sleep(ASK_AGAIN_SECONDS)

    def _log_in(self) -> Session:
        session = Session(username=self.user, startup_path=str(self.kit))
        _flare.silence(session, logger.debug)
        try:
            session.try_connect(LOGIN_SECONDS)
        except Exception:
            leave(session)
            raise
        return session

    def ask(self, question: Callable[[Session], T]) -> T:
        """Ask the server; log in again where it has ended the session (FLARE does after minutes without a word)."""
        for last in (False, True):
            if self._session is None:
                self.connect(LOGIN_SECONDS)
            try:
                return question(self._session)
            except AuthorizationError as error:
                raise NotPermittedError(f"The server's rules refuse {self.user}: {error}.") from error
            except GONE as error:
                self.close()
                if last:
                    raise NoServerError(f"The server does not answer ({error}): is it up?") from error
        raise AssertionError  # the second turn returns or raises

    def close(self) -> None:
        session, self._session = self._session, None
        if session:
            leave(session)

    def submit(self, folder: Path) -> str:
        """Submit the folder of a job, and return the server's name for it."""
        _flare.look_for_secrets(folder)  # as FLARE's own environments do
        try:
            return self.ask(lambda session: session.submit_job(str(folder)))
        except DeploymentError:
            raise
        except Exception as error:  # FLARE has a dozen kinds without a parent
            raise DeploymentError(f"The server refuses the job: {str(error).rstrip('.')}.") from error

    def sites(self) -> tuple[str, ...]:
        """The sites that are connected now; NotPermittedError for a lead of another org, by FLARE's own rules."""
        return tuple(sorted(site.name for site in self.ask(lambda session: session.get_system_info()).client_info))

    def server_start(self) -> float | None:
        """When the server was started, in seconds since 1970; None where its rules do not tell this admin."""
        try:
            return self.ask(lambda session: session.get_system_info()).server_info.start_time
        except NotPermittedError:
            return None

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

    def error_logs(self, job_id: str) -> dict[str, str]:
        """By site, the error log that it has streamed to the server; a site may forbid it, or has no error.

        By FLARE's own rules they are for a project_admin: {} for everyone else.
        """
        with contextlib.suppress(NotPermittedError, *NOT_UP):
            if not self.ask(lambda session: session.list_job_components(job_id)):
                return {}
            folder = Path(self.ask(lambda session: session.download_job_components(job_id)))
            logs = {
                path.name.removeprefix(ERROR_LOG): path.read_text(encoding="utf-8", errors="replace")
                for path in folder.glob(f"{ERROR_LOG}*")
            }
            shutil.rmtree(folder)
            return logs
        return {}
