"""What `deploy` adds to its own copy of a job: the guard of the simulator, for sites on machines of their own.

FLARE 2.9 waits for ever for a site that was started again before the server missed it (the server takes it for alive,
and the job's process at the site is gone). So the guard asks every site, over FLARE's own messages, whether it lives.
This file ships with the job. It imports nvflare and the guards alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.widgets.info_collector import GroupInfoCollector, InfoCollector

from tutorial_utils._simulate.guard import ServerGuard
from tutorial_utils._simulate.guard_site import SiteGuard

TOPIC = "tutorial_utils.pulse"
LACK = "lack"  # what a site that answers cannot do
GROUP = "guard"  # the heading of the guard's figures in FLARE's command show_stats
ASK_SECONDS = 1.0  # between two questions to the sites
UP_SECONDS = 300.0  # that a site may take to ask for its first task
ANSWER_SECONDS = 5.0  # that a question waits for its answer; a site answers while it trains


def count_rounds(run_folder: Path) -> int:
    """The rounds whose line FLARE has written."""
    metrics = run_folder / "metrics" / "round_metrics.jsonl"
    return metrics.read_text(encoding="utf-8").count("\n") if metrics.is_file() else 0


class ServerPulse(ServerGuard):
    """The guard of a server whose sites are elsewhere: asks them, where ServerGuard looks at their processes.

    Args:
        min_sites, filtered: as in ServerGuard.
        resume_from: the earlier job's checkpoint, which came with this one, from the folder of the app.
        absent_seconds: a site that has not answered for so long is lost; one that is not yet up has longer.
    """

    loss = "it does not answer any more (its process ended, its machine or its network is down)"

    def __init__(
        self,
        min_sites: int | None = None,
        filtered: Sequence[str] = (),
        resume_from: str | None = None,
        absent_seconds: float = 10.0,
    ) -> None:
        super().__init__(min_sites=min_sites, filtered=filtered, resume_from=resume_from)
        self.absent_seconds = absent_seconds

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        super().handle_event(event_type, fl_ctx)
        if event_type == InfoCollector.EVENT_TYPE_GET_STATS:
            self._tell(fl_ctx.get_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR))

    def _go_on(self, checkpoint: Path) -> None:
        super()._go_on(self._app_folder / checkpoint)

    def _tell(self, collector: GroupInfoCollector) -> None:
        """An admin may ask a running job with FLARE's own command, show_stats."""
        done = count_rounds(self._run_folder)
        told = {"phase": self._state["phase"], "done": done, "lost": sorted(self._state["lost"])}
        collector.add_info(GROUP, told)

    def _watch(self) -> None:
        begun = time.monotonic()
        heard: dict[str, float] = {}  # when each site answered last
        while not self._over.wait(ASK_SECONDS):
            everybody = [site.name for site in self._engine.get_clients()]
            up = [site for site in self._state["served"] if site not in self._state["lost"]]
            answered = self._ask(up)
            now = time.monotonic()
            heard |= {site: now for site in up if site not in heard or site in answered}
            for site in [site for site in everybody if site not in self._state["lost"]]:
                limit = self.absent_seconds if site in heard else UP_SECONDS
                if now - heard.get(site, begun) > limit:
                    self._lose(site, len(everybody))
            self._tell_of_lost()

    def _ask(self, sites: Sequence[str]) -> set[str]:
        """Those of the sites that have answered that they live."""
        if not sites:
            return set()
        with self._engine.new_context() as fl_ctx:
            answers = self._engine.send_aux_request(sites, TOPIC, Shareable(), ANSWER_SECONDS, fl_ctx, True) or {}
            answers = {site: answer for site, answer in answers.items() if _is_ok(answer)}
            for site, answer in answers.items():
                if lack := answer.get(LACK):
                    self._fail(lack, fl_ctx, site)
        return set(answers)


def _is_ok(answer: object) -> bool:
    return isinstance(answer, Shareable) and answer.get_return_code() == ReturnCode.OK


class SitePulse(SiteGuard):
    """At a site: answers the server's question, and brings back what it kept of an earlier job.

    Args:
        resume_from: the id of that job.
        rounds: as in SiteGuard.
    """

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.START_RUN:
            fl_ctx.get_engine().register_aux_message_handler(TOPIC, self._answer)

    def _earlier(self, app_folder: Path, fl_ctx: FLContext) -> Path:
        return app_folder.parents[1] / self.resume_from / app_folder.name

    def _answer(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        answer = make_reply(ReturnCode.OK)
        app_folder = Path(fl_ctx.get_prop(FLContextKey.APP_ROOT))
        if self.resume_from and not self._earlier(app_folder, fl_ctx).is_dir():
            answer[LACK] = (
                f"it has nothing left of the job that is resumed (the folder {self.resume_from} of its kit is gone), "
                "its best model and its learner's state are lost: begin a new job with the weights that are safe, "
                "build_job(checkpoint=...)"
            )
        return answer
