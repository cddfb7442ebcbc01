"""The comparison with NIID-Bench: its data, its augmentation, its optimizer, and a run that was stopped goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))  # the benchmark's scripts import each other by name

import niid
from niid_data import (
    draw_as_flower,
    draw_as_niid_bench,
    draw_dirichlet,
    draw_iid,
    draw_two_labels,
    make_sites,
    skew,
)
from niid_learner import NIIDLearner, crop_and_flip

from dl.train import Net, evaluate, load_data, make_loader, normalize
from tutorial_utils.data import Dataset
from tutorial_utils.drive import test_drive as drive
from tutorial_utils.job import build_job
from tutorial_utils.rehearse import rehearse
from tutorial_utils.results import sha256

COUNTS = np.full(10, 4500)  # as CIFAR-10's training images


def test_each_image_is_cropped_from_its_mirrored_surroundings_and_flipped_or_not() -> None:
    images = torch.randint(0, 256, (40, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = crop_and_flip(images, torch.Generator().manual_seed(0))
    padded = functional.pad(images.float(), (4, 4, 4, 4), mode="reflect")
    places = set()
    for image, whole in zip(found.float(), padded, strict=True):
        crops = {(i, j): whole[:, i : i + 12, j : j + 12] for i in range(9) for j in range(9)}
        fits = [(*at, flip) for at, crop in crops.items() for flip in (0, 1) if torch.equal(image, turn(crop, flip))]
        assert len(fits) == 1
        places.add(fits[0])
    rows, columns, flips = zip(*places, strict=True)
    assert {min(rows), min(columns)} == {0} and {max(rows), max(columns)} == {8} and set(flips) == {0, 1}


def turn(image: torch.Tensor, flip: int) -> torch.Tensor:
    return image.flip(2) if flip else image


@pytest.mark.parametrize("from_zero", [False, True])
def test_the_learner_is_the_script_with_weight_decay_and_augmentation(sites: list[Path], from_zero: bool) -> None:
    learner = NIIDLearner(str(sites[0].parent), epochs=2, weight_decay=0.01, pixels_from_zero=from_zero)
    driven = drive(learner, Net(), site="site-1", rounds=1).params

    net = Net().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
    loader, generator = make_loader(load_data(sites[0]).train, 64, 0), torch.Generator().manual_seed(0)
    for _ in range(2):
        for images, labels in loader:
            optimizer.zero_grad()
            pixels = normalize(crop_and_flip(images, generator))
            functional.cross_entropy(net((pixels + 1) / 2 if from_zero else pixels), labels).backward()
            optimizer.step()
    assert sha256(driven) == sha256(net.state_dict())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_site_with_an_equal_part_gets_nothing_of_the_classes_that_follow(seed: int) -> None:
    shares = draw_dirichlet(COUNTS, 10, np.random.default_rng(seed))
    assert np.allclose(shares.sum(axis=1), 1)
    held = np.cumsum(shares * 4500, axis=0)
    full = held[:-1] >= 4500
    assert full.any() and not shares[1:][full].any() and held[-1].min() >= 10


def test_a_draw_is_repeated_until_every_site_has_ten_images() -> None:
    for seed in range(20):
        shares = draw_dirichlet(np.full(10, 20), 10, np.random.default_rng(seed), alpha=0.2)
        assert (shares.sum(axis=0) * 20).min() >= 10


def deal_as_they_do(rng: np.random.Generator | np.random.RandomState) -> np.ndarray:
    """Images [classes, sites] by the published procedure: index by index, one class after the other."""
    while True:
        held = [[] for _ in range(10)]
        found = np.zeros((10, 10), dtype=int)
        for label in range(10):
            places = np.arange(label * 5000, label * 5000 + 5000)
            rng.shuffle(places)
            drawn = rng.dirichlet(np.repeat(0.5, 10)) * [len(one) < 5000 for one in held]
            ends = (np.cumsum(drawn / drawn.sum()) * 5000).astype(int)[:-1]
            for site, part in enumerate(np.split(places, ends)):
                held[site] += part.tolist()
                found[label, site] = len(part)
        if min(map(len, held)) >= 10:
            return found


def test_their_draws_come_again() -> None:
    """Flower deals by seed 42 of numpy's new generator, NIID-Bench's program by seed 0 of its old one."""
    for draw, rng in ((draw_as_flower, np.random.default_rng(42)), (draw_as_niid_bench, np.random.RandomState(0))):
        assert np.abs(draw(COUNTS, 10, np.random.default_rng(7)) * 5000 - deal_as_they_do(rng)).max() <= 1


def test_the_skew_of_a_draw_is_the_part_of_the_images_that_would_have_to_move() -> None:
    assert skew(np.full((10, 10), 0.1)) == pytest.approx(0) and skew(np.eye(10)) == pytest.approx(0.9)
    apart = np.array([[1.0, 0.0], [0.5, 0.5]])  # 3 : 1 images; 1/6 and 1/2 of them are too many of one class
    assert skew(apart) == pytest.approx(0.75 / 6 + 0.25 / 2)


def test_site_k_holds_label_k_and_one_more() -> None:
    shares = draw_two_labels(COUNTS, 10, np.random.default_rng(0))
    held = shares > 0
    assert held.diagonal().all() and (held.sum(axis=0) == 2).all() and np.allclose(shares.sum(axis=1), 1)
    assert all(len(set(row[row > 0])) == 1 for row in shares)
    assert (draw_iid(COUNTS, 10, np.random.default_rng(0)) == 0.1).all()


def test_every_image_is_dealt_once_and_what_nobody_trains_on_scores(digits: Dataset, tmp_path: Path) -> None:
    folders = make_sites(digits, "Dirichlet 0.5", 0, tmp_path)
    assert make_sites(digits, "Dirichlet 0.5", 0, tmp_path) == folders
    data = [load_data(folder) for folder in folders]
    for whole, parts in (
        (digits.arrays("train")[0], [one.train for one in data]),
        (np.concatenate([digits.arrays(name)[0] for name in ("valid", "test")]), [one.valid for one in data]),
    ):
        dealt = torch.cat([part.tensors[0] for part in parts]).numpy()
        assert sorted(image.tobytes() for image in dealt) == sorted(image.tobytes() for image in whole)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_and_its_scores_are_those_of_the_averages(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, runs = niid.Plan("Dirichlet 0.5", "FedAvg"), tmp_path / "runs"
    first = niid.run(plan, digits, runs, rounds=1, epochs=1)
    assert first["seconds"] > 0 and sum(first["sizes"]) == digits.counts["train"]
    words = [str(digits.folder), "--rounds", "2", "--epochs", "1", "--only", plan.key]
    places = ["--runs", str(runs), "--json", str(tmp_path / "kept.json")]
    monkeypatch.setattr(sys, "argv", ["niid.py", *words, *places])
    niid.main()
    done = json.loads((tmp_path / "kept.json").read_text())[plan.key]
    assert done["seconds"] is None and done["accuracy"][:2] == pytest.approx(first["accuracy"], abs=1e-6)

    learner = NIIDLearner(str(runs / f"{plan.key}-sites"), epochs=1)
    job = build_job(learner, Net(), sites=niid.SITES, rounds=2, name="by-hand")
    by_hand = [rehearse(job, rounds=rounds).params for rounds in (1, 2)]
    assert [first["sha256"], done["sha256"]] == [sha256(params) for params in by_hand]
    images, labels = (torch.from_numpy(np.concatenate(part)) for part in zip(*niid.held_out(digits), strict=True))
    held_out = TensorDataset(images, labels)
    for params, accuracy in zip([Net().state_dict(), *by_hand], done["accuracy"], strict=True):
        net = Net()
        net.load_state_dict({name: torch.as_tensor(value) for name, value in params.items()})
        assert evaluate(net, held_out)["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert done["images"] == len(held_out)

    before = (tmp_path / "kept.json").read_text()
    niid.main()  # it stands there: nothing is run again
    assert (tmp_path / "kept.json").read_text() == before and (tmp_path / "kept.png").stat().st_size > 10_000
