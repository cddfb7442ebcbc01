"""The federated half of a learner, called as FLARE's executor calls it."""

from __future__ import annotations

import logging
import math
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from nvflare.apis.fl_constant import FLMetaKey, ReturnCode
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.app_constant import AppConstants, ValidateType
from torch.utils.data import DataLoader, TensorDataset

from at_site import sent, start
from dl.train import Net, load_data
from fl.model_learner import CIFAR10ModelLearner
from tiny import STEPS, TinyLearner, make_net, points_of
from tutorial_utils.drive import test_drive
from tutorial_utils.keep import BestModel
from tutorial_utils.learner import (
    LearnerError,
    PTModelLearner,
    SiteAlgorithm,
    metric_of,
    round_seed,
    seed_everything,
    settings_of,
)
from tutorial_utils.metric import Metric
from tutorial_utils.results import sha256
from tutorial_utils.values import to_numpy


def draw() -> list[float]:
    """A number from each of the three streams that a script may draw from."""
    return [random.random(), float(np.random.rand()), torch.rand(()).item()]


class Scores(TinyLearner):
    """Each round leaves other weights, and `scores` says in turn how good they are."""

    scores: ClassVar[dict[int, Any]] = {}

    def local_train(self) -> object:
        with torch.no_grad():
            self.net[1].bias.fill_(self.current_round)
        return 1

    def local_validate(self, split: str) -> dict[str, Any]:
        return {self.metric.name: self.scores[self.current_round]}


# --- the metric ---


@pytest.mark.parametrize("metric", [None, "accuracy", ("accuracy", True), Metric])
def test_a_learner_must_say_which_number_decides(metric: object, tmp_path: Path) -> None:
    class Silent(TinyLearner):
        pass

    Silent.metric = metric
    with pytest.raises(LearnerError, match=r'^Silent does not say which number decides: write metric = Metric\("'):
        start(Silent(), tmp_path)
    with pytest.raises(LearnerError, match="does not say which number decides"):
        metric_of(Silent())


@pytest.mark.parametrize(
    ("higher", "scores", "best"),
    [
        (True, [0.1, 0.3, 0.2], 1),
        (False, [0.3, 0.1, 0.2], 1),
        (True, [0.3, 0.3, 0.3], 0),
        (False, [math.nan, 0.1, math.nan], 1),
        (True, [np.float64(0.1), torch.tensor(0.3), np.float32(0.2)], 1),
    ],
)
def test_the_best_local_model_follows_the_metric_in_its_direction(
    higher: bool, scores: list[Any], best: int, tmp_path: Path
) -> None:
    class Mine(Scores):
        metric = Metric("score", higher_is_better=higher)

    Mine.scores = dict(enumerate(scores))
    for number in range(len(scores)):  # each in a new process
        start(Mine(), tmp_path, number=number).train(sent())
    handed = start(Mine(), tmp_path).get_model("best_model")
    assert handed.meta["round"] == best and handed.params["1.bias"].tolist() == [best]
    assert handed.params_type == ParamsType.FULL


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"accuracy": 0.5, "auc": 0.7}, "local_validate must report 'loss', the metric that decides: it gave accuracy"),
        ({}, "it gave ."),
        (None, "it gave NoneType"),
        (0.5, "it gave float"),
        ({"loss": "0.5"}, "loss is '0.5', where a number belongs"),
        ({"loss": 0.5, "note": "fine"}, "note is 'fine', where a number belongs"),
        ({"loss": None}, "loss is None"),
    ],
)
def test_what_is_wrong_with_a_validation_is_one_sentence(found: Any, said: str, tmp_path: Path) -> None:
    class Mine(TinyLearner):
        def local_validate(self, split: str) -> dict[str, float]:
            return found

    learner = start(Mine(), tmp_path)
    for call in (learner.validate, learner.train):
        with pytest.raises(LearnerError) as caught:
            call(sent())
        assert said in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_metrics_leave_as_plain_numbers(tmp_path: Path) -> None:
    class Mine(TinyLearner):
        def local_validate(self, split: str) -> dict[str, Any]:
            return {"loss": np.float32(0.5), "auc": torch.tensor(math.nan), "n": 3}

    metrics = start(Mine(), tmp_path).validate(sent()).metrics
    assert {type(value) for value in metrics.values()} == {float}
    assert metrics["loss"] == 0.5 and math.isnan(metrics["auc"]) and metrics["n"] == 3


