"""The exercises: left open they pass, the hidden solutions are right, and wrong answers get the hint that helps.

An exercise must work after the notebook's first two code cells and what `room` gives, in the fast settings.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from nbformat import NotebookNode

from checks import Verdict
from tutorial_utils.data import Dataset
from tutorial_utils.results import Run
from tutorial_utils.settings import FAST

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def mine(methods: str) -> str:
    """04: the shipped learner with other methods, as an expression."""
    return f"type('Mine', (CIFAR10ModelLearner,), dict({methods}))"


def asked(**other: list[str]) -> str:
    """07: the right plan with other lists, as an expression."""
    right = {
        "train": ["load_params", "local_validate valid", "train"],
        "evaluate": ["load_params", "local_validate test"],
        "submit_model": ["get_model"],
    }
    return repr({f"is_{request}": calls for request, calls in (right | other).items()})


def joining(site: str = "", researcher: str = "", more: str = "") -> str:
    """10: the right two participants, with other entries or one more, as an expression."""
    ours = "'org': 'hospital_c'"
    one = f"{{'name': 'site-3', 'type': 'client', {ours}, {site}}}"
    two = f"{{'name': 'researcher@hospital-c.org', 'type': 'admin', {ours}, 'role': 'lead', {researcher}}}"
    return f"[{one}, {two}, {more}]"


def by_seed(gain: str) -> str:
    """08: a function of a frame f and two models a and b; t is the frame with a row a seed, a column a model."""
    return f"lambda f, a, b: (lambda t: {gain})(f.pivot(index='seed', columns='model', values='accuracy'))"


# By notebook: what a reader might answer (an expression, or code that sets `answer`), and a word of the hint to it.
WRONG: dict[str, list[tuple[str, str]]] = {
    "00_see_a_federation": [
        ("'site-9'", "choose one of site-1, site-2"),
        ("1", "no site"),
        ("run.cross_site['global'].idxmax()", "column named global"),
    ],
    "01_train_on_one_machine": [
        ("lambda labels, predicted, classes: (labels == predicted).mean()", "one number for each class"),
        ("lambda labels, predicted, classes: [(labels == predicted).mean()] * len(classes)", "all images together"),
        (
            "lambda y, p, classes: [(y[p == k] == k).mean() for k in range(len(classes))]",
            "how often a class is predicted",
        ),
        ("lambda y, p, classes: [((y == k) & (p == k)).mean() for k in range(len(classes))]", "number of all images"),
        ("lambda y, p, classes: [((y == k) & (p == k)).sum() / max(1, (y == k).sum()) for k in range(4)]", "so nan"),
        ("lambda y, p, classes: {classes[k]: (p[y == k] == k).mean() for k in set(y)}", "KeyError"),
    ],
    "02_split_the_data_across_sites": [
        ("lambda counts: counts.diff().iloc[1].abs().sum() / 2", "divide each row by its own sum"),
        ("lambda counts: (counts / counts.sum()).diff().iloc[1].abs().sum() / 2", "divide each row by its own sum"),
        ("lambda counts: counts.div(counts.sum(axis=1), axis=0).diff().iloc[1].sum() / 2", "absolute value"),
        ("lambda counts: counts.div(counts.sum(axis=1), axis=0).diff().iloc[1].abs().sum()", "Take half"),
        ("lambda counts: counts.div(counts.sum(axis=1), axis=0).diff().iloc[1].abs().max()", "over the classes"),
        ("lambda counts: counts.div(counts.sum(axis=1), axis=0).diff().abs()", "TypeError"),
    ],
    "03_average_models_by_hand": [
        ("lambda updates: {k: sum(p[k] for p, _ in updates) / 3 for k in updates[0][0]}", "every site alike"),
        ("lambda updates: {k: sum(p[k] * n for p, n in updates) for k in updates[0][0]}", "add up to 100"),
        ("lambda updates: {k: sum(p[k] * n for p, n in updates) / 3 for k in updates[0][0]}", "the number of sites"),
        ("lambda updates: {k: sum(p[k] for p, _ in updates) for k in updates[0][0]}", "do not divide"),
        ("lambda updates: [sum(p[k] * n for p, n in updates) / 100 for k in updates[0][0]]", "returns a list"),
        ("lambda updates: updates[0][0]", "multiply each site's array"),
        ("lambda updates: {k: sum(p * n for p, n in updates) / 100 for k in updates[0][0]}", "TypeError"),
    ],
    "04_convert_the_script_to_a_learner": [
        ("CIFAR10ModelLearner(str(sites[0].parent))", "the class itself"),
        (mine("train=lambda self, model: {'weights': model.params}"), "train() must return an FLModel"),
        (mine("validate=lambda self, model: FLModel(metrics={'acc': 0.5})"), 'report "accuracy"'),
        (mine("load_params=lambda self, params: None"), "must load model.params"),
        (mine("get_shareable_header=lambda self, key: None"), "on the validation images"),
        (mine("get_shareable_header=lambda self, key: ValidateType.BEFORE_TRAIN_VALIDATE"), "the test images then"),
        (mine("seed_of_round=lambda self: self.seed"), "differ from round 1 on"),
        (mine("local_train=lambda self: 1"), "gives back the weights that it received"),
        (mine("local_train=lambda self: 1 / 0"), "ZeroDivisionError"),
        (mine("train=lambda s, m: FLModel(params=CIFAR10ModelLearner.train(s, m).params)"), "NUM_STEPS_CURRENT_ROUND"),
        (mine("get_model=lambda self, name: None"), "get_model() must return an FLModel"),
        (mine("get_model=lambda self, name: FLModel(params=self.params())"), "did best on the validation images"),
        (mine("is_aborted=lambda self: False"), "after an abort"),
    ],
    "05_create_the_job": [
        ("IntimeModelSelector()", "does not report"),
        ("IntimeModelSelector(key_metric='accuracy', negate_key_metric=True)", "which argument names the metric"),
        ("IntimeModelSelector(key_metric='val_loss', negate_key_metric=True)", "no 'val_loss'"),
        ("IntimeModelSelector(key_metric='loss')", "WORST model"),
        ("IntimeModelSelector", "no model selector"),
        ("FedJob(name='smallest-loss', min_clients=2)", "no model selector"),
    ],
    "06_run_and_judge_the_federation": [
        ("lambda m: np.diag(m[m.index]).mean()", "subtract the mean away"),
        ("lambda m: m[m.index].sum().sum() / 6 - np.trace(m[m.index]) / 2", "The sign"),
        ("lambda m: np.diag(m).mean() - m.to_numpy()[~np.eye(*m.shape, dtype=bool)].mean()", "another order"),
        (
            "lambda m: np.diag(m[m.index]).mean() - np.mean([m.loc[s, k] for s in m.index for k in m if k != s])",
            "no site's model",
        ),
        ("lambda m: np.diag(m[m.index]).mean() - m[m.index].to_numpy().mean()", "all nine cells"),
        ("lambda m: 2 * np.trace(m[m.index]) - m[m.index].sum().sum()", "You subtract sums"),
        ("lambda m: m.loc['site-1', 'site-1'] - m.loc['site-2', 'site-1']", "minus mean of the six others"),
        ("lambda m: m - m.mean()", "TypeError"),
    ],
    "07_choose_how_to_write_the_client": [
        (asked(train=[]), "wants metrics too"),
        (asked(train=["train"]), "wants metrics too"),
        (asked(train=["local_validate valid", "train"]), "What must come first"),
        (asked(train=["load_params", "train", "local_validate valid"]), "not the one that came in"),
        (asked(train=["load_params", "local_validate test", "train"]), "on valid"),
        (asked(evaluate=["local_validate test"]), "the received model"),
        (asked(evaluate=["load_params", "local_validate valid"]), "on the test images"),
        (asked(submit_model=["train"]), "the best model"),
        ("['load_params']", "must be a dict"),
        ("{'is_train': ['load_params', 'local_validate valid', 'train']}", "list of calls for each"),
    ],
    "08_train_when_sites_differ": [
        (by_seed("(f[f.model == a].accuracy.to_numpy() - f[f.model == b].accuracy.to_numpy()).min()"), "one order"),
        (by_seed("(f[f.model == a].accuracy - f[f.model == b].accuracy).min()"), "the index of both"),
        (by_seed("t[a].min() - t[b].max()"), "the best of the other"),
        (by_seed("t[a].min() - t[b].min()"), "the smallest accuracies"),
        (by_seed("(t[a] - t[b]).mean()"), "the mean of the gains"),
        (by_seed("(t[a] - t[b]).max()"), "the largest of the gains"),
        (by_seed("(t[b] - t[a]).min()"), "The sign"),
        (by_seed("(t[a] - t[b]).abs().min()"), "no absolute value"),
        (by_seed("100 * (t[a] - t[b]).min()"), "no factor of 100"),
        (by_seed("t[a] - t[b]"), "TypeError"),
        (by_seed("(t[a] > t[b]).all()"), "For each seed subtract"),
    ],
    "09_break_the_federation": [
        ("lambda u, b, limit: [k for k in u if np.abs(u[k]).max() > limit]", "not at the weights"),
        ("lambda u, b, limit: [k for k in u if np.linalg.norm(u[k] - b[k]) > limit]", "no norm"),
        ("lambda u, b, limit: [k for k in u if np.abs(u[k] - b[k]).mean() > limit]", "no mean"),
        ("lambda u, b, limit: [k for k in u if (u[k] - b[k] > limit).any()]", "absolute value"),
        ("lambda u, b, limit: [k for k in u if np.abs(u[k] - b[k]).max() > limit]", "NaN slips through"),
        ("lambda u, b, limit: [k for k in u if not np.abs(u[k] - b[k]).max() <= limit][:1]", "name each of them"),
        ("lambda u, b, limit: any(np.abs(u[k] - b[k]).max() > limit for k in u)", "return a list of names"),
        ("lambda u, b, limit: [k for k in u if np.abs(u - b).max() > limit]", "TypeError"),
    ],
    "10_move_to_real_sites": [
        ("{'name': 'site-3'}", "a list of dicts"),
        ("[{'name': 'site-3', 'type': 'client', 'org': 'hospital_c'}]", "researcher@hospital-c.org must get a kit"),
        (joining(more="{'name': 'site-1', 'type': 'client', 'org': 'hospital_a'}"), "Only the two newcomers"),
        (joining(site="'type': 'site'"), "FLARE's word"),
        (joining(researcher="'type': 'client'"), "of the type admin"),
        (joining(site="'org': 'hospital-c'"), "letters, digits and _"),
        (joining(researcher="'org': 'coordinator'"), "Both belong to"),
        (joining(site="'role': 'lead'"), "A site has no role"),
        (joining(researcher="'role': 'project_admin'"), "more than was asked"),
        (joining(researcher="'role': 'member'"), "row submit_job"),
        (joining(researcher="'role': 'boss'"), "no role"),
    ],
}
ODD = ("-1.5", "float('nan')", "'nonsense'", "[]", "{}", "print", "object()", "lambda *given: 1 / 0")

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
every_wrong_answer = pytest.mark.parametrize(
    ("path", "answer", "word"),
    [(path, *case) for path in NOTEBOOKS for case in WRONG.get(path.stem, [])],
    ids=lambda value: value.stem if isinstance(value, Path) else value.splitlines()[0][:40],
)

Room = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory, digits: Dataset, sites: list[Path], runs: Path) -> Path:
    """A folder notebooks/ with the reader's folders beside it: what an answer writes lands here."""
    root = tmp_path_factory.mktemp("copy")
    without = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("code", "notebooks"):
        shutil.copytree(ROOT / name, root / name, ignore=without)
    (root / "data").symlink_to(digits.folder.parent)  # split already, see `sites`
    (root / "runs").symlink_to(runs)
    return root / "notebooks"


