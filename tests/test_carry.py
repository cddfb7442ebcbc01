"""The series without FLARE's ModelLearner: its two modules are hidden, in every process, and ours stand in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fl.by_hand import federated_averaging
from tutorial_utils.results import sha256

ROOT = Path(__file__).parents[1]
HIDDEN = (
    "nvflare.app_common.abstract.model_learner",
    "nvflare.app_common.executors.model_learner_executor",
)
HIDE = f'''
import sys

class Hidden:
    """As if FLARE had let go of them."""

    def find_spec(self, name, path=None, target=None):
        if name in {HIDDEN}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
'''
DRIVE = """
import json, sys
from dl.train import Net
from fl.model_learner import CIFAR10ModelLearner
from tutorial_utils.drive import test_drive
from tutorial_utils.results import sha256

drive = test_drive(CIFAR10ModelLearner(sys.argv[1], batch_size=8), Net(), rounds=2)
parents = [kind.__module__ for kind in CIFAR10ModelLearner.__mro__]
print(json.dumps([sha256(drive.params), drive.received, drive.test, "tutorial_utils.model_learner" in parents]))
"""
RUN = """
import json, sys
from fl.job import build_job
from tutorial_utils.results import sha256
from tutorial_utils.settings import Training
from tutorial_utils.simulate import simulate

run = simulate(build_job(sys.argv[1], rounds=2, training=Training(batch_size=8)), runs=sys.argv[2], progress=False)
print(json.dumps([sha256(run.global_model), run.cross_site.values.tolist(), run.rounds.values.tolist()]))
"""


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Python runs sitecustomize at its start, in every process that FLARE starts too."""
    folder = tmp_path_factory.mktemp("without")
    (folder / "sitecustomize.py").write_text(HIDE)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def said(code: str, env: dict[str, str], *words: object) -> list:
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT / 'code')!r})\n{code}",
        *map(str, words),
    ]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_they_are_hidden(without: dict[str, str]) -> None:
    for name in HIDDEN:
        done = subprocess.run([sys.executable, "-c", f"import {name}"], env=without, capture_output=True, text=True)
        assert f"ModuleNotFoundError: No module named '{name}'" in done.stderr


@pytest.mark.slow
def test_a_learner_is_driven_without_flare_s_class_to_the_same_bits(sites: list[Path], without: dict[str, str]) -> None:
    data, plain = sites[0].parent, os.environ | {"PYTHONPATH": str(ROOT)}
    *ours, carried = said(DRIVE, without, data)
    *flares, is_carried = said(DRIVE, plain, data)
    assert ours == flares and carried and not is_carried
    assert ours[0] == sha256(federated_averaging(sites[:1], rounds=2, batch_size=8))


@pytest.mark.slow
def test_a_federation_runs_without_flare_s_classes_to_the_same_bits(
    sites: list[Path], without: dict[str, str], tmp_path: Path
) -> None:
    data = sites[0].parent
    ours = said(RUN, without, data, tmp_path / "ours")
    flares = said(RUN, os.environ | {"PYTHONPATH": str(ROOT)}, data, tmp_path / "flares")
    assert ours == flares
    files = {
        who: {path.name for path in (tmp_path / who).rglob("custom/tutorial_utils/*.py")} for who in ("ours", "flares")
    }
    assert files["ours"] - files["flares"] == {"model_learner.py"}, "it ships where it is needed, and there alone"
