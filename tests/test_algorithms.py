"""FedProx, FedOpt and SCAFFOLD: each against the few lines of its paper, and to the bit where bits are promised."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLMetaKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.shareablegenerators.full_model_shareable_generator import FullModelShareableGenerator
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from torch.nn.functional import cross_entropy

from dl.train import Net, load_data, make_loader
from faults.faulty_scaffold import FaultyScaffoldLearner
from fl.by_hand import federated_averaging
from fl.job import build_job
from fl.model_learner import CIFAR10ModelLearner
from tutorial_utils.algorithms.aggregator import OrderedAggregator
from tutorial_utils.algorithms.fedopt import DifferenceSite, ServerOptimizer, shapes_of
from tutorial_utils.algorithms.fedprox import FedProxSite
from tutorial_utils.algorithms.registry import ALGORITHMS, FedAvg, FedOpt, FedProx
from tutorial_utils.algorithms.scaffold import CHANGE, CONTROLS, STATE, WEIGHTS, ScaffoldSite
from tutorial_utils.algorithms.steps import at_each_step
from tutorial_utils.data import Dataset
from tutorial_utils.drive import place, test_drive
from tutorial_utils.errors import SimulationError, TutorialError
from tutorial_utils.job import build_job as build_any_job
from tutorial_utils.learner import LearnerError, round_seed, to_numpy
from tutorial_utils.partition import split_dataset
from tutorial_utils.results import Run, read_model, sha256
from tutorial_utils.round_metrics import FLARES, class_path
from tutorial_utils.settings import Training
from tutorial_utils.simulate import simulate

CODE = Path(__file__).parents[1] / "code"
HOW = {"batch_size": 64, "lr": 0.05, "momentum": 0.9}  # one to ten steps a round
ROUNDS = 3
SETTINGS = {
    "fedprox": {"mu": 1.0},
    "fedopt": {"server_lr": 0.7, "server_momentum": 0.6},
    "scaffold": {},
}
SHIPPED = {"dl/train.py", "fl/model_learner.py", "tutorial_utils/algorithms/aggregator.py"}
SHIPPED |= {f"tutorial_utils/{name}.py" for name in ("learner", "keep", "metric", "values")}
Params = list[torch.Tensor]


@pytest.fixture(scope="module")
def five(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five unequal sites: more than two, so that the order of a sum matters."""
    return split_dataset(digits.folder, 5, alpha=0.5, seed=1, out=tmp_path_factory.mktemp("five") / "sites")


# --- the algorithms once more, by hand ---


def train_by_hand(
    start: Params, folder: Path, seed: int, mu: float = 0.0, correction: Params | None = None
) -> tuple[Params, int]:
    """SGD with momentum on cross-entropy + mu/2 |w - start|^2; `correction` is added to each step, times -lr."""
    net, steps = Net(), 0
    weights = list(net.parameters())
    with torch.no_grad():
        for weight, value in zip(weights, start, strict=True):
            weight.copy_(value)
    velocity = [torch.zeros_like(weight) for weight in weights]
    for images, labels in make_loader(load_data(folder).train, HOW["batch_size"], seed):
        slopes = torch.autograd.grad(cross_entropy(net(images / 127.5 - 1), labels), weights)
        with torch.no_grad():
            for k, (weight, slope) in enumerate(zip(weights, slopes, strict=True)):
                velocity[k] = HOW["momentum"] * velocity[k] + slope + mu * (weight - start[k])
                weight -= HOW["lr"] * (velocity[k] + (correction[k] if correction else 0))
        steps += 1
    return [weight.detach() for weight in weights], steps


def mean(values: Sequence[Params], steps: Sequence[int]) -> Params:
    return [sum(n * v for n, v in zip(steps, column, strict=True)) / sum(steps) for column in zip(*values, strict=True)]


def minus(one: Params, other: Params) -> Params:
    return [a - b for a, b in zip(one, other, strict=True)]


