"""One list of exact versions, and it is what is installed."""

import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[1]
LINES = re.findall(r"^ *- ([\w-]+==.+)$", (ROOT / "environment.yml").read_text(encoding="utf-8"), re.MULTILINE)
SITE = [
    Requirement(line) for line in re.findall(r"^# site: (.+)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
]
PINS = [pin for pin in map(Requirement, LINES) if pin.marker is None or pin.marker.evaluate()]


@pytest.mark.parametrize("pin", PINS, ids=str)
def test_installed_is_what_is_listed(pin: Requirement) -> None:
    assert pin.specifier.contains(version(pin.name))


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
        assert version(requirement.name) in requirement.specifier
        assert all(item.operator == ">=" for item in requirement.specifier), "lower bounds only"
