"""A learner, driven in this process as FLARE would drive it; held against its script; trained alone."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLMetaKey, ReturnCode
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.abstract.model_learner import ModelLearner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dl.train import Net, evaluate, load_data
from fl.by_hand import federated_averaging
from fl.model_learner import CIFAR10ModelLearner
from tiny import BATCH, STEPS, TinyLearner, make_net, points_of
from tutorial_utils._read import read_cross_site
from tutorial_utils.algorithms.fedprox import FedProxSite
from tutorial_utils.drive import compare_with_script, score_models, test_drive, train_alone
from tutorial_utils.errors import VersionError
from tutorial_utils.learner import LearnerError, round_seed, seed_everything
from tutorial_utils.results import sha256


def make(sites: list[Path], **settings: object) -> CIFAR10ModelLearner:
    return CIFAR10ModelLearner(str(sites[0].parent), batch_size=8, **settings)


def build_job(*parts: Any, **how: Any) -> Any:
    """A job, where this FLARE has what it needs: the drive itself works with older ones."""
    return pytest.importorskip("tutorial_utils.job", exc_type=VersionError).build_job(*parts, **how)


def build_evaluation(*parts: Any, **how: Any) -> Any:
    return pytest.importorskip("tutorial_utils.job", exc_type=VersionError).build_evaluation(*parts, **how)


class Bare(ModelLearner):
    """A ModelLearner that owes nothing to PTModelLearner: what it sends is the test's."""

    def __init__(self, **meta: Any) -> None:
        super().__init__()
        self.meta = meta
        self.change: dict[str, Any] = {}

    def validate(self, model: FLModel) -> Any:
        return FLModel(metrics={"loss": 0.0})

    def train(self, model: FLModel) -> Any:
        params = {name: value for name, value in (model.params | self.change).items() if value is not None}
        return FLModel(
            params_type=ParamsType.FULL, params=params, meta={FLMetaKey.NUM_STEPS_CURRENT_ROUND: 1} | self.meta
        )

    def get_model(self, model_name: str) -> Any:
        return FLModel(params_type=ParamsType.FULL, params={"w": np.zeros(1)})


# --- what FLARE would do ---


