"""Three ways to write the client, two controllers and a recipe: one set of bits."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import nvflare.client.api
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.apis.workspace import Workspace
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.job_config.api import FedJob
from nvflare.recipe import SimEnv

import dl.train
import fl.executor
from dl.train import Net, evaluate, load_data
from fl.by_hand import federated_averaging
from fl.executor import CIFAR10Executor
from fl.job import CLIENTS, build_job, main
from fl.recipe import build_recipe
from tutorial_utils import round_metrics
from tutorial_utils.errors import TutorialError
from tutorial_utils.keep import BestModel
from tutorial_utils.learner import LearnerError, round_seed, seed_everything, to_numpy
from tutorial_utils.metric import Metric
from tutorial_utils.results import Run, read_cross_site, read_model, sha256
from tutorial_utils.settings import Training
from tutorial_utils.simulate import simulate

ROOT = Path(__file__).parents[1]
ROUNDS = 3
EIGHT = Training(batch_size=8)
METRIC = Metric("accuracy")
# A script that ends with an error does so in a thread.
SCRIPT_ENDS = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
OURS = {f"tutorial_utils/{name}.py" for name in ("learner", "keep", "metric", "values")}
WRITER = {"tutorial_utils/round_metrics.py"} if round_metrics.class_path() == round_metrics.OURS else set()
SHIPPED = {
    "learner": "fl/model_learner.py",
    "client-api": "fl/client_api.py",
    "executor": "fl/executor.py",
}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PYTHONPATH with which a process has torch and nvflare, and finds nothing of ours but what the job ships."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        f"sys.path[:] = [path for path in sys.path if path not in ({str(ROOT)!r}, {str(ROOT / 'code')!r})]\n"
        "sys.meta_path[:] = [finder for finder in sys.meta_path if '__editable__' not in str(finder)]\n"
    )
    for module in ("tutorial_utils", "dl", "fl"):
        command = [sys.executable, "-c", f"import {module}"]
        env = os.environ | {"PYTHONPATH": str(folder)}
        absent = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        assert f"No module named '{module}'" in absent.stderr
    return folder


@pytest.fixture(scope="module")
def by_client(sites: list[Path], runs: Path, bare: Path) -> dict[str, Run]:
    """Three rounds of each client, two sites, every process bare."""
    jobs = {client: build_job(sites[0].parent, 2, ROUNDS, EIGHT, client=client) for client in CLIENTS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(bare))
        return {client: simulate(job, runs=runs, progress=False) for client, job in jobs.items()}


@pytest.fixture(scope="module")
def by_hand(sites: list[Path]) -> str:
    return sha256(federated_averaging(sites, ROUNDS, batch_size=8))


def assert_same(run: Run, other: Run) -> None:
    """All that two runs measured, to the bit."""
    assert run.sha256 == other.sha256
    assert sha256(run.best_model) == sha256(other.best_model)
    assert run.cross_site.equals(other.cross_site)
    assert run.rounds.equals(other.rounds.astype(run.rounds.dtypes))


@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS)
def test_each_client_gives_the_bits_of_the_federation_by_hand(
    by_client: dict[str, Run], by_hand: str, client: str
) -> None:
    assert by_client[client].sha256 == by_hand


@pytest.mark.slow
@pytest.mark.parametrize("client", ["client-api", "executor"])
def test_each_client_gives_all_that_the_learner_gives(by_client: dict[str, Run], client: str) -> None:
    run = by_client[client]
    assert_same(run, by_client["learner"])
    assert list(run.cross_site.columns) == ["global", "best global", "site-1", "site-2"]
    assert run.cross_site.notna().all(axis=None)
    for site in run.sites:
        kept_at = [r.site_folder(site) / f"app_{site}" for r in by_client.values()]
        best = [BestModel(folder, METRIC).load() for folder in kept_at]
        assert len({(kept["score"], kept["round"], sha256(kept["params"])) for kept in best}) == 1


@pytest.mark.slow
def test_recipe_exported_gives_all_that_the_learner_gives(
    by_client: dict[str, Run],
    sites: list[Path],
    runs: Path,
    bare: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(bare))
    build_recipe(sites[0].parent, rounds=ROUNDS, training=EIGHT).export(str(tmp_path))
    assert_same(simulate(tmp_path / "recipe", runs=runs, progress=False), by_client["learner"])


@pytest.mark.slow
def test_recipe_in_simenv_gives_the_same_bits(by_client: dict[str, Run], sites: list[Path], tmp_path: Path) -> None:
    recipe = build_recipe(sites[0].parent, rounds=ROUNDS, training=EIGHT)
    recipe.run(SimEnv(num_clients=2, workspace_root=str(tmp_path)))
    server = tmp_path / "recipe/server/simulate_job"
    run = by_client["learner"]
    assert sha256(read_model(server / "app_server/FL_global_model.pt")) == run.sha256
    assert read_cross_site(server / "cross_site_val/cross_val_results.json", "accuracy").equals(run.cross_site)


@pytest.mark.slow
def test_learner_on_the_newer_fedavg_gives_the_same_bits(
    by_client: dict[str, Run], sites: list[Path], runs: Path
) -> None:
    newer = FedAvg(num_clients=2, num_rounds=ROUNDS, persistor_id="persistor")
    job = build_job(sites[0].parent, 2, ROUNDS, EIGHT, name="newer-fedavg", workflow=newer)
    assert_same(simulate(job, runs=runs, progress=False), by_client["learner"])


@pytest.mark.parametrize("client", CLIENTS)
def test_what_ships(client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = build_job("$SITE_DATA", client=client, name="job")
    monkeypatch.chdir(tmp_path)  # wherever it is exported
    job.export_job("jobs")
    custom = tmp_path / "jobs/job/app/custom"
    files = {str(path.relative_to(custom)) for path in custom.rglob("*.py")}
    assert files == {"dl/train.py", "tutorial_utils/algorithms/aggregator.py", *OURS, *WRITER, SHIPPED[client]}
    for name in ("dl/train.py", SHIPPED[client]):
        assert (custom / name).read_text() == (ROOT / "code" / name).read_text()
    assert str(ROOT) not in (custom.parent / "config/config_fed_client.json").read_text()


def test_what_a_recipe_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = build_recipe("$SITE_DATA")
    monkeypatch.chdir(tmp_path)
    recipe.export("jobs")
    custom = tmp_path / "jobs/recipe/app/custom"
    files = {str(path.relative_to(custom)) for path in custom.rglob("*.py")}
    assert files == {"dl/train.py", "fl/client_api.py", *OURS}
    assert str(ROOT) not in (custom.parent / "config/config_fed_client.json").read_text()


def read_executor(job: FedJob, folder: Path) -> dict:
    job.export_job(str(folder))
    config = json.loads((folder / job.name / "app/config/config_fed_client.json").read_text())
    return config["executors"][0]["executor"]["args"]


def test_settings_reach_the_configuration(tmp_path: Path) -> None:
    how = {"epochs": 2, "lr": 0.1, "batch_size": 4, "momentum": 0.5, "seed": 9}
    jobs = [build_job("$SITE_DATA", training=Training(**how), client=client) for client in ("executor", "client-api")]
    assert read_executor(jobs[0], tmp_path) == {"data": "$SITE_DATA", **how}
    script = read_executor(jobs[1], tmp_path)
    words = "--data $SITE_DATA --epochs 2 --lr 0.1 --batch-size 4 --momentum 0.5 --seed 9"
    assert script["task_script_args"] == words


def test_jobs_say_what_is_wrong() -> None:
    with pytest.raises(TutorialError, match="no client 'agent': choose one of learner, client-api, executor"):
        build_job("sites", client="agent")
    with pytest.raises(TutorialError, match=r"my sites' has a space.*\$SITE_DATA"):
        build_job("my sites", client="client-api")
    with pytest.raises(TutorialError, match="rounds is 0"):
        build_recipe("sites", rounds=0)


def test_command_line_builds_the_client_that_is_named(
    sites: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["job.py", "--data", str(sites[0].parent), "--export", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*words, "--client", "client-api"])
    main()
    assert (tmp_path / "client-api/app/custom/fl/client_api.py").is_file()
    monkeypatch.setattr(sys, "argv", [*words, "--client", "agent"])
    with pytest.raises(SystemExit) as refused:
        main()
    assert refused.value.code not in (0, None)
    assert "invalid choice: 'agent'" in capsys.readouterr().err


class Site:
    """One site, in this process: an executor with the job's files around it, and a task at a time."""

    def __init__(self, client: str, data: str, root: Path, **settings: object) -> None:
        job = build_job(data, client=client, name="job", training=Training(**settings))
        self.executor: Executor
        if client == "client-api":
            args = read_executor(job, root / "exported")
            module = "nvflare.app_common.executors.client_api_executor"
            why = "FLARE 2.8 runs a script by other executors, which this stand-in for a site cannot hold"
            self.executor = pytest.importorskip(module, reason=why).ClientAPIExecutor(**args)
        else:
            job.export_job(str(root / "exported"))
            self.executor = CIFAR10Executor(data, **settings)
        for folder in ("startup", "local"):
            (root / folder).mkdir()
        (root / "run").mkdir()
        (root / "exported/job/app").rename(root / "run/app_site-1")
        self.workspace = Workspace(str(root), "site-1")
        engine = SimpleNamespace(get_workspace=lambda: self.workspace, fire_event=lambda event_type, fl_ctx: None)
        self.manager = FLContextManager(engine, "site-1", "run", public_stickers={}, private_stickers={})
        self.signal = Signal()
        self.best = BestModel(self.workspace.get_app_dir("run"), METRIC)
        self.fire(EventType.START_RUN)

    def context(self) -> FLContext:
        fl_ctx = self.manager.new_context()
        fl_ctx.set_prop(FLContextKey.WORKSPACE_OBJECT, self.workspace, private=True, sticky=False)
        fl_ctx.set_prop(FLContextKey.CURRENT_JOB_ID, "run", private=True, sticky=False)
        return fl_ctx

    def fire(self, event_type: str) -> None:
        self.executor.handle_event(event_type, self.context())

    def ask(self, task: str, **headers: object) -> Shareable:
        shareable = DXO(DataKind.WEIGHTS, data=to_numpy(Net().state_dict())).to_shareable()
        for name, value in headers.items():
            shareable.set_header(name, value)
        return self.executor.execute(task, shareable, self.context(), self.signal)

    def train(self) -> Shareable:
        return self.ask("train", **{AppConstants.CURRENT_ROUND: 0, AppConstants.NUM_ROUNDS: 1})


