"""The guard, asked by FLARE's own events: tutorial_utils/_simulate/guard.py and what ships with it."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.client import Client
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.job_launcher_spec import JobReturnCode
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.utils.event import fire_event_to_components
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.aggregators.intime_accumulate_model_aggregator import InTimeAccumulateWeightedAggregator
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.widgets.intime_model_selector import IntimeModelSelector
from nvflare.app_common.workflows.cross_site_model_eval import CrossSiteModelEval
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather
from nvflare.private.fed.client.client_executor import REPORTABLE_JOB_FAILURES
from nvflare.private.fed.server.server_json_config import WorkFlow
from nvflare.private.fed.server.server_runner import ServerRunner, ServerRunnerConfig
from nvflare.private.fed.utils.fed_utils import get_return_code

from tutorial_utils._deploy import pulse
from tutorial_utils._deploy.pulse import ServerPulse, SitePulse, silence_allowed
from tutorial_utils._simulate.guard import PROCESS_ENDED, ServerGuard
from tutorial_utils._simulate.guard_files import bring_back, keep_checkpoint, write_json
from tutorial_utils._simulate.guard_site import SiteGuard
from tutorial_utils.algorithms.scaffold import CHANGE, WEIGHTS
from tutorial_utils.results import Run

MODEL = {"w": np.float32([1, 2]), "b": np.array(3.0, np.float32)}


class Server:
    """FLARE's own runner, workflow and components; only the network, and the machine behind it, are not there."""

    def __init__(
        self,
        folder: Path,
        *parts: FLComponent,
        controller: Any = None,
        model: dict[str, np.ndarray] | None = None,
        sites: tuple[str, ...] = ("site-1", "site-2"),
        kind: type[ServerGuard] = ServerGuard,
        **settings: Any,
    ) -> None:
        self.run_folder, self.app_folder = folder / "simulate_job", folder / "simulate_job" / "app_server"
        self.app_folder.mkdir(parents=True)
        self.sites = sites
        self.guard = kind(**settings)
        self.asks: Callable[[Sequence[str]], Sequence[str]] = lambda sites: sites
        self.parts = [*parts, self.guard]
        self.panics: list[str] = []
        self.contexts = FLContextManager(self, "server", "simulate_job", {}, {})
        controller = controller or ScatterAndGather(min_clients=len(sites))
        controller.set_communicator(WFCommServer())
        controller.communicator._engine = self
        self.workflow = WorkFlow("training", controller)
        named = {f"part-{number}": part for number, part in enumerate(self.parts)}
        config = ServerRunnerConfig(60, 2, [self.workflow], {}, {}, self.parts, named)
        self.runner = ServerRunner(config, "simulate_job", self)
        self.runner.current_wf = self.workflow
        self.model = make_model_learnable(MODEL if model is None else model, {})
        self.fire(EventType.START_RUN)

    def register_aux_message_handler(self, **kwargs: object) -> None:
        pass

    def new_context(self) -> FLContext:
        return self.context()

    def get_workspace(self) -> SimpleNamespace:
        local = self.run_folder.parent / "local"
        return SimpleNamespace(get_run_dir=lambda job_id: str(self.run_folder), get_site_config_dir=lambda: str(local))

    def sync_clients_from_main_process(self) -> None:
        pass

    def send_aux_request(self, sites: Sequence[str], *args: object) -> dict[str, Shareable]:
        """`asks` says who of the sites answers."""
        return {site: make_reply(ReturnCode.OK) for site in self.asks(sites)}

    def get_clients(self) -> list[Client]:
        return [Client(site, "token") for site in self.sites]

    def fire_event(self, event: str, fl_ctx: FLContext) -> None:
        if event == EventType.FATAL_SYSTEM_ERROR:
            self.panics.append(fl_ctx.get_prop(FLContextKey.EVENT_DATA))
        fire_event_to_components(event, self.parts, fl_ctx)
        assert not fl_ctx.get_prop(FLContextKey.EXCEPTIONS), "FLARE swallows what a handler raises: none must"

    def context(self, site: str | None = None, number: int = 0) -> FLContext:
        fl_ctx = self.contexts.new_context()
        for name, value in {
            FLContextKey.RUNNER: self.runner if hasattr(self, "runner") else None,
            FLContextKey.APP_ROOT: str(self.app_folder),
            AppConstants.GLOBAL_MODEL: getattr(self, "model", None),
            AppConstants.CURRENT_ROUND: number,
        }.items():
            fl_ctx.set_prop(name, value, private=True, sticky=False)
        if site:
            fl_ctx.set_peer_context(FLContextManager(self, site, "simulate_job", {}, {}).new_context())
        return fl_ctx

    def fire(self, event: str, fl_ctx: FLContext | None = None) -> FLContext:
        fl_ctx = fl_ctx or self.context()
        self.fire_event(event, fl_ctx)
        return fl_ctx

    def start_round(self, number: int = 0) -> None:
        self.fire(AppEventType.ROUND_STARTED, self.context(number=number))

    def ask(self, *sites: str, task: str = "train") -> None:
        for site in sites:
            fl_ctx = self.context(site)
            fl_ctx.set_prop(FLContextKey.TASK_NAME, task, private=True, sticky=False)
            self.fire(EventType.AFTER_TASK_DATA_FILTER, fl_ctx)

    def answer(
        self,
        site: str,
        data: dict[Any, Any] | None = None,
        *,
        kind: str = DataKind.WEIGHTS,
        number: int = 0,
        now: int = 0,
        accepted: bool = True,
        code: str = ReturnCode.OK,
        task: str = "train",
        **meta: Any,
    ) -> None:
        """What a site has sent, through the events of a workflow, `number` being the round that it was asked in."""
        sent = DXO(kind, dict(MODEL) if data is None else data, meta).to_shareable()
        result = sent if code == ReturnCode.OK else make_reply(code)
        result.add_cookie(AppConstants.CONTRIBUTION_ROUND, number)
        fl_ctx = self.context(site, now)
        for name, value in {FLContextKey.TASK_RESULT: result, FLContextKey.TASK_NAME: task}.items():
            fl_ctx.set_prop(name, value, private=True, sticky=False)
        fl_ctx.get_peer_context().set_prop(FLContextKey.SHAREABLE, result, private=True, sticky=False)
        self.fire(EventType.BEFORE_PROCESS_SUBMISSION, fl_ctx)
        self.fire(AppEventType.BEFORE_CONTRIBUTION_ACCEPT, fl_ctx)
        fl_ctx.set_prop(AppConstants.AGGREGATION_ACCEPTED, accepted, private=True, sticky=False)
        self.fire(AppEventType.AFTER_CONTRIBUTION_ACCEPT, fl_ctx)

    def save(self, number: int) -> None:
        """What the persistor does after a round."""
        (self.app_folder / "FL_global_model.pt").unlink(missing_ok=True)
        (self.app_folder / "FL_global_model.pt").write_text(f"the model after round {number}")
        self.fire(AppEventType.AFTER_LEARNABLE_PERSIST, self.context(number=number))

    @property
    def state(self) -> dict[str, Any]:
        return json.loads((self.run_folder / "guard" / "state.json").read_text(encoding="utf-8"))

    @property
    def failure(self) -> str | None:
        failure = self.state["failure"]
        return failure and f"{failure['site']}: {failure['reason']}"