@pytest.mark.parametrize(
    ("header", "split"),
    [(ValidateType.BEFORE_TRAIN_VALIDATE, "dev"), (None, "held out"), ("model_validate", "held out")],
)
def test_valid_before_training_and_test_else_by_the_names_of_the_learner(
    header: str | None, split: str, tmp_path: Path
) -> None:
    """Mutation that must not live: cross-site evaluation on the validation data."""
    asked = []

    class Mine(TinyLearner):
        valid_split, test_split = "dev", "held out"

        def local_validate(self, split: str) -> dict[str, float]:
            asked.append(split)
            return {"loss": 1.0}

    learner = start(Mine(), tmp_path)
    learner.shareable = Shareable()
    if header:
        learner.shareable.set_header(AppConstants.VALIDATE_TYPE, header)
    learner.validate(sent())
    assert asked == [split]
    learner.train(sent())
    assert asked == [split, "dev"], "the best local model is chosen on the validation data"


# --- steps and weights ---


def trained_as(returned: object, folder: Path) -> FLModel:
    class Mine(TinyLearner):
        def local_train(self) -> object:
            return returned

    return start(Mine(), folder).train(sent())


@pytest.mark.parametrize(
    ("returned", "steps", "weight"),
    [
        (3, 3, 3),
        (3.0, 3, 3),
        (np.int64(3), 3, 3),
        (np.array(3.0), 3, 3),
        (torch.tensor(3), 3, 3),
        (torch.tensor([3.0]), 3, 3),
        ((3, 100), 3, 100),
        ((3, 0.5), 3, 0.5),
        ((torch.tensor(3), np.float32(2)), 3, 2),
        ((3, 0), 3, 0),
        (10**9, 10**9, 10**9),
    ],
)
def test_steps_and_weight_of_any_library(returned: object, steps: int, weight: float, tmp_path: Path) -> None:
    meta = trained_as(returned, tmp_path).meta
    assert (meta["steps"], meta[FLMetaKey.NUM_STEPS_CURRENT_ROUND]) == (steps, weight)
    assert type(meta["steps"]) is int
    assert type(meta[FLMetaKey.NUM_STEPS_CURRENT_ROUND]) in (int, float), "what FLARE can send"


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "returned nothing: return the steps, or draw from self.watched(loader)"),
        (-1, "steps are a whole number, a weight is 0 or more"),
        (2.5, "steps are a whole number"),
        (math.nan, "steps are a whole number"),
        (math.inf, "steps are a whole number"),
        ((1, math.nan), "a weight is 0 or more"),
        ((1, -0.1), "a weight is 0 or more"),
        ((1, math.inf), "a weight is 0 or more"),
        ((None, 1), "the steps is None, where a number belongs"),
        ((1, "2"), "the weight is '2', where a number belongs"),
        ((1, 2, 3), "where a number belongs"),
        ([1, 2], "where a number belongs"),
        ("5", "where a number belongs"),
        ({"loss": 0.5}, "where a number belongs"),
        (torch.ones(2), "where a number belongs"),
    ],
)
def test_what_are_no_steps_is_one_sentence(returned: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(LearnerError) as caught:
        trained_as(returned, tmp_path)
    assert said in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_no_step_weighs_nothing_and_the_log_asks_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    meta = trained_as(0, tmp_path).meta
    assert meta[FLMetaKey.NUM_STEPS_CURRENT_ROUND] == meta["steps"] == 0
    assert "made no step: is a batch larger than the site's data" in caplog.text


def test_a_watched_loader_counts_each_round_anew(tmp_path: Path) -> None:
    """Mutation that must not live: steps reported as 1."""
    learner = start(TinyLearner(epochs=2), tmp_path)
    for learner.current_round in (0, 1):
        assert learner.train(sent()).meta[FLMetaKey.NUM_STEPS_CURRENT_ROUND] == 2 * STEPS


def test_what_is_returned_goes_before_what_was_watched(tmp_path: Path) -> None:
    class Mine(TinyLearner):
        def local_train(self) -> object:
            super().local_train()
            return 7

    assert start(Mine(), tmp_path).train(sent()).meta["steps"] == 7


def test_a_watched_loader_that_has_no_batch_counts_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Mine(TinyLearner):
        def local_train(self) -> None:
            for _ in self.watched(DataLoader(TensorDataset(torch.ones(2)), 8, drop_last=True)):
                raise AssertionError

    assert start(Mine(), tmp_path).train(sent()).meta["steps"] == 0
    assert "made no step" in caplog.text


def test_a_watched_loader_is_the_loader_in_all_else(tmp_path: Path) -> None:
    data = TensorDataset(torch.arange(5))
    loader = DataLoader(data, 2)
    watched = start(TinyLearner(), tmp_path).watched(loader)
    assert len(watched) == 3 and watched.dataset is data and watched.batch_size == 2
    assert [batch[0].tolist() for batch in watched] == [[0, 1], [2, 3], [4]]
    with pytest.raises(AttributeError, match="no_such"):
        _ = watched.no_such


def test_a_watched_loader_ends_between_batches_when_the_site_is_asked_to_stop(tmp_path: Path) -> None:
    class Mine(TinyLearner):
        def local_train(self) -> None:
            for number, _ in enumerate(self.watched(DataLoader(TensorDataset(torch.arange(100)), 1))):
                if number == 2:
                    self.abort_signal.trigger("test")

    learner = start(Mine(), tmp_path)
    assert learner.train(sent()) == ReturnCode.TASK_ABORTED
    assert learner._batches == 3


# --- an abort ---


def test_aborted_training_leaves_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Mine(TinyLearner):
        keep_local = ("0.*",)

        def local_train(self) -> object:
            self.state["round"] = self.current_round
            return super().local_train()

    learner = start(Mine(), tmp_path)
    learner.abort_signal.trigger("test")
    learner.abort()
    assert learner.train(sent()) == ReturnCode.TASK_ABORTED
    assert list(tmp_path.iterdir()) == [], "neither a model nor a state"
    assert "was asked to stop" in caplog.text and "stopped after 0 steps" in caplog.text


def test_abort_from_another_thread_ends_a_script_that_asks(sites: list[Path]) -> None:
    before = threading.active_count()
    learner = CIFAR10ModelLearner(str(sites[0].parent), batch_size=8, epochs=1_000)
    drive = test_drive(learner, Net(), abort_after=0.5)
    assert drive.return_code == ReturnCode.TASK_ABORTED
    assert drive.best is None and not drive.steps
    assert threading.active_count() == before


# --- seeds ---


def test_round_seed_is_the_seed_in_round_0_and_differs_after() -> None:
    assert round_seed(7, "site-1", 0) == round_seed(7, "site-2", 0) == 7
    seeds = {round_seed(s, site, r) for s in (0, 1) for site in ("site-1", "site-2") for r in (1, 2, 3)}
    assert len(seeds) == 12
    assert round_seed(0, "site-1", 1) == 529682304, "a seed must not change between versions"
    for seed in seeds:
        seed_everything(seed)


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**32, 2**63, -1])
def test_any_seed_seeds_every_stream(seed: int) -> None:
    """numpy alone takes no more than 32 bits."""
    drawn = []
    for _ in range(2):
        seed_everything(seed)
        drawn.append(draw())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("stream", [0, 1, 2], ids=["random", "numpy", "torch"])