def test_it_does_what_the_hand_written_federation_does(sites: list[Path]) -> None:
    drive = test_drive(make(sites), Net(), rounds=2)
    by_hand = federated_averaging(sites[:1], rounds=2, batch_size=8)
    for name, value in by_hand.items():  # the average of one multiplies and divides by its steps
        np.testing.assert_allclose(drive.params[name], value, atol=1e-6)
    assert drive.return_code == ReturnCode.OK
    assert drive.steps == drive.weights == [-(-len(load_data(sites[0]).train) // 8)] * 2


def test_it_scores_valid_before_training_and_test_at_the_end(sites: list[Path]) -> None:
    drive = test_drive(make(sites), Net().state_dict())
    data = load_data(sites[0])
    assert drive.received == [evaluate(Net(), data.valid)]
    net = Net()
    net.load_state_dict({name: torch.from_numpy(value) for name, value in drive.params.items()})
    assert drive.test == evaluate(net, data.test)


def test_data_may_name_an_environment_variable(sites: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITE_DATA", str(sites[0].parent))
    drive = test_drive(CIFAR10ModelLearner("$SITE_DATA", batch_size=8), Net(), site="site-2")
    assert drive.steps == [-(-len(load_data(sites[1]).train) // 8)]


def test_first_weights_are_a_net_tensors_or_arrays() -> None:
    state = make_net(3).state_dict()
    arrays = {name: value.numpy() for name, value in state.items()}
    made = {sha256(test_drive(TinyLearner(), first).params) for first in (make_net(3), state, arrays)}
    assert len(made) == 1 and made != {sha256(test_drive(TinyLearner(), make_net(4)).params)}


def test_configure_reaches_the_learner() -> None:
    assert test_drive(TinyLearner(), make_net(), configure={"epochs": 3}).steps == [3 * STEPS]
    with pytest.raises(LearnerError, match="no setting 'epoch'"):
        test_drive(TinyLearner(), make_net(), configure={"epoch": 3})


def test_an_algorithm_s_part_at_the_site_takes_part() -> None:
    plain, held = (
        test_drive(TinyLearner(), make_net(), algorithm=algorithm).params
        for algorithm in (FedProxSite(0.0), FedProxSite(5.0))
    )
    assert sha256(plain) == sha256(test_drive(TinyLearner(), make_net()).params) != sha256(held)


def test_state_and_local_weights_go_on_from_round_to_round() -> None:
    class Mine(TinyLearner):
        keep_local = ("0.*",)

        def local_train(self) -> tuple[int, float]:
            super().local_train()
            self.state["rounds"] = self.state.get("rounds", 0) + 1
            return STEPS, self.state["rounds"] / 2

    drive = test_drive(Mine(), make_net(), rounds=3)
    assert drive.steps == [STEPS] * 3 and drive.weights == [0.5, 1, 1.5]
    assert drive.params["0.num_batches_tracked"] == 0, "what stays at the site is as it was"
    assert "0.weight" not in drive.best.params
    assert not hasattr(drive, "state")


def test_an_abort_ends_it_with_the_code() -> None:
    drive = test_drive(TinyLearner(epochs=10**6), make_net(), abort_after=0.2)
    assert drive.return_code == ReturnCode.TASK_ABORTED
    assert drive.best is None and drive.test is None and drive.steps == drive.weights == []
    assert sha256(drive.params) == sha256(make_net().state_dict())


def test_a_difference_is_added_to_what_was_sent(sites: list[Path]) -> None:
    class Difference(CIFAR10ModelLearner):
        def train(self, model: FLModel) -> FLModel | str:
            result = super().train(model)
            result.params = {name: value - model.params[name] for name, value in result.params.items()}
            result.params_type = ParamsType.DIFF
            return result

    first = Net().state_dict()
    full, diff = (test_drive(kind(str(sites[0].parent), batch_size=8), first) for kind in (make_kind(), Difference))
    for name, value in full.params.items():
        np.testing.assert_allclose(diff.params[name], value, atol=1e-6)


def make_kind() -> type[CIFAR10ModelLearner]:
    return CIFAR10ModelLearner


def test_a_learner_may_do_what_it_likes_with_the_arrays_that_came() -> None:
    class Doubles(Bare):
        def validate(self, model: FLModel) -> FLModel:
            for value in model.params.values():
                value += 1
            return super().validate(model)

        def train(self, model: FLModel) -> FLModel:
            result = super().train(model)
            result.params, result.params_type = {"w": np.ones(2)}, ParamsType.DIFF
            return result

    first = np.zeros(2)
    assert test_drive(Doubles(), {"w": first}).params["w"].tolist() == [1, 1]
    assert first.tolist() == [0, 0]


# --- what a job would choke on ---


def test_an_error_comes_with_the_learner_s_own_traceback_and_finalizes() -> None:
    ends = []

    class Broken(TinyLearner):
        def local_train(self) -> int:
            raise ZeroDivisionError("on purpose")

        def finalize(self) -> None:
            ends.append(self.site_name)

    with pytest.raises(ZeroDivisionError, match="on purpose") as caught:
        test_drive(Broken(), make_net())
    assert caught.traceback[-1].name == "local_train" and ends == ["site-1"]


@pytest.mark.parametrize("weight", [None, 0, 0.0, np.float32(0), -1, math.nan, math.inf, "5", [1], torch.ones(2)])
def test_an_update_that_would_weigh_nothing_or_nonsense(weight: Any) -> None:
    with pytest.raises(LearnerError) as caught:
        test_drive(Bare(**{FLMetaKey.NUM_STEPS_CURRENT_ROUND: weight}), {"w": np.zeros(1)})
    assert "the average weighs an update by" in str(caught.value) or "where a number belongs" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("weight", [3, 0.5, np.int64(3), torch.tensor(3.0)])
def test_a_weight_of_any_library(weight: Any) -> None:
    drive = test_drive(Bare(**{FLMetaKey.NUM_STEPS_CURRENT_ROUND: weight}), {"w": np.zeros(1)})
    assert drive.weights == drive.steps == [float(weight)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": np.zeros(1)}, "train() sends x, which the net has not: send entries of its state dict."),
        ({"b": None}, "train() does not send b: name in keep_local what shall stay at the site."),
        ({"w": np.zeros(3)}, "train() sends w in the shape (3,), and the net's is (2,)."),
        ({"b": np.zeros(1)}, "train() sends b in the shape (1,), and the net's is ()."),
        ({"w": torch.tensor([0, math.nan])}, "train() sends w with numbers that are not finite"),
        ({"w": np.array([math.inf, 0])}, "train() sends w with numbers that are not finite"),
        ({"mask": np.array([-math.inf, math.inf])}, "train() sends mask with numbers that are not finite"),
        ({"w": "text"}, "train() sends w as a str, and only arrays travel."),
    ],
)
def test_an_update_that_the_server_would_refuse(change: dict[str, Any], said: str) -> None:
    learner = Bare()
    learner.change = change
    first = {"w": np.zeros(2), "b": np.array(0.0), "mask": np.array([-math.inf, 0])}
    with pytest.raises(LearnerError) as caught:
        test_drive(learner, first)
    assert str(caught.value).startswith(said)


def test_what_was_not_finite_may_stay_so() -> None:
    first = {"mask": np.array([-math.inf, 0, math.nan])}
    np.testing.assert_array_equal(test_drive(Bare(), first).params["mask"], first["mask"])


def test_tensors_and_what_is_declared_to_stay() -> None:
    learner = Bare(kept_local=["b"])
    learner.change = {"w": torch.ones(2), "b": None}
    drive = test_drive(learner, {"w": np.zeros(2), "b": np.array(7.0)})
    assert drive.params["w"].tolist() == [1, 1] and drive.params["b"] == 7
    assert isinstance(drive.params["w"], np.ndarray)


@pytest.mark.parametrize("returned", [None, FLModel(metrics={"loss": 1.0}), {"w": np.zeros(1)}])
def test_training_that_returns_no_model(returned: Any) -> None:
    class Mine(Bare):
        def train(self, model: FLModel) -> Any:
            return returned

    with pytest.raises(LearnerError, match=r"^train\(\) must return an FLModel with params or a return code, not \w+"):
        test_drive(Mine(), {"w": np.zeros(1)})


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "validate() must return an FLModel with metrics; it returned NoneType."),
        ("EXECUTION_EXCEPTION", "validate() must return an FLModel with metrics; it returned str."),
        (FLModel(params={"w": 1}), "validate() must return an FLModel with metrics"),
        (FLModel(metrics={"loss": "low"}), "loss is 'low', where a number belongs."),
        (
            FLModel(metrics={"auc": 1.0, "f1": 1.0}),
            "validate() must report 'loss', the metric that decides: it gave auc, f1.",
        ),
    ],
)
def test_a_validation_that_says_nothing(returned: Any, said: str) -> None:
    class Mine(Bare):
        metric = TinyLearner.metric

        def validate(self, model: FLModel) -> Any:
            return returned

    with pytest.raises(LearnerError) as caught:
        test_drive(Mine(), {"w": np.zeros(1)})
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("returned", [None, "EMPTY_RESULT", FLModel(metrics={"loss": 1.0})])
def test_a_site_without_a_model_of_its_own(returned: Any) -> None:
    class Mine(Bare):
        def get_model(self, model_name: str) -> Any:
            return returned

    with pytest.raises(LearnerError, match=r"^get_model\('best_model'\) must return an FLModel with params"):
        test_drive(Mine(), {"w": np.zeros(1)})


def test_a_learner_of_another_net() -> None:
    with pytest.raises(LearnerError, match="The model that came has bias, which this net has not"):
        test_drive(TinyLearner(), nn.Linear(1, 1))


def test_the_parent_s_constructor_is_asked_for() -> None:
    class Orphan(ModelLearner):
        def __init__(self) -> None:
            pass

    with pytest.raises(LearnerError, match=r"super\(\).__init__\(\)"):
        test_drive(Orphan(), make_net())


def test_what_is_no_learner_is_told_so() -> None:
    class Mine(Executor):
        def execute(self, *args: Any) -> None:
            raise AssertionError

    with pytest.raises(LearnerError, match=r"^Mine is no ModelLearner"):
        test_drive(Mine(), make_net())


# --- held against its script ---


def train_as_a_script(site: str = "site-1", epochs: int = 1, seed: int = 0) -> nn.Module:
    """TinyLearner's training without a learner."""
    net = make_net()
    seed_everything(seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(epochs):
        for inputs, targets in DataLoader(TensorDataset(*points_of(site)), BATCH):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(inputs), targets).backward()
            optimizer.step()
    return net


def test_a_learner_is_its_script_in_every_bit() -> None:
    learner = TinyLearner(epochs=2)
    proof = compare_with_script(learner, make_net(), train_as_a_script("site-2", 2), site="site-2")
    assert proof.equal and proof.first is None and proof.apart == 0
    assert str(proof) == "The learner's weights are the script's, in every bit."
    assert learner.net is None and learner.site_name is None, "it can still be given to a job"


def test_a_learner_that_draws_is_its_script_by_the_seed() -> None:
    class Drops(TinyLearner):
        def local_train(self) -> int:
            self.net[1].bias.data = torch.rand(1)
            return 1

    script = make_net()
    seed_everything(round_seed(7, "site-1", 0))
    script[1].bias.data = torch.rand(1)
    assert compare_with_script(Drops(seed=7), make_net(), script).equal
    assert not compare_with_script(Drops(seed=8), make_net(), script).equal


def test_the_first_entry_that_differs_and_by_how_much() -> None:
    script = train_as_a_script()
    with torch.no_grad():
        script[1].weight[0, 1] += 0.25
        script[1].bias -= 2
    proof = compare_with_script(TinyLearner(), make_net(), script.state_dict())
    assert (proof.equal, proof.first, proof.apart) == (False, "1.weight", pytest.approx(2))
    assert str(proof) == "The first entry that differs is 1.weight; the largest difference of all is 2."


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_no_small_difference(value: float) -> None:
    script = train_as_a_script()
    with torch.no_grad():
        script[1].bias.fill_(value)
        script[1].weight += 1
    proof = compare_with_script(TinyLearner(), make_net(), script)
    assert not proof.equal and not math.isfinite(proof.apart)
    assert str(proof).endswith(f"the largest difference of all is {value}.")


def test_what_stays_at_home_is_held_against_the_script_too() -> None:
    class Mine(TinyLearner):
        keep_local = ("0.*",)

    learner = Mine()
    assert compare_with_script(learner, make_net(), train_as_a_script()).equal
    script = train_as_a_script()
    script[0].running_mean += 1
    assert compare_with_script(learner, make_net(), script).first == "0.running_mean"
    assert learner.keep_local == ("0.*",)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1, bias=False)), "1.bias is an entry of one of the two nets"),
        (nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3)), "1.weight has the shape (1, 2) here and (3, 2) in the"),
        (nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1).double()), "1.weight is float32 here and float64 in the"),
    ],
)
def test_another_net_than_the_script_s(script: nn.Module, said: str) -> None:
    with pytest.raises(LearnerError) as caught:
        compare_with_script(TinyLearner(), make_net(), script)
    assert str(caught.value).startswith(said)


