"""What `deploy` adds to its own copy of a job: the guard of the simulator, for sites on machines of their own.

FLARE 2.9 waits for ever for a site that was started again before the server missed it (the server takes it for alive,
and the job's process at the site is gone). So the guard asks every site, over FLARE's own messages, whether it lives;
rejoin.py starts that process again where the server's kit has it.
FLARE ends a whole job where one site's process of it is killed. Here `min_sites` decides that too.
This file ships with the job. It imports nvflare and the guards alone.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, FLMetaKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobReturnCode
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.widgets.info_collector import GroupInfoCollector, InfoCollector

from tutorial_utils._simulate.guard import PROCESS_ENDED, ServerGuard
from tutorial_utils._simulate.guard_site import SiteGuard

TOPIC = "tutorial_utils.pulse"
LACK = "lack"  # what a site that answers cannot do
GROUP = "guard"  # the heading of the guard's figures in FLARE's command show_stats
ASK_SECONDS = 1.0  # between two questions to the sites
UP_SECONDS = 300.0  # that a site may take to ask for its first task
ANSWER_SECONDS = 10.0  # at most, that a question waits for its answer; a site answers while it trains
SILENT_SECONDS = 30.0  # that a site may be silent, where the server's kit does not say
STOOD_SECONDS = 2.0  # longer than a question may last: then this process stood still, and its clock says nothing


def silence_allowed(resources: Path) -> float:
    """Seconds of silence until the server of these resources counts a site as lost."""
    try:
        return float(json.loads(resources.read_text(encoding="utf-8"))["servers"][0]["heart_beat_timeout"])
    except (OSError, ValueError, LookupError, TypeError):  # it has FLARE's own alone
        return SILENT_SECONDS


def count_rounds(run_folder: Path) -> int:
    """The rounds whose line FLARE has written."""
    metrics = run_folder / "metrics" / "round_metrics.jsonl"
    return metrics.read_text(encoding="utf-8").count("\n") if metrics.is_file() else 0


class ServerPulse(ServerGuard):
    """The guard of a server whose sites are elsewhere: asks them, where ServerGuard looks at their processes.

    A lost site whose process of the job answers again, the old one or (rejoin.py) a new one, takes part from the next
    round on.

    Args:
        min_sites, filtered: as in ServerGuard.
        resume_from: the earlier job's checkpoint, which came with this one, from the folder of the app.
        absent_seconds: a site that has not answered for so long is lost; one that is not yet up has longer. None: what
            the server's own kit says, its heart_beat_timeout.
    """

    loss = "it does not answer any more (its process ended, its machine or its network is down)"

    def __init__(
        self,
        min_sites: int | None = None,
        filtered: Sequence[str] = (),
        resume_from: str | None = None,
        absent_seconds: float | None = None,
    ) -> None:
        super().__init__(min_sites=min_sites, filtered=filtered, resume_from=resume_from)
        self.absent_seconds = absent_seconds
        self._heard: dict[str, float] = {}  # when each site answered last
        self._told: dict[tuple[str, str], float] = {}  # when each workflow was told of each lost site

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == AppEventType.ROUND_STARTED:
            self._welcome_back(fl_ctx)
        super().handle_event(event_type, fl_ctx)
        if event_type == InfoCollector.EVENT_TYPE_GET_STATS:
            self._tell(fl_ctx.get_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR))
        elif event_type == EventType.CLIENT_DISCONNECTED:
            self._lose_process(fl_ctx.get_prop(FLContextKey.DISCONNECTED_CLIENT_NAME))

    def _start(self, fl_ctx: FLContext) -> None:
        workspace = fl_ctx.get_engine().get_workspace()
        self._patience = self.absent_seconds or silence_allowed(Path(workspace.get_site_config_dir(), "resources.json"))
        self._answer_seconds = min(ANSWER_SECONDS, self._patience / 3)
        self._state["gaps"] = []  # rounds without a site that is back
        super()._start(fl_ctx)

    def _go_on(self, checkpoint: Path) -> None:
        super()._go_on(self._app_folder / checkpoint)

    def _tell(self, collector: GroupInfoCollector) -> None:
        """An admin may ask a running job with FLARE's own command, show_stats."""
        done = count_rounds(self._run_folder)
        told = {"phase": self._state["phase"], "done": done, "lost": sorted(self._state["lost"])}
        collector.add_info(GROUP, told)

    def _welcome_back(self, fl_ctx: FLContext) -> None:
        """A lost site that has just answered is no longer lost: the round that begins waits for it.

        Without the guard's lock, for FLARE's list of the dead has a lock of its own.
        """
        number, lately = fl_ctx.get_prop(AppConstants.CURRENT_ROUND), time.monotonic() - self._patience / 2
        for site, loss in self._state["lost"].items():
            if self._heard.get(site, 0) < lately:
                continue
            self._state["gaps"].append({"site": site, "from": loss["round"], "back": number})
            self._state["lost"] = {name: loss for name, loss in self._state["lost"].items() if name != site}
            self._told = {key: told for key, told in self._told.items() if site not in key}
            self._runner.current_wf.controller.communicator.client_is_active(site, "it answers again", fl_ctx)
            self.log_warning(fl_ctx, f"{site} answers again, and takes part from round {number} on")

    def _lose_process(self, site: str) -> None:
        """FLARE has heard that a site has no process of the job, and for its grace period no sign of one.

        At once, for FLARE does not wait for it any more. FLARE holds the lock of its list of the dead meanwhile.
        """
        if site not in self._state["lost"]:
            self._lose(site, len(self._engine.get_clients()), PROCESS_ENDED)

    def _watch(self) -> None:
        begun = time.monotonic()
        while not self._over.wait(ASK_SECONDS):
            everybody = [site.name for site in self._engine.get_clients()]
            asked, lost = time.monotonic(), list(self._state["lost"])
            up = [site for site in self._state["served"] if site not in lost]
            answered = self._ask(up, self._answer_seconds) | self._ask(lost, ASK_SECONDS)
            now = time.monotonic()
            if now - asked > self._answer_seconds + ASK_SECONDS + STOOD_SECONDS:  # nobody was silent but this process
                begun, answered = now, {*answered, *up}
            self._heard |= dict.fromkeys(answered, now) | {site: now for site in up if site not in self._heard}
            if lost or len(answered) < len(up):  # who was started again has another token
                with contextlib.suppress(RuntimeError):  # the server's own process is busy
                    self._engine.sync_clients_from_main_process()
            for site in [site for site in everybody if site not in self._state["lost"]]:
                silent = now - self._heard.get(site, begun)
                if silent > (self._patience if site in self._heard else max(UP_SECONDS, self._patience)):
                    self._lose(site, len(everybody))
            self._tell_of_lost()

    def _tell_of_lost(self) -> None:
        """As in ServerGuard, but now and then: FLARE takes its grace period until it believes."""
        workflow = self._runner.current_wf
        for site in self._state["lost"] if workflow else ():
            key, now = (workflow.id, site), time.monotonic()
            alive = workflow.controller.communicator.get_client_disconnect_time(site) is None
            if alive and now - self._told.get(key, -math.inf) > self._patience / 2:
                self._told[key] = now
                with self._engine.new_context() as fl_ctx:
                    self._runner.handle_dead_job(site, fl_ctx)

    def _ask(self, sites: Sequence[str], limit: float) -> set[str]:
        """Those of the sites that have answered within `limit` seconds that they live."""
        if not sites:
            return set()
        with self._engine.new_context() as fl_ctx:
            answers = self._engine.send_aux_request(sites, TOPIC, Shareable(), limit, fl_ctx, True) or {}
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
            self._own_code(fl_ctx).write_text(str(JobReturnCode.UNKNOWN), encoding="utf-8")
        elif event_type == EventType.END_RUN:
            self._own_code(fl_ctx).unlink(missing_ok=True)

    def _own_code(self, fl_ctx: FLContext) -> Path:
        """Where FLARE (2.9.0, get_return_code) looks for how a job's process ended, before it asks the system.

        A process that is killed would be reported as failed, and FLARE ends the whole job for that, whatever min_sites
        says. "Unknown" leaves it to the server's guard, which hears of it by FLARE's next heartbeat.
        """
        return Path(fl_ctx.get_prop(FLContextKey.APP_ROOT)).parent / FLMetaKey.PROCESS_RC_FILE

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
