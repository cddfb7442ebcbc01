"""The script."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dl.train import Net, evaluate, load_data, make_loader, normalize, predict, train
from tutorial_utils.data import Dataset
from tutorial_utils.results import sha256

SCRIPT = Path(__file__).parents[1] / "code/dl/train.py"


def test_net_is_the_blitz_net() -> None:
    assert sum(parameter.numel() for parameter in Net().parameters()) == 62_006


def test_first_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = Net(1), Net(1), Net(2)
    assert sha256(first.state_dict()) == sha256(again.state_dict()) != sha256(other.state_dict())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_normalize_maps_bytes_to_minus_one_to_one() -> None:
    assert normalize(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_train_learns_and_counts_its_steps(digits: Dataset) -> None:
    data = load_data(digits.folder)
    net = Net()
    losses = []
    loader = make_loader(data.train, 8, seed=0)
    before = evaluate(net, data.valid)["accuracy"]
    steps = train(net, loader, epochs=3, after_epoch=lambda epoch, loss: losses.append(loss))
    assert steps == 3 * len(loader)
    assert losses == sorted(losses, reverse=True)
    assert evaluate(net, data.valid)["accuracy"] > before + 0.5


def test_train_stops_between_batches_when_asked(digits: Dataset) -> None:
    answers = iter([False, False, True])
    loader = make_loader(load_data(digits.folder).train, 8, seed=0)
    assert train(Net(), loader, stop=lambda: next(answers)) == 2


def test_same_seed_same_order_other_seed_other_order(digits: Dataset) -> None:
    data = load_data(digits.folder).train

    def order(seed: int) -> list[int]:
        return next(iter(make_loader(data, 64, seed)))[1].tolist()

    assert order(0) == order(0) != order(1)


def test_evaluate_agrees_with_predict(digits: Dataset) -> None:
    data = load_data(digits.folder).test
    scores, labels = predict(Net(), data)
    assert scores.shape == (len(data), 10)
    accuracy = float(np.mean(scores.argmax(1).numpy() == labels.numpy()))
    assert evaluate(Net(), data)["accuracy"] == pytest.approx(accuracy)


def test_script_runs_and_its_weights_load(digits: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "model.pt"
    command = [
        sys.executable,
        SCRIPT,
        "--data",
        digits.folder,
        "--epochs",
        "1",
        "--batch-size",
        "8",
        "--out",
        out,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "test accuracy" in done.stdout
    Net().load_state_dict(torch.load(out, weights_only=True))


def test_script_says_what_to_do_without_data(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--data", tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "data/download.py" in done.stderr
