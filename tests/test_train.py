"""The script."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dl.train import Net, evaluate, load_data, main, make_loader, normalize, predict, train
from tutorial_utils.data import Dataset, write_dataset
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


def run_script(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_script_runs_and_its_weights_load(digits: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "model.pt"
    done = run_script("--data", digits.folder, "--epochs", 1, "--batch-size", 8, "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    Net().load_state_dict(torch.load(out, weights_only=True))


def test_script_says_what_to_do_without_data(tmp_path: Path) -> None:
    done = run_script("--data", tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "data/download.py" in done.stderr


class Watched(nn.Module):
    """A net that learns next to nothing and notes, batch by batch, whether it is in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3 * 32 * 32, 10)
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append(self.training)
        return self.last(images.flatten(1))


def test_every_epoch_trains_in_training_mode(digits: Dataset) -> None:
    """Dropout and BatchNorm work otherwise in evaluation, which is where `evaluate` leaves the net."""
    data, net, looks = load_data(digits.folder), Watched().eval(), []

    def look(epoch: int, loss: float) -> None:
        before = len(net.modes)
        looks.append(net.modes[:])
        evaluate(net, data.valid)
        assert not any(net.modes[before:]), "and evaluation is evaluation"
        net.modes.clear()

    train(net, make_loader(data.train, 100, seed=0), epochs=2, after_epoch=look)
    assert looks == [[True] * 12] * 2


def printed(output: str) -> list[float]:
    """The validation accuracies that the script prints, epoch by epoch, in per cent."""
    return [float(number) for number in re.findall(r"validation accuracy ([\d.]+)%", output)]


def run_main(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: object) -> None:
    """The script in this process, where `import torch` is done, with `folder` as its current one."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    main()


def test_script_keeps_the_epoch_that_validation_chose(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Validation labels are shifted by one: the better the net learns, the worse it does there, and test likes it."""
    (images, labels), rest = digits.arrays("train"), digits.arrays("test")
    few = slice(0, 200)
    splits = {"train": (images[few], labels[few]), "valid": (images[few], (labels[few] + 1) % 10), "test": rest}
    made = write_dataset(tmp_path / "odd", splits, name="odd", classes=digits.classes, source="digits, valid is wrong")
    run_main(monkeypatch, tmp_path, "--data", made.folder, "--epochs", 8, "--batch-size", 8, "--lr", 0.01)
    output = capsys.readouterr().out
    accuracies = printed(output)
    assert len(accuracies) == 8 and max(accuracies) > accuracies[-1], "the last epoch is not the best one"
    net, data = Net(), load_data(made.folder)
    net.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert 100 * evaluate(net, data.valid)["accuracy"] == pytest.approx(max(accuracies), abs=0.06), "the best on valid"
    test = float(re.search(r"test accuracy ([\d.]+)%", output).group(1))
    assert 100 * evaluate(net, data.test)["accuracy"] == pytest.approx(test, abs=0.06), "the epoch that was kept"


@pytest.mark.parametrize("epochs", [0, -1])
def test_script_reports_no_older_model(
    epochs: int, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    torch.save(Net(7).state_dict(), tmp_path / "model.pt")
    with pytest.raises(SystemExit) as ended:
        run_main(monkeypatch, tmp_path, "--data", digits.folder, "--epochs", epochs)
    assert ended.value.code == f"epochs is {epochs}: it must be 1 or more, or there is nothing to keep."
    assert capsys.readouterr().out == ""