@pytest.mark.parametrize("task", ["train", "validate"])
def test_each_stream_starts_from_the_seed_of_site_and_round(task: str, stream: int, tmp_path: Path) -> None:
    """Mutation that must not live: training without torch.manual_seed."""
    drawn: dict[str, list[float]] = {}

    class Mine(TinyLearner):
        def local_train(self) -> int:
            drawn["train"] = draw()
            return 1

        def local_validate(self, split: str) -> dict[str, float]:
            drawn["validate"] = draw()
            return {"loss": 1.0}

    def draws_of(site: str, number: int | None, seed: int) -> float:
        draw()  # whatever was drawn before
        getattr(start(Mine(seed=seed), tmp_path, site, number), task)(sent())
        return drawn[task][stream]

    seed_everything(round_seed(3, "site-1", 2))
    assert draws_of("site-1", 2, 3) == draw_after_seed(3, "site-1", 2)[stream] == draws_of("site-1", 2, 3)
    assert len({draws_of("site-1", 2, 3), draws_of("site-2", 2, 3), draws_of("site-1", 1, 3)}) == 3
    assert draws_of("site-1", 0, 3) == draws_of("site-2", 0, 3) != draws_of("site-1", 0, 4)
    assert draws_of("site-1", None, 3) == draws_of("site-1", 0, 3), "in cross-site evaluation there is no round"


