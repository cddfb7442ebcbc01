"""Epsilon is Opacus's own; attacks find what is there, and nothing where nothing is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from nvflare.app_common.filters.convert_weights import ConvertWeights
from nvflare.app_common.filters.exclude_vars import ExcludeVars
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
from nvflare.app_common.filters.svt_privacy import SVTPrivacy
from torch import nn

from dl.train import Net
from fl.by_hand import federated_averaging
from fl.job import build_job
from privacy import audit, invert
from privacy.membership import tell_members
from privacy.study import federate_guarded, judge_filter, read_label_mix, rebuild_through
from tutorial_utils import attack_plots
from tutorial_utils.algorithms.registry import FedOpt
from tutorial_utils.data import Dataset
from tutorial_utils.errors import ResultsError, TutorialError
from tutorial_utils.filters import ClipAndNoise
from tutorial_utils.learner import to_numpy
from tutorial_utils.metric import Metric
from tutorial_utils.partition import split_dataset
from tutorial_utils.privacy import compare_updates, epsilon, pass_through
from tutorial_utils.results import Run, sha256
from tutorial_utils.settings import FAST
from tutorial_utils.simulate import simulate

HOW = {"batch_size": 8, "epochs": 1, "lr": 0.01, "momentum": 0.9}


# --- epsilon ---


@pytest.mark.parametrize(("noise", "rounds", "delta"), [(1.0, 10, 1e-5), (4.0, 50, 1e-6), (0.01, 5, 0.1)])
def test_epsilon_is_that_of_opacus(noise: float, rounds: int, delta: float) -> None:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    for _ in range(rounds):
        accountant.step(noise_multiplier=noise, sample_rate=1.0)
    assert epsilon(noise, rounds, delta) == accountant.get_epsilon(delta)


def test_epsilon_is_above_the_exact_value_and_near_it() -> None:
    """Of the Gaussian mechanism it is known exactly (Balle and Wang 2018): here, delta at that epsilon is below."""
    noise, rounds = 2.0, 10
    mu, bound = math.sqrt(rounds) / noise, epsilon(noise, rounds, 1e-5)

    def delta(eps: float) -> float:
        phi = torch.distributions.Normal(0.0, 1.0).cdf
        return float(phi(torch.tensor(mu / 2 - eps / mu)) - math.exp(eps) * phi(torch.tensor(-mu / 2 - eps / mu)))

    assert delta(bound) < 1e-5 < delta(0.7 * bound)


def test_more_noise_costs_less_and_more_rounds_cost_more_but_less_than_their_number() -> None:
    assert epsilon(2.0, 10) < epsilon(1.0, 10) < 10 * epsilon(1.0, 1)
    assert epsilon(1.0, 10) > epsilon(1.0, 1) and epsilon(0, 1) == math.inf


@pytest.mark.parametrize("wrong", [(-1, 1, 1e-5), (1, 0, 1e-5), (1, 1, 0), (1, 1, 1), (float("nan"), 1, 1e-5)])
def test_an_epsilon_of_nothing(wrong: tuple[float, int, float]) -> None:
    with pytest.raises(TutorialError, match="give a noise from 0, a round or more, and a delta between 0 and 1"):
        epsilon(*wrong)


# --- what leaves ---


def test_how_much_of_an_update_is_left() -> None:
    true = np.array([3.0, 4.0, 0.0, 0.0])
    found = compare_updates(true, np.array([3.0, 0.0, 0.0, 0.0]))
    assert (found["cosine"], found["length"], found["moved"]) == pytest.approx((0.6, 0.6, 0.25))
    assert compare_updates(true, np.zeros(4))["cosine"] == 0.0


def test_filters_that_change_the_kind_are_refused() -> None:
    with pytest.raises(TutorialError, match="give some that keep the kind"):
        one = ConvertWeights("diff_to_weights")
        one._get_base_weights = lambda fl_ctx: {"a": np.ones(1)}
        pass_through([one], {"a": np.ones(1)}, {"a": np.ones(1)}, differences=True)


def test_a_filter_is_too_late_for_what_the_site_received() -> None:
    """FLARE 2.9.0 drops it: its ConvertWeights changes nothing. One that mends it may be used again."""
    given = {"a": np.ones(3, np.float32)}
    left, _ = pass_through([ConvertWeights("weights_to_diff")], given, {"a": np.full(3, 2, np.float32)})
    assert (left["a"] == 2).all()


# --- gradient inversion ---


def test_a_linear_layer_s_update_holds_its_input_exactly() -> None:
    """The gradient of a row of weights is the input times that of its bias: Zhu et al.'s simplest case."""
    layer, inputs = nn.Linear(12, 3), torch.randn(1, 12)
    nn.functional.cross_entropy(layer(inputs), torch.tensor([1])).backward()
    rebuilt = layer.weight.grad[0] / layer.bias.grad[0]
    torch.testing.assert_close(rebuilt, inputs[0], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def pictures(digits: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    return invert.read_images(digits.folder)


@pytest.mark.parametrize("place", [0, 7, 11])
def test_the_label_of_one_picture_stands_in_the_bias(place: int, pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
    one = slice(place, place + 1)
    update = invert.update_of(Net(place), pictures[0][one], pictures[1][one], batch_size=1)
    assert invert.read_label(update) == int(pictures[1][place])


def test_a_picture_is_rebuilt_from_one_step_and_not_through_noise(digits: Dataset) -> None:
    open_ = rebuild_through([], digits.folder, seed=0, search=200)
    closed = rebuild_through([ClipAndNoise(2.0, 0.01, seed=0)], digits.folder, seed=0, search=200)
    assert open_["rebuilt"] > 0.95 > open_["class mean"], "better than what needs no update"
    assert closed["rebuilt"] < 0.6 and closed["class mean"] == open_["class mean"]


def test_an_attack_is_told_what_it_was_made_on(digits: Dataset) -> None:
    few = invert.attack(digits.folder, 2, seed=0, search=3)
    assert (few["images"], few["steps"], few["sites"]) == (2, 1, 1)
    assert invert.attack(digits.folder, 4, seed=0, batch_size=2, epochs=3, search=2)["steps"] == 6
    assert few["best"] >= few["rebuilt"] and few["other images"] < 0.9


def test_the_mean_of_two_sites_is_attacked_as_one_larger_step(pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = pictures[0][:4], pictures[1][:4]
    apart = invert.update_of_sites(Net(0), images, labels, sites=2)
    together = invert.update_of(Net(0), images, labels, batch_size=4)
    for name, value in together.items():
        np.testing.assert_allclose(apart[name], value, atol=1e-6)


def test_pictures_are_paired_in_the_way_that_is_best_for_all() -> None:
    true = torch.randn(5, 3, 8, 8)
    order = torch.tensor([3, 1, 4, 0, 2])
    np.testing.assert_allclose(invert.match(2 * true[order] + 1, true), np.ones(5), atol=1e-6)
    assert invert.correlation(torch.zeros(4), torch.arange(4)) == 0.0, "a grey picture is like none"


# --- members, labels ---


def test_members_are_told_by_their_loss() -> None:
    same = np.random.default_rng(0).normal(size=4000)
    coin = tell_members(same[:2000], same[2000:])
    assert coin.low < 0.5 < coin.high and coin.high - coin.low < 0.05
    assert tell_members(np.zeros(5), np.ones(5)).auc == 1.0
    assert tell_members(np.ones(5), np.zeros(5)).auc == 0.0, "it is no distance from a coin"
    shifted = tell_members(same[:200] - 1, same[200:400])
    assert shifted.low > 0.5 and (shifted.members, shifted.others) == (200, 200)


def test_the_labels_stand_in_a_first_update_and_not_through_much_noise(sites: list[Path]) -> None:
    assert read_label_mix([], sites[0], seed=0, **HOW) > 0.9
    assert abs(read_label_mix([ClipAndNoise(2.0, 10.0, seed=0)], sites[0], seed=0, **HOW)) < 0.9


def test_a_filter_without_a_promise_has_none(sites: list[Path], digits: Dataset) -> None:
    row = judge_filter("none", None, {}, sites[0], digits.folder, seed=0, **HOW)
    assert row["cosine"] == pytest.approx(1) and row["epsilon"] == math.inf
    arguments = {"clip": 2.0, "noise": 1.0, "seed": 0}
    noisy = judge_filter("noise", ClipAndNoise, arguments, sites[0], digits.folder, seed=0, **HOW)
    assert noisy["epsilon"] == epsilon(1.0, 1) and noisy["cosine"] < 0.1


# --- the study ---


def test_no_noise_and_no_cut_are_the_bits_of_fedavg(sites: list[Path]) -> None:
    plain = sha256(federated_averaging(sites, 2, seed=0, **HOW))
    for clip in (None, 1e6):
        row = federate_guarded(sites, 2, clip=clip, noise=0.0, seed=0, **HOW)
        assert row["sha256"] == plain and row["stopped"] is None
    assert federate_guarded(sites, 2, clip=0.5, noise=0.0, seed=0, **HOW)["sha256"] != plain


def test_noise_that_ends_the_training_is_a_result(digits: Dataset) -> None:
    parts = split_dataset(digits.folder, 20, alpha=None)[:2]
    row = federate_guarded(parts, 3, clip=2.0, noise=1e6, seed=0, test=digits.folder, **HOW)
    assert row["stopped"] in (1, 2) and row["accuracy"] < 0.3 and row["images"] == digits.counts["test"]


# --- who sees what ---


def test_a_run_without_a_wiretap_is_not_judged(run: Run, sites: list[Path]) -> None:
    with pytest.raises(ResultsError, match=r"build the job with privacy\.audit\.listen"):
        audit.who_sees_what(run, sites)


def test_bytes_are_found_where_they_are() -> None:
    weights = np.arange(100, dtype=np.float32)
    part = {"bytes": weights.tobytes()[:64].hex()}
    assert audit.holds([b"xx" + weights.tobytes()], [part]) and not audit.holds([b"xx"], [part])
    assert not audit.holds([b"xx"], [{"bytes": ""}]), "nothing is in every text"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "algorithm"),
    [
        (SVTPrivacy(), FedOpt(server_lr=1.0, server_momentum=0.0)),
        (PercentilePrivacy(90), FedOpt(server_lr=1.0, server_momentum=0.0)),
        (ExcludeVars(["fc3.weight", "fc3.bias"]), None),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_a_filter_cuts_is_no_fault(one: Any, algorithm: Any, sites: list[Path], runs: Path) -> None:
    more = {"algorithm": algorithm, "cross_site": "global", "site_filters": [one]}
    run = simulate(build_job(sites[0].parent, 2, 2, FAST.training, **more), runs=runs, progress=False)
    assert run.rounds["round"].nunique() == 2 and list(run.cross_site) == ["global", "best global"]


@pytest.mark.slow
@pytest.mark.parametrize("clip", [None, 1e6])
def test_no_noise_and_no_cut_are_the_bits_of_the_plain_run(
    clip: float | None, run: Run, sites: list[Path], runs: Path
) -> None:
    job = build_job(
        sites[0].parent, 2, FAST.rounds, FAST.training, cross_site="none", site_filters=[ClipAndNoise(clip)]
    )
    assert simulate(job, runs=runs, progress=False).sha256 == run.sha256


@pytest.mark.slow
def test_what_left_is_read_off_the_run_and_noise_has_the_bits_of_the_one_by_hand(sites: list[Path], runs: Path) -> None:
    data, noise = sites[0].parent, {"clip": 2.0, "noise": 0.01, "seed": 0}
    opened = simulate(audit.listen(build_job(data, 2, 2, FAST.training)), runs=runs, progress=False)
    table = audit.who_sees_what(opened, sites)
    assert list(table.loc["images, labels"]) == ["no", "no", "no"]
    assert list(table.loc["updates"]) == ["2 x 62,006", "received", "in a file"], "the best model is one of them"
    assert list(table.loc["own best model"]) == ["62,006", "at 1 of 1", "in a file"]
    assert list(table.loc["steps"]) == ["yes", "no", "in a file"]
    more = {"cross_site": "global", "site_filters": [ClipAndNoise(**noise)]}
    closed = simulate(audit.listen(build_job(data, 2, 2, FAST.training, **more)), runs=runs, progress=False)
    table = audit.who_sees_what(closed, sites)
    assert list(table.loc["updates"]) == ["2 x 62,006", "no", "no"]
    assert list(table.loc["own best model"]) == ["no", "no", "no"]
    assert closed.sha256 == federate_guarded(sites, 2, **noise, **HOW)["sha256"] != opened.sha256


# --- figures ---


def test_a_figure_of_rebuilt_pictures_says_its_numbers() -> None:
    rows = {"true": np.zeros((2, 3, 8, 8)), "found": np.ones((2, 3, 8, 8))}
    figure = attack_plots.rebuilt(rows, {"found": [0.25, -0.5]}, "Noise")
    assert figure.alt == "Noise. Rows: true; found. found: 0.25, -0.50."
    with pytest.raises(TutorialError, match="give as many in each"):
        attack_plots.rebuilt(rows | {"more": np.ones((3, 3, 8, 8))}, {}, "Noise")


def test_a_figure_of_the_noise_says_both_sides() -> None:
    costs = pd.DataFrame({"sites": [2, 2, 5, 5], "noise": [0, 0.1, 0, 0.1], "accuracy": [0.9, 0.1, 0.8, 0.5]})
    attacks = pd.DataFrame({"noise": [0.1, 0], "seen": [0.2, 1.0]})
    figure = attack_plots.noise(costs, attacks, {"seen": "a picture"}, "Points")
    assert "The accuracy with 2 sites: 90.0%, 10.0%." in figure.alt and "a picture: 1.00, 0.20." in figure.alt
    errors = costs.rename(columns={"accuracy": "mae"}).assign(mae=[40.0, 60.5, 41.0, 50.0], seed=0)
    lower = Metric("mae", higher_is_better=False)
    figure = attack_plots.noise(errors, attacks, {"seen": "a picture"}, "Points", metric=lower, of="test patients")
    assert "The mae with 2 sites: 40, 60.5." in figure.alt and "%" not in figure.alt
    label = " ".join(figure.axes[0].get_ylabel().split())
    assert label == "mae on the test patients, lower is better" and figure.axes[0].get_ylim()[1] > 60
    with pytest.raises(TutorialError, match="no column seen"):
        attack_plots.noise(costs, attacks.drop(columns="seen"), {"seen": "a picture"}, "Points")


def test_weights_travel_as_they_are() -> None:
    """The audit looks for arrays in files byte by byte: torch.save must not squeeze them."""
    state = to_numpy(Net(0).state_dict())
    assert len(state["fc1.weight"].tobytes()) == 4 * state["fc1.weight"].size