def federate_by_hand(folders: Sequence[Path], algorithm: str, rounds: int = ROUNDS, **settings: float) -> dict:
    """The global weights after some rounds of one algorithm, as its paper has it (weights by steps, as FLARE)."""
    weights = [weight.detach().clone() for weight in Net().parameters()]
    zeros = [torch.zeros_like(weight) for weight in weights]
    velocity, everyones = zeros, zeros
    own = dict.fromkeys(folders, zeros)
    for number in range(rounds):
        trained, steps, changes = [], [], []
        for folder in folders:
            correction = minus(everyones, own[folder]) if algorithm == "scaffold" else None
            seed = round_seed(0, folder.name, number)
            local, count = train_by_hand(weights, folder, seed, settings.get("mu", 0.0), correction)
            if algorithm == "scaffold":
                drift = [d / (count * HOW["lr"]) for d in minus(weights, local)]
                renewed = [mine - all_ + d for mine, all_, d in zip(own[folder], everyones, drift, strict=True)]
                changes.append(minus(renewed, own[folder]))
                own[folder] = renewed
            trained.append(local)
            steps.append(count)
        average = mean(trained, steps)
        if algorithm == "fedopt":
            difference = minus(average, weights)
            momentum, lr = settings["server_momentum"], settings["server_lr"]
            velocity = [momentum * v + d for v, d in zip(velocity, difference, strict=True)]
            weights = [w + lr * v for w, v in zip(weights, velocity, strict=True)]
        else:
            weights = average
        if algorithm == "scaffold":
            everyones = [c + d for c, d in zip(everyones, mean(changes, steps), strict=True)]
    return dict(zip(Net().state_dict(), weights, strict=True))