def draw_after_seed(seed: int, site: str, number: int) -> list[float]:
    seed_everything(round_seed(seed, site, number))
    return draw()


# --- state ---


class Counting(TinyLearner):
    """Its learning rate falls with the rounds that IT has done."""

    def local_train(self) -> object:
        done = self.state.get("done", 0)
        self.state |= {"done": done + 1, "w": self.net[1].weight, "seen": [*self.state.get("seen", []), np.int64(done)]}
        self.lr = 0.1 / (1 + done)
        return super().local_train()


@pytest.mark.parametrize("anew", [False, True], ids=["one process", "a process a round"])
def test_a_state_goes_on_in_the_next_round_and_in_a_new_process(anew: bool, tmp_path: Path) -> None:
    learner = start(Counting(), tmp_path)
    for number in range(3):
        learner = start(Counting(), tmp_path) if anew else learner
        learner.current_round = number
        learner.validate(sent())
        assert learner.state.get("done", 0) == number
        result = learner.train(sent())
    assert learner.state["seen"] == [0, 1, 2] and learner.lr == 0.1 / 3
    later = start(Counting(), tmp_path, number=None)
    later.validate(sent())
    assert later.state["done"] == 3, "in cross-site evaluation it is that of the last round"
    assert torch.equal(later.state["w"], torch.as_tensor(result.params["1.weight"])), "as the round left it"


def test_a_round_that_is_done_again_takes_the_state_that_it_took(tmp_path: Path) -> None:
    made = []
    for number in (0, 1, 2, 2):  # the server had not kept the last one
        learner = start(Counting(), tmp_path, number=number)
        learner.validate(sent())
        made.append((learner.state.get("done", 0), sha256(learner.train(sent()).params)))
    assert [done for done, _ in made] == [0, 1, 2, 2]
    assert made[3] == made[2] != made[1]


def test_a_state_that_is_emptied_stays_empty(tmp_path: Path) -> None:
    class Mine(TinyLearner):
        def local_train(self) -> object:
            self.state = {"first": True} if self.current_round == 0 else {}
            return super().local_train()

    for number in range(3):
        learner = start(Mine(), tmp_path, number=number)
        learner.validate(sent())
        assert learner.state == ({"first": True} if number == 1 else {})
        learner.train(sent())


def test_a_state_of_initialize_is_there_in_the_first_round(tmp_path: Path) -> None:
    class Mine(TinyLearner):
        def initialize(self) -> None:
            super().initialize()
            self.state["patience"] = 3

    learner = start(Mine(), tmp_path)
    learner.validate(sent())
    assert learner.state == {"patience": 3}
    learner.state["patience"] = 1
    learner.train(sent())
    again = start(Mine(), tmp_path, number=1)
    again.validate(sent())
    assert again.state == {"patience": 1}


def test_a_state_that_cannot_be_kept_is_named(tmp_path: Path) -> None:
    class Mine(TinyLearner):
        def local_train(self) -> object:
            self.state["model"] = self.net
            return super().local_train()

    with pytest.raises(LearnerError, match=r"^state\['model'\] holds a Sequential: keep numbers"):
        start(Mine(), tmp_path).train(sent())


