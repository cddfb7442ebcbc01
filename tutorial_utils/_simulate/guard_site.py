"""What `simulate` adds to a job at each site. This file ships with the job, and guard_files.py with it."""

from __future__ import annotations

import faulthandler
import signal
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.widgets.widget import Widget

from tutorial_utils._simulate.guard_files import FOLDER, bring_back, write_json


class SiteGuard(Widget):
    """At a site: gives a resumed run back what the site kept, and says when the learner is finalized.

    Args:
        resume_from: the earlier run's workspace, where this site's folder is looked for.
        rounds: how many rounds of that run are kept.
    """

    def __init__(self, resume_from: str | None = None, rounds: int = 0) -> None:
        super().__init__()
        self.resume_from = resume_from
        self.rounds = rounds

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.START_RUN:
            self._start(fl_ctx)
        elif event_type == EventType.END_RUN:  # every other component has finalized: this one is the last of them
            write_json(self._folder / "state.json", {"phase": "ended"})

    def _start(self, fl_ctx: FLContext) -> None:
        app_folder = Path(fl_ctx.get_prop(FLContextKey.APP_ROOT))
        self._folder = app_folder.parent / FOLDER
        self._folder.mkdir(exist_ok=True)
        # Asked by this signal, a site that hangs writes where. The file must stay open for it.
        self._stack = (self._folder / "stack.txt").open("w", encoding="utf-8")
        faulthandler.register(signal.SIGUSR1, self._stack, all_threads=False)
        if self.resume_from:
            bring_back(self._earlier(app_folder, fl_ctx), app_folder, self.rounds)

    def _earlier(self, app_folder: Path, fl_ctx: FLContext) -> Path:
        """The app folder that this site had in the run that is resumed."""
        return Path(self.resume_from, fl_ctx.get_identity_name(), *app_folder.parts[-2:])