@pytest.fixture
def make_server(tmp_path: Path) -> Callable[..., Server]:
    made: list[Server] = []

    def make(*parts: FLComponent, **settings: Any) -> Server:
        made.append(Server(tmp_path / f"server-{len(made)}", *parts, **settings))
        made[-1].start_round()
        return made[-1]

    yield make
    for server in made:
        server.guard._over.set()


# --- what is wrong with an update ---


class Strange:
    """No array, and not to be made one."""

    def __array__(self, *args: object, **kwargs: object) -> np.ndarray:
        raise TypeError("no")


NAN_IN_BFLOAT16 = torch.tensor([math.nan, 1], dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (MODEL | {"w": np.float32([math.nan, 1])}, "w holds numbers that are not finite"),
        (MODEL | {"w": np.float32([-math.inf, 1])}, "w holds numbers that are not finite"),
        (MODEL | {"w": np.float32([1])}, "w has the shape (1,) instead of (2,)"),
        ({"w": MODEL["w"]}, "it lacks b"),
        ({}, "it holds no weights"),
        (MODEL | {"x": MODEL["w"]}, "it has x, which the model does not have"),
        (MODEL | {3: MODEL["w"], "x": 0}, "it has 3, x, which the model does not have"),
        (MODEL | {"w": NAN_IN_BFLOAT16}, "w holds torch.bfloat16, which numpy does not know: send it as float32"),
        (MODEL | {"w": Strange()}, "w holds Strange, which numpy does not know: send it as float32"),
        (MODEL | {"w": np.array(["a", "b"])}, "w holds <U1, and no numbers that can be averaged"),
    ],
)
def test_a_wrong_update_ends_the_run_with_its_site_and_round(
    data: dict, text: str, make_server: Callable[..., Server]
) -> None:
    server = make_server()
    server.answer("site-1")
    assert server.failure is None
    server.answer("site-2", data)
    assert server.failure == f"site-2: its update is wrong: {text}"
    assert server.panics[0] == server.failure


