"""What keeps sites and server from waiting for nothing: _simulate/pace.py and _simulate/start.py."""

from __future__ import annotations

import ast
import gc
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Client, Listener
from pathlib import Path
from types import SimpleNamespace

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.private.fed.app.simulator import simulator_runner, simulator_worker
from nvflare.private.fed.server.run_manager import RunManager
from nvflare.private.fed.server.server_json_config import WorkFlow
from nvflare.private.fed.server.server_runner import ServerRunner, ServerRunnerConfig
from nvflare.private.fed.simulator.simulator_server import SimulatorRunManager

from tutorial_utils._simulate import pace, site_process, start
from tutorial_utils._simulate.pace import ASK_AGAIN, TOPIC, ServerPace, SitePace
from tutorial_utils._simulate.start import NAP_SECONDS, keep_ports, nap, start_site


class Server:
    """FLARE's own runner with one workflow, and as much of its engine as the pace asks: who may send which message."""

    def __init__(self) -> None:
        self.handlers: dict[str, Callable[[str, Shareable, FLContext], Shareable]] = {}
        self.contexts = FLContextManager(self, "server", "job", public_stickers={}, private_stickers={})
        self.workflow = ScatterAndGather(task_check_period=0.02)
        self.workflow.set_communicator(WFCommServer())
        self.tasks = 1
        self.workflow.get_num_standing_tasks = lambda: self.tasks
        workflow = WorkFlow("training", self.workflow)
        config = ServerRunnerConfig(60, 2, [workflow], {}, {}, [], {})
        self.runner = ServerRunner(config, "job", self)
        self.runner.current_wf = workflow
        self.pace = ServerPace()
        self.fire(EventType.START_RUN)

    def register_aux_message_handler(self, topic: str, message_handle_func: Callable) -> None:
        self.handlers[topic] = message_handle_func

    def context(self, site: str | None = None) -> FLContext:
        fl_ctx = self.contexts.new_context()
        fl_ctx.set_prop(FLContextKey.RUNNER, self.runner, private=True)
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


def test_while_others_work_a_site_is_told_to_ask_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "HOLD_SECONDS", 0.1)
    server.start_round("site-1", "site-2")
    server.fire(EventType.BEFORE_PROCESS_SUBMISSION, "site-1")
    assert server.call("site-1").get_return_code() == ASK_AGAIN
    server.fire(EventType.BEFORE_PROCESS_SUBMISSION, "site-2")
    assert server.call("site-1").get_return_code() == ReturnCode.OK, "there is no more to wait for than the next round"


class Site:
    """A site whose messages get these answers, one after the other; None: it was lost."""

    def __init__(self, *answers: str | None) -> None:
        self.answers = list(answers)
        self.waits: list[float] = []

    def send_aux_request(
        self, targets: list[str], topic: str, request: Shareable, timeout: float, fl_ctx: FLContext, optional: bool
    ) -> dict[str, Shareable]:
        assert topic == TOPIC and optional
        self.waits.append(timeout)
        answer = self.answers.pop(0)
        return {FQCN.ROOT_SERVER: make_reply(answer or ReturnCode.COMMUNICATION_ERROR)}

    def pull(self) -> int:
        """How often it asks before it goes for a task."""
        fl_ctx = FLContextManager(self, "site-1", "job", {}, {}).new_context()
        SitePace().handle_event(EventType.BEFORE_PULL_TASK, fl_ctx)
        return len(self.waits)


def test_a_site_asks_until_it_is_called() -> None:
    assert Site(ASK_AGAIN, ASK_AGAIN, ReturnCode.OK).pull() == 3


def test_a_lost_message_holds_a_site_for_seconds_and_no_longer() -> None:
    site = Site(None, ReturnCode.OK)
    assert site.pull() == 1, "it goes and looks for itself"
    assert site.waits[0] < 5


def test_a_server_that_never_calls_cannot_hold_a_site_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "CALL_SECONDS", 0.2)
    site = Site(*[ASK_AGAIN] * 1_000_000)
    start = time.monotonic()
    site.pull()
    assert time.monotonic() - start < 5 and site.answers


def test_the_check_period_that_a_job_names_is_the_one_in_force(server: Server) -> None:
    """FLARE sets an attribute that its communicator never reads."""
    assert server.workflow.communicator._task_check_period == 0.02
    untouched = ScatterAndGather(task_check_period=0.02)
    untouched.set_communicator(WFCommServer())
    assert untouched.communicator._task_check_period != 0.02, "FLARE has mended it: pace.py need not do it any more"


