"""A job of any learner and any net: what is in it when it is exported, and what is refused before."""

from __future__ import annotations

import gc
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.filter import Filter
from nvflare.app_common.aggregators.intime_accumulate_model_aggregator import InTimeAccumulateWeightedAggregator
from nvflare.app_common.filters.convert_weights import ConvertWeights
from nvflare.app_common.filters.exclude_vars import ExcludeVars
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
from nvflare.app_common.filters.svt_privacy import SVTPrivacy
from nvflare.app_common.widgets.intime_model_selector import IntimeModelSelector
from nvflare.app_common.workflows.fedavg import FedAvg as NewerFedAvg
from nvflare.job_config.script_runner import ScriptRunner
from torch import nn
from torchvision.models import resnet18

from fl.executor import CIFAR10Executor
from tiny import TinyLearner, make_net
from tutorial_utils._checks import check_count, check_list, check_name, settle_arguments
from tutorial_utils.algorithms.registry import ALGORITHMS, FedAvg, FedOpt
from tutorial_utils.errors import JobError, TutorialError
from tutorial_utils.filters import ClipAndNoise
from tutorial_utils.job import LearnerJob, build_evaluation, build_job
from tutorial_utils.metric import Metric
from tutorial_utils.results import sha256


class WithData(TinyLearner):
    """As every learner that reads files: `data`, and another path."""

    def __init__(self, data: Any = "", words: str = "", *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data = data
        self.words = words


class HandsOnByName(TinyLearner):
    """FLARE sees no argument behind **kwargs alone."""

    def __init__(self, width: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width = width


class Forgets(TinyLearner):
    """Its own argument is kept nowhere."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()


class KeptAsClassAttribute(TinyLearner):
    """FLARE reads an object's own attributes, and would leave this argument out."""

    width = 3

    def __init__(self, width: int = 3) -> None:
        super().__init__()


class Underscored(TinyLearner):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self._width = width


def export(job: LearnerJob, folder: Path) -> Path:
    job.export_job(str(folder))
    return folder / job.name


def read(job: Path, name: str) -> dict[str, Any]:
    (path,) = job.rglob(f"config_fed_{name}.json")
    return json.loads(path.read_text())


def parts(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Components and workflows by their ids; what FLARE writes though it is empty is left out."""
    found = {part["id"]: part for part in [*config["components"], *config.get("workflows", [])]}
    for part in found.values():
        part["args"] = {name: value for name, value in part["args"].items() if value != {}}
    return found


def server_of(job: LearnerJob, folder: Path) -> dict[str, dict[str, Any]]:
    return parts(read(export(job, folder), "server"))


def first_model(job: LearnerJob, folder: Path) -> dict[str, torch.Tensor]:
    (path,) = export(job, folder).rglob("first_model.pt")
    return torch.load(path, weights_only=True)


# --- the first model ---


class Bare(nn.Module):
    """Keeps none of its constructor's arguments, and does not seed itself."""

    def __init__(self, width: int, names: dict[str, int]) -> None:
        super().__init__()
        self.inner = nn.Linear(width, len(names))
        self.register_buffer("mask", torch.tensor([-torch.inf, 0]))


NETS: dict[str, Callable[[], nn.Module]] = {
    "sequential": make_net,
    "factory": lambda: resnet18(num_classes=3),
    "no attributes": lambda: Bare(3, {"a": 1, "b": 2}),
    "local class": lambda: type("Local", (nn.Linear,), {})(2, 1),
    "double": lambda: nn.Linear(2, 1).double(),
    "bfloat16": lambda: nn.Linear(2, 1).bfloat16(),
}


@pytest.mark.parametrize("kind", NETS)
def test_the_very_weights_of_the_net_are_the_first_model(kind: str, tmp_path: Path) -> None:
    net = NETS[kind]()
    job = build_job(TinyLearner(), net)
    first = first_model(job, tmp_path)
    assert list(first) == list(net.state_dict()) == list(job.net)
    for name, value in net.state_dict().items():
        assert torch.equal(first[name], value) and first[name].dtype == value.dtype
        assert torch.equal(job.net[name], value)


def test_a_job_has_the_weights_that_the_net_had_when_it_was_built(tmp_path: Path) -> None:
    net = make_net()
    before = sha256(net.state_dict())
    job = build_job(TinyLearner(), net)
    with torch.no_grad():
        net[1].weight += 1
    assert sha256(first_model(job, tmp_path)) == sha256(job.net) == before != sha256(net.state_dict())


@pytest.mark.parametrize("wrap", [dict, lambda s: {"model": s}, lambda s: {"state_dict": s, "epoch": 3}])
def test_a_checkpoint_in_each_of_its_forms(wrap: Callable[[dict], dict], tmp_path: Path) -> None:
    trained = make_net(7).state_dict()
    torch.save(wrap(trained), tmp_path / "trained.pt")
    job = build_job(TinyLearner(), make_net(), checkpoint=str(tmp_path / "trained.pt"))
    assert sha256(first_model(job, tmp_path)) == sha256(job.net) == sha256(trained)


def test_a_checkpoint_takes_the_types_and_the_order_of_the_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    trained = make_net(7).double().state_dict()
    torch.save(dict(reversed(trained.items())), tmp_path / "trained.pt")
    first = first_model(build_job(TinyLearner(), make_net(), checkpoint="~/trained.pt"), tmp_path)
    assert list(first) == list(make_net().state_dict())
    assert sha256(first) == sha256(make_net(7).state_dict())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (nn.Linear(2, 1).state_dict(), "does not fit the net: 0.bias is in the net alone."),
        (
            make_net().state_dict() | {"head.bias": torch.ones(1)},
            "does not fit the net: head.bias is in the checkpoint",
        ),
        (
            make_net().state_dict() | {"1.weight": torch.ones(3, 2)},
            "does not fit the net: 1.weight is (3, 2) there and (1, 2) in the net.",
        ),
        (make_net().state_dict() | {"1.bias": 3}, "does not fit the net: 1.bias is () there and (1,) in the net."),
        ({0: torch.ones(1)}, "does not fit the net"),
        ([torch.ones(1)], "holds a list: save the net's state_dict()."),
        (make_net(), "is no checkpoint that torch loads safely: save a state_dict() with torch.save."),
        (None, "There is no checkpoint "),
    ],
)
def test_a_checkpoint_that_cannot_be_the_first_model(content: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "trained.pt"
    if content is not None:
        torch.save(content, path)
    with pytest.raises(JobError) as caught:
        build_job(TinyLearner(), make_net(), checkpoint=path)
    assert said in str(caught.value) and str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# --- sites, and what a site gets ---


def test_a_number_of_sites_and_what_a_runner_reads(tmp_path: Path) -> None:
    job = build_job(WithData("$SITE_DATA"), make_net(), sites=3, rounds=7, name="mine")
    assert (job.name, job.sites, job.rounds) == ("mine", ("site-1", "site-2", "site-3"), 7)
    meta = json.loads((export(job, tmp_path) / "meta.json").read_text())
    assert meta["custom_props"] == {
        "sites": ["site-1", "site-2", "site-3"],
        "data": "$SITE_DATA",
        "metric": {"name": "loss", "higher_is_better": False, "fraction": None},
    }
    assert meta["deploy_map"] == {"app": ["@ALL"]} and meta["min_clients"] == 3


def test_named_sites_and_no_others_get_the_job_and_none_gets_the_first_model(tmp_path: Path) -> None:
    folder = export(build_job(TinyLearner(), make_net(), sites=["b", "a"]), tmp_path)
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["deploy_map"] == {"app_server": ["server"], "app_sites": ["b", "a"]} and meta["min_clients"] == 2
    assert meta["custom_props"]["sites"] == ["b", "a"] and "data" not in meta["custom_props"]
    assert [path.parents[1].name for path in folder.rglob("first_model.pt")] == ["app_server"]
    assert [path.parents[1].name for path in folder.rglob("tiny.py")] == ["app_sites"]


def test_the_learner_and_its_executor_are_what_a_site_runs(tmp_path: Path) -> None:
    config = read(export(build_job(WithData("/data", lr=0.5, seed=3), make_net()), tmp_path), "client")
    assert parts(config)["learner"] == {
        "id": "learner",
        "path": "test_build_job.WithData",
        "args": {"data": "/data", "lr": 0.5, "seed": 3},
    }
    ((executor,), (tasks,)) = zip(*[(one["executor"], one["tasks"]) for one in config["executors"]], strict=True)
    assert executor["path"].endswith(".ModelLearnerExecutor") and executor["args"] == {"learner_id": "learner"}
    assert tasks == ["train", "validate", "submit_model"]


@pytest.mark.parametrize(
    ("algorithm", "path"), [("fedprox", "FedProxSite"), ("fedopt", "DifferenceSite"), ("fedavg", None)]
)
def test_an_algorithm_stands_beside_the_learner(algorithm: str, path: str | None, tmp_path: Path) -> None:
    folder = export(build_job(TinyLearner(), make_net(), algorithm=ALGORITHMS[algorithm]()), tmp_path)
    found = parts(read(folder, "client")).get("algorithm", {}).get("path", "None").rpartition(".")[2]
    assert found == str(path)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("sites", "HERE/sites"),
        ("./sites", "HERE/sites"),
        ("../sites", "ABOVE/sites"),
        ("~/sites", "HOME/sites"),
        ("/abs/sites", "/abs/sites"),
        ("$SITE_DATA", "$SITE_DATA"),
        ("$SITE_DATA/sites", "$SITE_DATA/sites"),
        ("~/$WHERE", "~/$WHERE"),
    ],
)
def test_data_means_at_a_site_what_it_means_here(
    data: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "above" / "here"
    here.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(here)
    job = build_job(WithData(data, words="./words.txt"), make_net())
    monkeypatch.chdir(tmp_path / "elsewhere")  # it is exported from somewhere else
    for name, folder in (("HERE", here), ("ABOVE", here.parent), ("HOME", Path("/home/me"))):
        expected = re.sub(f"^{name}", str(folder), expected)
    folder = export(job, tmp_path / "jobs")
    assert parts(read(folder, "client"))["learner"]["args"] == {"data": expected, "words": str(here / "words.txt")}
    assert json.loads((folder / "meta.json").read_text())["custom_props"]["data"] == expected


def test_other_arguments_are_paths_only_where_they_look_like_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for words, expected in {
        "resnet/18": "resnet/18",
        "~/w": "/home/me/w",
        "": "",
        ".5": ".5",
        "s3://x": "s3://x",
    }.items():
        learner = WithData("", words)
        settle_arguments(learner)
        assert (learner.data, learner.words) == ("", expected)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: WithData(Path("sites")),
            "WithData's argument data is a PosixPath, which a job cannot write: give str(data)",
        ),
        (lambda: WithData(words={1: 2}), "argument words is a dict, which a job cannot write"),
        (lambda: WithData(words={"a", "b"}), "argument words is a set, which a job cannot write"),
        (lambda: WithData(words=np.ones(2)), "argument words is a ndarray, which a job cannot write"),
        (lambda: WithData(words=nn.Linear(1, 1)), "argument words is a Linear, which a job cannot write"),
        (lambda: WithData(words=len), "argument words is a builtin_function_or_method, which a job cannot write"),
        (HandsOnByName, "HandsOnByName hands lr on by **kwargs alone, where a job does not look: write (self, *args"),
        (Forgets, "Forgets does not keep its argument width: write self.width = width, by which a job reads it."),
        (KeptAsClassAttribute, "KeptAsClassAttribute does not keep its argument width"),
    ],
)
def test_an_argument_that_would_not_reach_the_sites(make: Callable[[], TinyLearner], said: str) -> None:
    with pytest.raises(JobError) as caught:
        build_job(make(), make_net())
    assert said in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("value", [None, True, 3, 0.5, float("inf"), "text", [1, "a", None], (1, 2), {"a": [1]}])