def test_without_a_state_nothing_is_written(tmp_path: Path) -> None:
    start(TinyLearner(), tmp_path).train(sent())
    assert [path.name for path in tmp_path.iterdir()] == ["best_local_model.pt"]


# --- what stays at the site ---


class AtHome(TinyLearner):
    """The normalization stays at the site (FedBN)."""

    keep_local = ("0.*",)


LOCAL = ["0.weight", "0.bias", "0.running_mean", "0.running_var", "0.num_batches_tracked"]


def test_an_update_has_no_weights_that_stay_at_home(tmp_path: Path) -> None:
    learner = start(AtHome(), tmp_path)
    result = learner.train(sent())
    assert list(result.params) == ["1.weight", "1.bias"]
    assert result.meta["kept_local"] == LOCAL
    best = learner.get_model("best_model")
    assert list(best.params) == ["1.weight", "1.bias"] and best.meta["kept_local"] == LOCAL


def test_the_first_model_brings_what_stays_at_home_from_then_on(tmp_path: Path) -> None:
    """Else a checkpoint's own statistics would never reach a site that keeps its own."""
    trained = make_net(1)
    trained(torch.randn(8, 2, generator=torch.Generator().manual_seed(0)) * 5 + 3)
    learner = start(AtHome(), tmp_path)
    learner.load_params(sent(trained).params)
    assert sha256(learner.params()) == sha256(trained.state_dict())


@pytest.mark.parametrize("anew", [False, True], ids=["one process", "a new process"])
def test_what_stays_at_home_outlasts_the_model_that_comes(anew: bool, tmp_path: Path) -> None:
    learner = start(AtHome(), tmp_path)
    learner.train(sent())
    own = learner.params()
    assert own["0.num_batches_tracked"] == STEPS
    learner = start(AtHome(), tmp_path, number=1) if anew else learner
    learner.current_round = 1
    other = make_net(5)
    other(torch.randn(8, 2) * 9)
    learner.load_params(sent(other).params)
    for name, value in learner.params().items():
        expected = own[name] if name in LOCAL else to_numpy(other.state_dict())[name]
        np.testing.assert_array_equal(value, expected)


def test_a_round_that_is_done_again_starts_from_the_local_weights_that_it_had(tmp_path: Path) -> None:
    made = []
    for number in (0, 1, 1):
        made.append(sha256(start(AtHome(), tmp_path, number=number).train(sent()).params))
    assert made[1] == made[2] != made[0]


def at_cross_site(learner: PTModelLearner, owner: str) -> PTModelLearner:
    learner.current_round, learner.shareable = None, Shareable()
    learner.shareable.set_header(AppConstants.MODEL_OWNER, owner)
    return learner


def test_its_own_best_model_comes_home_with_what_stayed_here(tmp_path: Path) -> None:
    class Mine(AtHome):
        """The first round is the best, and the local weights go on changing."""

        def local_validate(self, split: str) -> dict[str, float]:
            return {"loss": self.current_round if split == "valid" else super().local_validate(split)["loss"]}

    scored = []
    for number in range(2):
        learner = start(Mine(), tmp_path, number=number)
        learner.train(sent())
        scored.append((learner.params(), TinyLearner.local_validate(learner, "test")["loss"]))
    assert scored[0][1] != scored[1][1]
    learner = at_cross_site(start(Mine(), tmp_path), "site-1")
    best = learner.get_model("best_model")
    found = learner.validate(FLModel(params_type=ParamsType.FULL, params=best.params, meta={}))
    assert found.metrics["loss"] == scored[0][1], "the best round's own"
    assert sha256(learner.params()) == sha256(scored[0][0])
    at_cross_site(learner, "site-2").validate(FLModel(params_type=ParamsType.FULL, params=best.params, meta={}))
    for name in LOCAL:  # a guest meets what this site has now
        np.testing.assert_array_equal(learner.params()[name], scored[1][0][name])