@pytest.mark.parametrize("steps", [math.nan, -1, "many", None])
def test_steps_that_are_no_number_would_spoil_the_average(steps: object, make_server: Callable[..., Server]) -> None:
    server = make_server()
    server.answer("site-2", **{MetaKey.NUM_STEPS_CURRENT_ROUND: steps})
    assert "in the average, which must be a number, 0 or more" in server.failure


@pytest.mark.parametrize("steps", [0, 2.5, np.int64(3), torch.tensor(7)])
def test_steps_of_any_type_that_float_takes(steps: object, make_server: Callable[..., Server]) -> None:
    server = make_server()
    server.answer("site-2", **{MetaKey.NUM_STEPS_CURRENT_ROUND: steps})
    assert server.failure is None


def test_what_the_guard_cannot_check_is_refused(
    make_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FLARE writes a line about an exception in a handler, and averages the update."""
    server = make_server()
    server.guard.filtered = ["("]  # no regular expression: some mistake of ours
    server.answer("site-2")
    assert server.failure.startswith("site-2: its update cannot be checked (PatternError:") or (
        server.failure.startswith("site-2: its update cannot be checked (error:")
    )
    assert server.panics


def test_an_answer_that_is_no_update(make_server: Callable[..., Server]) -> None:
    server = make_server()
    fl_ctx = server.context("site-2")
    fl_ctx.set_prop(FLContextKey.TASK_RESULT, Shareable(), private=True, sticky=False)
    server.fire(AppEventType.BEFORE_CONTRIBUTION_ACCEPT, fl_ctx)
    assert server.failure.startswith("site-2: its update cannot be checked")


def test_what_was_sent_out_infinite_may_come_back_so(make_server: Callable[..., Server]) -> None:
    mask = np.float32([0, -math.inf])
    server = make_server(model=MODEL | {"mask": mask})
    server.answer("site-1", MODEL | {"mask": mask.copy()})
    assert server.failure is None
    server.answer("site-2", MODEL | {"mask": np.float32([-math.inf, -math.inf])})
    assert server.failure == "site-2: its update is wrong: mask holds numbers that are not finite"


def test_a_difference_must_be_finite_where_the_model_is_not(make_server: Callable[..., Server]) -> None:
    """Minus infinity less minus infinity is no number, and would make the model's mask none."""
    server = make_server(model=MODEL | {"mask": np.float32([-math.inf])})
    server.answer("site-1", MODEL | {"mask": np.float32([math.nan])}, kind=DataKind.WEIGHT_DIFF)
    assert "mask holds numbers that are not finite" in server.failure


def test_a_part_that_is_said_to_stay_at_home_may_be_missing(make_server: Callable[..., Server]) -> None:
    server = make_server()
    server.answer("site-1", {"w": MODEL["w"]}, kept_local=["b"])
    assert server.failure is None
    server.save(0)
    record = json.loads((server.run_folder / "guard/checkpoint-1/checkpoint.json").read_text())
    assert record["absent"] == ["b"] and record["rounds"] == 1
    server.answer("site-2", {"b": MODEL["b"]}, kept_local=["b"])
    assert "its learner says stays at home" in server.failure


def test_what_was_said_is_checked_and_no_more_is_forgiven(make_server: Callable[..., Server]) -> None:
    server = make_server()
    server.answer("site-1", {"b": MODEL["b"]}, kept_local=["c"])
    assert server.failure == "site-1: its update is wrong: it lacks w"


def test_a_filter_of_the_job_may_take_entries_out(make_server: Callable[..., Server]) -> None:
    server = make_server(filtered=["^b$"])
    server.answer("site-1", {"w": MODEL["w"]})
    assert server.failure is None
    server.answer("site-2", {"b": MODEL["b"]})
    assert server.failure == "site-2: its update is wrong: it lacks w"


def test_a_long_list_of_names_is_cut(make_server: Callable[..., Server]) -> None:
    server = make_server(model={f"w{number}": MODEL["w"] for number in range(9)} | MODEL)
    server.answer("site-1", MODEL)
    assert server.failure == "site-1: its update is wrong: it lacks w0, w1, w2, w3, w4 and 4 more"


@pytest.mark.parametrize("part", [WEIGHTS, CHANGE])
@pytest.mark.parametrize("fault", ["nan", "shape", "extra", "no DXO", "absent"])
def test_every_part_of_an_update_is_checked(fault: str, part: str, make_server: Callable[..., Server]) -> None:
    aggregator = InTimeAccumulateWeightedAggregator(expected_data_kind={WEIGHTS: "WEIGHTS", CHANGE: "WEIGHT_DIFF"})
    server = make_server(aggregator)
    whole = {"w": np.ones(2), "b": np.array(0.0)}
    good = {WEIGHTS: DXO(DataKind.WEIGHTS, dict(whole)), CHANGE: DXO(DataKind.WEIGHT_DIFF, {"w": np.ones(2)})}
    server.answer("site-1", dict(good), kind=DataKind.COLLECTION)
    assert server.failure is None, "what is not trained has no controls"
    spoilt = {"nan": {"w": np.array([1, np.nan])}, "shape": {"w": np.ones(3)}, "extra": {"x": np.ones(1)}}
    broken = {
        "no DXO": {part: whole},
        "absent": {part: DXO(DataKind.WEIGHTS, {})},
    }.get(fault) or {part: DXO(good[part].data_kind, whole | spoilt[fault])}
    server.answer("site-2", good | broken, kind=DataKind.COLLECTION)
    assert server.failure.startswith(f"site-2: its update is wrong: in {part}, ")


def test_a_model_that_the_sites_make_up_is_checked_for_numbers(make_server: Callable[..., Server]) -> None:
    server = make_server(model={})
    server.answer("site-1", {"new": np.float32([1])})
    assert server.failure is None
    server.answer("site-2", {"new": np.float32([math.inf])})
    assert "new holds numbers that are not finite" in server.failure


# --- what FLARE decides, and what it does not ---


def test_an_update_that_the_aggregator_refuses_ends_the_run(make_server: Callable[..., Server]) -> None:
    server = make_server()
    server.answer("site-2", accepted=False)
    assert server.failure == "site-2: the aggregator refused its update, see log('server')"


def test_a_late_update_ends_nothing(make_server: Callable[..., Server]) -> None:
    server = make_server()
    server.start_round(1)
    server.answer("site-2", {"w": np.float32([math.nan])}, number=0, now=1, accepted=False)
    assert server.failure is None and not server.panics


@pytest.mark.parametrize("controller", [ScatterAndGather(min_clients=1, ignore_result_error=True), FedAvg()])
def test_a_workflow_that_trains_judges_errors_itself(controller: Any, make_server: Callable[..., Server]) -> None:
    server = make_server(controller=controller)
    server.ask("site-2")
    server.answer("site-2", code=ReturnCode.EXECUTION_EXCEPTION, accepted=False)
    assert server.failure is None, "it may ignore them: the job says so"
    fl_ctx = server.context("site-2")
    bad = make_reply(ReturnCode.EXECUTION_EXCEPTION)
    fl_ctx.set_prop(FLContextKey.TASK_RESULT, bad, private=True, sticky=False)
    controller.system_panic("Result from site-2 is bad, error code: ...", fl_ctx)
    assert server.failure == "site-2: it answered EXECUTION_EXCEPTION", "and where it does not, the site is named"


def test_an_evaluation_would_go_on_without_the_answer(make_server: Callable[..., Server]) -> None:
    server = make_server(controller=CrossSiteModelEval())
    server.ask("site-2", task="submit_model")
    server.answer("site-2", code=ReturnCode.EXECUTION_EXCEPTION, task="submit_model")
    assert server.failure == "site-2: it answered EXECUTION_EXCEPTION"
    assert server.state["failure"]["task"] == "submit_model"


def test_the_first_failure_is_the_cause_and_its_time_is_known(make_server: Callable[..., Server]) -> None:
    server = make_server()
    before = time.time()
    server.ask("site-1", "site-2")
    server.answer("site-1", {"w": MODEL["w"]})
    server.answer("site-2", {"b": MODEL["b"]})
    failure = server.state["failure"]
    assert failure["site"] == "site-1" and before <= failure["since"] <= failure["time"] <= time.time()


# --- metrics by which models are chosen ---


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        (
            {"auc": 0.5, "loss": 1.0},
            "no site reports accuracy, by which the best model is chosen: they report auc, loss",
        ),
        (None, "no site reports accuracy, by which the best model is chosen: they report no metric"),
        ({"accuracy": 0.5}, None),
        ({"accuracy": math.nan}, None),
        (0.5, None),
    ],
)
def test_a_metric_that_no_site_reports_ends_the_run_after_its_first_round(
    metrics: object, text: str | None, make_server: Callable[..., Server]
) -> None:
    server = make_server(IntimeModelSelector(key_metric="accuracy"))
    for site in ("site-1", "site-2"):
        server.answer(site, **({MetaKey.INITIAL_METRICS: metrics} if metrics is not None else {}))
        assert server.failure is None
    server.fire(AppEventType.BEFORE_AGGREGATION)
    assert server.failure == (text and f"None: {text}")