def test_an_argument_that_a_job_can_write_is_in_it(value: Any, tmp_path: Path) -> None:
    folder = export(build_job(WithData(words=value), make_net()), tmp_path)
    args = parts(read(folder, "client"))["learner"]["args"]
    assert args["words"] == (list(value) if isinstance(value, tuple) else value)


def test_an_argument_may_be_kept_with_an_underscore(tmp_path: Path) -> None:
    folder = export(build_job(Underscored(width=5), make_net()), tmp_path)
    assert parts(read(folder, "client"))["learner"]["args"] == {"width": 5}


def test_an_executor_or_a_script_is_a_site_s_part_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export(build_job(CIFAR10Executor("$SITE_DATA"), make_net(), name="executor"), tmp_path)
    (one,) = read(folder, "client")["executors"]
    assert one["executor"] == {"path": "fl.executor.CIFAR10Executor", "args": {"data": "$SITE_DATA"}}
    (tmp_path / "script.py").write_text("from tutorial_utils.keep import BestModel\n")
    monkeypatch.chdir(tmp_path)
    runner, files = ScriptRunner("script.py"), [tmp_path / "script.py"]
    with pytest.raises(JobError, match=r"does not say which number decides: .*, or give build_job a metric="):
        build_job(runner, make_net(), files=files)
    job = build_job(runner, make_net(), files=files, metric=Metric("auc"), name="script")
    custom = export(job, tmp_path) / "app/custom"
    assert (custom / "script.py").is_file() and (custom / "tutorial_utils/keep.py").is_file()