def test_a_site_s_process_does_what_flare_s_own_does_with_more_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where FLARE's start of a site's process changes, ours has to follow."""
    path = Path(simulator_worker.__file__)
    *_, last = ast.parse(path.read_text(encoding="utf-8")).body
    told = [ast.unparse(line) for line in last.body if not isinstance(line.value, ast.Constant)]
    run = "mpm.run(main_func=main, run_dir=args.workspace, args=args)"
    assert told == ["args = parse_arguments()", run, "time.sleep(2)"]
    monkeypatch.setattr(sys, "argv", ["site_process.py", "-m", "its.worker", "-o", "folder", "--client", "a"])
    seen = []
    monkeypatch.setattr(simulator_worker, "parse_arguments", lambda: SimpleNamespace(workspace=sys.argv[1:]))
    monkeypatch.setattr(simulator_worker, "CELL_CONNECT_CHECK_TIMEOUT", 10.0)
    monkeypatch.setattr(site_process.MainProcessMonitor, "run", lambda **how: seen.append(how))
    monkeypatch.setattr(site_process.time, "sleep", lambda seconds: None)
    site_process.main()
    ((how),) = seen
    assert how["main_func"] is simulator_worker.main and how["run_dir"] == ["-o", "folder", "--client", "a"]
    assert simulator_worker.CELL_CONNECT_CHECK_TIMEOUT == site_process.CONNECT_SECONDS > 60


def test_the_simulator_starts_a_site_s_process_by_way_of_ours() -> None:
    tree = ast.parse(Path(simulator_runner.__file__).read_text(encoding="utf-8"))
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    used = {node.attr for node in names if node.value.id == "subprocess"}
    used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and "popen" in node.id}
    ways = {"Popen", "popen_in_new_session"}  # of FLARE 2.9.0, and of 2.8.3, which is younger
    assert len(used & ways) == 1 and used - ways == {"TimeoutExpired"}
    start.adapt(runner := SimpleNamespace())
    for begin in (runner.subprocess.Popen, runner.popen_in_new_session):
        process = begin([sys.executable, "-m", "its.worker", "--help"], stdout=subprocess.PIPE, text=True)
        told = process.communicate(timeout=120)[0]
        assert process.returncode == 0 and "--simulator_root" in told and "usage: simulator_worker.py" in told


def test_the_simulator_knows_its_job_s_meta() -> None:
    """FLARE 2.8's gives nothing, and the thread that notices a dead site fails over it: notebook 09 stood still."""
    assert SimulatorRunManager.__bases__ == (RunManager,)
    of_2_8 = type("SimulatorRunManager", (RunManager,), {"create_job_processing_context_properties": lambda *_: {}})
    for _ in range(2):
        start.give_meta(of_2_8)
        assert of_2_8.create_job_processing_context_properties is RunManager.create_job_processing_context_properties


def test_a_site_s_port_is_kept_for_its_process() -> None:
    """Another run was given it meanwhile: "Connection reset by peer". Mutation that must not live: it is not bound."""
    tree = ast.parse(Path(simulator_runner.__file__).read_text(encoding="utf-8"))
    assert [n.id for n in ast.walk(tree) if isinstance(n, ast.Name)].count("get_open_ports") == 1, "for the sites alone"
    start.adapt(runner := SimpleNamespace())
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("localhost", *runner.get_open_ports(1)))
    kept: deque[socket.socket] = deque(maxlen=2)
    (port,) = keep_ports(kept, 1)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("localhost", port))
    with pytest.raises(ConnectionRefusedError):
        Client(("localhost", port))
    with Listener(("localhost", port)) as listener, Client(("localhost", port)) as client, listener.accept() as site:
        client.send("a task")
        assert site.recv() == "a task"
    later = keep_ports(kept, 1) + keep_ports(kept, 1)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the port still rests from the talk above
        other.bind(("localhost", port))
    assert port not in later and [one.getsockname()[1] for one in kept] == later, "the oldest is let go"


def test_sites_that_ask_for_their_ports_at_once_get_one_each() -> None:
    """Seen once: three sites of eight had one port, and the run waited. FLARE asks in a thread for each site."""
    kept: deque[socket.socket] = deque(maxlen=1000)
    ready = threading.Barrier(8)

    def ask_for_ports(site: int) -> list[int]:
        ready.wait()
        return [port for _ in range(20) for port in keep_ports(kept, 1)]

    with ThreadPoolExecutor(8) as pool:
        ports = [port for found in pool.map(ask_for_ports, range(8)) for port in found]
    assert len(set(ports)) == len(ports) == 160


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


@pytest.mark.parametrize(
    ("logged", "told"), [(True, []), (False, ["site-2 failed before its first line: its process"])]
)
def test_a_site_whose_process_ends_before_its_first_line_ends_the_run(
    logged: bool, told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen once in hundreds of runs, with a port that was taken: the run waited for ever."""
    monkeypatch.setattr(start, "GRACE_SECONDS", 0.0)
    (folder := tmp_path / "site-2").mkdir()
    if logged:
        (folder / start.LOG).touch()
    said: list[str] = []
    start.watch_start(subprocess.Popen([sys.executable, "-c", "pass"]), folder, said.append)
    assert [one[: len(told[0])] for one in said] == told if told else not said


def test_every_site_that_is_started_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By FLARE's own words, with a process that leaves at once. Mutation that must not live: nobody watches."""
    told = threading.Event()
    monkeypatch.setattr(start, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(start, "SITE_PROCESS", tmp_path / "nothing.py")
    monkeypatch.setattr(start, "end", lambda why: told.set())
    (tmp_path / "nothing.py").touch()
    start_site([sys.executable, "-m", "worker", "-o", str(tmp_path / "site-1"), "--client", "site-1"]).wait()
    assert told.wait(30)