def test_one_site_that_reports_it_is_enough_and_one_round_without_it_no_fault(
    make_server: Callable[..., Server],
) -> None:
    server = make_server(IntimeModelSelector(key_metric="auc"))
    server.answer("site-1", **{MetaKey.INITIAL_METRICS: {"auc": 0.5}})
    server.answer("site-2", **{MetaKey.INITIAL_METRICS: {"loss": 0.5}})
    server.fire(AppEventType.BEFORE_AGGREGATION)
    server.start_round(1)
    server.answer("site-2", **{MetaKey.INITIAL_METRICS: {"loss": 0.5}})
    server.fire(AppEventType.BEFORE_AGGREGATION)
    assert server.failure is None


def test_who_took_part_in_a_round_is_written_down(make_server: Callable[..., Server]) -> None:
    server = make_server()
    server.answer("site-1", **{MetaKey.INITIAL_METRICS: {"auc": 0.5}, MetaKey.NUM_STEPS_CURRENT_ROUND: 7})
    server.answer("site-2", **{MetaKey.INITIAL_METRICS: {"auc": math.nan}})
    server.fire(AppEventType.BEFORE_AGGREGATION)
    server.start_round(1)
    server.answer("site-2", number=1, now=1)
    server.fire(AppEventType.BEFORE_AGGREGATION)
    lines = (server.run_folder / "guard" / "rounds.jsonl").read_text().splitlines()
    first = {"site-1": {"weight": 7.0, "metrics": True}, "site-2": {"weight": 1.0, "metrics": False}}
    assert [json.loads(line) for line in lines] == [
        {"round": 0, "sites": first},
        {"round": 1, "sites": {"site-2": {"weight": 1.0, "metrics": False}}},
    ]


