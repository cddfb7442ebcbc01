"""One sentence where the installed FLARE does not fit; the versions that the project names agree."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tutorial_utils import round_metrics, versions
from tutorial_utils.errors import TutorialError, VersionError
from tutorial_utils.versions import LEARNER, NEWEST, OLDEST, needs_flare

ROOT = Path(__file__).parents[1]
FITS = 'pip install "nvflare>=2.8,<2.10"'


def install(patch: pytest.MonkeyPatch, number: str | None) -> None:
    """What importlib.metadata says is installed."""

    def fake(name: str) -> str:
        if number is None:
            raise metadata.PackageNotFoundError(name)
        return number

    patch.setattr(versions, "version", fake)


@pytest.mark.parametrize("number", ["2.8.0", "2.8.3", "2.9.0", "2.9.0rc1", "2.9.7+local", "unknown"])
def test_a_flare_that_fits_is_no_matter(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, number)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        needs_flare()


def test_a_reader_with_2_6_is_told_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "2.6.3")
    with pytest.raises(VersionError) as refused:
        needs_flare()
    assert str(refused.value) == (
        f"This needs FLARE 2.8 or 2.9, and 2.6.3 is installed: {FITS} "
        "(the learner and its test drive work with yours, too)"
    )
    assert isinstance(refused.value, TutorialError) and isinstance(refused.value, ImportError)
    install(monkeypatch, "2.3.12")
    with pytest.raises(VersionError, match=re.escape("2.3.12 is installed: " + FITS) + "$"):
        needs_flare()


def test_a_reader_with_2_10_is_warned_and_not_locked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in ("2.10.0", "2.10.0rc1", "3.0.0"):
        install(monkeypatch, number)
        with pytest.warns(UserWarning) as told:
            needs_flare()
        assert [str(one.message) for one in told] == [
            f"This is tested with FLARE 2.8 or 2.9, and {number} is installed: if a run fails or stands still, "
            f"try one that is tested: {FITS}"
        ]


def test_notebook_07_asks_for_2_9(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "2.8.3")
    with pytest.raises(VersionError) as refused:
        needs_flare((2, 9), "This notebook")
    assert str(refused.value) == (
        'This notebook needs FLARE 2.9, and 2.8.3 is installed: pip install "nvflare>=2.9,<2.10"'
    )


def test_where_there_is_no_flare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its source on sys.path, or a nightly build, says no version: it is let be."""
    install(monkeypatch, None)
    needs_flare()
    monkeypatch.setattr(versions, "find_spec", lambda name: None)
    with pytest.raises(VersionError, match=re.escape(f"2.8 or 2.9, and none is installed: {FITS}")):
        needs_flare()


@pytest.fixture
def older(tmp_path: Path) -> dict[str, str]:
    """An environment in which importlib.metadata, untouched, finds FLARE 2.6.3, and none of its modules."""
    (tmp_path / "nvflare-2.6.3.dist-info").mkdir()
    (tmp_path / "nvflare-2.6.3.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: nvflare\nVersion: 2.6.3\n")
    (tmp_path / "nvflare").mkdir()
    (tmp_path / "nvflare/__init__.py").write_text("")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "code")])}


@pytest.mark.parametrize(
    "words",
    [
        ["-c", "import tutorial_utils.job"],
        ["-c", "import tutorial_utils.simulate"],
        ["-c", "import tutorial_utils.deploy"],
        ["-c", "import tutorial_utils._flare"],
        [str(ROOT / "code/fl/job.py"), "--help"],
    ],
    ids=lambda words: words[-1],
)
def test_the_sentence_comes_before_an_import_fails(words: list[str], older: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, *words], env=older, capture_output=True, text=True)
    *before, last = done.stderr.strip().splitlines()
    said = last.removeprefix("tutorial_utils.errors.VersionError: ")
    assert said.startswith(f"This needs FLARE 2.8 or 2.9, and 2.6.3 is installed: {FITS}") and done.returncode
    assert words[0] == "-c" or not before, "the command line shows no traceback"


