"""What of a reader's code a job carries, and what it refuses to carry."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import tutorial_utils
from tutorial_utils import _ship
from tutorial_utils._ship import check_import, files_of, find_files, is_library
from tutorial_utils.errors import JobError
from tutorial_utils.learner import PTModelLearner

LEARNER = "class Mine:\n    pass\n"
PTLEARNER = "from tutorial_utils.learner import PTModelLearner\nclass Mine(PTModelLearner):\n    pass\n"
GUARD = 'if __name__ == "__main__":\n    '
OURS = {f"tutorial_utils/{name}.py" for name in ("learner", "keep", "metric", "values")}


class Project:
    """A reader's folder on sys.path. Its modules have names that no other test uses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def ships(self, module: str, kind: str = "Mine") -> set[str]:
        """Where in custom/ each file of a class of a module comes."""
        found = find_files(getattr(importlib.import_module(module), kind))
        return {f"{folder}/{path.name}".lstrip("/") for path, folder in found.items()}

    def runs_alone(self, module: str, place: Path) -> None:
        """What ships is enough, where nothing of the reader's is: as at a site."""
        for path, folder in find_files(importlib.import_module(module).Mine).items():
            (place / folder).mkdir(parents=True, exist_ok=True)
            (place / folder / path.name).write_bytes(path.read_bytes())
        code = f"import sys; sys.path.append({str(place)!r}); import {module}; print({module}.__file__)"
        done = subprocess.run([sys.executable, "-I", "-c", code], cwd="/", capture_output=True, text=True)
        assert done.stdout.startswith(str(place)), done.stderr


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    before = set(sys.modules)
    made = Project(tmp_path / "project")
    monkeypatch.syspath_prepend(str(made.folder))
    yield made
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


# --- what ships ---


def test_a_module_by_itself(project: Project) -> None:
    project.write({"zmine.py": "import json, numpy, torch, nvflare.apis.dxo, pandas as pd\n" + LEARNER, "other.py": ""})
    assert project.ships("zmine") == {"zmine.py"}


def test_of_flare_and_torch_nothing_wherever_they_are_installed(project: Project) -> None:
    """From a checkout (pip install -e NVFlare) or by pip install --target, neither of which is called site-packages."""
    project.write(
        {"zmine.py": "import nvflare.apis.dxo, torch\ndef look():\n    from torchvision import ops\n" + PTLEARNER}
    )
    project.write({f"{name}/__init__.py": "import zrest" for name in ("nvflare", "torch", "torchvision")})
    project.write({"nvflare/apis/__init__.py": "", "nvflare/apis/dxo.py": "", "zrest.py": "import sys\nsys.exit(1)\n"})
    assert project.ships("zmine") == {"zmine.py"} | OURS


def test_of_this_package_what_is_imported_and_no_more(project: Project) -> None:
    project.write({"zmine.py": PTLEARNER})
    assert project.ships("zmine") == {"zmine.py", *OURS}
    assert {f"{folder}/{path.name}" for path, folder in find_files(PTModelLearner).items()} == OURS


@pytest.mark.parametrize(
    "line",
    [
        "import zhelp",
        "import zhelp as h, json",
        "from zhelp import f",
        "from zhelp import *",
        "def later():\n    import zhelp",
        "try:\n    import zhelp\nexcept ImportError:\n    zhelp = None",
    ],
)
def test_a_module_beside_it_however_it_is_imported(line: str, project: Project) -> None:
    project.write(
        {"zmine.py": f"{line}\n{LEARNER}", "zhelp.py": "import zdeep\ndef f(): ...\n", "zdeep.py": "import zmine\n"}
    )
    assert project.ships("zmine") == {"zmine.py", "zhelp.py", "zdeep.py"}, "and what that imports, in a circle too"


PACKAGE = {
    "zpack/__init__.py": "",
    "zpack/mine.py": "from . import nets\nfrom .sub.loss import f\n" + LEARNER,
    "zpack/nets.py": "",
    "zpack/notes.txt": "words",
    "zpack/unused.py": "",
    "zpack/sub/__init__.py": "",
    "zpack/sub/loss.py": "from ..nets import __name__ as f\n",
    "zpack/sub/data/table.csv": "a,b\n",
}