# --- sites that are lost ---


def test_of_all_the_job_s_sites_enough_must_be_left(make_server: Callable[..., Server]) -> None:
    server = make_server(min_sites=2, sites=("site-1", "site-2", "site-3"))
    server.guard._lose("site-3")
    assert server.failure is None and list(server.state["lost"]) == ["site-3"]
    server.guard._lose("site-2")
    assert "site-2: its process ended" in server.failure


def test_a_workflow_is_told_once_of_a_lost_site(make_server: Callable[..., Server]) -> None:
    server = make_server(min_sites=1)
    communicator = server.workflow.controller.communicator
    communicator._dead_client_grace = 0
    told: list[str] = []
    report = communicator.process_dead_client_report
    communicator.process_dead_client_report = lambda site, fl_ctx: (told.append(site), report(site, fl_ctx))
    server.guard._lose("site-2")
    for _ in range(5):
        server.guard._tell_of_lost()
        communicator._check_dead_clients()
    assert told == ["site-2"]
    with server.new_context() as fl_ctx:
        communicator.client_is_active("site-2", "a message that was on its way", fl_ctx)
    server.guard._tell_of_lost()
    assert told == ["site-2"] * 2, "or the run would wait for it for ever"


def test_a_watch_that_breaks_ends_the_run(make_server: Callable[..., Server]) -> None:
    class Blind(ServerGuard):
        def _watch(self) -> None:
            raise OSError("too many open files")

    server = make_server()
    guard = Blind()
    server.parts.append(guard)
    guard.handle_event(EventType.START_RUN, server.context())
    for _ in range(100):
        if server.state["failure"]:
            break
        time.sleep(0.02)
    assert server.failure == "None: the guard cannot watch the sites (OSError: too many open files)"


