"""DP-SGD in a script's own loop: what it does to the weights, what it says that it costs, what it refuses."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from at_site import sent, start
from dl.train import Net, load_data, make_loader, train
from fl.model_learner import CIFAR10ModelLearner
from privacy.dp_cost import cost_of_noise
from privacy.dp_learner import PrivateLearner
from tiny import TinyLearner
from tutorial_utils import job as general
from tutorial_utils._ship import find_files
from tutorial_utils.algorithms.fedprox import FedProxSite
from tutorial_utils.dpsgd import STATE, epsilon_spent, private_steps
from tutorial_utils.results import sha256
from tutorial_utils.settings import Training
from tutorial_utils.simulate import simulate
from tutorial_utils.values import LearnerError

IMAGES, BATCH = 64, 8
STEPS = IMAGES // BATCH
DELTA = 1e-5


@pytest.fixture
def learner(sites: list[Path], tmp_path: Path) -> PrivateLearner:
    """At site-1, with a few of its images; its noise is the seed's."""
    return make(sites, tmp_path)


def make(sites: list[Path], folder: Path, number: int = 0, **settings: object) -> PrivateLearner:
    settings = {"batch_size": BATCH, "secret": False, **settings}
    learner = start(PrivateLearner(str(sites[0].parent), **settings), folder, number=number)
    learner.images = learner.images._replace(train=Subset(learner.images.train, range(IMAGES)))
    return learner


def loader_of(learner: PrivateLearner, seed: int = 5) -> DataLoader:
    return make_loader(learner.images.train, BATCH, seed)


def apart(one: torch.nn.Module, other: torch.nn.Module) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def weights(net: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten() for value in net.state_dict().values()])


# What it does to the weights


def test_without_noise_clip_and_sampling_it_is_the_script(learner: PrivateLearner) -> None:
    """To rounding: per-image gradients are added up in another order. Three epochs of whole batches."""
    with private_steps(learner, loader_of(learner), 0, math.inf, poisson=False) as batches:
        steps = train(learner.net, batches, 3)
    plain = Net(0)
    assert train(plain, loader_of(learner), 3) == steps == 3 * STEPS
    assert apart(learner.net, Net(0)) > 1e-2 and apart(learner.net, plain) < 1e-5


def test_no_image_moves_the_weights_by_more_than_the_clip(learner: PrivateLearner) -> None:
    before, clip = weights(learner.net), 0.01
    with private_steps(learner, loader_of(learner), 0, clip, poisson=False) as batches:
        train(learner.net, [next(iter(batches))], lr=1.0, momentum=0.0)
    step = float((weights(learner.net) - before).norm())
    assert 0 < step <= clip * 1.001  # the mean over a batch of gradients no longer than clip


def test_the_noise_has_the_size_that_was_asked_for(learner: PrivateLearner) -> None:
    before, noise, clip = weights(learner.net), 100.0, 0.5
    with private_steps(learner, loader_of(learner), noise, clip, poisson=False) as batches:
        train(learner.net, [next(iter(batches))], lr=1.0, momentum=0.0)
    assert float((weights(learner.net) - before).std()) == pytest.approx(noise * clip / BATCH, rel=0.02)


def test_batches_are_drawn_image_by_image(learner: PrivateLearner) -> None:
    with private_steps(learner, loader_of(learner), 1, 1) as batches:
        sizes = [len(labels) for _ in range(50) for _, labels in batches]
    assert len(sizes) == 50 * STEPS and len(set(sizes)) > 5
    assert sum(sizes) / len(sizes) == pytest.approx(BATCH, rel=0.1)


def test_a_batch_without_an_image_is_a_step_of_noise(learner: PrivateLearner) -> None:
    loader = make_loader(Subset(learner.images.train, range(4)), 1, 0)
    with private_steps(learner, loader, 1, 1) as batches:
        assert train(learner.net, batches, 20) == 80
    assert torch.isfinite(weights(learner.net)).all()
    assert learner.state[STATE]["history"] == [(1, 0.25, 80)]


def test_the_net_is_as_it_was_but_for_its_weights(learner: PrivateLearner) -> None:
    names = list(learner.net.state_dict())
    with private_steps(learner, loader_of(learner), 1, 1) as batches:
        train(learner.net, batches)
    assert list(learner.net.state_dict()) == names
    assert not [hook for module in learner.net.modules() for hook in module._forward_hooks.values()]
    assert not any(hasattr(param, "grad_sample") for param in learner.net.parameters())
    other = Net(0)
    other.load_state_dict(learner.net.state_dict())
    for net in (learner.net, other):  # and what trains after it trains as ever
        train(net, loader_of(learner))
    assert apart(learner.net, other) == 0


def test_noise_of_the_machine_differs_from_run_to_run_and_of_the_seed_does_not(
    sites: list[Path], tmp_path: Path
) -> None:
    made = {}
    for secret in (True, False):
        for number in (0, 1):
            folder = tmp_path / f"{secret}-{number}"
            folder.mkdir()
            made[secret, number] = sha256(make(sites, folder, secret=secret).train(sent(Net(0))).params)
    assert made[False, 0] == made[False, 1] and len({made[True, 0], made[True, 1], made[False, 0]}) == 3


# What it says that it costs


def test_epsilon_is_opacus_s_over_all_rounds(learner: PrivateLearner) -> None:
    opacus = pytest.importorskip("opacus")
    assert epsilon_spent(learner, DELTA) == 0
    for learner.current_round in range(3):
        learner.train(sent(Net(0)))
    accountant = opacus.accountants.RDPAccountant()
    for _ in range(3 * STEPS):
        accountant.step(noise_multiplier=1.0, sample_rate=BATCH / IMAGES)
    assert epsilon_spent(learner, DELTA) == accountant.get_epsilon(DELTA) > 0
    assert learner.local_validate("valid")["epsilon"] == epsilon_spent(learner, DELTA)