@pytest.fixture(params=["client-api", "executor"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(nvflare.client.api, "context_dict", {})  # it remembers the site of an earlier test
    return request.param


def test_a_site_answers_every_task(
    client: str, sites: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SITE_DATA", str(sites[0].parent))
    site = Site(client, "$SITE_DATA", tmp_path, batch_size=8)
    data = load_data(sites[0])
    trained = from_shareable(site.train())
    weights = sha256(trained.data)  # now: the script's answer shares its memory with the net
    assert trained.get_meta_prop(MetaKey.NUM_STEPS_CURRENT_ROUND) == -(-len(data.train) // 8)
    assert trained.get_meta_prop(MetaKey.INITIAL_METRICS) == evaluate(Net(), data.valid)
    assert from_shareable(site.ask("validate")).data == evaluate(Net(), data.test)
    best = from_shareable(site.ask("submit_model", **{AppConstants.SUBMIT_MODEL_NAME: "best_model"}))
    assert best.data_kind == DataKind.WEIGHTS
    assert sha256(best.data) == weights, "the only round is the best one"
    site.fire(EventType.END_RUN)


def test_training_starts_from_the_seed_of_site_and_round(
    client: str, sites: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutation that must not live: an executor that seeds nothing. The net draws nothing, a net with dropout would."""
    drawn = []

    def train_and_draw(*args: Any, **how: Any) -> int:
        drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))
        return dl.train.__dict__["original"](*args, **how)

    monkeypatch.setattr(dl.train, "original", dl.train.train, raising=False)
    for module in (dl.train, fl.executor):
        monkeypatch.setattr(module, "train", train_and_draw)
    site = Site(client, str(sites[0].parent), tmp_path, seed=7)
    for number in (0, 2):
        random.random(), np.random.rand(), torch.rand(())
        site.ask("train", **{AppConstants.CURRENT_ROUND: number, AppConstants.NUM_ROUNDS: 3})
    expected = []
    for number in (0, 2):
        seed_everything(round_seed(7, "site-1", number))
        expected.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert drawn == expected
    site.fire(EventType.END_RUN)


@SCRIPT_ENDS
def test_abort_ends_training_between_batches(client: str, sites: list[Path], tmp_path: Path) -> None:
    site = Site(client, str(sites[0].parent), tmp_path, epochs=100_000)
    threads = set(threading.enumerate())
    timer = threading.Timer(1.0, site.signal.trigger, ["test"])
    start = time.monotonic()
    timer.start()
    assert site.train().get_return_code() == ReturnCode.TASK_ABORTED
    for thread in threads - {threading.main_thread()}:
        if "trainer" in thread.name:  # the Client API's: it stops at its next batch
            thread.join(30)
            assert not thread.is_alive()
    assert time.monotonic() - start < 60, "so many epochs take longer"
    assert not site.best.path.exists(), "training that was cut short is not kept as a model"
    site.fire(EventType.END_RUN)


def test_executor_refuses_what_it_cannot_do(sites: list[Path], tmp_path: Path) -> None:
    site = Site("executor", str(sites[0].parent), tmp_path)
    assert site.ask("dance").get_return_code() == ReturnCode.TASK_UNKNOWN
    name = AppConstants.SUBMIT_MODEL_NAME
    assert site.ask("submit_model", **{name: "last"}).get_return_code() == ReturnCode.BAD_REQUEST_DATA
    with pytest.raises(LearnerError, match="no best model yet"):
        site.ask("submit_model", **{name: "best_model"})


@SCRIPT_ENDS
def test_client_api_fails_where_the_script_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nvflare.client.api, "context_dict", {})
    site = Site("client-api", str(tmp_path / "nowhere"), tmp_path)
    assert site.train().get_return_code() != ReturnCode.OK
    assert "nowhere/site-1/train.npz is missing" in caplog.text
    site.fire(EventType.END_RUN)
