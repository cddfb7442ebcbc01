"""What keeps sites and server from waiting for nothing: runner/pace.py and runner/start.py."""

from __future__ import annotations

import ast
import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather
from nvflare.private.fed.app.simulator import simulator_runner

from tutorial_utils._simulate import pace
from tutorial_utils._simulate.pace import TOPIC, ServerPace
from tutorial_utils._simulate.start import NAP_SECONDS, nap


class Server:
    """As much of FLARE's server as the pace asks: contexts, one workflow, who may send which message."""

    def __init__(self) -> None:
        self.handlers: dict[str, Callable[[str, Shareable, FLContext], Shareable]] = {}
        self.contexts = FLContextManager(self, "server", "job", public_stickers={}, private_stickers={})
        self.workflow = ScatterAndGather(task_check_period=0.02)
        self.workflow.set_communicator(WFCommServer())
        self.tasks = 1
        self.workflow.get_num_standing_tasks = lambda: self.tasks
        self.current_wf = SimpleNamespace(controller=self.workflow)
        self.config = SimpleNamespace(workflows=[self.current_wf])
        self.pace = ServerPace()
        self.fire(EventType.START_RUN)

    def register_aux_message_handler(self, topic: str, message_handle_func: Callable) -> None:
        self.handlers[topic] = message_handle_func

    def context(self, site: str | None = None) -> FLContext:
        fl_ctx = self.contexts.new_context()
        fl_ctx.set_prop(FLContextKey.RUNNER, self, private=True)
        if site:
            peers = FLContextManager(self, site, "job", public_stickers={}, private_stickers={})
            fl_ctx.set_peer_context(peers.new_context())
        return fl_ctx

    def fire(self, event: str, site: str | None = None) -> None:
        self.pace.handle_event(event, self.context(site))

    def start_round(self, *sites: str) -> None:
        self.fire(AppEventType.ROUND_STARTED)
        for site in sites:
            self.fire(EventType.AFTER_TASK_DATA_FILTER, site)

    def call(self, site: str) -> Shareable:
        return self.handlers[TOPIC](TOPIC, Shareable(), self.context(site))


@pytest.fixture
def server() -> Iterator[Server]:
    yield Server()
    gc.unfreeze()  # the run's start froze what this test process holds


def ask(server: Server, site: str) -> threading.Thread:
    thread = threading.Thread(target=server.call, args=(site,), daemon=True)
    thread.start()
    time.sleep(0.05)
    return thread


def test_a_site_is_called_when_the_next_round_begins(server: Server) -> None:
    server.start_round("site-1", "site-2")
    server.fire(EventType.BEFORE_PROCESS_SUBMISSION, "site-1")
    waiting = ask(server, "site-1")
    assert waiting.is_alive(), "site-2 still works"
    server.fire(EventType.BEFORE_PROCESS_SUBMISSION, "site-2")
    server.start_round()
    waiting.join(5)
    assert not waiting.is_alive()


def test_a_site_without_an_answer_in_this_round_is_not_held(server: Server) -> None:
    server.start_round("site-2")
    start = time.monotonic()
    assert server.call("site-1").get_return_code() == ReturnCode.OK
    assert time.monotonic() - start < pace.TURN_SECONDS / 2


def test_where_all_have_answered_and_no_round_follows_nobody_waits_long(server: Server) -> None:
    """A workflow may send a second task in the same round."""
    server.start_round("site-1")
    server.fire(EventType.BEFORE_PROCESS_SUBMISSION, "site-1")
    start = time.monotonic()
    server.call("site-1")
    assert pace.TURN_SECONDS <= time.monotonic() - start < 2 * pace.TURN_SECONDS


@pytest.mark.parametrize("event", [EventType.START_WORKFLOW, EventType.ABOUT_TO_END_RUN])
def test_no_site_is_held_outside_the_rounds(server: Server, event: str) -> None:
    server.start_round("site-1", "site-2")
    server.fire(EventType.BEFORE_PROCESS_SUBMISSION, "site-1")
    waiting = ask(server, "site-1")
    server.fire(event)
    waiting.join(5)
    assert not waiting.is_alive()
    for site in ("site-1", "site-2"):  # cross-site evaluation: the next task is there while others work
        server.fire(EventType.AFTER_TASK_DATA_FILTER, site)
    server.fire(EventType.BEFORE_PROCESS_SUBMISSION, "site-1")
    start = time.monotonic()
    server.call("site-1")
    assert time.monotonic() - start < pace.TURN_SECONDS / 2


def test_a_site_waits_a_moment_for_the_task_itself(server: Server) -> None:
    server.tasks = 0
    server.start_round()
    waiting = ask(server, "site-1")
    assert waiting.is_alive()
    server.tasks = 1
    waiting.join(5)
    assert not waiting.is_alive()


def test_a_lost_message_cannot_stop_a_run(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "HOLD_SECONDS", 0.1)
    monkeypatch.setattr(pace, "TURN_SECONDS", 0.1)
    server.start_round("site-1", "site-2")
    server.fire(EventType.BEFORE_PROCESS_SUBMISSION, "site-1")
    start = time.monotonic()
    server.call("site-1")
    assert 0.2 <= time.monotonic() - start < 1


def test_the_check_period_that_a_job_names_is_the_one_in_force(server: Server) -> None:
    """FLARE sets an attribute that its communicator never reads."""
    assert server.workflow.communicator._task_check_period == 0.02
    untouched = ScatterAndGather(task_check_period=0.02)
    untouched.set_communicator(WFCommServer())
    assert untouched.communicator._task_check_period != 0.02, "FLARE has mended it: pace.py need not do it any more"


def test_naps_are_short_and_the_simulator_uses_nothing_else_of_time() -> None:
    start = time.monotonic()
    nap(10)
    assert NAP_SECONDS <= time.monotonic() - start < 2
    tree = ast.parse(Path(simulator_runner.__file__).read_text(encoding="utf-8"))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time"
    }
    assert used == {"time", "sleep"}
