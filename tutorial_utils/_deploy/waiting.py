"""Look at a job until it has ended, through silences of its server, and not without end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tutorial_utils._deploy.admin import Admin, NoServerError
from tutorial_utils._deploy.orphans import OrphanError, is_orphan
from tutorial_utils.errors import DeploymentError

POLL_SECONDS = 0.5
SCHEDULE_SECONDS = 120.0  # FLARE's scheduler looks at a waiting job after 10, 20, 40 s again
SILENT_SECONDS = 120.0  # that a server may be silent: stopped, swapped out, behind a cut network
ENDED = ("FINISHED", "FAILED", "ABORTED", "ABANDONED")
Meta = dict[str, Any]


def has_ended(meta: Meta) -> bool:
    return meta["status"].startswith(ENDED)


class Lookout:
    """What the server says of a job, again and again.

    Args:
        server_ended: is its process gone, as far as one can see from here?
    """

    def __init__(self, admin: Admin, job_id: str, server_ended: Callable[[], bool] = lambda: False) -> None:
        self.job_id = job_id
        self._admin, self._server_ended = admin, server_ended
        self._heard, self._logins, self._name = time.monotonic(), -1, job_id

    def look(self, more: Callable[[Meta], object] = lambda meta: None) -> tuple[Meta, object]:
        """The job's meta, and `more` of it.

        Raises: OrphanError where the job is gone with its server, NoServerError where that is silent for too long.
        """
        while True:
            try:
                meta = self._admin.meta(self.job_id)
                anew = self._logins != self._admin.logins  # then it may be another process of the server
                if anew and not has_ended(meta) and is_orphan(meta, self._admin.server_start()):
                    raise OrphanError(meta["name"], "The server was started again while the job ran")
                found = None if has_ended(meta) else more(meta)
                self._heard, self._logins, self._name = time.monotonic(), self._admin.logins, meta["name"]
                return meta, found
            except NoServerError as error:
                if self._server_ended():
                    raise OrphanError(self._name, "The server's processes have ended") from error
                if time.monotonic() - self._heard > SILENT_SECONDS:
                    raise NoServerError(
                        f"The server has been silent for {SILENT_SECONDS:.0f} s (is it up, and the way to it?), and "
                        f"the job may go on without you: watch({self.job_id!r}) looks again."
                    ) from error


def wait_for_end(lookout: Lookout, limit: float | None, more: Callable[[Meta], object] = lambda meta: None) -> Meta:
    """The job's meta once it has ended; `more` returns what must change within `limit` seconds."""
    seen, since = None, time.monotonic()
    while True:
        meta, found = lookout.look(more)
        if has_ended(meta):
            return meta
        if (now := (meta["status"], found)) != seen:
            seen, since = now, time.monotonic()
        quiet = time.monotonic() - since
        if meta["status"] in ("SUBMITTED", "APPROVED") and quiet > SCHEDULE_SECONDS:
            why = (meta.get("schedule_history") or ["no reason given"])[-1]
            raise DeploymentError(f"The server has not started the job for {quiet:.0f} s: {why}.")
        if limit is not None and quiet > limit:
            raise DeploymentError(
                f"Nothing has happened for {quiet:.0f} s, the job is {meta['status']}: abort({lookout.job_id!r}) ends "
                "it."
            )
        time.sleep(POLL_SECONDS)
