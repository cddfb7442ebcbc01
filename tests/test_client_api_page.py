"""docs/from_your_script_to_the_client_api.md: its code is the files' own, and what it says of a run is true."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_imports import imported

from own.learner import CancerLearner
from own.make_hospitals import make_hospitals
from own.recipe import SITES, build_recipe
from own.script import make_net
from tutorial_utils.job import build_job
from tutorial_utils.results import Run
from tutorial_utils.simulate import simulate

PAGE = Path(__file__).parents[1] / "docs/from_your_script_to_the_client_api.md"
CODE = PAGE.parents[1] / "code"
LINK = re.compile(r"\]\(([^)#]+)\)")
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_the_page_s_code_is_that_of_the_file_named_before_it() -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == 2
    for block in blocks:
        file = PAGE.parent / LINK.findall(text[: block.start()])[-1]
        assert block[1] in file.read_text(encoding="utf-8"), f"copy it anew from {file.name}"


def test_the_page_s_links_and_paths_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    links = {link for link in LINK.findall(text) if not link.startswith("https:")}
    assert len(links) > 5
    for link in links:
        assert (PAGE.parent / link).is_file(), link
    for word in re.findall(r"\bcode/[\w/]+\.py", text):
        assert (PAGE.parents[1] / word).is_file(), word


def test_the_loop_takes_two_functions_from_this_project() -> None:
    names = {name for name in imported(CODE / "own/client.py") if name.startswith("tutorial_utils.")}
    assert names == {"tutorial_utils.learner.round_seed", "tutorial_utils.learner.seed_everything"}
    assert not any(name.startswith("tutorial_utils") for name in imported(CODE / "own/recipe.py"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hospitals(tmp_path_factory.mktemp("page") / "hospitals")


@pytest.fixture(scope="module")
def by_learner(data: Path, runs: Path) -> Run:
    scaling = json.loads((data / "scaling.json").read_text())
    learner = CancerLearner(str(data), **scaling)
    return simulate(build_job(learner, make_net(0), sites=SITES, rounds=5), runs=runs, progress=False)


def run_recipe(data: Path, workspace: Path, *options: str) -> str:
    """The page's command, and what it prints."""
    words = [sys.executable, "-m", "own.recipe", str(data), *options]
    env = os.environ | {"NVFLARE_SIMULATOR_WORKSPACE_ROOT": str(workspace)}  # in place of runs/recipe
    return subprocess.run(words, cwd=CODE, env=env, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_recipe_and_learner_end_at_one_model_and_one_matrix(data: Path, by_learner: Run, tmp_path: Path) -> None:
    printed = run_recipe(data, tmp_path)
    path = tmp_path / "hospitals/server/simulate_job/app_server/FL_global_model.pt"
    made, learned = torch.load(path, weights_only=True)["model"], by_learner.global_model
    assert made.keys() == learned.keys()
    differ = [name for name, value in learned.items() if not torch.equal(made[name], value)]
    assert differ == ["1.num_batches_tracked"], "a count, here a fraction"
    matrix = json.loads(printed[printed.index("{\n") :])
    assert matrix == json.loads(by_learner.cross_site_path.read_text())
    assert (path.parent / "best_FL_global_model.pt").is_file()


@pytest.mark.slow
def test_the_exported_recipe_runs_in_this_project_s_runner(
    data: Path, by_learner: Run, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_recipe(data, tmp_path, "--export", "--export-dir", str(tmp_path / "jobs"))
    monkeypatch.chdir(CODE)
    build_recipe("$HOSPITAL_DATA").export(str(tmp_path / "real"))  # as for real sites
    monkeypatch.setenv("HOSPITAL_DATA", str(data))
    run = simulate(tmp_path / "real/hospitals", sites=SITES, runs=runs, progress=False)
    pd.testing.assert_frame_equal(run.cross_site, by_learner.cross_site, check_like=True)
    shipped = {path.relative_to(tmp_path / "jobs").as_posix() for path in (tmp_path / "jobs").rglob("custom/**/*.py")}
    assert {Path(path).name for path in shipped} == {"client.py", "script.py"}
