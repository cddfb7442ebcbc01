"""What `simulate` adds to its own copy of a job: a guard on the server and one at each site.

They write small JSON files that the runner reads, so that no log need be parsed and no return code believed.
This file ships with the job. It imports numpy, psutil and nvflare alone.
"""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from nvflare.apis.dxo import DXO, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.aggregators.intime_accumulate_model_aggregator import InTimeAccumulateWeightedAggregator
from nvflare.app_common.app_constant import AppConstants, DefaultCheckpointFileName
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.widgets.intime_model_selector import IntimeModelSelector
from nvflare.fuel.f3.stats_pool import StatsPoolManager
from nvflare.widgets.widget import Widget

FOLDER = "guard"  # under the run's folder of the server and of each site
BEST_LOCAL_MODEL = "best_local_model.pt"
PROCESS_ENDED = "its process ended (killed, out of memory, or it left by itself)"
WATCH_SECONDS = 0.25
ABSENT_SECONDS = 3.0


def write_json(path: Path, value: object) -> None:
    """Whoever reads the file finds the old text or the new one, never half of it."""
    half_written = path.with_suffix(".tmp")
    half_written.write_text(json.dumps(value, indent=1), encoding="utf-8")
    half_written.replace(path)


def find_fault(update: Mapping[str, Any] | None, shapes: Mapping[str, Sequence[int]]) -> str | None:
    """What is wrong with weights (or differences) that should have these names and shapes, None if nothing is."""
    if not isinstance(update, Mapping):
        return "it holds no weights"
    if lack := sorted(set(shapes) - set(update)):
        return f"it lacks {', '.join(lack)}"
    if extra := sorted(set(update) - set(shapes)):
        return f"it has {', '.join(extra)}, which the model does not have"
    for name, value in update.items():
        array, shape = np.asarray(value), tuple(shapes[name])
        if array.shape != shape:
            return f"{name} has the shape {array.shape} instead of {shape}"
        if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
            return f"{name} holds numbers that are not finite"
    return None


