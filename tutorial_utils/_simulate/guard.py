"""What `simulate` adds to its own copy of a job: a guard on the server (and one at each site, see guard_site.py).

It writes small JSON files that the runner reads, so that no log need be parsed and no return code believed.
This file ships with the job, and the others called guard_ with it; the rest of the package need not be there. Where it
touches a part of nvflare that is not promised, a comment names the version in which that was read.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nvflare.apis.dxo import MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.aggregators.intime_accumulate_model_aggregator import InTimeAccumulateWeightedAggregator
from nvflare.app_common.app_constant import AppConstants, DefaultCheckpointFileName
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.widgets.intime_model_selector import IntimeModelSelector
from nvflare.fuel.f3.stats_pool import StatsPoolManager
from nvflare.widgets.widget import Widget

from tutorial_utils._simulate import guard_checks as checks
from tutorial_utils._simulate.guard_checks import find_fault  # noqa: F401, by this name notebook 09 asks it
from tutorial_utils._simulate.guard_files import FOLDER, RECORD, ROUNDS, keep_checkpoint, take_over, write_json
from tutorial_utils._simulate.guard_processes import sites_alive
from tutorial_utils._simulate.guard_site import SiteGuard  # noqa: F401, where pulse.py looks for it

ANSWERED = "it answered"  # and a code of FLARE's, or a learner's own
PROCESS_ENDED = "its process ended (killed, out of memory, or it left by itself)"
WATCH_SECONDS = 0.25
ABSENT_SECONDS = 3.0  # that a task may be without a process, where every task gets one of its own
MODELS = (DefaultCheckpointFileName.GLOBAL_MODEL, DefaultCheckpointFileName.BEST_GLOBAL_MODEL)


class ServerGuard(Widget):
    """Checks every update before it is averaged, watches the sites' processes, marks what is safely on disk.

    Args:
        min_sites: go on while at least so many sites are left; None: the loss of any site ends the run.
        resident: each site has one process for the whole run (threads = sites), else one for every task.
        resume_from: a checkpoint folder of an earlier run, to go on from.
        sites: the names of all the job's sites; by default those that FLARE knows.
        filtered: what filters of the job may take out of an update, as regular expressions.
    """

    loss = PROCESS_ENDED  # what has happened to a site that is lost

    def __init__(
        self,
        min_sites: int | None = None,
        resident: bool = True,
        resume_from: str | None = None,
        sites: Sequence[str] = (),
        filtered: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.min_sites = min_sites
        self.resident = resident
        self.resume_from = resume_from
        self.sites = sites
        self.filtered = filtered
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._state: dict[str, Any] = {"phase": "start", "round": None, "since": time.time(), "failure": None}
        self._state |= {"served": [], "asked": [], "open": {}, "lost": {}}
        self._shapes: dict[str, list[int]] = {}
        self._weights: Mapping[str, Any] = {}  # that the sites have received in this round
        self._infinite: list[str] = []  # entries of the first model that are not finite throughout
        self._absent: set[str] = set()  # entries that a site kept at home
        self._sent: dict[str, float] = {}  # when each site got its last task
        self._took_part: dict[str, dict[str, Any]] = {}
        self._rounds_seen, self._reports = 0, []  # the meta of this round's updates

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        handlers = {
            EventType.START_RUN: self._start,
            EventType.START_WORKFLOW: lambda fl_ctx: self._set(asked=[], since=time.time()),
            AppEventType.ROUND_STARTED: self._start_round,
            EventType.AFTER_TASK_DATA_FILTER: self._task_sent,
            EventType.BEFORE_PROCESS_SUBMISSION: self._result_came,
            AppEventType.BEFORE_CONTRIBUTION_ACCEPT: self._check_update,
            AppEventType.AFTER_CONTRIBUTION_ACCEPT: self._check_accepted,
            AppEventType.BEFORE_AGGREGATION: self._end_round,
            AppEventType.AFTER_LEARNABLE_PERSIST: self._keep_checkpoint,
            EventType.FATAL_SYSTEM_ERROR: self._record_panic,
            EventType.ABOUT_TO_END_RUN: lambda fl_ctx: self._over.set(),
            EventType.END_RUN: self._end,
        }
        if handler := handlers.get(event_type):
            with self._lock:
                try:
                    handler(fl_ctx)
                except Exception as error:  # FLARE would write a line and go on, with an update that nobody checked
                    what = "its update cannot be checked" if handler == self._check_update else "the guard fails"
                    self._fail(f"{what} ({type(error).__name__}: {error})", fl_ctx, _peer(fl_ctx))

    def _start(self, fl_ctx: FLContext) -> None:
        self._engine, self._runner = fl_ctx.get_engine(), fl_ctx.get_prop(FLContextKey.RUNNER)
        self._run_folder = Path(self._engine.get_workspace().get_run_dir(fl_ctx.get_job_id()))
        self._app_folder = Path(fl_ctx.get_prop(FLContextKey.APP_ROOT))
        self._folder = self._run_folder / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        parts = self._runner.config.components.values()  # nvflare 2.9.0: ServerRunnerConfig
        kinds = [part.expected_data_kind for part in parts if isinstance(part, InTimeAccumulateWeightedAggregator)]
        self._parts = [name for kind in kinds if isinstance(kind, dict) for name in kind if name]
        self._selectors = [part for part in parts if isinstance(part, IntimeModelSelector)]
        if self.resume_from:
            self._go_on(Path(self.resume_from))
        self._set(phase="training")
        threading.Thread(target=self._keep_watch, name="guard", daemon=True).start()

    def _go_on(self, checkpoint: Path) -> None:
        """Give the selectors the best score so far, and the persistor's folder the models of then."""
        scores = json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))["best_scores"]
        for selector, score in zip(self._selectors, scores, strict=True):
            if score is not None:
                selector.best_val_metric = score
        take_over(checkpoint, self._folder, self._app_folder)

    def _set(self, **changes: object) -> None:
        self._state |= changes
        self._state["time"] = time.time()
        write_json(self._folder / "state.json", self._state)

    def _start_round(self, fl_ctx: FLContext) -> None:
        self._weights = _weights_of(fl_ctx)
        if not self._shapes:
            self._shapes = checks.shapes_of(self._weights)
            self._infinite = checks.find_infinite(self._weights)
        self._took_part = {}
        self._set(round=fl_ctx.get_prop(AppConstants.CURRENT_ROUND), asked=[], since=time.time())

    def _task_sent(self, fl_ctx: FLContext) -> None:
        site, now = _peer(fl_ctx), time.time()
        task = {"task": fl_ctx.get_prop(FLContextKey.TASK_NAME), "since": now}
        self._sent[site] = now
        asked, served = ({*self._state[key], site} for key in ("asked", "served"))
        self._set(open=self._state["open"] | {site: task}, asked=sorted(asked), served=sorted(served))

    def _result_came(self, fl_ctx: FLContext) -> None:
        site, code = _peer(fl_ctx), _result(fl_ctx).get_return_code(ReturnCode.OK)
        self._set(open={name: task for name, task in self._state["open"].items() if name != site})
        if code != ReturnCode.OK and not self._flare_decides():
            self._fail(f"{ANSWERED} {code}", fl_ctx, site, fl_ctx.get_prop(FLContextKey.TASK_NAME))

    def _flare_decides(self) -> bool:
        """A workflow that trains ends the run itself where an error matters to it; an evaluation never would."""
        workflow = self._runner.current_wf  # nvflare 2.9.0: ServerRunner; and the names that its controllers have
        names = ("ignore_result_error", "_ignore_result_error")
        return workflow is not None and any(hasattr(workflow.controller, name) for name in names)

    def _check_update(self, fl_ctx: FLContext) -> None:
        result, site = _result(fl_ctx), _peer(fl_ctx)
        if result.get_return_code(ReturnCode.OK) != ReturnCode.OK or _is_late(result, fl_ctx):
            return  # it is not averaged
        update = from_shareable(result)
        if fault := checks.find_fault_of_update(update, self._parts, self._shapes, self._weights, self.filtered):
            self._fail(f"its update is wrong: {fault}", fl_ctx, site, "train")
            return
        self._absent |= checks.find_absent(update, self._parts, self._shapes)
        weight = float(update.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND, 1.0))
        tells = checks.tells(update.get_meta_prop(MetaKey.INITIAL_METRICS))
        self._took_part[site] = {"weight": weight, "metrics": tells}
        self._reports.append(update.meta)

    def _check_accepted(self, fl_ctx: FLContext) -> None:
        accepted, result = fl_ctx.get_prop(AppConstants.AGGREGATION_ACCEPTED), _result(fl_ctx)
        counts = result.get_return_code(ReturnCode.OK) == ReturnCode.OK and not _is_late(result, fl_ctx)
        if accepted is False and counts and not self._state["failure"]:
            self._fail("the aggregator refused its update, see log('server')", fl_ctx, _peer(fl_ctx), "train")

    def _end_round(self, fl_ctx: FLContext) -> None:
        """Note who took part; after the first round, see whether best models can be chosen at all."""
        with (self._folder / ROUNDS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"round": self._state["round"], "sites": self._took_part}) + "\n")
        for selector in self._selectors if not self._rounds_seen and self._reports else ():
            if lack := checks.find_unreported(selector.key_metric, selector.validation_metric_name, self._reports):
                self._fail(lack, fl_ctx)
        self._rounds_seen, self._reports = self._rounds_seen + 1, []

    def _keep_checkpoint(self, fl_ctx: FLContext) -> None:
        """A round is safe when its model is on disk, which is after its line in the metrics file."""
        scores = [float(part.best_val_metric) for part in self._selectors]
        record = {
            "rounds": fl_ctx.get_prop(AppConstants.CURRENT_ROUND) + 1,
            "best_scores": [score if math.isfinite(score) else None for score in scores],
            "shapes": self._shapes or checks.shapes_of(_weights_of(fl_ctx)),
            "absent": sorted(self._absent),
            "infinite": self._infinite,
        }
        models = [self._app_folder / name for name in MODELS]
        keep_checkpoint(self._folder, [model for model in models if model.is_file()], record)

    def _fail(self, reason: str, fl_ctx: FLContext, site: str | None = None, task: str | None = None) -> None:
        try:
            self._record(reason, site, task)
        finally:
            self.system_panic(f"{site}: {reason}" if site else reason, fl_ctx)

    def _record_panic(self, fl_ctx: FLContext) -> None:
        site, result = _peer(fl_ctx), fl_ctx.get_prop(FLContextKey.TASK_RESULT)
        code = result.get_return_code(ReturnCode.OK) if site and isinstance(result, Shareable) else ReturnCode.OK
        reason = f"{ANSWERED} {code}" if code != ReturnCode.OK else str(fl_ctx.get_prop(FLContextKey.EVENT_DATA, ""))
        self._record(reason, site, fl_ctx.get_prop(FLContextKey.TASK_NAME))

    def _record(self, reason: str, site: str | None, task: str | None) -> None:
        self._over.set()
        if not self._state["failure"]:  # the first one is the cause, the others follow from it
            since = self._sent.get(site, self._state["since"])  # what is older in a log has another reason
            self._set(failure={"reason": reason, "site": site, "task": task, "since": since, "time": time.time()})

    def _keep_watch(self) -> None:
        try:
            self._watch()
        except Exception as error:  # a run that nobody watches could hang for ever
            with self._lock, self._engine.new_context() as fl_ctx:
                self._fail(f"the guard cannot watch the sites ({type(error).__name__}: {error})", fl_ctx)

    def _watch(self) -> None:
        """A site without a process cannot answer, and FLARE would wait for it for ever."""
        seen: set[str] = set()
        absent_since: dict[str, float] = {}
        while not self._over.wait(WATCH_SECONDS):
            if (alive := sites_alive()) is None:
                continue
            waited_for = seen if self.resident else set(self._state["open"])
            seen |= alive
            for site in set(absent_since) - (waited_for - alive):
                del absent_since[site]
            for site in waited_for - alive - set(self._state["lost"]):
                since = absent_since.setdefault(site, time.monotonic())
                if time.monotonic() - since >= (0 if self.resident else ABSENT_SECONDS):
                    self._lose(site)
            self._tell_of_lost()

    def _lose(self, site: str, sites: int | None = None, loss: str | None = None) -> None:
        """Note that a site is gone; end the run where too few are left of all the job's sites."""
        with self._lock, self._engine.new_context() as fl_ctx:
            if self._over.is_set():
                return
            task = self._state["open"].get(site, {}).get("task")
            lost = self._state["lost"] | {site: {"round": self._state["round"], "task": task}}
            everybody = sites or len(self.sites) or len(self._engine.get_clients())
            if self.min_sites is None or everybody - len(lost) < self.min_sites:
                self._fail(loss or self.loss, fl_ctx, site, task)
            else:
                self._set(lost=lost)

    def _tell_of_lost(self) -> None:
        """Each workflow keeps a list of its own, and takes a site off it when a late message makes it look alive."""
        workflow = self._runner.current_wf  # nvflare 2.9.0: ServerRunner, None between workflows
        for site in self._state["lost"] if workflow else ():
            if workflow.controller.communicator.get_client_disconnect_time(site) is None:
                with self._engine.new_context() as fl_ctx:
                    self._runner.handle_dead_job(site, fl_ctx)

    def _end(self, fl_ctx: FLContext) -> None:
        """All that FLARE writes at the end of a run is written: this guard is the last component of the job."""
        write_json(self._folder / "messages.json", StatsPoolManager.to_dict())
        self._set(phase="ended")


def _peer(fl_ctx: FLContext) -> str | None:
    peer = fl_ctx.get_peer_context()
    return peer.get_identity_name() if peer else None


def _weights_of(fl_ctx: FLContext) -> Mapping[str, Any]:
    """Those of the global model; none before a first round that leaves them to the sites."""
    return (fl_ctx.get_prop(AppConstants.GLOBAL_MODEL) or {}).get("weights") or {}


def _result(fl_ctx: FLContext) -> Shareable:
    """What a site has answered, as it left the server's filters."""
    result = fl_ctx.get_prop(FLContextKey.TASK_RESULT)
    return result if result is not None else fl_ctx.get_peer_context().get_prop(FLContextKey.SHAREABLE)


def _is_late(result: Shareable, fl_ctx: FLContext) -> bool:
    """Does it belong to an earlier round? Aggregators leave it out."""
    return result.get_cookie(AppConstants.CONTRIBUTION_ROUND) not in (None, fl_ctx.get_prop(AppConstants.CURRENT_ROUND))