def test_who_has_come_for_a_task_is_known_by_round_and_workflow(make_server: Callable[..., Server]) -> None:
    server = make_server()
    server.ask("site-2", "site-1")
    assert server.state["asked"] == ["site-1", "site-2"] and set(server.state["open"]) == {"site-1", "site-2"}
    server.answer("site-1")
    assert set(server.state["open"]) == {"site-2"}
    server.start_round(1)
    assert server.state["asked"] == [] and server.state["served"] == ["site-1", "site-2"]


# --- what is kept ---


def test_the_newest_checkpoint_stays_alone(make_server: Callable[..., Server]) -> None:
    server = make_server()
    for number in range(3):
        server.save(number)
    (kept,) = (server.run_folder / "guard").glob("checkpoint*")
    assert kept.name == "checkpoint-3"
    assert (kept / "FL_global_model.pt").read_text() == "the model after round 2"


def test_a_half_made_checkpoint_never_counts_and_is_made_anew(make_server: Callable[..., Server]) -> None:
    server = make_server()
    server.save(0)
    half_made = server.run_folder / "guard" / "checkpoint.tmp"
    half_made.mkdir()
    (half_made / "FL_global_model.pt").touch()
    server.save(1)
    assert server.failure is None and not half_made.exists()
    assert (server.run_folder / "guard" / "checkpoint-2" / "checkpoint.json").is_file()


def test_without_hard_links_a_checkpoint_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: Path) -> None:
        raise OSError("the file system has no hard links")

    monkeypatch.setattr(Path, "hardlink_to", refuse)  # as on exFAT and SMB
    model = tmp_path / "FL_global_model.pt"
    model.write_text("weights")
    keep_checkpoint(tmp_path, [model], {"rounds": 1})
    assert (tmp_path / "checkpoint-1" / "FL_global_model.pt").read_text() == "weights"