# --- the server ---


def test_what_the_server_runs(tmp_path: Path) -> None:
    """Mutation that must not live: the best global model by the sites' steps."""
    job = build_job(TinyLearner(), make_net(), sites=3, rounds=4)
    config = read(export(job, tmp_path), "server")
    found = parts(config)
    assert found["persistor"]["args"] == {"source_ckpt_file_full_name": "first_model.pt"}
    assert found["model_selector"]["args"] == {"key_metric": "loss", "negate_key_metric": True}
    assert found["aggregator"]["path"] == "tutorial_utils.algorithms.aggregator.OrderedAggregator"
    assert found["aggregator"]["args"] == {}
    training = found["scatter_and_gather"]
    assert training["path"].endswith(".ScatterAndGather")
    assert training["args"] == {
        "min_clients": 3,
        "num_rounds": 4,
        "wait_time_after_min_received": 0,
        "persistor_id": "persistor",
        "task_check_period": 0.02,
    }, "FLARE leaves out what is its default: the ids of aggregator and generator"
    assert {"aggregator", "shareable_generator"} <= found.keys()
    assert [one["id"] for one in config["workflows"]] == ["scatter_and_gather", "cross_site_eval"]
    assert config["server"] == {"task_request_interval": 0.05}
    assert {"metrics_writer", "json_generator", "locator"} <= found.keys()


