"""Who imports whom (see CONTRIBUTING): read from the syntax trees, so that nothing has to be run."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"dl", "fl", "tutorial_utils"}


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports anywhere in it, in functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full names"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def foreign(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", sorted((ROOT / "tutorial_utils").rglob("*.py")), ids=lambda path: path.name)
def test_package_never_imports_the_readers_code(path: Path) -> None:
    assert not foreign(path) & {"dl", "fl"}


def test_script_needs_only_numpy_and_torch() -> None:
    assert foreign(ROOT / "code/dl/train.py") == {"numpy", "torch"}


def test_what_ships_to_a_site_needs_only_torch_and_nvflare() -> None:
    assert foreign(ROOT / "tutorial_utils/learner.py") == {"numpy", "torch", "nvflare"}
    for name in ("model_learner.py", "aggregator.py", "fedprox.py", "fedopt.py", "scaffold.py", "steps.py"):
        path = ROOT / "code/fl" / name
        assert foreign(path) <= {"dl", "fl", "torch", "nvflare", "tutorial_utils"}
        ours = {module for module in imported(path) if module.startswith("tutorial_utils")}
        assert all(module.startswith("tutorial_utils.learner") for module in ours)


def test_what_the_runner_adds_to_a_job_needs_nothing_of_ours() -> None:
    assert foreign(ROOT / "tutorial_utils/_simulate/guard.py") == {"numpy", "psutil", "nvflare"}
    assert foreign(ROOT / "tutorial_utils/_simulate/pace.py") == {"nvflare"}
    assert foreign(ROOT / "tutorial_utils/_deploy/pulse.py") == {"nvflare", "tutorial_utils"}
    ours = {name for name in imported(ROOT / "tutorial_utils/_deploy/pulse.py") if name.startswith("tutorial_utils")}
    assert all(name.startswith("tutorial_utils._simulate.guard.") for name in ours)
    assert foreign(ROOT / "tutorial_utils/_simulate/keeper.py") == {"psutil"}, "it must be there at once"


@pytest.mark.parametrize("folder", ["tutorial_utils", "tutorial_utils/_deploy", "tutorial_utils/_simulate"])
def test_package_init_imports_nothing(folder: str) -> None:
    assert not imported(ROOT / folder / "__init__.py")


def test_importing_the_learner_pulls_in_no_plots_no_tables_no_torchvision() -> None:
    code = "import sys, tutorial_utils.learner; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"matplotlib", "pandas", "torchvision", "sklearn"} & set(loaded.stdout.split())


def test_code_is_not_a_package() -> None:
    assert not list((ROOT / "code").rglob("__init__.py"))


@pytest.mark.parametrize(
    ("folder", "most"), [("tutorial_utils", 1500), ("tutorial_utils/_simulate", 1000), ("tutorial_utils/_deploy", 750)]
)
def test_package_is_small(folder: str, most: int) -> None:
    """Small enough to take in, blank lines not counted; the runner's inner parts need not be."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / folder).glob("*.py")}
    lengths = {name: sum(bool(line.strip()) for line in text.splitlines()) for name, text in texts.items()}
    assert sum(lengths.values()) <= most, lengths
    assert max(lengths.values()) <= 250, lengths
