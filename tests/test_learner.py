"""The learner, driven in this process as FLARE would drive it."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from nvflare.apis.fl_constant import FLMetaKey, ReturnCode
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.abstract.model_learner import ModelLearner

from dl.train import Net, evaluate, load_data
from fl.by_hand import federated_averaging
from fl.model_learner import CIFAR10ModelLearner
from tutorial_utils.drive import place, test_drive
from tutorial_utils.keep import BestModel
from tutorial_utils.learner import LearnerError, PTModelLearner, round_seed, to_numpy
from tutorial_utils.results import sha256


def make(sites: list[Path], **settings: object) -> CIFAR10ModelLearner:
    return CIFAR10ModelLearner(str(sites[0].parent), batch_size=8, **settings)


@pytest.fixture
def placed(sites: list[Path], tmp_path: Path) -> CIFAR10ModelLearner:
    """A learner of site-1 that is initialized and ready for single calls."""
    learner = make(sites)
    place(learner, "site-1", str(tmp_path), Signal())
    learner.initialize()
    return learner


def weights(seed: int = 0) -> FLModel:
    return FLModel(params_type=ParamsType.FULL, params=to_numpy(Net(seed).state_dict()), meta={})


def test_drive_does_what_the_hand_written_federation_does(sites: list[Path]) -> None:
    drive = test_drive(make(sites), Net().state_dict(), rounds=2)
    by_hand = federated_averaging(sites[:1], rounds=2, batch_size=8)
    for name, value in by_hand.items():  # the average of one multiplies and divides by its steps
        np.testing.assert_allclose(drive.params[name], value, atol=1e-6)
    assert drive.return_code == ReturnCode.OK
    assert drive.steps == [-(-len(load_data(sites[0]).train) // 8)] * 2


def test_drive_scores_valid_before_training_and_test_at_the_end(sites: list[Path]) -> None:
    drive = test_drive(make(sites), Net().state_dict())
    data = load_data(sites[0])
    assert drive.received == [evaluate(Net(), data.valid)]
    net = Net()
    net.load_state_dict({name: torch.from_numpy(value) for name, value in drive.params.items()})
    assert drive.test == evaluate(net, data.test)


def test_best_model_is_the_best_of_the_rounds_and_survives_a_new_process(
    sites: list[Path], placed: CIFAR10ModelLearner, tmp_path: Path
) -> None:
    placed.current_round = 0
    good = placed.train(weights()).params
    again = make(sites)  # FLARE starts a new process for the next task: nothing is left in memory
    place(again, "site-1", str(tmp_path), Signal())
    again.initialize()
    again.configure(FLModel(params={"lr": 10.0}))  # ruins the net
    again.current_round = 1
    again.train(weights())
    best = again.get_model("best_model")
    assert sha256(best.params) == sha256(good)
    assert best.meta["round"] == 0


def test_get_model_says_what_is_wrong(placed: CIFAR10ModelLearner) -> None:
    with pytest.raises(LearnerError, match="no best model yet"):
        placed.get_model("best_model")
    with pytest.raises(LearnerError, match="no model named 'last'"):
        placed.get_model("last")


def test_configure_changes_a_setting_and_refuses_an_unknown_one(sites: list[Path]) -> None:
    data = load_data(sites[0]).train
    drive = test_drive(make(sites), Net().state_dict(), configure={"epochs": 3})
    assert drive.steps == [3 * -(-len(data) // 8)]
    with pytest.raises(LearnerError, match="no setting 'epoch'"):
        test_drive(make(sites), Net().state_dict(), configure={"epoch": 3})


def test_abort_from_another_thread_ends_training_between_batches(sites: list[Path]) -> None:
    before = threading.active_count()
    drive = test_drive(make(sites, epochs=1_000), Net().state_dict(), abort_after=0.5)
    assert drive.return_code == ReturnCode.TASK_ABORTED
    assert drive.best is None and not drive.steps
    assert threading.active_count() == before


def test_aborted_training_is_not_kept_as_a_model(placed: CIFAR10ModelLearner) -> None:
    placed.abort_signal.trigger("test")
    assert placed.train(weights()) == ReturnCode.TASK_ABORTED
    assert not BestModel(placed.app_root, placed.metric).path.exists()


def test_steps_reported_are_steps_done(placed: CIFAR10ModelLearner) -> None:
    placed.configure(FLModel(params={"epochs": 2}))
    result = placed.train(weights())
    assert result.meta[FLMetaKey.NUM_STEPS_CURRENT_ROUND] == 2 * -(-len(placed.images.train) // 8)


def test_a_site_holds_only_its_own_images(placed: CIFAR10ModelLearner, sites: list[Path]) -> None:
    own = load_data(sites[0])
    assert [len(part) for part in placed.images] == [len(part) for part in own]
    assert torch.equal(placed.images.train.tensors[0], own.train.tensors[0])


def test_data_may_name_an_environment_variable(sites: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITE_DATA", str(sites[0].parent))
    drive = test_drive(CIFAR10ModelLearner("$SITE_DATA", batch_size=8), Net().state_dict(), site="site-2")
    assert drive.steps == [-(-len(load_data(sites[1]).train) // 8)]


def test_drive_raises_with_the_learners_own_traceback(sites: list[Path]) -> None:
    class Broken(CIFAR10ModelLearner):
        def local_train(self) -> int:
            raise ZeroDivisionError("on purpose")

    with pytest.raises(ZeroDivisionError, match="on purpose") as caught:
        test_drive(Broken(str(sites[0].parent)), Net().state_dict())
    assert caught.traceback[-1].name == "local_train"


def test_drive_refuses_what_flare_would_refuse(sites: list[Path]) -> None:
    class Silent(ModelLearner):
        def validate(self, model: FLModel) -> FLModel:
            return FLModel(metrics={"accuracy": 0.0})

    with pytest.raises(LearnerError, match="train\\(\\) must return an FLModel"):
        test_drive(Silent(), Net().state_dict())


def test_drive_adds_a_difference_to_what_it_sent(sites: list[Path]) -> None:
    class Difference(CIFAR10ModelLearner):
        def train(self, model: FLModel) -> FLModel | str:
            result = super().train(model)
            result.params = {name: value - model.params[name] for name, value in result.params.items()}
            result.params_type = ParamsType.DIFF
            return result

    first = Net().state_dict()
    full, diff = (
        test_drive(kind(str(sites[0].parent), batch_size=8), first) for kind in (CIFAR10ModelLearner, Difference)
    )
    for name, value in full.params.items():
        np.testing.assert_allclose(diff.params[name], value, atol=1e-6)


def test_unwritten_half_says_what_to_write() -> None:
    with pytest.raises(NotImplementedError, match="local_train"):
        PTModelLearner().local_train()
    with pytest.raises(NotImplementedError, match="local_validate"):
        PTModelLearner().local_validate("valid")


def test_logging_names_the_site(placed: CIFAR10ModelLearner, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        placed.train(weights())
    assert any("identity=site-1" in record.message and "steps" in record.message for record in caplog.records)


def test_round_seed_is_the_seed_in_round_0_and_differs_after() -> None:
    assert round_seed(7, "site-1", 0) == round_seed(7, "site-2", 0) == 7
    seeds = {round_seed(s, site, r) for s in (0, 1) for site in ("site-1", "site-2") for r in (1, 2, 3)}
    assert len(seeds) == 12
    assert round_seed(0, "site-1", 1) == 529682304, "a seed must not change between versions"


def test_drive_asks_for_the_parents_constructor() -> None:
    class Orphan(ModelLearner):
        def __init__(self) -> None:
            pass

    with pytest.raises(LearnerError, match=r"super\(\).__init__\(\)"):
        test_drive(Orphan(), Net().state_dict())


def test_a_warning_is_one_line_in_the_log(placed: CIFAR10ModelLearner, caplog: pytest.LogCaptureFixture) -> None:
    placed.warning("once")
    assert [record.message for record in caplog.records if "once" not in record.message] == []
