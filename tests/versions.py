"""Which versions `make oldest` and `make canary` test, where `make test` has those of environment.yml.

python tests/versions.py oldest 2.8.3   # the lower bounds of pyproject.toml, a line each, with this FLARE
python tests/versions.py canary         # environment.yml without those that the canary takes as new as there are
python tests/versions.py found          # what is installed here, beside environment.yml
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement  # pip is in every environment, before all else is
from pip._vendor.packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
NEWEST = ("nvflare", "torch", "torchvision", "numpy")  # that the canary takes as new as they are, pre-releases too
ELSEWHERE = ("site", "encryption")  # extras that the fast suite does not use


def lower_bounds(flare: str) -> list[str]:
    """The lowest version that pyproject.toml allows, of each package that the fast suite uses."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name not in ELSEWHERE}
    wanted = [Requirement(line) for lines in (project["dependencies"], *extras.values()) for line in lines]
    lowest = {one.name: next(part.version for part in one.specifier if part.operator == ">=") for one in wanted}
    return [f"{name}=={number}" for name, number in {**lowest, "nvflare": flare}.items()]


def pins() -> list[Requirement]:
    """The lines of environment.yml that hold for this Python."""
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    wanted = map(Requirement, re.findall(r"^ *- ([\w-]+==.+)$", text, re.MULTILINE))
    return [one for one in wanted if one.marker is None or one.marker.evaluate()]


def describe() -> str:
    """A line for each package that environment.yml pins, and whether anything here is newer than its pin."""
    lines, newer = [f"Python {platform.python_version()}, {platform.platform(terse=True)}"], []
    for pin in pins():
        (listed,), here = (part.version for part in pin.specifier), version(pin.name)
        lines.append(f"  {pin.name} {here}" + ("" if here == listed else f"  (environment.yml: {listed})"))
        if pin.name in NEWEST and Version(here).public != listed and Version(here) > Version(listed):
            newer.append(f"{pin.name} {here}")
    nothing = f"Of {', '.join(NEWEST)}, pip finds nothing newer than environment.yml has."
    return "\n".join([*lines, f"Newer than in environment.yml: {', '.join(newer)}." if newer else nothing])


def main(words: Sequence[str]) -> None:
    lines = {
        "oldest": lambda: lower_bounds(words[1]),
        "canary": lambda: [str(pin) for pin in pins() if pin.name not in NEWEST],
        "found": lambda: [describe()],
    }
    sys.stdout.write("\n".join(lines[words[0]]()) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