def test_a_pattern_that_names_nothing_is_a_sentence(tmp_path: Path) -> None:
    class Mine(TinyLearner):
        keep_local = ("0.*", "head.*")

    with pytest.raises(LearnerError, match=r"^keep_local names 'head\.\*', and the net has only 0\.weight, .*1\.bias"):
        start(Mine(), tmp_path).train(sent())


def test_names_are_patterns_and_none_means_none(tmp_path: Path) -> None:
    class Mine(TinyLearner):
        keep_local = ("1.bias", "0.running_*")

    assert start(Mine(), tmp_path).local_names() == ["0.running_mean", "0.running_var", "1.bias"]
    assert start(TinyLearner(), tmp_path).local_names() == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda params: params | {"2.weight": np.ones(1)}, "has 2.weight, which this net has not"),
        (lambda params: {name: value for name, value in params.items() if name != "1.bias"}, "lacks 1.bias"),
        (lambda params: {}, "lacks 0.bias"),
    ],
)
def test_another_net_s_model_is_refused(change: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(LearnerError, match=f"^The model that came {said}.*is it another net"):
        start(TinyLearner(), tmp_path).load_params(change(sent().params))


# --- settings ---


def test_configure_changes_arguments_of_the_constructor(tmp_path: Path) -> None:
    learner = start(TinyLearner(), tmp_path)
    learner.configure(FLModel(params={"lr": 1, "epochs": 3, "seed": 5}))
    assert (learner.lr, learner.epochs, learner.seed) == (1, 3, 5)
    assert learner.train(sent()).meta["steps"] == 3 * STEPS
    learner.configure(FLModel(params={}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epoch": 3}, "TinyLearner has no setting 'epoch'"),
        ({"net": 1}, "has no setting 'net'"),
        ({"site_name": "site-2"}, "has no setting 'site_name'"),
        ({"current_round": 0}, "has no setting 'current_round'"),
        ({"threads": 2}, "has no setting 'threads'"),  # this constructor does not take it
        ({"metric": "auc"}, "has no setting 'metric'"),
        ({"lr": "fast"}, "lr is 0.05, and 'fast' is no float"),
        ({"epochs": 1.5}, "epochs is 1, and 1.5 is no int"),
        ({"epochs": True}, "epochs is 1, and True is no int"),
        ({"lr": None}, "lr is 0.05, and None is no float"),
    ],
)
def test_configure_takes_nothing_else(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    learner = start(TinyLearner(), tmp_path)
    before = {name: str(value) for name, value in vars(learner).items()}
    with pytest.raises(LearnerError) as caught:
        learner.configure(FLModel(params={"lr": 0.5, **changes}))
    assert said in str(caught.value)
    assert {name: str(value) for name, value in vars(learner).items()} == before, "all or nothing"


def test_configure_knows_a_setting_by_what_a_job_reads_it_from(tmp_path: Path) -> None:
    class Mine(TinyLearner):
        def __init__(self, mu: float = 0.5, decay: float | None = None) -> None:
            super().__init__()
            self._mu = mu
            self.decay = decay

    learner = start(Mine(), tmp_path)
    learner.configure(FLModel(params={"mu": 2, "decay": 0.1}))
    assert learner._mu == 2 and not hasattr(learner, "mu")
    assert learner.decay == 0.1, "of what is None no kind is known"


def test_settings_are_the_constructor_s_and_those_that_it_hands_on() -> None:
    class HandsOn(TinyLearner):
        def __init__(self, extra: int, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    class Own(TinyLearner):
        def __init__(self, extra: int) -> None:
            super().__init__()

    class None_(PTModelLearner):  # noqa: N801
        pass

    assert list(settings_of(Own)) == ["extra"]
    assert set(settings_of(HandsOn)) == {"extra", "lr", "epochs", "seed"}
    assert set(settings_of(None_)) == {"seed", "threads"}
    assert settings_of(HandsOn)["lr"].default == 0.05


def test_the_threads_are_those_that_it_was_given(tmp_path: Path) -> None:
    """Mutation that must not live: the setting is ignored."""
    learner = TinyLearner()
    learner.threads = 2
    try:
        start(learner, tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


# --- the rest ---


def test_an_algorithm_of_the_job_is_found_and_used(tmp_path: Path) -> None:
    class Twice(SiteAlgorithm):
        def receive(self, learner: PTModelLearner, params: dict[str, Any]) -> dict[str, Any]:
            return {name: value * 2 for name, value in params.items()}

        def answer(self, learner: PTModelLearner, received: FLModel, result: FLModel) -> FLModel:
            result.meta["by"] = type(self).__name__
            return result

    class Mine(TinyLearner):
        def local_train(self) -> int:
            return 1

    learner = Mine()
    learner.engine = SimpleNamespace(get_component={"algorithm": Twice()}.get)
    result = start(learner, tmp_path).train(sent())
    assert result.meta["by"] == "Twice"
    np.testing.assert_array_equal(result.params["1.weight"], 2 * sent().params["1.weight"])
    plain = Mine()
    plain.engine = SimpleNamespace(get_component={}.get)
    assert type(start(plain, tmp_path).algorithm) is SiteAlgorithm


def test_get_model_says_what_is_wrong(tmp_path: Path) -> None:
    learner = start(TinyLearner(), tmp_path)
    with pytest.raises(LearnerError, match="no best model yet"):
        learner.get_model("best_model")
    with pytest.raises(LearnerError, match="no model named 'last'"):
        learner.get_model("last")


def test_what_is_handed_out_does_not_change_when_training_goes_on(tmp_path: Path) -> None:
    learner = start(TinyLearner(), tmp_path)
    update = learner.train(sent())
    before = sha256(update.params)
    learner.current_round = 1
    learner.train(sent(make_net(3)))
    assert sha256(update.params) == before
    assert sha256(BestModel(tmp_path, learner.metric).load()["params"]) == sha256(
        learner.get_model("best_model").params
    )


def test_at_the_end_the_net_is_let_go(tmp_path: Path) -> None:
    """Mutation that must not live: in the simulator the process goes on, and its memory would."""
    learner = start(TinyLearner(), tmp_path)
    learner.finalize()
    assert learner.net is None


def test_a_site_holds_only_its_own_images(sites: list[Path], tmp_path: Path) -> None:
    learner = start(CIFAR10ModelLearner(str(sites[0].parent)), tmp_path)
    own = load_data(sites[0])
    assert [len(part) for part in learner.images] == [len(part) for part in own]
    assert torch.equal(learner.images.train.tensors[0], own.train.tensors[0])


@pytest.mark.parametrize(
    ("data", "expected"), [("$SITE_DATA/x", "/mnt/x/site-2"), ("~/x", "/home/me/x/site-2"), ("/a", "/a/site-2")]
)
def test_a_site_s_folder(data: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITE_DATA", "/mnt")
    monkeypatch.setenv("HOME", "/home/me")
    assert start(TinyLearner(), tmp_path, "site-2").site_folder(data) == Path(expected)


def test_unwritten_half_says_what_to_write() -> None:
    with pytest.raises(NotImplementedError, match="local_train"):
        PTModelLearner().local_train()
    with pytest.raises(NotImplementedError, match="local_validate"):
        PTModelLearner().local_validate("valid")


def test_logging_names_the_site_and_a_warning_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    learner = start(TinyLearner(), tmp_path)
    with caplog.at_level(logging.INFO):
        learner.train(sent())
    assert any("identity=site-1" in record.message and f"{STEPS} steps" in record.message for record in caplog.records)
    caplog.clear()
    learner.warning("once")
    assert [record.message for record in caplog.records if "once" not in record.message] == []


@pytest.fixture(autouse=True)
def streams() -> Iterator[None]:
    """Other tests draw from the same streams."""
    kept = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    yield
    random.setstate(kept[0])
    np.random.set_state(kept[1])
    torch.random.set_rng_state(kept[2])


def test_points_are_each_site_s_own() -> None:
    assert not torch.equal(points_of("site-1")[0], points_of("site-2")[0])