def first_imports(path: Path) -> list[str]:
    """The modules that a file imports at its top, in the order in which Python runs them."""
    names = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return names


@pytest.mark.parametrize("name", ["job", "simulate", "deploy", "_flare"])
def test_it_is_asked_first(name: str) -> None:
    names = first_imports(ROOT / "tutorial_utils" / f"{name}.py")
    libraries = [one for one in names if one.split(".")[0] in ("nvflare", "torch", "tutorial_utils")]
    assert libraries[0] == "tutorial_utils.versions"


def test_it_costs_a_site_nothing() -> None:
    """Neither what ships nor the runner's start of a site's process asks; and asking needs no library."""
    for name in ("learner", "drive", "tracking", "evaluation", "_simulate/start", "_simulate/site_process"):
        assert "tutorial_utils.versions" not in first_imports(ROOT / f"tutorial_utils/{name}.py")
    code = "import sys, tutorial_utils.versions; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"nvflare", "torch", "numpy", "packaging"} & set(loaded.stdout.split())


def test_the_versions_that_are_named_agree() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wish = Requirement(re.search(r'"(nvflare[^"]*)"', text)[1])
    bounds = {part.operator: part.version for part in wish.specifier}
    assert bounds == {">=": "{}.{}".format(*LEARNER), "<": f"{NEWEST[0]}.{NEWEST[1] + 1}"}
    pinned = re.search(r"nvflare==(\d+)\.(\d+)", (ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert tuple(map(int, pinned.groups())) == NEWEST
    oldest = re.search(r"^OLDEST_FLARE := (\d+)\.(\d+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert tuple(map(int, oldest.groups())) == OLDEST
    table = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"\| FLARE \| 2\.8 and 2\.9", table) and "the learner and the test drive from 2.4 on" in table


def test_a_job_gets_flare_s_own_writer_where_flare_has_one() -> None:
    flares, _, name = round_metrics.FLARES.rpartition(".")
    try:
        kind = getattr(importlib.import_module(flares), name)
    except ModuleNotFoundError:
        assert round_metrics.MetricsArtifactWriter is round_metrics.RoundMetrics
        assert round_metrics.class_path() == round_metrics.OURS
        return
    assert round_metrics.MetricsArtifactWriter is kind and round_metrics.class_path() == round_metrics.FLARES


def run_script(*words: str) -> list[str]:
    done = subprocess.run([sys.executable, "tests/versions.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_oldest_is_every_lower_bound_but_flare_s() -> None:
    lines = run_script("oldest", "2.8.3")
    named = re.findall(r'"([a-z-]+)>=([\d.]+)', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = {f"{name}=={number}" for name, number in named if name not in ("setuptools", "tenseal", "nvflare")}
    of_site = {one for one in wanted if one.startswith(("sphinx", "myst", "selenium"))}
    assert set(lines) == (wanted - of_site) | {"nvflare==2.8.3"} and len(of_site) == 4


def test_canary_leaves_open_what_it_takes_new() -> None:
    lines = run_script("canary")
    pins = re.findall(r"^ *- ([\w-]+)==", (ROOT / "environment.yml").read_text(encoding="utf-8"), re.MULTILINE)
    names = {line.partition("==")[0] for line in lines}
    assert set(pins) - names == {"nvflare", "torch", "torchvision", "numpy"} and all("==" in line for line in lines)


def test_what_is_here_is_told_beside_the_pins() -> None:
    first, *lines, last = run_script("found")
    assert first.startswith(f"Python {sys.version_info.major}.{sys.version_info.minor}.")
    assert f"  nvflare {metadata.version('nvflare')}" in " ".join(lines)
    assert last.startswith(("Newer than in environment.yml: ", "Of nvflare, torch, torchvision, numpy, pip finds no"))
