"""The script of notebook 11, before and after its cut, its learner, and the script of its exercise."""

from __future__ import annotations

import ast
import contextlib
import io
import runpy
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from hospitals import AGREED, NAMES, place_hospitals
from own import script
from own.learner import CancerLearner
from own.script import load, make_loader, make_net, score, train
from tutorial_utils.drive import compare_with_script, test_drive
from tutorial_utils.show import count_lines

OWN = Path(__file__).parents[1] / "code/own"


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place_hospitals(tmp_path_factory.mktemp("hospitals"))


def run(file: str, name: str) -> str:
    """What a script prints when it is run, or imported, by this name."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        runpy.run_path(str(OWN / file), run_name=name)
    return said.getvalue()


def test_the_script_before_its_cut_does_its_work() -> None:
    said = run("before.py", "__main__").splitlines()
    assert len(said) > 5 and said[-1].startswith("best AUC 0.9")


def test_after_the_cut_it_says_nothing_when_imported_and_works_when_run(
    hospitals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("script.py", "script") == ""
    monkeypatch.setattr("sys.argv", ["script.py", str(hospitals / "university")])
    assert run("script.py", "__main__").startswith("AUC 0.9")


def test_the_exercise_s_script_works_and_works_at_import_too() -> None:
    assert "wines" in run("wine.py", "__main__") and "wines" in run("wine.py", "wine")


def imported(file: str) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse((OWN / file).read_text())) if isinstance(node, ast.ImportFrom)]
    return {node.module.split(".")[0] for node in nodes}


def test_the_script_knows_nothing_of_a_federation_and_the_learner_little() -> None:
    assert not {"nvflare", "tutorial_utils"} & (imported("script.py") | imported("before.py") | imported("wine.py"))
    assert imported("learner.py") == {"own", "tutorial_utils"}
    assert count_lines(CancerLearner) <= 30


@pytest.mark.parametrize("site", NAMES)
def test_the_learner_does_what_the_script_does_to_the_bit(site: str, hospitals: Path) -> None:
    learner = CancerLearner(str(hospitals), **AGREED)
    trained = script.main(hospitals / site, **AGREED, epochs=2)
    proof = compare_with_script(learner, make_net(), trained, site=site)
    assert proof.equal, proof
    learner.epochs = 3
    assert not compare_with_script(learner, make_net(), trained, site=site).equal


@pytest.mark.parametrize(
    ("rows", "batches"), [(1, []), (2, [2]), (16, [16]), (17, [16]), (18, [16, 2]), (33, [16, 16])]
)
def test_only_a_batch_of_one_row_is_left_out(rows: int, batches: list[int]) -> None:
    data = TensorDataset(torch.zeros(rows, 30), torch.zeros(rows))
    assert [len(batch) for batch, _ in make_loader(data)] == batches
    with pytest.raises(ValueError, match="more than 1 value"):  # why it is
        make_net().train()(torch.zeros(1, 30))


def test_a_site_with_one_class_trains_and_has_no_auc(hospitals: Path) -> None:
    rows = load(hospitals / "rural", **AGREED)["valid"].tensors[0]
    one_class, progress = TensorDataset(rows, torch.zeros(len(rows))), {}
    scores = score(make_net(), one_class)
    assert scores["auc"] != scores["auc"] and scores["loss"] > 0
    assert train(make_net(), make_loader(one_class), one_class, progress, epochs=2) == 2
    assert progress == {"best": 0.0, "waited": 2}, "what is no number is no progress"


def test_patience_goes_on_from_round_to_round(hospitals: Path) -> None:
    parts = load(hospitals / "rural", **AGREED)
    progress = {"best": 1.0, "waited": 3}  # a perfect score is never beaten
    steps = train(make_net(), make_loader(parts["train"]), parts["valid"], progress, epochs=9)
    assert steps == 2 and progress["waited"] == 5, "two epochs of one batch, and it has waited long enough"
    steps = train(make_net(), make_loader(parts["train"]), parts["valid"], progress, epochs=9)
    assert steps == 1, "one epoch a round from then on"
    drive = test_drive(CancerLearner(str(hospitals), **AGREED, epochs=9), make_net(), site="rural", rounds=3)
    assert drive.weights == [17.0] * 3, "an update counts by its patients"
    assert drive.steps[0] > drive.steps[2] == 1