@pytest.mark.parametrize(
    ("metric", "args"), [(Metric("auc"), {"key_metric": "auc"}), (None, {"key_metric": "accuracy"})]
)
def test_the_selector_follows_the_metric(metric: Metric | None, args: dict[str, Any], tmp_path: Path) -> None:
    part = CIFAR10Executor("$SITE_DATA")
    if metric is not None:
        part.metric = metric
    assert server_of(build_job(part, make_net()), tmp_path)["model_selector"]["args"] == args


@pytest.mark.parametrize(
    ("cross_site", "args"),
    [
        ("all", {"model_locator_id": "locator", "task_check_period": 0.02}),
        ("global", {"model_locator_id": "locator", "task_check_period": 0.02, "submit_model_task_name": ""}),
        ("none", None),
    ],
)
def test_who_sees_whose_model_after_training(cross_site: Any, args: dict[str, Any] | None, tmp_path: Path) -> None:
    found = server_of(build_job(TinyLearner(), make_net(), cross_site=cross_site), tmp_path)
    assert found.get("cross_site_eval", {}).get("args") == args
    assert ("json_generator" in found) == (args is not None)


def test_fewer_sites_than_all_are_waited_for_ten_seconds(tmp_path: Path) -> None:
    args = server_of(build_job(TinyLearner(), make_net(), sites=3, min_sites=2), tmp_path)["scatter_and_gather"]["args"]
    assert (args["min_clients"], args.get("wait_time_after_min_received", 10)) == (2, 10), "FLARE's default"


def test_aggregator_selector_and_workflow_can_be_others(tmp_path: Path) -> None:
    own = {
        "aggregator": InTimeAccumulateWeightedAggregator(expected_data_kind="WEIGHTS"),
        "selector": IntimeModelSelector(key_metric="auc", weigh_by_local_iter=True),
        "workflow": NewerFedAvg(num_clients=2, num_rounds=9, persistor_id="persistor"),
    }
    found = server_of(build_job(TinyLearner(), make_net(), metric=Metric("loss", False), **own), tmp_path)
    assert found["aggregator"]["path"].endswith(".InTimeAccumulateWeightedAggregator")
    assert found["model_selector"]["args"] == {"key_metric": "auc", "weigh_by_local_iter": True}
    assert found["scatter_and_gather"]["path"].endswith("fedavg.FedAvg")
    assert found["scatter_and_gather"]["args"]["num_rounds"] == 9