class Stops(TinyLearner):
    def train(self, model: FLModel) -> str:
        return ReturnCode.TASK_ABORTED


def test_a_learner_that_stops_proves_nothing() -> None:
    with pytest.raises(LearnerError, match="train\\(\\) returned TASK_ABORTED: there are no weights"):
        compare_with_script(Stops(), make_net(), make_net())
    with pytest.raises(LearnerError, match="train\\(\\) returned TASK_ABORTED: there are no weights"):
        train_alone(build_job(Stops(), make_net()))


# --- each site alone ---


def test_alone_is_each_site_s_own_drive_in_the_shape_of_a_run_s_matrix(sites: list[Path], tmp_path: Path) -> None:
    row = {model: {"accuracy": 0.5} for model in ("site-1", "site-2")}
    (tmp_path / "matrix.json").write_text(json.dumps({"site-1": row, "site-2": row}))
    matrix = read_cross_site(tmp_path / "matrix.json", "accuracy")
    job = build_job(make(sites, lr=0.02, seed=3), Net(3), sites=2, rounds=2)
    table = train_alone(job)
    assert table.shape == (2, 2)
    assert table.index.name == matrix.index.name and table.columns.name == matrix.columns.name
    assert list(table.index) == list(table.columns) == list(matrix.index) == ["site-1", "site-2"]
    assert table.dtypes.tolist() == matrix.dtypes.tolist()
    for folder in sites:
        drive = test_drive(make(sites, lr=0.02, seed=3), Net(3), site=folder.name, rounds=2)
        net = Net()
        net.load_state_dict({name: torch.from_numpy(value) for name, value in drive.params.items()})
        for other in sites:
            assert table.loc[other.name, folder.name] == evaluate(net, load_data(other).test)["accuracy"]
    once = train_alone(job, rounds=1)
    first = test_drive(make(sites, lr=0.02, seed=3), Net(3)).test["accuracy"]
    assert once.loc["site-1", "site-1"] == first != table.loc["site-1", "site-1"]


