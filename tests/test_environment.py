"""One list of exact versions, and it is what is installed."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "environment.yml").read_text(encoding="utf-8")
LINES = re.findall(r"^ *- ([\w-]+==.+)$", TEXT, re.MULTILINE)
NOT_EVERYWHERE = [Requirement(pin) for pin in re.findall(r"^#.* (tenseal==[\d.]+)$", TEXT, re.MULTILINE)]
SITE = [Requirement(line) for line in re.findall(r"^# site: (.+)$", TEXT, re.MULTILINE)]
THERE = os.environ.get("TUTORIAL_VERSIONS")  # make oldest and make canary install what this file lists
LISTED = [Requirement(line) for line in Path(THERE).read_text().splitlines()] if THERE else None
PINS = [pin for pin in map(Requirement, LINES) if pin.marker is None or pin.marker.evaluate()]


@pytest.mark.parametrize("pin", PINS if LISTED is None else LISTED, ids=str)
def test_installed_is_what_is_listed(pin: Requirement) -> None:
    assert pin.specifier.contains(version(pin.name))


def test_what_is_not_to_be_had_everywhere_is_as_listed_where_it_is_installed() -> None:
    (pin,) = NOT_EVERYWHERE
    is_there = installed(pin.name)
    assert is_there is None or pin.specifier.contains(is_there)


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def test_what_draws_random_numbers_is_pinned_once() -> None:
    """numpy promises no equal streams from version to version, torch none at all: a split and a run are of these."""
    names = [pin.name for pin in PINS]
    assert {"numpy", "torch", "scikit-learn"} <= set(names) and len(set(names)) == len(names)


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_each_python_gets_one_version_of_each(python: str) -> None:
    pins = [
        pin for pin in map(Requirement, LINES) if pin.marker is None or pin.marker.evaluate({"python_version": python})
    ]
    assert sorted(pin.name for pin in pins) == sorted({Requirement(line).name for line in LINES})


def test_project_names_what_the_environment_pins() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = dict(project["optional-dependencies"])
    of_site = {wish.name: wish for wish in map(Requirement, extras.pop("site"))}  # installed on the first `make site`
    assert {pin.name for pin in SITE} == set(of_site)
    assert all(next(iter(pin.specifier)).version in of_site[pin.name].specifier for pin in SITE)
    lists = [project["dependencies"], *extras.values()]
    wanted = [Requirement(line) for names in lists for line in names]
    assert {pin.name for pin in PINS} <= {requirement.name for requirement in wanted}
    for requirement in wanted:
        is_there = installed(requirement.name)
        assert is_there is None or is_there in requirement.specifier
        assert is_there or requirement.name in {pin.name for pin in NOT_EVERYWHERE}
        bounds = {">=", "<"} if requirement.name == "nvflare" else {">="}  # of a newer FLARE nothing is known
        assert {item.operator for item in requirement.specifier} == bounds, "lower bounds, and one upper"


def write_wheel(folder: Path, version_: str) -> None:
    """A wheel of torch that is empty but for its name."""
    info = f"torch-{version_}.dist-info"
    with zipfile.ZipFile(folder / f"torch-{version_}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version_}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def planned(folder: Path, *choice: str, **variables: str) -> tuple[str, str]:
    """What `make .venv` would do in a copy of the project, and the line for torch that it hands to pip."""
    for name in ("Makefile", "environment.yml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv").mkdir(exist_ok=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE"))}
    how = {"cwd": folder, "env": clean | variables, "capture_output": True, "text": True, "check": True}
    printed = subprocess.run(["make", "-n", ".venv", *choice], **how).stdout
    listing = next(line for line in printed.splitlines() if line.startswith("sed"))
    subprocess.run(["sh", "-c", listing], **how)
    lines = (folder / ".venv/versions.txt").read_text().splitlines()
    return printed, next(line for line in lines if line.startswith("torch=="))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has wheels with CUDA to avoid")
def test_torch_cpu_takes_the_wheels_without_cuda(tmp_path: Path) -> None:
    """From PyTorch's index, or from a local folder, which may hold the others beside them."""
    (number,) = (next(iter(pin.specifier)).version for pin in PINS if pin.name == "torch")
    index = "--extra-index-url https://download.pytorch.org/whl/cpu"
    printed, wish = planned(tmp_path)
    assert wish == f"torch=={number}" and index not in printed and "6.3 GB" in printed
    printed, wish = planned(tmp_path, "TORCH=cpu")
    assert wish == f"torch=={number}+cpu" and index in printed and "1.8 GB" in printed
    printed, _ = planned(tmp_path, "TORCH=cpu", PIP_FIND_LINKS=str(tmp_path))
    assert index not in printed, "a folder that is named takes the index's place"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--no-deps"]
    command += ["--no-index", "--find-links", str(tmp_path), "--report", "-", wish]
    write_wheel(tmp_path, number)
    assert subprocess.run(command, capture_output=True).returncode, "no wheel with CUDA is taken for want of another"
    write_wheel(tmp_path, f"{number}+cpu")
    report = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert [item["metadata"]["version"] for item in report["install"]] == [f"{number}+cpu"]