class ServerGuard(Widget):
    """Checks every update before it is averaged, watches the sites' processes, marks what is safely on disk.

    Args:
        min_sites: go on while at least so many sites are left; None: the loss of any site ends the run.
        resident: each site has one process for the whole run (threads = sites). If not, FLARE starts one for
            every task, and only a task without a process, for some seconds, tells of a loss.
        resume_from: a checkpoint folder of an earlier run, to go on from.
    """

    loss = PROCESS_ENDED  # what has happened to a site that is lost

    def __init__(self, min_sites: int | None = None, resident: bool = True, resume_from: str | None = None) -> None:
        super().__init__()
        self.min_sites = min_sites
        self.resident = resident
        self.resume_from = resume_from
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._state: dict[str, Any] = {"phase": "start", "round": None, "served": []}
        self._state |= {"open": {}, "lost": {}, "failure": None}
        self._shapes: dict[str, list[int]] | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        handlers = {
            EventType.START_RUN: self._start,
            AppEventType.ROUND_STARTED: self._start_round,
            EventType.AFTER_TASK_DATA_FILTER: self._task_sent,
            EventType.BEFORE_PROCESS_SUBMISSION: self._result_came,
            AppEventType.BEFORE_CONTRIBUTION_ACCEPT: self._check_update,
            AppEventType.AFTER_CONTRIBUTION_ACCEPT: self._check_accepted,
            AppEventType.AFTER_LEARNABLE_PERSIST: self._keep_checkpoint,
            EventType.FATAL_SYSTEM_ERROR: self._record_panic,
            EventType.ABOUT_TO_END_RUN: self._stop_watching,
            EventType.END_RUN: self._end,
        }
        if handler := handlers.get(event_type):
            with self._lock:
                handler(fl_ctx)

    def _start(self, fl_ctx: FLContext) -> None:
        engine = fl_ctx.get_engine()
        self._run_folder = Path(engine.get_workspace().get_run_dir(fl_ctx.get_job_id()))
        self._app_folder = Path(fl_ctx.get_prop(FLContextKey.APP_ROOT))
        self._folder = self._run_folder / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        self._engine, self._runner = engine, fl_ctx.get_prop(FLContextKey.RUNNER)
        parts = self._runner.config.components.values()
        kinds = [part.expected_data_kind for part in parts if isinstance(part, InTimeAccumulateWeightedAggregator)]
        self._parts = [name for kind in kinds if isinstance(kind, dict) for name in kind if name]
        self._selectors = [part for part in parts if isinstance(part, IntimeModelSelector)]
        if self.resume_from:
            self._go_on(Path(self.resume_from))
        self._set(phase="training")
        threading.Thread(target=self._watch, name="guard", daemon=True).start()

    def _go_on(self, checkpoint: Path) -> None:
        """Give the selectors the best score so far, and the persistor's folder the models of then."""
        scores = json.loads((checkpoint / "checkpoint.json").read_text(encoding="utf-8"))["best_scores"]
        for selector, score in zip(self._selectors, scores, strict=True):
            if score is not None:
                selector.best_val_metric = score
        for model in checkpoint.glob("*.pt"):
            shutil.copy2(model, self._app_folder)
        shutil.copytree(checkpoint, self._folder / checkpoint.name)  # cut off again, this run can go on too

    def _set(self, **changes: object) -> None:
        self._state |= changes
        self._state["time"] = time.time()
        write_json(self._folder / "state.json", self._state)

    def _start_round(self, fl_ctx: FLContext) -> None:
        if self._shapes is None:
            weights = fl_ctx.get_prop(AppConstants.GLOBAL_MODEL)["weights"]
            self._shapes = {name: list(np.shape(value)) for name, value in weights.items()}
        self._set(round=fl_ctx.get_prop(AppConstants.CURRENT_ROUND))

    def _task_sent(self, fl_ctx: FLContext) -> None:
        site, task = _peer(fl_ctx), {"task": fl_ctx.get_prop(FLContextKey.TASK_NAME), "since": time.time()}
        self._set(open=self._state["open"] | {site: task}, served=sorted({*self._state["served"], site}))

    def _result_came(self, fl_ctx: FLContext) -> None:
        site = _peer(fl_ctx)
        self._set(open={name: task for name, task in self._state["open"].items() if name != site})
        code = fl_ctx.get_prop(FLContextKey.TASK_RESULT).get_return_code(ReturnCode.OK)
        if code != ReturnCode.OK:
            self._fail(f"it answered {code}", fl_ctx, site, fl_ctx.get_prop(FLContextKey.TASK_NAME))

    def _check_update(self, fl_ctx: FLContext) -> None:
        try:
            update = from_shareable(fl_ctx.get_peer_context().get_prop(FLContextKey.SHAREABLE))
            fault = self._find_fault(update.data)
        except ValueError as error:
            fault = f"it holds no weights ({error})"
        if fault:
            self._fail(f"its update is wrong: {fault}", fl_ctx, _peer(fl_ctx), "train")

    def _find_fault(self, update: Mapping[str, Any]) -> str | None:
        """Where the aggregator expects several parts, each is checked: the weights, and controls, say, of some."""
        for name in self._parts:
            part = update.get(name)
            data = part.data if isinstance(part, DXO) else None
            whole = name == AppConstants.MODEL_WEIGHTS or not data  # no controls for what is not trained
            shapes = self._shapes if whole else {key: self._shapes[key] for key in data if key in self._shapes}
            if fault := find_fault(data, shapes):
                return f"in {name}, {fault}"
        return None if self._parts else find_fault(update, self._shapes)

    def _check_accepted(self, fl_ctx: FLContext) -> None:
        if fl_ctx.get_prop(AppConstants.AGGREGATION_ACCEPTED) is False and not self._state["failure"]:
            self._fail("the aggregator refused its update, see log('server')", fl_ctx, _peer(fl_ctx), "train")

    def _keep_checkpoint(self, fl_ctx: FLContext) -> None:
        """A round is safe when its model is on disk, which is after its line in the metrics file."""
        done = fl_ctx.get_prop(AppConstants.CURRENT_ROUND) + 1
        new = self._folder / f"checkpoint-{done}"
        half_made = self._folder / "checkpoint.tmp"
        half_made.mkdir(exist_ok=True)
        for name in (DefaultCheckpointFileName.GLOBAL_MODEL, DefaultCheckpointFileName.BEST_GLOBAL_MODEL):
            if (self._app_folder / name).is_file():  # the persistor replaces its files, so a link is a copy
                os.link(self._app_folder / name, half_made / name)
        scores = [float(part.best_val_metric) for part in self._selectors]
        best_scores = [score if np.isfinite(score) else None for score in scores]
        record = {"rounds": done, "best_scores": best_scores, "shapes": self._shapes}
        write_json(half_made / "checkpoint.json", record)
        half_made.rename(new)
        for old in self._folder.glob("checkpoint-*"):
            if old != new:
                shutil.rmtree(old)

    def _fail(self, reason: str, fl_ctx: FLContext, site: str | None = None, task: str | None = None) -> None:
        self._record(reason, site, task)
        self.system_panic(f"{site}: {reason}", fl_ctx)

    def _record_panic(self, fl_ctx: FLContext) -> None:
        peer = _peer(fl_ctx) if fl_ctx.get_peer_context() else None
        self._record(str(fl_ctx.get_prop(FLContextKey.EVENT_DATA, "")), peer, fl_ctx.get_prop(FLContextKey.TASK_NAME))

    def _record(self, reason: str, site: str | None, task: str | None) -> None:
        self._over.set()
        if not self._state["failure"]:  # the first one is the cause, the others follow from it
            self._set(failure={"reason": reason, "site": site, "task": task})

    def _watch(self) -> None:
        """A site without a process cannot answer, and FLARE would wait for it for ever."""
        here = psutil.Process()
        seen: set[str] = set()
        absent_since: dict[str, float] = {}
        while not self._over.wait(WATCH_SECONDS):
            alive = {name for child in here.children() if (name := _site_of(child))}
            waited_for = seen if self.resident else set(self._state["open"])
            seen |= alive
            for site in set(absent_since) - (waited_for - alive):
                del absent_since[site]
            for site in waited_for - alive - set(self._state["lost"]):
                since = absent_since.setdefault(site, time.monotonic())
                if time.monotonic() - since >= (0 if self.resident else ABSENT_SECONDS):
                    self._lose(site, len(seen))
            for site in self._state["lost"]:  # each workflow keeps a list of its own
                with self._engine.new_context() as fl_ctx:
                    self._runner.handle_dead_job(site, fl_ctx)

    def _lose(self, site: str, sites: int) -> None:
        with self._lock, self._engine.new_context() as fl_ctx:
            if self._over.is_set():
                return
            task = self._state["open"].get(site, {}).get("task")
            lost = self._state["lost"] | {site: {"round": self._state["round"], "task": task}}
            if self.min_sites is None or sites - len(lost) < self.min_sites:
                self._fail(self.loss, fl_ctx, site, task)
            else:
                self._set(lost=lost)

    def _stop_watching(self, fl_ctx: FLContext) -> None:
        self._over.set()

    def _end(self, fl_ctx: FLContext) -> None:
        """All that FLARE writes at the end of a run is written: this guard is the last component of the job."""
        write_json(self._folder / "messages.json", StatsPoolManager.to_dict())
        self._set(phase="ended")


class SiteGuard(Widget):
    """At a site: gives a resumed run its best local model back, and says when the learner is finalized.

    Args:
        resume_from: the earlier run's workspace, where this site's folder is looked for.
    """

    def __init__(self, resume_from: str | None = None) -> None:
        super().__init__()
        self.resume_from = resume_from

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
            kept = Path(self.resume_from, fl_ctx.get_identity_name(), *app_folder.parts[-2:], BEST_LOCAL_MODEL)
            if kept.is_file() and not (app_folder / BEST_LOCAL_MODEL).exists():
                shutil.copy2(kept, app_folder)


def _peer(fl_ctx: FLContext) -> str:
    return fl_ctx.get_peer_context().get_identity_name()


def _site_of(process: psutil.Process) -> str | None:
    """The site of a simulator's worker process, None for any other and for one that has ended."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        words = process.cmdline()
        return words[words.index("--client") + 1] if "--client" in words else None
    except psutil.Error:
        return None