def test_who_reads_a_json_file_while_it_is_written_finds_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"round": 1})
    os.link(path, tmp_path / "reader")  # a reader that has the file open
    write_json(path, {"round": 2})
    assert json.loads((tmp_path / "reader").read_text()) == {"round": 1}
    assert json.loads(path.read_text()) == {"round": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reader", "state.json"]


def test_a_resumed_run_goes_on_with_the_best_score_and_models_of_then(
    make_server: Callable[..., Server], tmp_path: Path
) -> None:
    earlier = make_server(IntimeModelSelector(key_metric="accuracy"))
    earlier.parts[0].best_val_metric = 0.75
    (earlier.app_folder / "best_FL_global_model.pt").write_text("the best of then")
    earlier.save(1)
    checkpoint = earlier.run_folder / "guard" / "checkpoint-2"
    selector = IntimeModelSelector(key_metric="accuracy")
    server = make_server(selector, resume_from=str(checkpoint))
    assert selector.best_val_metric == 0.75
    assert (server.app_folder / "best_FL_global_model.pt").read_text() == "the best of then"
    assert (server.run_folder / "guard/checkpoint-2/checkpoint.json").is_file(), "cut off at once, it can go on too"
    assert not (server.run_folder / "guard/checkpoint.tmp").exists()


def test_a_score_that_is_not_yet_there_is_no_best_one(make_server: Callable[..., Server]) -> None:
    earlier = make_server(IntimeModelSelector(key_metric="accuracy"))
    earlier.save(0)
    selector = IntimeModelSelector(key_metric="accuracy")
    make_server(selector, resume_from=str(earlier.run_folder / "guard" / "checkpoint-1"))
    assert selector.best_val_metric == -math.inf


def test_a_site_gets_back_its_best_model_and_the_states_of_the_rounds_that_count(tmp_path: Path) -> None:
    earlier, now = tmp_path / "earlier", tmp_path / "now"
    for folder in (earlier, now):
        folder.mkdir()
    for name in ("best_local_model.pt", "learner_state_1.pt", "learner_state_2.pt", "other.pt"):
        (earlier / name).write_text(name)
    bring_back(earlier, now, rounds=2)
    assert sorted(path.name for path in now.iterdir()) == ["best_local_model.pt", "learner_state_1.pt"]
    (now / "learner_state_1.pt").write_text("of this run")
    bring_back(earlier, now, rounds=2)
    assert (now / "learner_state_1.pt").read_text() == "of this run", "a process that FLARE starts anew"
    bring_back(tmp_path / "never", now, rounds=2)


def test_a_site_s_guard_brings_back_what_its_site_kept_and_says_when_it_has_ended(tmp_path: Path) -> None:
    earlier = tmp_path / "earlier" / "site-2" / "simulate_job" / "app_site-2"
    now = tmp_path / "now" / "site-2" / "simulate_job" / "app_site-2"
    for folder in (earlier, now):
        folder.mkdir(parents=True)
    (earlier / "best_local_model.pt").write_text("the best")
    (earlier / "learner_state_3.pt").write_text("later")
    fl_ctx = FLContextManager(None, "site-2", "simulate_job", {}, {}).new_context()
    fl_ctx.set_prop(FLContextKey.APP_ROOT, str(now), private=True, sticky=False)
    guard = SiteGuard(resume_from=str(tmp_path / "earlier"), rounds=3)
    guard.handle_event(EventType.START_RUN, fl_ctx)
    assert sorted(path.name for path in now.iterdir()) == ["best_local_model.pt"]
    assert not (now.parent / "guard" / "state.json").exists()
    guard.handle_event(EventType.END_RUN, fl_ctx)
    assert json.loads((now.parent / "guard" / "state.json").read_text()) == {"phase": "ended"}


# --- in a real run ---


def test_no_event_handler_of_a_real_run_raises(run: Run) -> None:
    """FLARE writes a line and goes on: a part of ours that has stopped working would not be missed."""
    logs = [run.workspace / who / "log.json" for who in ("server", *run.sites)]
    lines = [line for log in logs for line in log.read_text(encoding="utf-8").splitlines()]
    assert len(lines) > 50
    assert [line for line in lines if "Exception when handling event" in line] == []


# --- sites elsewhere: the guard of tutorial_utils/_deploy/pulse.py ---


def test_the_server_s_kit_says_how_long_a_site_may_be_silent(tmp_path: Path) -> None:
    assert silence_allowed(tmp_path / "resources.json") == pulse.SILENT_SECONDS
    for text, seconds in (('{"servers": [{"heart_beat_timeout": 7}]}', 7.0), ("{}", pulse.SILENT_SECONDS)):
        (tmp_path / "resources.json").write_text(text)
        assert silence_allowed(tmp_path / "resources.json") == seconds


def test_a_lost_site_that_answers_takes_part_from_the_next_round_on(make_server: Callable[..., Server]) -> None:
    server = make_server(kind=ServerPulse, min_sites=1)
    communicator = server.workflow.controller.communicator
    communicator._dead_client_grace = 0
    server.guard._lose("site-2")
    server.guard._tell_of_lost()
    communicator._check_dead_clients()
    server.start_round(1)
    assert list(server.state["lost"]) == ["site-2"] and communicator.get_client_disconnect_time("site-2")
    server.guard._heard["site-2"] = time.monotonic()
    server.start_round(2)
    assert server.state["lost"] == {} and server.failure is None
    assert server.state["gaps"] == [{"site": "site-2", "from": 0, "back": 2}]
    assert communicator.get_client_disconnect_time("site-2") is None, "or the round would not wait for it"


def test_a_site_whose_process_is_gone_is_lost_before_flare_goes_on(make_server: Callable[..., Server]) -> None:
    """FLARE closes the round without it right after this event."""
    for min_sites, failure in ((1, None), (None, f"site-2: {PROCESS_ENDED}")):
        server = make_server(kind=ServerPulse, min_sites=min_sites)
        fl_ctx = server.context()
        fl_ctx.set_prop(FLContextKey.DISCONNECTED_CLIENT_NAME, "site-2")
        server.fire(EventType.CLIENT_DISCONNECTED, fl_ctx)
        assert server.failure == failure and ("site-2" in server.state["lost"]) == (min_sites == 1)
        server.fire(EventType.CLIENT_DISCONNECTED, fl_ctx)
        assert server.failure == failure


def _watch(server: Server, answers: Callable[[Sequence[str]], Sequence[str]], seconds: float) -> None:
    """For so long, with sites that were served, and had answered once."""
    server.guard._heard = dict.fromkeys(server.sites, time.monotonic())
    server.ask(*server.sites)
    server.asks = answers
    time.sleep(seconds)


def test_a_site_that_is_silent_is_lost_and_a_slow_answer_counts(
    make_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "ASK_SECONDS", 0.01)
    server = make_server(kind=ServerPulse, absent_seconds=0.6)
    _watch(server, lambda sites: [site for site in sites if site == "site-1"], 2.0)
    assert server.failure == f"site-2: {ServerPulse.loss}"


def test_who_stood_still_itself_has_heard_nothing_and_says_nothing(
    make_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's process, stopped while it waited for the answers."""
    monkeypatch.setattr(pulse, "ASK_SECONDS", 0.01)
    monkeypatch.setattr(pulse, "STOOD_SECONDS", 0.2)
    server = make_server(kind=ServerPulse, absent_seconds=0.6)
    stood: list[float] = []

    def answer(sites: Sequence[str]) -> Sequence[str]:
        if not stood:
            stood.append(time.monotonic())
            time.sleep(1.0)  # longer than a site may be silent, and than a question waits
            return []
        return sites

    _watch(server, answer, 2.0)
    assert stood and server.failure is None


def test_a_killed_process_of_a_site_is_no_failure_of_the_job_for_flare(tmp_path: Path) -> None:
    """FLARE asks this file first how the process ended, and would end the job for all sites."""
    app_folder = tmp_path / "job" / "app_site-1"
    app_folder.mkdir(parents=True)
    site = SitePulse()
    fl_ctx = FLContext()
    fl_ctx.set_prop(FLContextKey.APP_ROOT, str(app_folder))
    fl_ctx.put(ReservedKey.ENGINE, SimpleNamespace(register_aux_message_handler=lambda *args: None), True, False)
    site.handle_event(EventType.START_RUN, fl_ctx)
    handle = SimpleNamespace(poll=lambda: JobReturnCode.EXECUTION_ERROR)
    code = get_return_code(handle, "job", str(tmp_path), logging.getLogger())
    assert code == JobReturnCode.UNKNOWN and code not in REPORTABLE_JOB_FAILURES
    site.handle_event(EventType.START_RUN, fl_ctx)
    site.handle_event(EventType.END_RUN, fl_ctx)
    assert get_return_code(handle, "job", str(tmp_path), logging.getLogger()) == JobReturnCode.EXECUTION_ERROR
