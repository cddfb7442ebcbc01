"""What `simulate` adds to its own copy of a job so that sites and server do not wait for nothing between rounds.

- In FLARE's simulator a site that finds no task waits half a second before it asks again: at every round's end, often
  twice. Here it asks the server to be called instead, over FLARE's own messages, and comes back when there is one.
- Python's garbage collector looks at all that was ever imported, a tenth of a second each time, and FLARE calls it in
  every round. What is there when the run starts stays to its end, so the collector need not look at it.
- A workflow's task_check_period never reaches the part that checks: FLARE 2.9.0 sets an attribute that nobody reads,
  and looks every 0.2 s. Here it is brought there.

This file ships with the job. It imports nvflare alone, and must stand alone: where it touches a part of nvflare that
is not promised, a comment names the version in which that was read.
"""

from __future__ import annotations

import gc
import threading
import time

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.app_event_type import AppEventType
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.widgets.widget import Widget

TOPIC = "tutorial_utils.next_task"
HOLD_SECONDS = 2.0  # that the server keeps one request while others work; so long is the site held by a lost message
CALL_SECONDS = 30.0  # that the site asks again; then it looks for itself, whatever the server says
ANSWER_SECONDS = 1.0  # for the server's answer to come
ASK_AGAIN = "ASK_AGAIN"
TURN_SECONDS = 0.6  # from a round's last answer to the next round
TASK_SECONDS = 0.1  # from a round's start to its task
LOOK_SECONDS = 0.005


class ServerPace(Widget):
    """Lets a site that has answered wait until the others have too and the next round has begun."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()
        self._in_rounds = False  # in other workflows a site's next task may be there while others still work
        self._working: set[str] = set()
        self._answered: set[str] = set()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.START_RUN:
            gc.freeze()
            self._runner = fl_ctx.get_prop(FLContextKey.RUNNER)  # nvflare 2.9.0: ServerRunner, ServerRunnerConfig
            for workflow in self._runner.config.workflows:
                workflow.controller.communicator._task_check_period = workflow.controller._task_check_period
            fl_ctx.get_engine().register_aux_message_handler(TOPIC, self._call)
        elif event_type == EventType.AFTER_TASK_DATA_FILTER:
            self._move(_peer(fl_ctx), self._answered, self._working)
        elif event_type == EventType.BEFORE_PROCESS_SUBMISSION:
            self._move(_peer(fl_ctx), self._working, self._answered)
        elif event_type in (AppEventType.ROUND_STARTED, EventType.START_WORKFLOW, EventType.ABOUT_TO_END_RUN):
            with self._changed:
                self._in_rounds = event_type == AppEventType.ROUND_STARTED
                self._answered.clear()
                self._working.clear()
                self._changed.notify_all()

    def _move(self, site: str, source: set[str], target: set[str]) -> None:
        with self._changed:
            source.discard(site)
            target.add(site)
            self._changed.notify_all()

    def _call(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        site = _peer(fl_ctx)

        def has_turn() -> bool:
            return not self._in_rounds or site not in self._answered

        with self._changed:
            if not self._changed.wait_for(lambda: has_turn() or not self._working, HOLD_SECONDS):
                return make_reply(ASK_AGAIN)
            self._changed.wait_for(has_turn, TURN_SECONDS)
        end = time.monotonic() + TASK_SECONDS
        while not self._has_task() and time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
        return make_reply(ReturnCode.OK)

    def _has_task(self) -> bool:
        workflow = self._runner.current_wf  # nvflare 2.9.0: ServerRunner, None between workflows
        return bool(workflow and workflow.controller.get_num_standing_tasks())


class SitePace(Widget):
    """Asks to be called before it pulls a task."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.START_RUN:
            gc.freeze()
        elif event_type == EventType.BEFORE_PULL_TASK:
            self._wait(fl_ctx)

    def _wait(self, fl_ctx: FLContext) -> None:
        """Optional: where the server is gone by now, the site's log need not say so."""
        engine, wait = fl_ctx.get_engine(), HOLD_SECONDS + TURN_SECONDS + TASK_SECONDS + ANSWER_SECONDS
        end = time.monotonic() + CALL_SECONDS
        while time.monotonic() < end:
            request, server = Shareable(), FQCN.ROOT_SERVER
            replies = engine.send_aux_request([server], TOPIC, request, timeout=wait, fl_ctx=fl_ctx, optional=True)
            reply = (replies or {}).get(server)
            if not isinstance(reply, Shareable) or reply.get_return_code() != ASK_AGAIN:
                return


def _peer(fl_ctx: FLContext) -> str:
    return fl_ctx.get_peer_context().get_identity_name()
