"""What people bring, of every kind: each net, learner, argument and file gives the right value or one sentence."""

from __future__ import annotations

import copy
import importlib
import json
import runpy
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.filters.exclude_vars import ExcludeVars
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.app_common.workflows.fedavg import FedAvg as FedAvgController
from test_algorithms import Server
from torch import nn

from at_site import start
from tiny import TinyLearner, make_net, points_of
from tutorial_utils.algorithms.fedopt import shapes_of
from tutorial_utils.algorithms.fedprox import FedProxSite
from tutorial_utils.algorithms.registry import FedAvg, FedOpt, FedProx, Scaffold
from tutorial_utils.algorithms.scaffold import CHANGE, CONTROLS, WEIGHTS
from tutorial_utils.drive import compare_with_script, placed, score_models, test_drive, train_alone
from tutorial_utils.errors import JobError, SimulationError
from tutorial_utils.job import LearnerJob, build_evaluation, build_job
from tutorial_utils.learner import LearnerError, PTModelLearner
from tutorial_utils.metric import Metric
from tutorial_utils.results import Run, sha256
from tutorial_utils.simulate import simulate
from tutorial_utils.values import to_numpy


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


class NoThreads(TinyLearner):
    def __init__(self) -> None:
        super().__init__()
        self.threads = 0


class Orphan(TinyLearner):
    def __init__(self) -> None:
        pass


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
    (lambda: build_job(TinyLearner(seed=None), make_net()), "seed is None: it must be a whole number"),
    (lambda: build_job(TinyLearner(seed="3"), make_net()), "seed is '3': it must be a whole number"),
    (lambda: build_job(NoThreads(), make_net()), "threads is 0: it must be a whole number, 1 or more"),
    (lambda: build_job(Orphan(), make_net()), r"call super\(\).__init__\(\) in the constructor of Orphan"),
    (lambda: build_job(Hidden(), make_net()), "does not keep its argument width: write self.width = width"),
    (lambda: build_evaluation(TinyLearner(), {}), "no model to score"),
    (lambda: build_evaluation(TinyLearner(), {"my net": make_net()}), "A model cannot be called 'my net'"),
    (lambda: build_evaluation(TinyLearner(), {"a": nn.Linear}), "a is the class Linear: give an object"),
    (
        lambda: build_evaluation(TinyLearner(), {"b": make_net()}, sites=["a", "b"]),
        "model .* 'b': a site has that name",
    ),
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


def test_a_part_s_argument_that_a_job_cannot_write_is_said() -> None:
    """FLARE's ExcludeVars makes a pattern of a text, and its job brings along half of Python's library for that."""
    with pytest.raises(JobError, match="ExcludeVars's argument exclude_vars is a Pattern, which a job cannot write"):
        build_job(TinyLearner(), make_net(), site_filters=[ExcludeVars("0.*")])
    names = ["0.running_mean", "0.running_var"]
    build_job(TinyLearner(), make_net(), site_filters=[ExcludeVars(names)], workflow=FedAvgController(num_clients=2))


# --- what ships ---

LEARNER = """
from tutorial_utils.learner import PTModelLearner
from tutorial_utils.metric import Metric
{imports}

class Mine(PTModelLearner):
    metric = Metric("loss", higher_is_better=False)
    def __init__(self, data="x", seed=0):
        super().__init__(seed=seed)
        self.data = data
"""
BUILD = "\nfrom torch import nn\nfrom tutorial_utils.job import build_job\n"
GUARD = "if __name__ == '__main__':"
EXPORT = BUILD + "{start}\n    build_job(Mine(), nn.Linear(2, 1)).export_job({folder!r})\n"
SITE = """
import json, sys
from pathlib import Path
custom, = Path(sys.argv[1]).rglob(sys.argv[3] + "/custom")
sys.path[:] = [path for path in sys.path if path not in ("", sys.argv[2])]
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in str(finder)]
sys.path.append(str(custom))
from nvflare.fuel.utils.class_utils import instantiate_class
config, = Path(sys.argv[1]).rglob("config_fed_client.json")
for part in json.loads(config.read_text())["components"]:
    made = instantiate_class(part["path"], part["args"])
    assert Path(sys.modules[type(made).__module__].__file__).is_relative_to(custom), part["path"]
    print(part["path"], getattr(made, "width", ""))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which a reader's modules lie; they are forgotten afterwards."""
    folder, before = tmp_path / "reader", set(sys.modules)
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(folder):
            del sys.modules[name]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def mine(imports: str = "") -> str:
    return LEARNER.format(imports=imports)