def test_a_package_ships_whole_with_its_data(project: Project, tmp_path: Path) -> None:
    project.write(PACKAGE)
    project.write(
        {
            "zpack/.git/config": "",
            "zpack/.hidden": "",
            "zpack/zpack.egg-info/PKG-INFO": "",
            "zpack/__pycache__/old.pyc": "",
        }
    )
    assert project.ships("zpack.mine") == set(PACKAGE)
    project.runs_alone("zpack.mine", tmp_path / "site")


def test_what_a_package_s_init_imports_ships_too(project: Project, tmp_path: Path) -> None:
    """A site runs it before it comes to the learner."""
    project.write(
        PACKAGE | {"zpack/__init__.py": "import zroot\n", "zroot.py": "", "zpack/unused.py": "import zelse\n"}
    )
    project.write({"zelse.py": ""})
    assert project.ships("zpack.mine") >= {*PACKAGE, "zroot.py"}
    project.runs_alone("zpack.mine", tmp_path / "site")


@pytest.mark.parametrize(
    "line", ["from zpack import nets", "import zpack.nets", "from zpack.sub import loss", "import zpack"]
)
def test_a_package_beside_a_module(line: str, project: Project, tmp_path: Path) -> None:
    project.write(PACKAGE | {"zmine.py": f"{line}\n{LEARNER}"})
    assert project.ships("zmine") == {*PACKAGE, "zmine.py"}
    project.runs_alone("zmine", tmp_path / "site")


def test_a_folder_without_init_gives_the_modules_that_are_imported(project: Project, tmp_path: Path) -> None:
    project.write(
        {
            "zspace/mine.py": "from zspace import nets\nimport zspace.deep.loss\n" + LEARNER,
            "zspace/nets.py": "",
            "zspace/deep/loss.py": "",
            "zspace/unused.py": "",
            "zspace/notes.txt": "",
        }
    )
    assert project.ships("zspace.mine") == {"zspace/mine.py", "zspace/nets.py", "zspace/deep/loss.py"}
    project.runs_alone("zspace.mine", tmp_path / "site")


def test_a_package_goes_before_a_module_of_its_name(project: Project, tmp_path: Path) -> None:
    project.write({"zmine.py": "import ztwo\n" + LEARNER, "ztwo.py": "", "ztwo/__init__.py": ""})
    assert project.ships("zmine") == {"zmine.py", "ztwo/__init__.py"}


