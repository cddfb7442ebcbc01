"""Every error of this package: each is a mistake that the reader can mend, and its text says how.

`LearnerError` alone lives elsewhere, in learner.py: that module ships to the sites, and this one does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tutorial_utils.results import Run


class TutorialError(Exception):
    """A mistake that the reader can mend. Its text is one plain sentence that says how."""


class VersionError(TutorialError, ImportError):
    """The FLARE that is installed is not one that this works with; the text says which is, and what to type."""


class DataError(TutorialError):
    """The data cannot be had, read or written; the text says what to do."""


class OfflineError(DataError):
    """The official download cannot be reached."""


class PartitionError(TutorialError):
    """These sites cannot be made of these data; the text says why."""


class JobError(TutorialError):
    """A job that cannot be built, or not be run as it was asked for."""


class ResultsError(TutorialError):
    """A run's file is missing or does not hold what it should."""


class EncryptedError(ResultsError):
    """A model that only a site can read; the text says how."""


class DeploymentError(TutorialError):
    """A federation that cannot be set up, started or asked. The text says what to do."""


class SimulationError(TutorialError):
    """A run that did not do all that was asked. The text names the site, the round and the cause, and ends with
    the site's own traceback where it left one.

    Attributes:
        run: what there is of it; `simulate(job, resume_from=error)` goes on with it.
        workspace: the simulator's workspace, kept for inspection.
    """

    def __init__(self, message: str, run: Run) -> None:
        super().__init__(message, run)  # both, so that it can be pickled
        self.message = message
        self.run = run

    def __str__(self) -> str:
        return self.message

    @property
    def workspace(self) -> Path:
        return self.run.workspace

    def log(self, who: str = "server") -> str:
        """The log of one site, or of the "server"."""
        return self.run.log(who)


class DeployedRunError(TutorialError):
    """A job that did not do all that was asked. The text names the site, the round and the cause.

    Attributes:
        run: what there is of it.
        status: FLARE's word for how the job ended.
    """

    def __init__(self, message: str, run: Run, status: str) -> None:
        super().__init__(message, run, status)  # all, so that it can be pickled
        self.message = message
        self.run = run
        self.status = status

    def __str__(self) -> str:
        return self.message