def job_of(module: str, **more: Any) -> LearnerJob:
    """A job of the learner `Mine` in a module."""
    return build_job(importlib.import_module(module).Mine(), nn.Linear(2, 1), **more)


def shipped(job: LearnerJob, folder: Path) -> set[str]:
    """The reader's files below custom/."""
    job.export_job(str(folder))
    (custom,) = folder.rglob("custom")
    files = {path.relative_to(custom).as_posix() for path in custom.rglob("*") if path.is_file()}
    return {file for file in files if not file.startswith("tutorial_utils/")} - {"first_model.pt"}


def at_a_site(folder: Path, app: str = "app") -> str:
    """What an exported job's parts print where only torch and nvflare are installed."""
    done = subprocess.run(
        [sys.executable, "-c", SITE, str(folder), str(Path(__file__).parents[1]), app],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PACKAGE = {
    "hospital/__init__.py": "",
    "hospital/learner.py": mine("from .nets import WIDTH\nfrom hospital import scaling")
    + "        self.width = WIDTH\n",
    "hospital/nets/__init__.py": "from .small import WIDTH\n",
    "hospital/nets/small.py": "from ..settings import WIDTH\n",
    "hospital/scaling.py": "import shared\n",
    "hospital/settings.py": "import json\nfrom pathlib import Path\n"
    "WIDTH = json.loads((Path(__file__).parent / 'settings.json').read_text())['width']\n",
    "hospital/settings.json": '{"width": 32}',
    "shared.py": "",
    "unrelated.py": "",
}


def test_a_package_ships_whole_with_its_data_and_what_it_imports_from_beside(here: Path, tmp_path: Path) -> None:
    write(here, PACKAGE)
    assert shipped(job_of("hospital.learner"), tmp_path / "job") == set(PACKAGE) - {"unrelated.py"}
    assert "hospital.learner.Mine 32" in at_a_site(tmp_path / "job")


def test_a_part_of_the_job_from_a_package_ships_with_its_data_too(here: Path, tmp_path: Path) -> None:
    filters = "from nvflare.apis.filter import Filter\nfrom secrecy import noise\nclass Blur(Filter):\n"
    filters += "    def process(self, shareable, fl_ctx):\n        return shareable\n"
    data = "from pathlib import Path\nSCALE = (Path(__file__).parent / 'scale.txt').read_text()\n"
    files = {
        "secrecy/__init__.py": "",
        "secrecy/filters.py": filters,
        "secrecy/noise.py": data,
        "secrecy/scale.txt": "1",
    }
    write(here, files | {"mine.py": mine()})
    blur = importlib.import_module("secrecy.filters").Blur()
    assert shipped(job_of("mine", site_filters=[blur]), tmp_path / "site") == {"mine.py", *files}
    assert shipped(job_of("mine", server_filters=[blur]), tmp_path / "server") == {"mine.py", *files}


def test_an_algorithm_of_one_s_own_ships_with_both_of_its_parts(here: Path, tmp_path: Path) -> None:
    parts = "from nvflare.app_common.shareablegenerators.full_model_shareable_generator import "
    parts += "FullModelShareableGenerator\nfrom tutorial_utils.learner import SiteAlgorithm\nfrom slowly import rate\n"
    parts += "class Site(SiteAlgorithm):\n    pass\nclass Generator(FullModelShareableGenerator):\n    pass\n"
    algorithm = "from slowly.parts import Generator, Site\nfrom tutorial_utils.algorithms.registry import FedAvg\n"
    algorithm += "class Slowly(FedAvg):\n    name = 'slowly'\n    def site(self):\n        return Site()\n"
    algorithm += "    def generator(self, net):\n        return Generator()\n"
    files = {"slowly/__init__.py": "", "slowly/parts.py": parts, "slowly/rate.py": "", "slowly/rate.txt": "0.1"}
    write(here, files | {"mine.py": mine(), "algorithm.py": algorithm})
    slowly = importlib.import_module("algorithm").Slowly()
    job = job_of("mine", algorithm=slowly, sites=["a", "b"])
    job.export_job(str(tmp_path / "job"))
    for app in ("app_server", "app_sites"):
        custom = tmp_path / "job" / job.name / app / "custom"
        assert all((custom / file).is_file() for file in files), app
    assert "slowly.parts.Site" in at_a_site(tmp_path / "job", "app_sites")


def test_two_learners_of_one_module_are_two_jobs(here: Path, tmp_path: Path) -> None:
    write(here, {"pair.py": mine() + "\nclass Second(Mine):\n    keep_local = ('bias',)\n"})
    module = importlib.import_module("pair")
    for name in ("Mine", "Second"):
        job = build_job(getattr(module, name)(), nn.Linear(2, 1), name=name)
        assert shipped(job, tmp_path / name) == {"pair.py"}
        (part, *_) = written(job, tmp_path / f"{name}-again")["components"]
        assert part["path"] == f"pair.{name}"


def test_a_script_that_is_its_own_job_ships_itself(here: Path, tmp_path: Path) -> None:
    start = EXPORT.format(start=GUARD, folder=str(tmp_path / "job"))
    write(here, {"fed.py": mine("import beside") + start, "beside.py": ""})
    runpy.run_path(str(here / "fed.py"), run_name="__main__")
    assert "fed.Mine" in at_a_site(tmp_path / "job")


# --- what a learner may be, driven here ---


class Counts(TinyLearner):
    """A schedule of its own: the second round takes half the step."""

    def local_train(self) -> object:
        self.state["rounds"] = self.state.get("rounds", 0) + 1
        self.lr = 0.1 / self.state["rounds"]
        return super().local_train()


def test_a_drive_leaves_the_learner_as_it_was() -> None:
    """So that it can be driven again, held against its script, and put into a job."""
    learner = Counts()
    first = sha256(test_drive(learner, make_net(), rounds=2).params)
    test_drive(learner, make_net(), algorithm=FedProxSite(10.0), configure={"epochs": 3}, site="other")
    assert learner.state == {} and learner.epochs == 1 and learner.lr == 0.05
    assert sha256(test_drive(learner, make_net(), rounds=2).params) == first
    assert hasattr(learner, "inputs"), "what it has read stays, to be looked at"


def test_after_a_drive_come_the_proof_and_the_baselines() -> None:
    learner = TinyLearner()
    script = make_net()
    script.load_state_dict({k: torch.as_tensor(v) for k, v in test_drive(learner, make_net()).params.items()})
    assert compare_with_script(learner, make_net(), script).equal
    assert train_alone(build_job(learner, make_net(), rounds=1)).shape == (2, 2)


def test_a_watched_loader_that_is_kept_can_be_copied() -> None:
    class Mine(TinyLearner):
        def initialize(self) -> None:
            super().initialize()
            self.loader = self.watched([(self.inputs, self.targets)])

    learner = Mine()
    test_drive(learner, make_net())
    assert len(copy.deepcopy(learner).loader) == 1


def test_a_learner_that_leaves_out_its_parent_s_start_is_told_so() -> None:
    """It would train without the algorithm that was asked for."""

    class Mine(TinyLearner):
        def initialize(self) -> None:
            self.net = make_net()
            self.inputs, self.targets = points_of(self.site_name)

    with pytest.raises(LearnerError, match=r"Mine.initialize\(\) must call super\(\).initialize\(\)"):
        test_drive(Mine(), make_net(), algorithm=FedProxSite(1.0))


def test_a_learner_without_a_net_is_told_so() -> None:
    class Mine(TinyLearner):
        def initialize(self) -> None:
            super().initialize()
            self.net = None

    with pytest.raises(LearnerError, match=r"Mine.initialize\(\) must set self.net"):
        test_drive(Mine(), make_net())


def test_metrics_have_names() -> None:
    class Mine(TinyLearner):
        def local_validate(self, split: str) -> dict:
            return {1: 0.5, None: 2}

    with pytest.raises(LearnerError, match=r"must report .loss., the metric that decides: it gave 1, None"):
        test_drive(Mine(), make_net())


@pytest.mark.parametrize("net", ["net.pt", nn.Linear, None, [1.0]])
def test_a_drive_wants_a_net(net: object) -> None:
    with pytest.raises(LearnerError, match=r"net is .*: give a net or its state dict"):
        test_drive(TinyLearner(), net)


def test_equal_in_every_bit_means_the_sign_of_zero_too() -> None:
    def net(zero: float) -> dict[str, torch.Tensor]:
        return make_net().state_dict() | {"1.bias": torch.tensor([zero])}

    driven = test_drive(TinyLearner(lr=0.0), net(0.0)).params
    trained = {name: torch.as_tensor(value) for name, value in driven.items()}
    assert compare_with_script(TinyLearner(lr=0.0), net(0.0), trained).equal
    proof = compare_with_script(TinyLearner(lr=0.0), net(0.0), trained | {"1.bias": torch.tensor([-0.0])})
    assert (proof.equal, proof.first, proof.apart) == (False, "1.bias", 0.0)


def test_a_learner_that_sends_a_part_by_its_own_means_is_told_of_keep_local() -> None:
    class Mine(TinyLearner):
        def params(self) -> dict[str, np.ndarray]:
            return {name: value for name, value in super().params().items() if not name.startswith("0.")}

        def load_params(self, params: dict[str, np.ndarray]) -> None:
            super().load_params(super().params() | {n: v for n, v in params.items() if not n.startswith("0.")})

    with pytest.raises(LearnerError, match=r"train.. does not send 0.bias, .*: name in keep_local what shall stay"):
        test_drive(Mine(), make_net())


class PersonalHead(TinyLearner):
    """Sites that tell different things apart: the head stays at home, and need not be as large as the others'."""

    keep_local = ("1.*",)

    def initialize(self) -> None:
        super().initialize()
        self.net[1] = nn.Linear(2, 3)
        self.targets = self.targets.expand(-1, 3)


def test_a_part_that_stays_at_home_may_be_of_another_size() -> None:
    drive = test_drive(PersonalHead(), make_net(), rounds=2)
    assert drive.params["1.weight"].shape == (1, 2), "the server's own is untouched"
    assert drive.received[1]["loss"] != drive.received[0]["loss"]


# --- every algorithm on every kind, in this process ---


class Buffers(nn.Module):
    """One weight by two names, and buffers of every type."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.one = nn.Linear(2, 2, bias=False)
        self.other = nn.Linear(2, 2, bias=False)
        self.other.weight = self.one.weight
        self.line = nn.Linear(2, 1)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Parameter(torch.tensor([0.1, 0.7]), requires_grad=False)
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("infinite", torch.tensor([0.0, float("-inf")]))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("bytes", torch.tensor([3, 250], dtype=torch.uint8))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mask.logical_not_()
            self.bytes.sub_(2)
        rows = self.norm(rows * (self.infinite > -1) + self.frozen)
        return self.scale * self.line(self.other(torch.relu(self.one(rows))))


def make_buffers(dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Buffers().to(dtype)


class BufferLearner(TinyLearner):
    dtype = torch.float32

    def initialize(self) -> None:
        super().initialize()
        self.net = make_buffers(self.dtype)
        self.inputs, self.targets = self.inputs.to(self.dtype), self.targets.to(self.dtype)


class DoubleLearner(BufferLearner):
    dtype = torch.float64


class BrainLearner(BufferLearner):
    dtype = torch.bfloat16


class HomeNormLearner(BufferLearner):
    keep_local = ("norm.*",)


class HomeLineLearner(BufferLearner):
    keep_local = ("line.*", "norm.*")


def federate(
    kind: type[TinyLearner], net: nn.Module, algorithm: FedAvg, folder: Path, sites: Sequence[str] = ("a", "b")
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """Three rounds of a job's own parts, without FLARE's processes: the server's weights, and each site's own."""
    server = Server(algorithm.sends, algorithm.generator(net))
    server.model = make_model_learnable(to_numpy(net.state_dict()), {})
    controls = {name: np.zeros_like(value) for name, value in server.weights.items()}
    learners = {site: kind() for site in sites}
    for site, learner in learners.items():
        learner.algorithm = algorithm.site() or learner.algorithm
        (folder / site).mkdir(parents=True)
        start(learner, folder / site, site)
    for number in range(3):
        message: dict[str, Any] = server.weights
        if algorithm.name == "scaffold":
            message = {WEIGHTS: DXO(DataKind.WEIGHTS, message), CONTROLS: DXO(DataKind.WEIGHT_DIFF, controls)}
        answers = {}
        for site, learner in learners.items():
            learner.current_round = number
            answers[site] = FLModelUtils.to_shareable(learner.train(FLModel(params=message, meta={})))
        average = server.average(answers, number)
        if algorithm.name == "scaffold":
            change = average.data[CHANGE].data
            controls = controls | {name: controls[name] + value for name, value in change.items()}
            average = average.data[WEIGHTS]
        server.update(average)
    assert not server.fatal
    return server.weights, {site: learner.params() for site, learner in learners.items()}


ALL = [FedAvg(), FedProx(0.1), FedOpt(1.0, 0.5), Scaffold()]


@pytest.mark.parametrize("kind", [BufferLearner, DoubleLearner, BrainLearner, HomeNormLearner, HomeLineLearner])
@pytest.mark.parametrize("algorithm", ALL, ids=lambda one: one.name)
def test_every_algorithm_keeps_each_entry_what_it_is(
    algorithm: FedAvg, kind: type[BufferLearner], tmp_path: Path
) -> None:
    net = make_buffers(kind.dtype)
    first = to_numpy(net.state_dict())
    made, own = federate(kind, net, algorithm, tmp_path)
    assert made.keys() == first.keys()
    for name, value in first.items():
        assert (made[name].dtype, made[name].shape) == (value.dtype, value.shape), name
        at_home = name.startswith(tuple(pattern.rstrip("*") for pattern in kind.keep_local))
        stays = at_home or name in ("frozen", "infinite", "empty")
        assert np.array_equal(made[name], value) or not stays, name
        assert not at_home or not np.array_equal(own["a"][name], value), "it is trained at home"
        assert np.isfinite(made[name]).all() or name == "infinite"
    np.testing.assert_array_equal(made["one.weight"], made["other.weight"])
    for name in ("one.weight", "norm.running_mean", "norm.num_batches_tracked", "mask"):
        assert np.array_equal(made[name], first[name]) == (name.startswith("norm") and "norm.*" in kind.keep_local), (
            name
        )
    assert made["bytes"].tolist() == [(3 - 2 * 15) % 256, 250 - 2 * 15], "an integer goes on as at the sites"


@pytest.mark.parametrize("algorithm", [FedProx(0.0), FedOpt(1.0, 0.0), Scaffold()], ids=lambda one: one.name)
@pytest.mark.parametrize("kind", [DoubleLearner, HomeLineLearner])
def test_alone_every_algorithm_is_federated_averaging(
    algorithm: FedAvg, kind: type[BufferLearner], tmp_path: Path
) -> None:
    """One site's controls are everyone's, its mean difference is its own, and what stays at home nobody corrects."""
    net = make_buffers(kind.dtype)
    runs = [federate(kind, net, one, tmp_path / one.name / "0", ["a"]) for one in (FedAvg(), algorithm)]
    for plain, other in zip(*runs, strict=True):
        plain, other = plain.get("a", plain), other.get("a", other)
        for name, value in plain.items():
            np.testing.assert_allclose(other[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_what_the_server_s_optimizer_steps_is_a_weight_by_each_of_its_names() -> None:
    shapes = shapes_of(make_buffers(torch.bfloat16))
    assert shapes["one.weight"] == shapes["other.weight"] == [2, 2, "float32"], "bfloat16 travels as float32"
    assert shapes["scale"] == ["float32"] and "frozen" not in shapes and "mask" not in shapes


def test_an_optimizer_needs_something_to_step() -> None:
    with pytest.raises(JobError, match="fedopt has nothing to step: no weight of the net is trained"):
        build_job(TinyLearner(), make_net().requires_grad_(False), algorithm=FedOpt())


class TwoOptimizers(TinyLearner):
    """As a generator and its critic: each part has an optimizer of its own."""

    parts = (("0",), ("1",))
    how: ClassVar = {"lr": 0.05}

    def local_train(self) -> int:
        groups = [[getattr(self.net, name) for name in part] for part in self.parts]
        optimizers = [torch.optim.SGD([p for m in group for p in m.parameters()], **self.how) for group in groups]
        for _ in range(3):
            self.net.zero_grad()
            nn.functional.mse_loss(self.net(self.inputs), self.targets).backward()
            for optimizer in optimizers:
                optimizer.step()
        return 3


class OneOptimizer(TwoOptimizers):
    parts = (("0", "1"),)


def test_fedprox_pulls_each_weight_once_a_step() -> None:
    two, one = (
        test_drive(kind(), make_net(), algorithm=FedProxSite(5.0)).params for kind in (TwoOptimizers, OneOptimizer)
    )
    assert sha256(two) == sha256(one)


class Idle(OneOptimizer):
    """A weight that no loss reaches has no gradient, and so no weight decay."""

    how: ClassVar = {"lr": 0.05, "weight_decay": 0.5}

    def initialize(self) -> None:
        super().initialize()
        self.net = make_idle()
        self.idle = self.net[1].idle


def make_idle() -> nn.Module:
    net = make_net()
    net[1].idle = nn.Parameter(torch.ones(2))
    return net


def test_fedprox_leaves_alone_what_has_no_gradient() -> None:
    held = test_drive(Idle(), make_idle(), algorithm=FedProxSite(1.0)).params
    assert held["1.idle"].tolist() == [1, 1]
    assert not np.array_equal(held["1.weight"], to_numpy(make_idle().state_dict())["1.weight"])


class TwoRates(OneOptimizer):
    def local_train(self) -> int:
        groups = [{"params": self.net[0].parameters(), "lr": 0.1}, {"params": self.net[1].parameters(), "lr": 0.01}]
        optimizer = torch.optim.SGD(groups)
        nn.functional.mse_loss(self.net(self.inputs), self.targets).backward()
        optimizer.step()
        return 1


class Curved(TinyLearner):
    def local_train(self) -> int:
        optimizer = torch.optim.LBFGS(self.net.parameters())

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(self.net(self.inputs), self.targets)
            loss.backward()
            return loss

        optimizer.step(closure)
        return 1


@pytest.mark.parametrize(
    ("kind", "algorithm", "sentence"),
    [
        (TwoRates, Scaffold(), "one learning rate in a round, and local_train made learning rates from 0.01 to 0.1"),
        (TwoOptimizers, Scaffold(), "one optimizer for all of the net, and local_train has several"),
        (Curved, Scaffold(), "SCAFFOLD corrects the steps of SGD, and LBFGS makes several in one"),
        (Curved, FedProx(), "LBFGS makes its own gradients"),
    ],
)
def test_what_an_algorithm_cannot_correct_it_refuses(
    kind: type[TinyLearner], algorithm: FedAvg, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(LearnerError, match=sentence):
        federate(kind, make_net(), algorithm, tmp_path)


def test_lbfgs_goes_with_an_optimizer_on_the_server(tmp_path: Path) -> None:
    made, _ = federate(Curved, make_net(), FedOpt(), tmp_path)
    assert np.isfinite(made["1.weight"]).all()


class ZeroSteps(TinyLearner):
    """A site whose data are fewer than a batch."""

    def local_train(self) -> object:
        return super().local_train() if self.site_name == "a" else 0


@pytest.mark.parametrize("algorithm", ALL, ids=lambda one: one.name)
def test_a_site_that_makes_no_step_counts_for_nothing(algorithm: FedAvg, tmp_path: Path) -> None:
    one, _ = federate(ZeroSteps, make_net(), algorithm, tmp_path / "1", ["a"])
    two, _ = federate(ZeroSteps, make_net(), algorithm, tmp_path / "2", ["a", "b"])
    assert sha256(one) == sha256(two)


class HomeHead(OneOptimizer):
    keep_local = ("1.*",)


def test_what_stays_at_home_is_not_pulled_anywhere() -> None:
    first = to_numpy(make_net().state_dict())
    drives = {}
    for mu in (0.0, 15.0):
        learner = HomeHead()
        with placed(learner, "a", Signal()):
            learner.algorithm = FedProxSite(mu)
            learner.train(FLModel(params=first, meta={}))
            drives[mu] = learner.params()
    moved = {
        mu: {name: np.abs(value - first[name]).max() for name, value in made.items()} for mu, made in drives.items()
    }
    assert moved[15.0]["0.weight"] < 0.7 * moved[0.0]["0.weight"]
    assert moved[15.0]["1.weight"] > 0.9 * moved[0.0]["1.weight"]


class WeightNorm(TinyLearner):
    """The weight that such a net computes is no leaf, and torch will not copy it."""

    def initialize(self) -> None:
        super().initialize()
        self.net = make_weight_norm()
        self.net(self.inputs)


def make_weight_norm() -> nn.Module:
    net = make_net()
    with warnings.catch_warnings(record=True):  # torch has a newer one, and nets have this one
        nn.utils.weight_norm(net[1])
    return net


@pytest.mark.parametrize("algorithm", ALL, ids=lambda one: one.name)
def test_a_net_that_cannot_be_copied_is_trained_too(algorithm: FedAvg, tmp_path: Path) -> None:
    made, _ = federate(WeightNorm, make_weight_norm(), algorithm, tmp_path)
    assert not np.array_equal(made["1.weight_v"], to_numpy(make_weight_norm().state_dict())["1.weight_v"])


# --- cross-site evaluation: whose model, and is it whole? ---


def score_at_a_site(learner: PTModelLearner, folder: Path, owner: str, params: dict[str, np.ndarray]) -> float:
    start(learner, folder, "a", None)
    learner.shareable = Shareable()
    learner.shareable.set_header(AppConstants.MODEL_OWNER, owner)
    return learner.validate(FLModel(params=params, meta={})).metrics["loss"]


def test_a_model_of_the_server_must_be_whole(tmp_path: Path) -> None:
    """What it lacks would be scored as the site's net happens to begin: nobody would notice."""
    part = to_numpy(make_net(1).state_dict())
    del part["1.bias"]
    with pytest.raises(LearnerError, match=r"The model that came lacks 1.bias, which this net has"):
        score_at_a_site(TinyLearner(), tmp_path, "SRV_given.pt", part)


def test_another_site_s_model_lacks_what_stays_there(tmp_path: Path) -> None:
    class AtHome(TinyLearner):
        keep_local = ("1.bias",)

    part = to_numpy(make_net(1).state_dict())
    whole = score_at_a_site(
        TinyLearner(), tmp_path, "b", part | {"1.bias": to_numpy(make_net().state_dict())["1.bias"]}
    )
    del part["1.bias"]
    assert score_at_a_site(AtHome(), tmp_path, "b", part) == whole, "with this site's own, as it began"
    assert score_at_a_site(TinyLearner(), tmp_path, "b", part) == whole, "a filter may have taken it out, too"


# --- federations that are no plain FedAvg, in the simulator ---


def run_job(job: LearnerJob, runs: Path, **more: Any) -> Run:
    return simulate(job, runs=runs, progress=False, **more)


def test_given_models_are_scored_by_sites_with_names_of_their_own(runs: Path) -> None:
    models = {"first": make_net(1), "second": make_net(2).bfloat16(), "third": make_net(3)}
    run = run_job(build_evaluation(TinyLearner(), models, sites=["b", "alpha"]), runs)
    states = {name: net.state_dict() for name, net in models.items()}
    expected = score_models(TinyLearner(), states, ["b", "alpha"])
    assert run.sites == ("b", "alpha") and len(run.rounds) == 0
    pd.testing.assert_frame_equal(run.cross_site[list(models)].loc[["b", "alpha"]], expected, check_names=False)
    assert set(run.cross_site) == set(models)


class Slow(TinyLearner):
    def local_train(self) -> object:
        if self.site_name == "site-3" and self.current_round == 0:
            time.sleep(14)
        return super().local_train()


@pytest.mark.slow
def test_a_round_goes_on_without_a_slow_site_and_drops_what_comes_late(runs: Path) -> None:
    run = run_job(build_job(Slow(), make_net(), sites=3, min_sites=2, rounds=3, name="slow-site"), runs)
    assert run.missing[0] == ("site-3",)
    assert run.rounds["round"].max() == 2 and run.cross_site.notna().all(axis=None)
    plain = run_job(build_job(TinyLearner(), make_net(), sites=2, rounds=1, name="quick"), runs)
    first = run.rounds.query("round == 1 and site == 'site-1'")["loss"].item()
    net = make_net()
    net.load_state_dict(plain.global_model)
    assert first == pytest.approx(score_models(TinyLearner(), {"m": net.state_dict()}, ["site-1"]).loc["site-1", "m"])


@pytest.mark.slow
def test_a_workflow_that_draws_its_sites_and_stops_when_it_is_good_enough(runs: Path) -> None:
    """Who is not drawn before the end has no model of its own to show: the global one alone is evaluated."""
    workflow = FedAvgController(num_clients=2, num_rounds=30, stop_cond="loss <= 2.0")
    run = run_job(
        build_job(TinyLearner(), make_net(), sites=3, workflow=workflow, cross_site="global", name="drawn"), runs
    )
    rounds = run.rounds.groupby("round")
    assert (rounds.size() == 2).all() and len(rounds) < 30
    assert all(len(names) == 1 for names in run.missing.values()) and run.cross_site.notna().all(axis=None)


@pytest.mark.slow
def test_a_site_that_was_never_drawn_has_no_model_to_submit_and_the_rounds_are_safe(runs: Path) -> None:
    """README has it among what is known; with cross_site="global" nobody is asked."""
    workflow = FedAvgController(num_clients=1, num_rounds=1)
    job = build_job(TinyLearner(), make_net(), sites=2, workflow=workflow, name="undrawn")
    said = r"site-[12] failed in the cross-site evaluation \(submit_model\): .*: This site has no best model yet"
    with pytest.raises(SimulationError, match=said) as caught:
        run_job(job, runs)
    assert caught.value.run.rounds_kept == 1


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [FedOpt(), Scaffold()], ids=lambda one: one.name)
def test_parts_at_home_under_another_algorithm(algorithm: FedAvg, runs: Path, tmp_path: Path) -> None:
    job = build_job(HomeLineLearner(), make_buffers(), sites=["a", "b"], rounds=3, algorithm=algorithm, name="at-home")
    run = run_job(job, runs)
    made, own = federate(HomeLineLearner, make_buffers(), algorithm, tmp_path)
    for name, value in made.items():
        np.testing.assert_allclose(run.global_model[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
    for site in ("a", "b"):
        kept = torch.load(run.site_folder(site) / f"app_{site}" / "learner_state_2.pt", weights_only=True)["local"]
        for name, value in kept.items():
            np.testing.assert_allclose(value, own[site][name], rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.slow
def test_a_filter_that_takes_entries_out_leaves_them_at_the_server(runs: Path) -> None:
    names = [name for name in make_net().state_dict() if name.startswith("0.")]
    job = build_job(TinyLearner(), make_net(), rounds=2, site_filters=[ExcludeVars(names)], name="filtered")
    run = run_job(job, runs)
    for name, value in make_net().state_dict().items():
        assert torch.equal(run.global_model[name], value) == (name in names), name
    assert run.cross_site.notna().all(axis=None)


@pytest.mark.slow
@pytest.mark.parametrize("cross_site", ["global", "none"])
def test_no_site_s_own_model_leaves_for_another_where_that_is_asked(cross_site: str, runs: Path) -> None:
    run = run_job(build_job(TinyLearner(), make_net(), rounds=2, cross_site=cross_site, name=cross_site), runs)
    assert "submit_model" not in run.log("site-1")
    if cross_site == "global":
        assert list(run.cross_site) == ["global", "best global"]
    else:
        assert not run.cross_site_path.is_file()


class NetFromTheStart(TinyLearner):
    """Made in the constructor, not in initialize()."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_net()

    def initialize(self) -> None:
        PTModelLearner.initialize(self)
        self.inputs, self.targets = points_of(self.site_name)


def test_a_net_that_the_constructor_makes_is_there_for_the_next_drive() -> None:
    learner = NetFromTheStart()
    first = sha256(test_drive(learner, make_net(1)).params)
    assert sha256(test_drive(learner, make_net(1)).params) == first


class SparseLearner(TinyLearner):
    def initialize(self) -> None:
        super().initialize()
        self.net, self.inputs, self.targets = make_words(), torch.arange(10), torch.ones(10, 1)


def make_words() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(10, 1, sparse=True))


def test_fedprox_pulls_where_gradients_are_sparse() -> None:
    first = to_numpy(make_words().state_dict())["0.weight"]
    free, held = (
        test_drive(SparseLearner(), make_words(), algorithm=FedProxSite(mu)).params["0.weight"] for mu in (0.0, 10.0)
    )
    assert 0 < np.abs(held - first).sum() < 0.9 * np.abs(free - first).sum()