class AtHome(TinyLearner):
    keep_local = ("0.*",)


def test_alone_all_of_the_model_is_at_home_and_the_job_stays_as_it_was() -> None:
    job = build_job(AtHome(), make_net(), sites=["a", "b"], rounds=3)
    kept = copy.deepcopy(vars(job.learner)), sha256(job.net)
    table = train_alone(job)
    pd.testing.assert_frame_equal(table, train_alone(build_job(TinyLearner(), make_net(), sites=["a", "b"], rounds=3)))
    assert list(table.columns) == list(table.index) == ["a", "b"]
    assert (
        vars(job.learner).keys() == kept[0].keys()
        and job.learner.net is job.learner.site_name is None
        and sha256(job.net) == kept[1]
    )
    pd.testing.assert_frame_equal(table, train_alone(job))


def test_alone_begins_with_the_job_s_checkpoint(tmp_path: Path) -> None:
    torch.save(make_net(9).state_dict(), tmp_path / "first.pt")
    job = build_job(TinyLearner(), make_net(), rounds=1, checkpoint=tmp_path / "first.pt")
    drive = test_drive(TinyLearner(), make_net(9))
    assert train_alone(job).loc["site-1", "site-1"] == drive.test["loss"]


class OneSided(TinyLearner):
    def local_validate(self, split: str) -> dict[str, float]:
        return {"loss": math.nan if self.site_name == "site-2" else 1.0}


def test_a_metric_that_a_site_has_not_is_an_empty_cell() -> None:
    table = train_alone(build_job(OneSided(), make_net(), rounds=1))
    assert table.isna().to_numpy().tolist() == [[False, False], [True, True]]


def test_given_models_are_scored_by_every_site() -> None:
    models = {"first": make_net().state_dict(), "other": dict(make_net(1).state_dict())}
    table = score_models(TinyLearner(), models, ["site-2", "site-1"])
    assert list(table.index) == ["site-2", "site-1"] and list(table.columns) == ["first", "other"]
    net = make_net(1).eval()
    inputs, targets = points_of("site-2")
    with torch.inference_mode():
        assert table.loc["site-2", "other"] == nn.functional.mse_loss(net(inputs), targets).item()


def test_alone_needs_a_job_that_trains_a_model_learner() -> None:
    with pytest.raises(LearnerError, match="trains nothing"):
        train_alone(build_evaluation(TinyLearner(), {"mine": make_net()}))