def test_filters_stand_where_weights_leave_in_their_order(tmp_path: Path) -> None:
    site, server = [ExcludeVars(["0.weight"]), PercentilePrivacy(20)], [ExcludeVars(["1.bias"])]
    job = build_job(
        TinyLearner(),
        make_net(),
        algorithm=FedOpt(),
        cross_site="global",
        site_filters=site,
        server_filters=server,
    )
    folder = export(job, tmp_path)
    client, served = read(folder, "client"), read(folder, "server")
    found = [
        (sorted(one["tasks"]), part["path"].rpartition(".")[2])
        for one in client["task_result_filters"]
        for part in one["filters"]
    ]
    assert found == [(["submit_model", "train"], "ExcludeVars"), (["submit_model", "train"], "PercentilePrivacy")]
    assert client["task_data_filters"] == served["task_result_filters"] == []
    ((one,), tasks) = ((part["filters"], part["tasks"]) for part in served["task_data_filters"]).__next__()
    assert one["path"].endswith("ExcludeVars") and tasks == ["train"]


@pytest.mark.parametrize(
    ("one", "more", "said"),
    [
        (ConvertWeights("weights_to_diff"), {"algorithm": FedOpt()}, "ConvertWeights has nothing to convert by"),
        (PercentilePrivacy(), {"cross_site": "none"}, "PercentilePrivacy is for differences"),
        (
            SVTPrivacy(),
            {"cross_site": "none"},
            "algorithm=FedOpt(server_lr=1.0, server_momentum=0.0) sends differences",
        ),
        (SVTPrivacy(), {"algorithm": FedOpt()}, "say cross_site='global' or 'none'."),
        (ClipAndNoise(1.0), {}, "ClipAndNoise cuts updates, and cross_site='all' hands each site's own whole model"),
    ],
)
def test_a_filter_that_would_cut_something_else(one: Filter, more: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError) as caught:
        build_job(TinyLearner(), make_net(), site_filters=[one], **more)
    assert said in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_filter_of_this_package_ships_with_what_it_needs(tmp_path: Path) -> None:
    job = build_job(TinyLearner(), make_net(), cross_site="global", site_filters=[ClipAndNoise(1.0, 0.5)])
    folder = export(job, tmp_path)
    (chain,) = read(folder, "client")["task_result_filters"]
    assert chain["filters"] == [{"path": "tutorial_utils.filters.ClipAndNoise", "args": {"clip": 1.0, "noise": 0.5}}]
    assert (folder / "app/custom/tutorial_utils/filters.py").is_file()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_algorithm_s_workflow_and_kind(algorithm: str, tmp_path: Path) -> None:
    kind = ALGORITHMS[algorithm]
    found = server_of(build_job(TinyLearner(), make_net(), algorithm=kind()), tmp_path)
    assert found["scatter_and_gather"]["path"].endswith(f".{kind.workflow.__name__}")
    sends = kind.sends if isinstance(kind.sends, str) else dict(kind.sends)
    assert found["aggregator"]["args"] == ({} if sends == "WEIGHTS" else {"expected_data_kind": sends})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sites": 0}, "sites is 0"),
        ({"sites": []}, "sites is []"),
        ({"sites": ["a", "A"]}, "twice"),
        ({"sites": ["server"]}, "is taken"),
        ({"rounds": 0}, "rounds is 0: it must be a whole number, 1 or more."),
        ({"rounds": 2.5}, "rounds is 2.5"),
        ({"rounds": True}, "rounds is True"),
        ({"rounds": "3"}, "rounds is '3'"),
        ({"min_sites": 0}, "min_sites is 0: it must be a whole number, from 1 to 2."),
        ({"min_sites": 3}, "min_sites is 3: it must be a whole number, from 1 to 2."),
    ],
)
def test_numbers_that_make_no_sense(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(TutorialError) as caught:
        build_job(TinyLearner(), make_net(), **wrong)
    assert said in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_class_typed_in_a_notebook_is_told_to_go_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", None, raising=False)
    typed = type("Typed", (TinyLearner,), {"__module__": "__main__"})
    with pytest.raises(JobError, match="Typed was typed into a notebook or a console, and a site needs a file"):
        build_job(typed(), make_net())


# --- an evaluation alone ---


def test_given_models_are_scored_and_nothing_is_trained(tmp_path: Path) -> None:
    models = {"first": make_net(), "other": make_net(1).state_dict()}
    job = build_evaluation(WithData("$SITE_DATA"), models, sites=["a", "b"])
    assert (job.rounds, job.name) == (0, "evaluation")
    folder = export(job, tmp_path)
    config = read(folder, "server")
    assert [one["id"] for one in config["workflows"]] == ["cross_site_eval"]
    assert parts(config)["cross_site_eval"]["args"]["submit_model_task_name"] == ""
    assert parts(config)["locator"]["path"] == "tutorial_utils.evaluation.GivenModels"
    assert not {"persistor", "aggregator", "model_selector"} & parts(config).keys()
    found = {path.name: torch.load(path, weights_only=True) for path in folder.rglob("custom/models/*.pt")}
    assert {name: sha256(state) for name, state in found.items()} == {
        "first.pt": sha256(make_net().state_dict()),
        "other.pt": sha256(make_net(1).state_dict()),
    }
    assert {path.parents[2].name for path in folder.rglob("*.pt")} == {"app_server"}


# --- a job as an object ---


def test_two_jobs_at_once_are_two_jobs_and_one_can_be_exported_twice(tmp_path: Path) -> None:
    jobs = [build_job(WithData(f"/data/{seed}"), make_net(seed), name=f"job-{seed}") for seed in (1, 2)]
    for seed, job in zip((1, 2), jobs, strict=True):
        for folder in (tmp_path / "once", tmp_path / "again", tmp_path / "again"):
            assert sha256(first_model(job, folder)) == sha256(make_net(seed).state_dict())
            learner = parts(read(folder / job.name, "client"))["learner"]
            assert learner["args"]["data"] == f"/data/{seed}"
    names = [
        sorted(str(path.relative_to(tmp_path / one)) for path in (tmp_path / one).rglob("*") if path.is_file())
        for one in ("once", "again")
    ]
    assert names[0] == names[1]


def test_a_job_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temp"))
    job = build_job(TinyLearner(), make_net())
    assert list((tmp_path / "temp").iterdir())
    export(job, tmp_path)
    del job
    gc.collect()
    assert list((tmp_path / "temp").iterdir()) == []


def test_more_can_be_added_to_a_job(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("a b c")
    job = build_job(TinyLearner(), make_net())
    job.add_file_to_clients(str(tmp_path / "words.txt"))
    job.to_server(IntimeModelSelector(key_metric="auc"), id="second")
    folder = export(job, tmp_path / "jobs")
    assert (folder / "app/custom/words.txt").read_text() == "a b c"
    assert parts(read(folder, "server"))["second"]["args"] == {"key_metric": "auc"}


def test_the_part_that_is_everyone_s_is_the_part_of_the_example() -> None:
    assert build_job(TinyLearner(), make_net()).name == "federation"
    assert FedAvg().site() is None


# --- the checks alone ---


def test_a_count_is_a_whole_number() -> None:
    assert check_count("rounds", np.int64(3)) == 3 and check_count("rounds", 5, most=5) == 5
    for value in (0, -1, 1.0, True, "1", None, np.float64(2)):
        with pytest.raises(JobError, match=r"^rounds is "):
            check_count("rounds", value)


@pytest.mark.parametrize("name", ["a", "job-1", "My_Job", "7", "a" * 64])
def test_names_of_a_job(name: str) -> None:
    check_name("name is", name)
    assert build_job(TinyLearner(), make_net(), name=name).name == name


@pytest.mark.parametrize("name", ["", "-a", "_a", ".a", "a/b", "..", "a b", "a.b", "a\n", "é", "a" * 65, None, 3])
def test_what_is_no_name_of_a_job(name: Any) -> None:
    with pytest.raises(JobError, match=r"^name is .*: a name has letters"):
        check_name("name is", name)


@pytest.mark.parametrize("value", ["a.py", Path("a.py"), 3, {"a.py"}, None])
def test_one_thing_is_no_list(value: Any) -> None:
    with pytest.raises(JobError, match=r"give a list, \["):
        check_list("files", value)