def test_a_module_from_another_folder_of_the_path(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Project(tmp_path / "other")
    other.write({"zfar.py": "", "zfarpack/__init__.py": "", "zfarpack/x.py": ""})
    monkeypatch.syspath_prepend(str(other.folder))
    project.write({"zmine.py": "import zfar\nimport zfarpack.x\n" + LEARNER})
    assert project.ships("zmine") == {"zmine.py", "zfar.py", "zfarpack/__init__.py", "zfarpack/x.py"}


def test_what_is_imported_for_types_alone_stays(project: Project) -> None:
    types = "from typing import TYPE_CHECKING\nimport typing\nif {}:\n    import zonly\nelse:\n    import zreal\n"
    for number, test in enumerate(("TYPE_CHECKING", "typing.TYPE_CHECKING")):
        project.write({f"zmine{number}.py": types.format(test) + LEARNER, "zonly.py": "", "zreal.py": ""})
        assert project.ships(f"zmine{number}") == {f"zmine{number}.py", "zreal.py"}


def test_the_errors_of_this_package_bring_no_tables_and_plots(project: Project) -> None:
    project.write({"zmine.py": "from tutorial_utils.errors import TutorialError\n" + LEARNER})
    assert project.ships("zmine") == {"zmine.py", "tutorial_utils/errors.py"}


def test_nothing_of_python_s_own_or_of_what_is_installed(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's own site-packages, Debian's dist-packages, a venv that sees the system's: all are libraries."""
    for place in ("site-packages", "dist-packages"):
        installed = Project(tmp_path / ".local/lib/python3" / place)
        installed.write({f"zlib_{place[:4]}/__init__.py": "import zmine\n"})
        monkeypatch.syspath_prepend(str(installed.folder))
    project.write({"zmine.py": "import asyncio, xml.dom, torch.nn, yaml, zlib_site, zlib_dist\n" + LEARNER})
    assert project.ships("zmine") == {"zmine.py"}
    purelib = Path(sysconfig.get_path("purelib"))
    assert purelib.name in ("site-packages", "dist-packages")


def test_an_installed_learner_s_own_package_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Project
) -> None:
    installed = Project(tmp_path / "env/site-packages")
    installed.write(PACKAGE)
    monkeypatch.syspath_prepend(str(installed.folder))
    assert project.ships("zpack.mine") == set(PACKAGE)


def test_is_library(project: Project) -> None:
    project.write({"zmine.py": PTLEARNER})
    mine = importlib.import_module("zmine").Mine
    assert not is_library(mine)
    assert is_library(PTModelLearner) and is_library(Path)


def test_a_script_that_is_run_ships_by_its_file_s_name(project: Project, tmp_path: Path) -> None:
    run = "import sys\nfrom tutorial_utils._ship import find_files\n"
    project.write(
        {"zmine.py": run + LEARNER + GUARD + "print(*[f'{d}/{p.name}' for p, d in find_files(Mine).items()])\n"}
    )
    env = os.environ | {"PYTHONPATH": str(Path(tutorial_utils.__file__).parents[1])}
    command = [sys.executable, str(project.folder / "zmine.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert "/zmine.py" in done.stdout.split(), done.stderr


def test_files_of_a_path_are_named_by_the_nearest_folder_of_the_path(project: Project, tmp_path: Path) -> None:
    project.write({"zdir/zscript.py": "import zhelp\n", "zhelp.py": ""})
    found = {f"{folder}/{path.name}" for path, folder in files_of(project.folder / "zdir/zscript.py").items()}
    assert found == {"zdir/zscript.py", "/zhelp.py"}
    (tmp_path / "zlone.py").write_text("")
    assert list(files_of(tmp_path / "zlone.py").values()) == [""], "a file from nowhere stands by itself"


# --- what is refused ---


def refused(project: Project, text: str, module: str = "zmine") -> str:
    project.write({f"{module.replace('.', '/')}.py": text})
    with pytest.raises(JobError) as caught:
        project.ships(module)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_class_without_a_file(project: Project) -> None:
    project.write({"zmine.py": LEARNER})
    mine = importlib.import_module("zmine").Mine
    mine.__module__ = "znowhere"
    with pytest.raises(JobError, match=r"Mine was typed into a notebook or a console, and a site needs a file"):
        find_files(mine)


def test_a_class_inside_a_function_or_a_class(project: Project) -> None:
    project.write({"zmine.py": "def make():\n    class Mine: ...\n    return Mine\nMine = make()\n"})
    with pytest.raises(JobError, match="Mine is defined inside make: move it to the top of its module"):
        project.ships("zmine")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"There is no file .*nowhere.py to ship"):
        files_of(tmp_path / "nowhere.py")


def test_a_package_full_of_data(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ship, "MOST_BYTES", 1000)
    project.write(PACKAGE | {"zpack/images.bin": "x" * 1001})
    with pytest.raises(JobError, match=r"The package .*zpack holds 0 MB, and would travel whole: move the data out"):
        project.ships("zpack.mine")


@pytest.mark.parametrize("text", ["def broken(:\n", "x = 1\x00\n"])
def test_a_module_that_is_no_python(text: str, project: Project, tmp_path: Path) -> None:
    project.write({"zmine.py": "def f():\n    import zbad\n" + LEARNER, "zbad.py": text})
    with pytest.raises(JobError, match=r"zbad\.py is no Python file that can be read"):
        project.ships("zmine")


def test_a_module_in_an_encoding_of_its_own(project: Project) -> None:
    project.write({"zmine.py": "import zlatin\n" + LEARNER})
    (project.folder / "zlatin.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1"))
    assert project.ships("zmine") == {"zmine.py", "zlatin.py"}


@pytest.mark.parametrize("name", ["calendar", "torch", "nvflare"])
def test_a_name_that_a_site_would_find_elsewhere(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.py"
    path.write_text("")
    with pytest.raises(JobError, match=f"{name} is a module of Python's or a library's.*call yours otherwise"):
        files_of(path)


@pytest.mark.parametrize("name", ["nvflare", "torch"])
def test_a_library_is_known_by_its_name_wherever_it_lies(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ship, "LIBRARIES", [])
    assert _ship.is_library(type("Part", (), {"__module__": f"{name}.part"}))
    (tmp_path / f"{name}.py").write_text("")
    with pytest.raises(JobError, match=f"{name} is a module of Python's or a library's"):
        files_of(tmp_path / f"{name}.py")


def test_a_name_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "my-script.py").write_text("")
    with pytest.raises(JobError, match=r"'my-script' is no name for a module: call my-script.py otherwise"):
        files_of(tmp_path / "my-script.py")


def test_an_import_from_above_the_top(project: Project, tmp_path: Path) -> None:
    (tmp_path / "zlone.py").write_text("from . import other\n")
    with pytest.raises(JobError, match=r"zlone\.py imports relatively \(line 1\), and lies in no package that deep"):
        files_of(tmp_path / "zlone.py")


WORKS = [
    "import argparse\nargs = argparse.ArgumentParser().parse_args()\n",
    "import argparse\nparser = argparse.ArgumentParser()\nargs, rest = parser.parse_known_args()\n",
    "for batch in []:\n    loss.backward()\n",
    "optimizer.step()\n",
    "import sys\nsys.exit(0)\n",
    "name = input()\n",
    "if True:\n    args = parser.parse_args()\n",
    "with open('x') as f:\n    optimizer.step()\n",
    "class A:\n    args = parser.parse_args()\n",
    "def main():\n    parser.parse_args()\nmain()\n",
    "def main():\n    inner()\ndef inner():\n    loss.backward()\nmain()\n",
    "x = [optimizer.step() for _ in range(3)]\n",
    "from tutorial_utils.simulate import simulate\nrun = simulate(job)\n",
    "from tutorial_utils.job import build_job\njob = build_job(learner, net)\n",
]

FINE = [
    GUARD + "args = parser.parse_args()\n",
    "if '__main__' == __name__:\n    main()\n",
    "def main():\n    parser.parse_args()\n    loss.backward()\n",
    "class A:\n    def train(self):\n        self.optimizer.step()\n",
    "step = lambda: optimizer.step()\n",
    "try:\n    import x\nexcept ImportError:\n    def go():\n        optimizer.step()\n",
    "try:\n    import x\nexcept ImportError:\n    sys.exit('install x')\n",
    "if sys.version_info < (3, 0):\n    sys.exit('too old')\n",
    "def simulate(x): ...\nresult = simulate(3)\n",
    "import torch\ntorch.set_num_threads(1)\nclass A: ...\n",
    "async def f():\n    optimizer.step()\n",
    "def f():\n    return f()\nf()\n",
]


@pytest.mark.parametrize("text", WORKS)
def test_a_module_that_does_its_work_when_it_is_imported(text: str, tmp_path: Path) -> None:
    path = tmp_path / "zmine.py"
    path.write_text(text)
    with pytest.raises(
        JobError, match=r'^zmine\.py works when it is imported \(line \d+: \w+\(\)\).*if __name__ == "__main__":$'
    ):
        check_import(path)


@pytest.mark.parametrize("text", FINE)
def test_a_module_that_can_be_imported(text: str, tmp_path: Path) -> None:
    path = tmp_path / "zmine.py"
    path.write_text(text)
    check_import(path)


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("import torch\nTARGET = torch.randn(4, 1) * 5\n", "randn"),
        ("import numpy as np\nORDER = np.random.permutation(10)\n", "permutation"),
        ("import random\nclass A:\n    x = random.random()\n", "random"),
        ("import torch\ndef make():\n    return torch.rand(3)\nWEIGHTS = make()\ntorch.manual_seed(0)\n", "rand"),
    ],
)
def test_each_site_would_draw_other_numbers_when_it_imports(text: str, call: str, tmp_path: Path) -> None:
    """Seen in pytorch/examples/regression: the proof is equal in every bit, and each site learns another target."""
    path = tmp_path / "zmine.py"
    path.write_text(text)
    with pytest.raises(
        JobError, match=rf"^zmine\.py draws random numbers when it is imported \(line \d+: {call}\(\)\)"
    ):
        check_import(path)
    path.write_text(f"import torch\ntorch.manual_seed(0)\n{text}")
    check_import(path)
    path.write_text("import numpy as np\nDRAW = np.random.default_rng(0)\ndef f():\n    return np.random.rand(3)\n")
    check_import(path)


def test_a_module_that_is_imported_is_checked_as_well(project: Project) -> None:
    project.write({"zpack/__init__.py": "def f():\n    pass\n", "zpack/mine.py": LEARNER, "zhelp.py": "input()\n"})
    project.write({"zmine.py": "def later():\n    import zhelp\n" + LEARNER})
    with pytest.raises(JobError, match=r"^zhelp\.py works when it is imported"):
        project.ships("zmine")
    project.ships("zpack.mine")
    (project.folder / "zpack/__init__.py").write_text("input()\n")
    with pytest.raises(JobError, match=r"^__init__\.py works when it is imported"):
        project.ships("zpack.mine")