@pytest.fixture
def room(copy: Path, digits: Dataset, sites: list[Path], run: Run, monkeypatch: pytest.MonkeyPatch) -> Room:
    """Called with a notebook: the names an exercise finds, after the import cell and the settings cell."""
    monkeypatch.chdir(copy)
    monkeypatch.setenv("TUTORIAL_FAST", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))  # import cells add to it

    def enter(path: Path) -> dict[str, Any]:
        names = {"__name__": "notebook", "run": run, "sites": sites, "dataset": digits, "settings": FAST}
        for cell in [cell for cell in read(path) if cell.cell_type == "code"][:2]:
            execute(cell.source, names)
        return names

    return enter


def read(path: Path) -> list[NotebookNode]:
    return nbformat.read(path, as_version=4).cells


def tagged(path: Path, tag: str) -> str:
    (cell,) = [cell for cell in read(path) if tag in cell.metadata.get("tags", [])]
    return cell.source


def execute(source: str, names: dict[str, Any]) -> Any:
    """Run code as a notebook's cell does: the value of an expression that stands last comes back."""
    tree = ast.parse(source)
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec", dont_inherit=True), names)
    return eval(compile(last, "<cell>", "eval", dont_inherit=True), names) if last else None


def check(path: Path, names: dict[str, Any]) -> Verdict:
    verdict = execute(tagged(path, "check"), names)
    assert isinstance(verdict, Verdict), f"End the check of {path.name} with a Verdict as its last expression."
    assert verdict.text.strip().endswith((".", "?")), f"Let the check of {path.name} speak in sentences."
    return verdict


