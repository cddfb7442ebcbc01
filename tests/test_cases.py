"""What people bring, of every kind: each net, learner, argument and file gives the right value or one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.app_common.workflows.fedavg import FedAvg as FedAvgController
from tiny import TinyLearner, make_net
from torch import nn

from tutorial_utils.algorithms.registry import FedAvg, FedOpt, FedProx, Scaffold
from tutorial_utils.errors import JobError
from tutorial_utils.job import LearnerJob, build_evaluation, build_job
from tutorial_utils.metric import Metric


def written(job: LearnerJob, folder: Path, who: str = "client") -> dict[str, Any]:
    """A configuration file of the job as it is exported."""
    job.export_job(str(folder))
    (path,) = folder.rglob(f"config_fed_{who}.json")
    return json.loads(path.read_text())


# --- what build_job is given ---


class Colour(Enum):
    RED = "red"


class ParallelLearner(TinyLearner):
    """Names a part that the net does not have."""

    keep_local = ("module.*",)


class SelfishLearner(TinyLearner):
    keep_local = ("*",)


class Hidden(TinyLearner):
    """Keeps its argument where FLARE does not look."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.__width = width

    @property
    def width(self) -> int:
        return self.__width


class OtherDefault(TinyLearner):
    """FLARE compares an argument with the parent's default, and would leave this one out."""

    def __init__(self, *args: Any, lr: float = 0.5, **kwargs: Any) -> None:
        super().__init__(*args, lr=lr, **kwargs)


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: build_job(TinyLearner, make_net()), r"learner is the class TinyLearner: give an object, TinyLearner\("),
    (lambda: build_job(None, make_net()), "learner is a NoneType: give an object of a ModelLearner"),
    (lambda: build_job("TinyLearner", make_net()), "learner is a str: give an object of a ModelLearner"),
    (lambda: build_job(TinyLearner(), nn.Linear), "net is the class Linear: give an object"),
    (lambda: build_job(TinyLearner(), make_net().state_dict()), "net is a OrderedDict: give the net itself"),
    (lambda: build_job(TinyLearner(), nn.ReLU()), "The net has no weights"),
    (lambda: build_job(TinyLearner(), nn.LazyLinear(3)), "weight in the net has no numbers yet: .* one batch"),
    (lambda: build_job(TinyLearner(), nn.Linear(2, 1, device="meta")), "weight in the net has no numbers yet"),
    (lambda: build_job(TinyLearner(), make_net(), name="my job"), "name is 'my job': a name has letters"),
    (lambda: build_job(TinyLearner(), make_net(), name="../job"), "name is '../job': a name has letters"),
    (lambda: build_job(TinyLearner(), make_net(), name=""), "name is '': a name has letters"),
    (lambda: build_job(TinyLearner(), make_net(), name=None), "name is None: a name has letters"),
    (lambda: build_job(TinyLearner(), make_net(), metric="loss"), r"metric is 'loss': give Metric\('loss'"),
    (lambda: build_job(TinyLearner(), make_net(), metric=Metric("auc")), "chooses its models by loss.* auc"),
    (lambda: build_job(TinyLearner(), make_net(), cross_site="All"), "cross_site is 'All': choose all, global or none"),
    (lambda: build_job(TinyLearner(), make_net(), algorithm=FedProx), r"give an object, FedProx\("),
    (lambda: build_job(TinyLearner(), make_net(), algorithm="fedprox"), r"algorithm is 'fedprox': give .*FedProx\("),
    (lambda: build_job(TinyLearner(), make_net(), files="a.py"), r"files is 'a.py': give a list, \['a.py'\]"),
    (lambda: build_job(TinyLearner(), make_net(), checkpoint=3), "checkpoint is 3: give the path"),
    (lambda: build_job(ParallelLearner(), make_net()), r"keep_local names 'module.\*', and the net has only 0.weight"),
    (lambda: build_job(SelfishLearner(), make_net()), "keep_local names all of the net: leave something to share"),
    (lambda: build_job(TinyLearner(lr=float("nan")), make_net()), "argument lr is nan"),
    (lambda: build_job(TinyLearner(lr={"path": "x", "rate": 1}), make_net()), "argument lr .* key 'path'"),
    (lambda: build_job(TinyLearner(lr="{rate}"), make_net()), r"argument lr .*'{rate}'.* braces"),
    (lambda: build_job(TinyLearner(lr=Colour.RED), make_net()), "argument lr is a Colour"),
    (lambda: build_job(TinyLearner(lr=Path("x")), make_net()), r"lr is a PosixPath.*give str\(lr\)"),
    (lambda: build_job(TinyLearner(lr=torch.tensor(1.0)), make_net()), "argument lr is a Tensor"),
    (lambda: build_job(Hidden(), make_net()), "does not keep its argument width: write self.width = width"),
    (lambda: build_evaluation(TinyLearner(), {}), "no model to score"),
    (lambda: build_evaluation(TinyLearner(), {"my net": make_net()}), "A model cannot be called 'my net'"),
    (lambda: build_evaluation(TinyLearner(), {"a": nn.Linear}), "a is the class Linear: give an object"),
    (lambda: build_evaluation(TinyLearner(), {"a": {"x": 3}}), "x .* is a int, and only arrays travel"),
]


@pytest.mark.parametrize(("build", "sentence"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_work_is_said_in_one_sentence(build: Callable[[], object], sentence: str) -> None:
    with pytest.raises(JobError, match=sentence) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    """As a sweep gives them: for lr in np.logspace(...)."""
    learner = TinyLearner(lr=np.float64(0.5), epochs=np.int64(2), seed=np.uint8(3))
    job = build_job(learner, make_net(), sites=np.int64(3), rounds=np.int64(4), min_sites=np.int32(2))
    (part, *_) = written(job, tmp_path)["components"]
    assert part["args"] == {"lr": 0.5, "epochs": 2, "seed": 3}
    assert job.rounds == 4 and type(job.rounds) is int


def test_an_argument_that_is_the_parents_default_reaches_the_site_too(tmp_path: Path) -> None:
    (part, *_) = written(build_job(OtherDefault(lr=0.05), make_net()), tmp_path)["components"]
    assert part["args"]["lr"] == 0.05


def test_a_job_s_rounds_are_those_of_the_workflow_that_was_given() -> None:
    job = build_job(TinyLearner(), make_net(), sites=3, workflow=FedAvgController(num_clients=2, num_rounds=7))
    assert job.rounds == 7


@pytest.mark.parametrize("algorithm", [FedProx(), FedOpt(), Scaffold()])
def test_an_algorithm_s_part_at_the_sites_needs_a_learner_that_asks_for_it(algorithm: FedAvg) -> None:
    from fl.executor import CIFAR10Executor

    with pytest.raises(JobError, match=f"{algorithm.name} .* a PTModelLearner, and CIFAR10Executor is none"):
        build_job(CIFAR10Executor("data"), make_net(), algorithm=algorithm)
