"""Jobs whose server has ended under them: FLARE 2.9.0 takes none of them up again, and lists them as RUNNING for ever.

What the server's process of the job had written is still in the server's kit, and a run can go on from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tutorial_utils._simulate.verdict import safe_rounds
from tutorial_utils.errors import DeployedRunError
from tutorial_utils.results import Run

STATUS = "RUNNING"  # what FLARE goes on saying


class OrphanError(Exception):
    """A job has no server process any more. It never reaches the reader: see `tell_of_orphan`.

    Args:
        name: the job's.
        what: has happened, a sentence without its full stop.
    """

    def __init__(self, name: str, what: str) -> None:
        super().__init__(name, what)
        self.name = name
        self.what = what


def is_orphan(meta: Mapping[str, Any], server_start: float | None) -> bool:
    """Did this job start before the server did? None: not known. Both are of the server's clock."""
    begun = meta.get("start_time")
    return bool(begun and server_start) and datetime.fromisoformat(begun).timestamp() < server_start


def tell_of_orphan(orphan: OrphanError, run: Run, found: Run | None, job_id: str) -> DeployedRunError:
    """The error for it.

    Args:
        run: the folder that was laid for what comes of it.
        found: the same with what the server's machine held, where we may read that.
    """
    at = found.state.get("round") if found else None
    lines = [f"{orphan.what}{'' if at is None else f' in round {at}'}, and the job is gone."]
    if found:
        lines += [f"Its files are in {run.folder}.", safe_rounds(found)]
    else:
        lines.append(
            f"The rounds that are safe lie in the folder {job_id} of the server's kit: ask for a copy, name it "
            f"{run.job_folder}, and resume_from={str(run.folder)!r} goes on."
        )
    return DeployedRunError("\n".join(filter(None, lines)), found or run, STATUS)
