"""One list of exact versions, and it is what is installed."""

import re
import sys
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
PINS = [pin for pin in map(Requirement, LINES) if pin.marker is None or pin.marker.evaluate()]


@pytest.mark.parametrize("pin", PINS, ids=str)
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
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [Requirement(line) for names in lists for line in names]
    assert {pin.name for pin in PINS} <= {requirement.name for requirement in wanted}
    for requirement in wanted:
        is_there = installed(requirement.name)
        assert is_there is None or is_there in requirement.specifier
        assert is_there or requirement.name in {pin.name for pin in NOT_EVERYWHERE}
        assert all(item.operator == ">=" for item in requirement.specifier), "lower bounds only"