def train_once(site: Path, number: int, params: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
    """What plain training makes of these weights in this round, and its steps."""
    learner = CIFAR10ModelLearner(str(site.parent), **HOW)
    with tempfile.TemporaryDirectory() as folder:
        place(learner, site.name, folder, Signal())
        learner.initialize()
        learner.current_round = number
        result = learner.train(FLModel(params=params, meta={}))
    return result.params, result.meta[FLMetaKey.NUM_STEPS_CURRENT_ROUND]


def average_differences(folders: Sequence[Path], rounds: int) -> dict[str, np.ndarray]:
    """FedAvg that exchanges differences, in FLARE's order of arithmetic, to the bit."""
    params = to_numpy(Net().state_dict())
    for number in range(rounds):
        total, sums = 0, {}
        for folder in folders:
            trained, steps = train_once(folder, number, params)
            total += steps
            for name, value in trained.items():
                sums[name] = sums.get(name, 0) + (value - params[name]) * float(steps)
        params = {name: value + sums[name] * (1.0 / total) for name, value in params.items()}
    return params


def assert_close(params: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(params) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(np.asarray(params[name]), np.asarray(value), rtol=0, atol=1e-6)


def differs(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return max(np.abs(np.asarray(one[name]) - np.asarray(other[name])).max() for name in one) > 1e-4


# --- the parts of FLARE and ours, in this process ---


class Server:
    """The aggregator and the shareable generator of a job, driven as ScatterAndGather drives them."""

    def __init__(self, kind: Any = "WEIGHTS", generator: Any = None) -> None:
        self.fatal: list[str] = []
        engine = SimpleNamespace(fire_event=self._event, build_component=self._build, get_component=lambda name: None)
        self.fl_ctx: FLContext = FLContextManager(engine, "server", "test", {}, {}).new_context()
        self.aggregator, self.generator = OrderedAggregator(kind), generator or FullModelShareableGenerator()
        self.model = make_model_learnable(to_numpy(Net().state_dict()), {})
        for part in (self.aggregator, self.generator):
            part.handle_event(EventType.START_RUN, self.fl_ctx)

    def _event(self, event: str, fl_ctx: FLContext) -> None:
        if event == EventType.FATAL_SYSTEM_ERROR:
            self.fatal.append(str(fl_ctx.get_prop("__event_data__")))

    @staticmethod
    def _build(config: dict) -> torch.optim.Optimizer:
        assert config["path"] == "torch.optim.SGD"
        return torch.optim.SGD(**config["args"])

    @property
    def weights(self) -> dict[str, np.ndarray]:
        return {name: value.copy() for name, value in self.model["weights"].items()}

    def average(self, answers: dict[str, Shareable], number: int = 0) -> DXO:
        """The answers in this order of arrival: the mean."""
        self.fl_ctx.set_prop(AppConstants.CURRENT_ROUND, number, private=True, sticky=True)
        self.fl_ctx.set_prop(AppConstants.GLOBAL_MODEL, self.model, private=True, sticky=True)
        for site, answer in answers.items():
            answer.set_peer_props({ReservedKey.IDENTITY_NAME: site})
            answer.add_cookie(AppConstants.CONTRIBUTION_ROUND, number)
            assert self.aggregator.accept(answer, self.fl_ctx)
        return from_shareable(self.aggregator.aggregate(self.fl_ctx))

    def update(self, average: DXO) -> None:
        self.model = self.generator.shareable_to_learnable(average.to_shareable(), self.fl_ctx)


def answer(params: dict[str, Any], steps: int, kind: ParamsType = ParamsType.FULL) -> Shareable:
    meta = {FLMetaKey.NUM_STEPS_CURRENT_ROUND: steps}
    return FLModelUtils.to_shareable(FLModel(params_type=kind, params=params, meta=meta))


def federate_in_process(
    folders: Sequence[Path],
    algorithm: str,
    work: Path,
    rounds: int = ROUNDS,
    order: Callable[[dict], dict] = dict,
    **settings: float,
) -> dict[str, np.ndarray]:
    """The learners and the server's parts of a job, without FLARE's processes and messages."""
    parts = ALGORITHMS[algorithm](**settings)
    server = Server(parts.sends, parts.generator(Net()))
    controls = {name: np.zeros_like(value) for name, value in server.weights.items()}
    learners = {folder.name: CIFAR10ModelLearner(str(folder.parent), **HOW) for folder in folders}
    for site, learner in learners.items():
        learner.algorithm = parts.site() or learner.algorithm
        (work / site).mkdir()
        place(learner, site, str(work / site), Signal())
        learner.initialize()
    for number in range(rounds):
        message: dict[str, Any] = server.weights
        if algorithm == "scaffold":
            message = {WEIGHTS: DXO(DataKind.WEIGHTS, message), CONTROLS: DXO(DataKind.WEIGHT_DIFF, controls)}
        answers = {}
        for site, learner in learners.items():
            learner.current_round = number
            answers[site] = FLModelUtils.to_shareable(learner.train(FLModel(params=message, meta={})))
        average = server.average(order(answers), number)
        if algorithm == "scaffold":
            change = average.data[CHANGE].data
            controls = {name: value + change[name] for name, value in controls.items()}
            average = average.data[WEIGHTS]
        server.update(average)
    return server.weights


def backwards(answers: dict) -> dict:
    return dict(reversed(answers.items()))


@pytest.mark.parametrize("algorithm", SETTINGS)
def test_five_unequal_sites_do_what_the_paper_says_in_any_order_of_arrival(
    algorithm: str, five: list[Path], tmp_path: Path
) -> None:
    made = []
    for name, order in (("forward", dict), ("backward", backwards)):
        (tmp_path / name).mkdir()
        made.append(federate_in_process(five, algorithm, tmp_path / name, order=order, **SETTINGS[algorithm]))
    assert sha256(made[0]) == sha256(made[1])
    assert_close(made[0], federate_by_hand(five, algorithm, **SETTINGS[algorithm]))
    assert differs(made[0], federate_by_hand(five, "fedavg")), "it is no FedAvg"


def test_fedavg_by_hand_is_the_one_that_the_others_are_compared_with(five: list[Path]) -> None:
    assert_close(federated_averaging(five, ROUNDS, **HOW), federate_by_hand(five, "fedavg"))


def test_mu_0_gives_the_bits_of_fedavg(sites: list[Path]) -> None:
    data, first = str(sites[0].parent), Net().state_dict()
    plain = test_drive(CIFAR10ModelLearner(data, batch_size=8), first, rounds=2)
    for mu, equal in ((0.0, True), (1e-3, False)):
        drive = test_drive(CIFAR10ModelLearner(data, batch_size=8), first, rounds=2, algorithm=FedProxSite(mu))
        assert (sha256(drive.params) == sha256(plain.params)) == equal
        assert drive.steps == plain.steps


def test_a_large_mu_holds_the_site_near_the_global_model(sites: list[Path]) -> None:
    data, first = str(sites[0].parent), to_numpy(Net().state_dict())
    moved = []
    for mu in (0.0, 1.0, 10.0):
        params = test_drive(
            CIFAR10ModelLearner(data, batch_size=8, momentum=0.0), first, algorithm=FedProxSite(mu)
        ).params
        moved.append(math.sqrt(sum(((params[name] - first[name]) ** 2).sum() for name in first)))
    assert moved == sorted(moved, reverse=True) and moved[2] < moved[0] / 2


def test_server_lr_1_without_momentum_gives_the_bits_of_averaged_differences(five: list[Path], tmp_path: Path) -> None:
    made = federate_in_process(five, "fedopt", tmp_path, server_lr=1.0, server_momentum=0.0)
    assert sha256(made) == sha256(average_differences(five, ROUNDS))


def test_the_server_steps_from_the_global_model_and_not_from_its_first_weights() -> None:
    """After a resume, the global model is that of the checkpoint."""
    server = Server("WEIGHT_DIFF", ServerOptimizer(shapes_of(Net(0))))
    checkpoint = to_numpy(Net(7).state_dict())
    server.model = make_model_learnable(dict(checkpoint), {})
    change = {name: np.full_like(value, 0.5) for name, value in checkpoint.items()}
    server.update(server.average({"site-1": answer(change, 3, ParamsType.DIFF)}))
    assert_close(server.weights, {name: value + 0.5 for name, value in checkpoint.items()})


def test_the_server_s_momentum_worked_by_hand() -> None:
    server = Server("WEIGHT_DIFF", ServerOptimizer(shapes_of(Net()), server_lr=0.5, server_momentum=0.8))
    first = server.weights
    for number, (moved, expected) in enumerate([(1.0, 0.5), (1.0, 1.4), (0.0, 2.12)]):
        # velocity 1, 1.8, 1.44; half of each is added: 0.5, 0.9, 0.72
        change = {name: np.full_like(value, moved) for name, value in first.items()}
        server.update(server.average({"site-1": answer(change, 1, ParamsType.DIFF)}, number))
        assert_close(server.weights, {name: value + expected for name, value in first.items()})


@pytest.mark.parametrize(("kind", "data_kind"), [(ParamsType.FULL, "WEIGHTS"), (ParamsType.DIFF, "WEIGHT_DIFF")])
def test_unequal_sites_weigh_by_their_steps(kind: ParamsType, data_kind: str) -> None:
    """Steps 1, 3 and 6: (1 * 10 + 3 * 20 + 6 * 40) / 10 = 31, and (1 * 1 - 3 * 2 + 6 * 0.5) / 10 = -0.2."""
    values = {"site-1": (1, [10.0, 1.0]), "site-2": (3, [20.0, -2.0]), "site-3": (6, [40.0, 0.5])}
    answers = {s: answer({"w": np.array(v, np.float32)}, steps, kind) for s, (steps, v) in values.items()}
    np.testing.assert_allclose(Server(data_kind).average(answers).data["w"], [31.0, -0.2], rtol=1e-6)


def test_controls_weigh_by_steps_too() -> None:
    """Steps 1 and 3: weights (1 * 4 + 3 * 8) / 4 = 7, controls (1 * 2 - 3 * 2) / 4 = -1."""
    answers = {}
    for site, steps, weight, control in (("site-1", 1, 4.0, 2.0), ("site-2", 3, 8.0, -2.0)):
        meta = {FLMetaKey.NUM_STEPS_CURRENT_ROUND: steps}
        parts = {WEIGHTS: (DataKind.WEIGHTS, weight), CHANGE: (DataKind.WEIGHT_DIFF, control)}
        data = {name: DXO(kind, {"w": np.array([v], np.float32)}, meta) for name, (kind, v) in parts.items()}
        answers[site] = answer(data, steps)
    average = Server(ALGORITHMS["scaffold"].sends).average(answers).data
    assert average[WEIGHTS].data["w"] == 7 and average[CHANGE].data["w"] == -1


@pytest.mark.parametrize(
    ("algorithm", "wrong"),
    [("fedavg", ParamsType.DIFF), ("fedopt", ParamsType.FULL), ("scaffold", "difference"), ("scaffold", "plain")],
)
def test_another_kind_than_the_algorithm_s_is_refused(algorithm: str, wrong: Any) -> None:
    server = Server(ALGORITHMS[algorithm].sends)
    data: dict[str, Any] = {"w": np.zeros(2, np.float32)}
    if wrong == "difference":
        data = {name: DXO(DataKind.WEIGHT_DIFF, data) for name in (WEIGHTS, CHANGE)}
    server.average({"site-2": answer(data, 1, wrong if isinstance(wrong, ParamsType) else ParamsType.FULL)})
    assert any("refused site-2's update" in reason for reason in server.fatal)


def test_scaffold_starts_as_fedavg(five: list[Path], tmp_path: Path) -> None:
    made = federate_in_process(five, "scaffold", tmp_path, rounds=1)
    assert sha256(made) == sha256(federated_averaging(five, 1, **HOW)), "the first controls are 0"


def test_a_new_process_goes_on_with_the_site_s_controls(sites: list[Path], tmp_path: Path) -> None:
    weights = to_numpy(Net().state_dict())
    controls = [{name: np.full_like(value, size) for name, value in weights.items()} for size in (0, 1e-3)]
    messages = [{WEIGHTS: DXO(DataKind.WEIGHTS, weights), CONTROLS: DXO(DataKind.WEIGHT_DIFF, one)} for one in controls]
    ends = []
    for anew in (False, True):
        folder = tmp_path / str(anew)
        folder.mkdir()
        learner = None
        for number, message in enumerate(messages):
            if learner is None or anew:
                learner = CIFAR10ModelLearner(str(sites[0].parent), **HOW)
                learner.algorithm = ScaffoldSite()
                place(learner, "site-1", str(folder), Signal())
                learner.initialize()
            learner.current_round = number
            result = learner.train(FLModel(params=message, meta={}))
        ends.append(result.params)
    for part in (WEIGHTS, CHANGE):
        assert sha256(ends[0][part].data) == sha256(ends[1][part].data)
    plain, _ = train_once(sites[0], 1, weights)
    assert differs(ends[0][WEIGHTS].data, plain), "the controls were at work"


def test_where_the_server_begins_anew_the_sites_do(sites: list[Path], tmp_path: Path) -> None:
    """A resumed run keeps the sites' controls, not the server's: one without the other corrects the wrong way."""
    weights = to_numpy(Net().state_dict())
    zeros = {name: np.zeros_like(value) for name, value in weights.items()}
    message = {WEIGHTS: DXO(DataKind.WEIGHTS, weights), CONTROLS: DXO(DataKind.WEIGHT_DIFF, zeros)}
    learner = CIFAR10ModelLearner(str(sites[0].parent), **HOW)
    learner.algorithm = ScaffoldSite()
    place(learner, "site-1", str(tmp_path), Signal())
    learner.initialize()
    for learner.current_round in range(2):
        result = learner.train(FLModel(params=message, meta={}))
    plain, _ = train_once(sites[0], 1, weights)
    assert sha256(result.params[WEIGHTS].data) == sha256(plain), "with no controls anywhere it is plain training"


def test_aborted_training_leaves_the_controls_alone(sites: list[Path], tmp_path: Path) -> None:
    weights = to_numpy(Net().state_dict())
    message = {name: DXO(DataKind.WEIGHTS, weights) for name in (WEIGHTS, CONTROLS)}
    learner, signal = CIFAR10ModelLearner(str(sites[0].parent), **HOW), Signal()
    learner.algorithm = ScaffoldSite()
    place(learner, "site-1", str(tmp_path), signal)
    learner.initialize()
    signal.trigger("test")
    learner.current_round = 0
    assert learner.train(FLModel(params=message, meta={})) == ReturnCode.TASK_ABORTED
    assert STATE not in learner.state and not list(tmp_path.glob("learner_state_*"))


def test_scaffold_without_a_server_that_knows_it_says_so(sites: list[Path]) -> None:
    with pytest.raises(LearnerError, match="sent no controls"):
        test_drive(CIFAR10ModelLearner(str(sites[0].parent), **HOW), Net(), algorithm=ScaffoldSite())


def test_a_difference_is_what_training_changed(sites: list[Path]) -> None:
    data, first = str(sites[0].parent), Net().state_dict()
    full = test_drive(CIFAR10ModelLearner(data, batch_size=8), first)
    difference = test_drive(CIFAR10ModelLearner(data, batch_size=8), first, algorithm=DifferenceSite())
    assert_close(difference.params, full.params)
    aborted = test_drive(CIFAR10ModelLearner(data, epochs=1_000), first, algorithm=DifferenceSite(), abort_after=0.3)
    assert aborted.return_code == ReturnCode.TASK_ABORTED


def test_only_the_steps_of_this_net_are_seen_and_only_inside() -> None:
    nets = [torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in nets]
    seen: list[str] = []

    def step() -> None:
        for net, optimizer in zip(nets, optimizers, strict=True):
            net(torch.ones(1, 2)).sum().backward()
            optimizer.step()

    with pytest.raises(ZeroDivisionError), at_each_step(nets[0], before=lambda optimizer: seen.append("before")):
        with at_each_step(nets[0], after=lambda optimizer: seen.append("after")):
            step()
        step()
        raise ZeroDivisionError
    step()
    assert seen == ["before", "after", "before"]


# --- the choice ---


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: FedProx(mu=-0.1), "mu is -0.1: it must be 0 or more"),
        (lambda: FedProx(mu=math.nan), "mu is nan"),
        (lambda: FedOpt(server_lr=0), "server_lr is 0: it must be more than 0"),
        (lambda: FedOpt(server_lr=math.inf), "server_lr is inf"),
        (lambda: FedOpt(server_momentum=1.0), "server_momentum is 1.0: it must be from 0 to less than 1"),
        (lambda: FedProx(mu="much"), "mu is 'much'"),
        (
            lambda: build_job("$SITE_DATA", algorithm=FedProx(), client="executor"),
            "fedprox is written for client='learner'",
        ),
    ],
)
def test_a_choice_that_makes_no_sense(make: Callable[[], object], hint: str) -> None:
    with pytest.raises(TutorialError) as caught:
        make()
    assert hint in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_command_line_builds_the_algorithm_and_refuses_before_it_fetches_data(
    sites: list[Path], tmp_path: Path
) -> None:
    command = [sys.executable, CODE / "fl/job.py", "--algorithm", "fedopt"]
    chosen = ["--server-lr", "0.5", "--data", sites[0].parent, "--export", tmp_path]
    subprocess.run([*command, *chosen], check=True, capture_output=True)
    server = json.loads((tmp_path / "fedopt/app/config/config_fed_server.json").read_text())
    (generator,) = (part for part in server["components"] if part["id"] == "shareable_generator")
    assert generator["args"] == {"shapes": shapes_of(Net()), "server_lr": 0.5, "server_momentum": 0.6}
    done = subprocess.run([*command, "--mu", "1", "--source", "nowhere"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "mu is a setting of fedprox, and the algorithm is fedopt.\n"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_job_of_each_algorithm_ships_what_it_needs_and_no_more(algorithm: str, tmp_path: Path) -> None:
    job = build_job("$SITE_DATA", algorithm=ALGORITHMS[algorithm]())
    assert job.name == ("modellearner" if algorithm == "fedavg" else algorithm)
    job.export_job(str(tmp_path))
    custom = tmp_path / job.name / "app/custom"
    own = {
        "fedavg": set(),
        "fedprox": {"fedprox.py", "steps.py"},
        "fedopt": {"fedopt.py"},
        "scaffold": {"scaffold.py", "steps.py"},
    }
    shipped = {str(path.relative_to(custom)) for path in custom.rglob("*.py")}
    where_flare_has_none = set() if class_path() == FLARES else {"tutorial_utils/round_metrics.py"}
    assert shipped == SHIPPED | where_flare_has_none | {f"tutorial_utils/algorithms/{name}" for name in own[algorithm]}


# --- in FLARE's simulator ---


def run_job(folders: list[Path], runs: Path, algorithm: FedAvg, rounds: int = ROUNDS, resume: Run | None = None) -> Run:
    job = build_job(folders[0].parent, len(folders), rounds, Training(**HOW), algorithm=algorithm)
    return simulate(job, runs=runs, progress=False, resume_from=resume)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", SETTINGS)
def test_a_run_does_what_the_paper_says_and_leaves_a_whole_run(algorithm: str, sites: list[Path], runs: Path) -> None:
    run = run_job(sites, runs, ALGORITHMS[algorithm](**SETTINGS[algorithm]))
    assert_close(run.global_model, federate_by_hand(sites, algorithm, **SETTINGS[algorithm]))
    assert run.rounds.groupby("round")["site"].agg(list).tolist() == [["site-1", "site-2"]] * ROUNDS
    assert run.rounds["accuracy"].between(0, 1).all() and (run.rounds["weight"] > 0).all()
    assert list(run.cross_site.columns) == ["global", "best global", "site-1", "site-2"]
    assert run.cross_site.notna().all(axis=None)
    assert set(read_model(run.global_model_path)) == set(
        read_model(run.global_model_path.with_name("best_FL_global_model.pt"))
    )


@pytest.mark.slow
def test_five_sites_that_race_give_the_bits_of_one_process(five: list[Path], runs: Path, tmp_path: Path) -> None:
    run = run_job(five, runs, ALGORITHMS["scaffold"](), rounds=2)
    assert run.sha256 == sha256(federate_in_process(five, "scaffold", tmp_path, rounds=2))


@pytest.mark.slow
def test_fedopt_goes_on_from_the_checkpoint(sites: list[Path], runs: Path) -> None:
    fedopt = FedOpt(server_lr=1.0, server_momentum=0.0)
    cut = run_job(sites, runs, fedopt, rounds=1)
    whole = run_job(sites, runs, fedopt, rounds=2, resume=cut)
    assert cut.sha256 == sha256(average_differences(sites, 1))
    assert whole.sha256 == sha256(average_differences(sites, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (
            "nan",
            "site-2 failed in round 1: its update is wrong: in scaffold_c_diff, fc3.bias holds numbers that are not",
        ),
        ("difference", "the aggregator refused site-2's update"),
    ],
)
def test_controls_and_weights_of_a_faulty_site_are_refused(
    fault: str, text: str, sites: list[Path], runs: Path
) -> None:
    learner = FaultyScaffoldLearner(str(sites[0].parent), fault=fault, **HOW)
    job = build_any_job(learner, Net(), rounds=ROUNDS, algorithm=ALGORITHMS["scaffold"]())
    with pytest.raises(SimulationError) as caught:
        simulate(job, runs=runs, progress=False)
    assert text in str(caught.value).splitlines()[0]
