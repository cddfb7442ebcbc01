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
PINS = dict(re.findall(r"^ *- ([\w-]+)==(\S+)$", (ROOT / "environment.yml").read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", PINS)
def test_installed_is_what_is_listed(name: str) -> None:
    assert version(name).split("+")[0] == PINS[name]


def test_project_names_what_the_environment_pins() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [Requirement(line) for names in lists for line in names]
    assert all(pin in {requirement.name for requirement in wanted} for pin in PINS)
    for requirement in wanted:
        assert version(requirement.name) in requirement.specifier
        assert all(item.operator == ">=" for item in requirement.specifier), "lower bounds only"
