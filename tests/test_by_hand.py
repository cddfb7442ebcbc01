"""FedAvg by hand: the mean, the looks at it for studies, and the score that every figure rests on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dl.train import Net, evaluate, load_data
from fl.by_hand import average, federate, federated_averaging, score, train_alone, train_locally
from tutorial_utils.data import Dataset, prepare, subset
from tutorial_utils.learner import to_numpy
from tutorial_utils.metric import Metric
from tutorial_utils.partition import split_dataset
from tutorial_utils.results import sha256
from tutorial_utils.study import compare_splits

HOW = {"batch_size": 8, "epochs": 1, "lr": 0.01, "momentum": 0.9}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """So few digits that a training takes a blink."""
    return subset(prepare("digits", root=tmp_path_factory.mktemp("few")), 100)


@pytest.fixture(scope="module")
def pair(few: Dataset) -> list[Path]:
    return split_dataset(few.folder, 2, alpha=0.5)


def test_the_mean_counts_each_site_as_often_as_it_made_steps() -> None:
    one, two = {"a": np.float32([0, 8])}, {"a": np.float32([4, 0])}
    np.testing.assert_array_equal(average([(one, 1), (two, 3)])["a"], np.float32([3, 2]))


def test_one_sites_mean_is_its_own_weights_and_what_all_sent_alike_stays() -> None:
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    one, other = {"a": values, "b": values}, {"a": values, "b": 2 * values}
    assert any((values * float(n) * (1.0 / n) != values).any() for n in range(1, 50)), (
        "rounding alone would change them"
    )
    for steps in range(1, 50):
        assert sha256(average([(one, steps)])) == sha256(one)
        assert sha256({"a": average([(one, steps), (other, 3)])["a"]}) == sha256({"a": values})
        assert sha256(average([(one, steps), (other, 0)])) == sha256(one), "no steps, no say"


def test_whole_numbers_and_entries_without_dimensions_stay_what_they_are() -> None:
    updates = [({"n": np.array(n), "scale": np.float32(n)}, 1) for n in (3, 6)]
    mean = average(updates)
    assert mean["n"].dtype == np.int64 and mean["n"] in (4, 5) and mean["n"].shape == ()
    assert mean["scale"].dtype == np.float32 and mean["scale"] == 4.5 and isinstance(mean["scale"], np.ndarray)


class NormNet(Net):
    """What a reader does first: BatchNorm, whose counter of batches has no dimensions."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(images))


def test_batchnorm_survives_a_second_round(pair: list[Path]) -> None:
    net = NormNet()
    params = to_numpy(net.state_dict())
    batches = 0
    for number in (1, 2):
        updates = []
        for folder in pair:
            steps = train_locally(net, folder, params, seed=number, batch_size=8)
            updates.append((to_numpy(net.state_dict()), steps))
        total = sum(steps for _, steps in updates)
        batches += sum(steps**2 for _, steps in updates) / total
        params = average(updates)
        assert params["norm.num_batches_tracked"].dtype == np.int64
        assert abs(params["norm.num_batches_tracked"] - batches) <= number
    assert set(params) == set(net.state_dict())


def test_the_score_is_the_accuracy_on_the_test_images_of_all_folders(few: Dataset, pair: list[Path]) -> None:
    params = federated_averaging(pair, 3, **HOW)
    net = Net()
    net.load_state_dict({name: torch.as_tensor(value) for name, value in params.items()})
    parts = [load_data(folder) for folder in pair]
    counts = {split: [len(getattr(part, split)) for part in parts] for split in ("valid", "test")}
    right = {split: [evaluate(net, getattr(part, split))["accuracy"] for part in parts] for split in counts}
    valid, test = (np.average(right[split], weights=counts[split]) for split in ("valid", "test"))
    accuracy, images = score(params, pair)
    assert images == sum(counts["test"]) == few.counts["test"] != sum(counts["valid"])
    assert accuracy == pytest.approx(test) and abs(test - valid) > 1e-3, "the two can be told apart"


def test_a_study_federates_with_the_bits_of_fedavg_by_hand(pair: list[Path]) -> None:
    averages = []
    federated_averaging(pair, 2, seed=1, **HOW, after_round=lambda _, params: averages.append(params))
    rows = federate(pair[::-1], 2, seed=1, **HOW)
    assert [row["sha256"] for row in rows] == [sha256(params) for params in averages]
    assert [row["accuracy"] for row in rows] == [score(params, pair)[0] for params in averages]
    assert [row["round"] for row in rows] == [1, 2]
    assert all(row["drift"] > row["drift_of_biases"] > 0 for row in rows)


def test_alone_is_as_many_epochs_in_one_go(few: Dataset) -> None:
    expected = federated_averaging([few.folder], 1, seed=2, **HOW | {"epochs": 6})
    assert train_alone(few.folder, 3, [few.folder], seed=2, **HOW | {"epochs": 2}) == score(expected, [few.folder])[0]


@pytest.mark.slow
def test_the_numbers_are_those_of_one_process(few: Dataset, pair: list[Path]) -> None:
    splits = {"IID": split_dataset(few.folder, 2, alpha=None), "apart": pair}
    trainings = {"federate": federate, "train_alone": train_alone, "metric": Metric("accuracy")}
    table = compare_splits(splits, few.folder, (0, 1), 2, **trainings, processes=2, **HOW)
    last = table[table["round"] == 2].set_index(["split", "seed", "model"])["accuracy"]
    assert len(last) == len(last.index.unique()) == 2 * 2 * 3
    assert len(table) == len(last) + 4  # and the federations' first rounds
    for split, sites in splits.items():
        for seed in (0, 1):
            alone = [train_alone(site, 2, sites, seed=seed, **HOW) for site in sites]
            assert last[split, seed, "one site alone"] == pytest.approx(sum(alone) / 2)
            assert last[split, seed, "federated"] == federate(sites, 2, seed=seed, **HOW)[-1]["accuracy"]
            assert last[split, seed, "centralised"] == train_alone(few.folder, 2, [few.folder], seed=seed, **HOW)