@every_notebook
def test_an_open_exercise_passes(path: Path, room: Room) -> None:
    names = room(path)
    execute(tagged(path, "exercise"), names)
    verdict = check(path, names)
    assert verdict.right is None, f"An open exercise in {path.name} must be None, not {verdict!r}"
    assert repr(verdict).startswith("Not attempted yet: ")


@every_notebook
def test_the_hidden_solution_is_right(path: Path, room: Room) -> None:
    names = room(path)
    fence = re.search(r"```python\n(.*?)```", tagged(path, "solution"), re.DOTALL)
    assert fence, f"Put the solution of {path.name} in a ```python fence."
    execute(fence[1], names)
    verdict = check(path, names)
    assert verdict.right is True, f"The solution of {path.name} must be right, not {verdict!r}"


@every_wrong_answer
def test_a_wrong_answer_gets_the_hint_that_helps(path: Path, answer: str, word: str, room: Room) -> None:
    names = room(path)
    value = execute(answer, names | {"np": np, "pd": pd, "torch": torch})
    names.setdefault("answer", value)
    verdict = check(path, names)
    assert verdict.right is False, f"{answer} is wrong in {path.name}, but the check says {verdict!r}"
    assert word in verdict.text


@every_notebook
def test_an_odd_answer_is_not_right_and_never_raises(path: Path, room: Room) -> None:
    names = room(path)
    for odd in ODD:
        names["answer"] = execute(odd, names)
        verdict = check(path, names)
        assert verdict.right is False, f"{odd} is no answer in {path.name}, but the check says {verdict!r}"


@every_notebook
def test_wrong_answers_are_tried(path: Path) -> None:
    assert len(WRONG.get(path.stem, [])) >= 2, (
        f"Add two typical wrong answers of {path.stem} to WRONG, with their hints."
    )


def test_wrong_answers_belong_to_notebooks() -> None:
    assert set(WRONG) <= {path.stem for path in NOTEBOOKS}