def test_other_noise_in_a_later_round_is_counted_as_such(learner: PrivateLearner) -> None:
    for learner.noise in (2.0, 0.7):
        learner.local_train()
    assert learner.state[STATE]["history"] == [(2.0, 0.125, STEPS), (0.7, 0.125, STEPS)]
    assert epsilon_spent(learner, DELTA) > epsilon_spent(learner, 1e-3)


def test_without_noise_epsilon_is_infinite_for_good(learner: PrivateLearner) -> None:
    for learner.noise in (0.0, 1.0):
        learner.local_train()
    assert math.isinf(epsilon_spent(learner, DELTA))


def test_a_process_that_is_started_anew_goes_on_with_the_account(sites: list[Path], tmp_path: Path) -> None:
    first, second = tmp_path / "whole", tmp_path / "cut"
    for folder in (first, second):
        folder.mkdir()
    whole, cut = make(sites, first), make(sites, second)
    model = whole.train(sent(Net(0)))
    assert sha256(cut.train(sent(Net(0))).params) == sha256(model.params)
    again = make(sites, second, number=1)
    whole.current_round = 1
    ends = [one.train(model).params for one in (whole, again)]
    assert sha256(ends[0]) == sha256(ends[1])
    assert epsilon_spent(again, DELTA) == epsilon_spent(whole, DELTA) > epsilon_spent(cut, DELTA) > 0


@pytest.mark.slow
def test_a_federation_tells_what_it_costs_and_a_resumed_one_the_same(sites: list[Path], tmp_path: Path) -> None:
    learner = PrivateLearner(str(sites[0].parent), batch_size=BATCH, secret=False, delta=1e-4)
    whole, cut, resumed = (general.build_job(learner, Net(0), rounds=rounds) for rounds in (2, 1, 2))
    whole, cut = (simulate(job, runs=tmp_path, progress=False) for job in (whole, cut))
    resumed = simulate(resumed, runs=tmp_path, resume_from=cut, progress=False)
    assert whole.sha256 == resumed.sha256 and whole.rounds.equals(resumed.rounds)
    spent = whole.matrix("epsilon")
    assert spent.equals(resumed.matrix("epsilon")) and (spent.nunique(axis=1) == 1).all()
    first, last = (whole.rounds[whole.rounds["round"] == number].set_index("site") for number in (0, 1))
    assert (first["epsilon"] == 0).all() and (last["epsilon"] > 0).all()
    assert (last["epsilon"] < spent["global"]).all()
    assert (last["accuracy"] > first["accuracy"]).any()
    assert list(whole.global_model) == list(Net(0).state_dict())


# What it refuses


def test_a_missing_opacus_is_a_sentence(learner: PrivateLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(LearnerError, match="needs Opacus at every site: pip install opacus"):
        learner.train(sent(Net(0)))


def test_a_net_that_mixes_images_is_refused(tmp_path: Path) -> None:
    learner = start(TinyLearner(), tmp_path)
    loader = DataLoader(torch.utils.data.TensorDataset(learner.inputs, learner.targets), 2)
    with (
        pytest.raises(LearnerError, match=r"cannot be trained privately: .*BatchNorm.* build the net with GroupNorm"),
        private_steps(learner, loader, 1, 1),
    ):
        pass


def test_fedprox_is_refused(learner: PrivateLearner) -> None:
    learner.algorithm = FedProxSite(0.1)
    with pytest.raises(LearnerError, match="FedProx adds its pull"):
        learner.train(sent(Net(0)))


@pytest.mark.parametrize(
    ("noise", "clip"), [(-1, 1), (math.nan, 1), (math.inf, 1), (1, 0), (1, math.inf), (1, math.nan)]
)
def test_wrong_numbers_are_refused(noise: float, clip: float, learner: PrivateLearner) -> None:
    learner.noise, learner.clip = noise, clip
    with pytest.raises(LearnerError, match="noise must be 0 or more"):
        learner.local_train()


def test_a_step_that_makes_its_own_gradients_is_refused(learner: PrivateLearner) -> None:
    optimizer = torch.optim.LBFGS(learner.net.parameters())
    with private_steps(learner, loader_of(learner), 1, 1), pytest.raises(LearnerError, match="own gradients"):
        optimizer.step(lambda: torch.zeros(()))


def test_all_that_a_site_needs_travels_but_opacus() -> None:
    assert issubclass(PrivateLearner, CIFAR10ModelLearner)
    ships = {f"{folder}/{path.name}" for path, folder in find_files(PrivateLearner).items()}
    assert {"privacy/dp_learner.py", "fl/model_learner.py", "dl/train.py", "tutorial_utils/dpsgd.py"} <= ships
    assert not any("opacus" in name for name in ships)


def test_the_table_of_costs_has_a_row_for_each_noise(sites: list[Path]) -> None:
    table = cost_of_noise(sites[1], Training(batch_size=32), [0.0, 4.0], rounds=1)
    assert list(table.index) == ["plain", "noise 0.0", "noise 4.0"] and (table["seconds a round"] > 0).all()
    assert math.isnan(table["epsilon"]["plain"]) and math.isinf(table["epsilon"]["noise 0.0"])
    assert 0 < table["epsilon"]["noise 4.0"] < 1 and table["accuracy"].between(0, 1).all()
    assert table.index.name == f"{len(load_data(sites[1]).test)} test images"
