"""The scripts of code/more, each alone, each held against its learner, each federated."""

from __future__ import annotations

import copy
import runpy
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from more import lstm, pictures, regression, texts
from more.lstm_learner import LSTMLearner
from more.make_folders import MAKERS
from more.pictures_learner import PicturesLearner
from more.regression_learner import RegressionLearner
from more.texts_learner import TextsLearner, agree_on_words
from tutorial_utils.drive import compare_with_script, test_drive
from tutorial_utils.job import build_job
from tutorial_utils.learner import PTModelLearner, round_seed, seed_everything
from tutorial_utils.results import sha256
from tutorial_utils.simulate import simulate
from tutorial_utils.table import read_table

Folders = Callable[[str], Path]
SCRIPTS: dict[str, ModuleType] = {"regression": regression, "lstm": lstm, "pictures": pictures, "texts": texts}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The sites' folders of a kind, made where a test asks for them."""
    return cache(lambda kind: MAKERS[kind](tmp_path_factory.mktemp("more") / kind))


def agreed(root: Path) -> list[str]:
    """Each site looks at its own folder, and gives away words."""
    return agree_on_words(texts.find_words(root / site) for site in ("harbour", "valley"))


def parts_of(kind: str, root: Path) -> tuple[PTModelLearner, nn.Module, str]:
    """A learner, a net with first weights, and one site."""
    torch.manual_seed(3)
    if kind == "regression":
        return RegressionLearner(str(root)), regression.Net(), "site-1"
    if kind == "lstm":
        return LSTMLearner(str(root)), lstm.Net(), "site-1"
    if kind == "texts":
        words = agreed(root)
        return TextsLearner(str(root), words), texts.Net(len(words)), "valley"
    net = pictures.Net()
    net.load_state_dict(torch.load(root / "start.pt"))
    return PicturesLearner(str(root)), net, "site-1"


def train_by_script(kind: str, root: Path, site: str, net: nn.Module) -> nn.Module:
    if kind == "pictures":
        return pictures.main(root / site, root / "start.pt")
    if kind == "texts":
        return texts.main(root / site, net, agreed(root))
    return SCRIPTS[kind].main(root / site, net)


@pytest.mark.parametrize("kind", SCRIPTS)
def test_a_learner_does_what_its_script_does(kind: str, folders: Folders) -> None:
    root = folders(kind)
    learner, net, site = parts_of(kind, root)
    proof = compare_with_script(learner, net, train_by_script(kind, root, site, copy.deepcopy(net)), site=site)
    assert proof.equal, proof


@pytest.mark.parametrize("kind", SCRIPTS)
def test_a_script_runs_alone(
    kind: str, folders: Folders, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `python code/more/KIND.py FOLDER`, with nothing of the project at hand."""
    root = folders(kind)
    site = "valley" if kind == "texts" else "site-1"
    arguments = [str(root / site), *([str(root / "start.pt")] if kind == "pictures" else [])]
    script = SCRIPTS[kind].__file__
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not Path(path, "more").is_dir()])
    runpy.run_path(script, run_name="__main__")
    assert ("'mae'" if kind == "regression" else "'accuracy'") in capsys.readouterr().out


# --- what is another in each ---


def test_the_schedule_of_an_lstm_goes_on_from_round_to_round(folders: Folders) -> None:
    """Each round takes 0.8 of the steps of the one before, with an Adam of its own."""
    root = folders("lstm")
    learner, net, site = parts_of("lstm", root)
    trained, rows, rate = copy.deepcopy(net), lstm.load(root / site)["train"], 0.02
    for number in range(3):
        schedule = lstm.make_schedule(trained)
        schedule.optimizer.param_groups[0]["lr"] = rate
        seed_everything(round_seed(0, site, number))
        lstm.train(trained, lstm.make_loader(rows), schedule, epochs=1)
        rate *= 0.8
    assert sha256(test_drive(learner, net, site=site, rounds=3).params) == sha256(trained.state_dict())


def test_a_digit_that_a_site_lacks_does_not_rename_the_others(folders: Folders) -> None:
    folder = folders("pictures") / "site-2" / "train"
    present = sorted(path.name for path in folder.iterdir())
    assert len(present) < 10, "or there is nothing to see"
    assert pictures.ImageFolder(folder).class_to_idx[present[-1]] != int(present[-1]), "ImageFolder's own numbers"
    ours = pictures.load(folder.parent)["train"]
    assert all(Path(path).parent.name == str(number) for path, number in ours.samples)


def test_a_frozen_backbone_stays_as_the_checkpoint_has_it(folders: Folders) -> None:
    learner, net, site = parts_of("pictures", folders("pictures"))
    drive = test_drive(learner, net, site=site, rounds=2)
    for name, value in net.state_dict().items():
        assert np.array_equal(drive.params[name], value) == name.startswith("backbone."), name


def test_sites_that_do_not_agree_mean_other_words_by_one_number(folders: Folders) -> None:
    root = folders("texts")
    harbour, valley = (texts.find_words(root / site) for site in ("harbour", "valley"))
    assert harbour.index("the") != valley.index("the")
    words = agreed(root)
    assert set(words) == {*harbour, *valley} and words == sorted(words)
    for site in ("harbour", "valley"):
        notes = [texts.words_of(note) for note in read_table(root / site)["train"]["note"]]
        numbers = [row.tolist() for row, _ in texts.load(root / site, words)["train"]]
        assert [words.index("the") + 1 in row for row in numbers] == ["the" in note for note in notes]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lstm", "pictures", "texts"])  # the regression's is in test_kinds
def test_a_federation(kind: str, folders: Folders, runs: Path) -> None:
    root = folders(kind)
    learner, net, _ = parts_of(kind, root)
    start = {"checkpoint": root / "start.pt"} if kind == "pictures" else {}
    sites = ["harbour", "valley"] if kind == "texts" else 2
    net = pictures.Net() if kind == "pictures" else net  # the checkpoint is the job's to read
    run = simulate(build_job(learner, net, sites=sites, rounds=4, name=kind, **start), runs=runs, progress=False)
    mean = run.rounds.groupby("round")["accuracy"].mean()
    assert mean.iloc[-1] > mean.iloc[0], "it learns"
    assert run.cross_site.notna().all(axis=None)
    if kind == "pictures":
        assert mean.iloc[0] > 0.3, "it began from the checkpoint"
        for name, value in torch.load(root / "start.pt").items():
            assert torch.equal(run.global_model[name], value) == name.startswith("backbone."), name
    if kind == "lstm":
        for site in run.sites:
            kept = torch.load(run.site_folder(site) / f"app_{site}" / "learner_state_3.pt", weights_only=True)
            assert kept["state"]["schedule"]["last_epoch"] == 4
