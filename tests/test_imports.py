"""Who imports whom (see CONTRIBUTING): read from the syntax trees, so that nothing has to be run."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "tutorial_utils").rglob("*.py"))
CODE = sorted((ROOT / "code").rglob("*.py"))
ALGORITHMS = {f"algorithms.{path.stem}" for path in (ROOT / "tutorial_utils/algorithms").glob("[!_]*.py")}
GUARDS = {f"_simulate.{path.stem}" for path in (ROOT / "tutorial_utils/_simulate").glob("guard*.py")}
# What travels to a site with a job, or is put into one by a runner.
SHIPS = {"learner", "keep", "values", "metric", "evaluation", "filters", "tracking"}
SHIPS |= ALGORITHMS - {"algorithms.registry"}
SHIPS |= {*GUARDS, "_simulate.pace", "_deploy.pulse", "_deploy.rejoin"}
SHIPS |= {"ciphertexts", "dpsgd", "model_learner", "round_metrics"}
OPTIONAL = {"dpsgd": {"opacus"}}  # asked for when it is used, with a sentence where it is missing
# The modules whose test file has another name than theirs.
TESTED_IN = {
    "_answers": "test_drive",
    "_checks": "test_build_job",
    "_draw": "test_plots",
    "_frame": "test_table",
    "_read": "test_results",
    "_split": "test_partition",
    "ciphertexts": "test_encrypt",
    "attack_plots": "test_privacy",
    "errors": "test_verdict",
    "round_metrics": "test_results",
    "evaluation": "test_build_job",
    "folder": "test_data",
    "job": "test_build_job",
    "shares": "test_partition",
    "site_rows": "test_agree",
    "_flare": "test_job_folder",
    "model_learner": "test_carry",
    **dict.fromkeys(GUARDS, "test_guard"),
    "_simulate.asked": "test_job_folder",
    "_simulate.cause": "test_verdict",
    "_simulate.keeper": "test_watch",
    "_simulate.site_process": "test_pace",
    "_simulate.start": "test_pace",
    "algorithms.aggregator": "test_aggregator",
    **dict.fromkeys(ALGORITHMS - {"algorithms.aggregator"}, "test_algorithms"),
}


def module(path: Path) -> str:
    """The name of a module of ours, without that of the package."""
    return ".".join(path.relative_to(ROOT / "tutorial_utils").with_suffix("").parts)


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
    """The libraries that a file imports, ours among them."""
    return {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names)


def ours(path: Path) -> set[str]:
    """The modules of tutorial_utils that a file imports, without the name of the package."""
    known = {module(other) for other in PACKAGE}
    names = {name.removeprefix("tutorial_utils.") for name in imported(path) if name.startswith("tutorial_utils.")}
    return {next((one for one in (name, name.rpartition(".")[0]) if one in known), name) for name in names}


@pytest.mark.parametrize("path", PACKAGE, ids=module)
def test_package_never_imports_the_readers_code(path: Path) -> None:
    assert not foreign(path) & {"dl", "fl", "own", "more", "checks"}


def test_script_needs_only_numpy_and_torch() -> None:
    """And what stands beside it, the script."""
    needs = {path.stem: foreign(path) for path in CODE if path.parent.name == "dl"}
    assert needs.pop("train") == {"numpy", "torch"}
    assert all(found <= {"numpy", "torch", "dl"} for found in needs.values())


def test_the_federated_half_of_the_example_needs_the_script_flare_and_this_package() -> None:
    for path in (path for path in CODE if path.parent.name == "fl"):
        assert foreign(path) <= {"dl", "fl", "numpy", "torch", "nvflare", "tutorial_utils"}
    for name in ("model_learner", "executor", "client_api"):
        path = ROOT / "code/fl" / f"{name}.py"
        assert ours(path) <= SHIPS and not any(found.startswith("fl.") for found in imported(path))


def test_the_other_scripts_know_nothing_of_a_federation_and_their_learners_little() -> None:
    for path in (path for path in CODE if path.parent.name in ("more", "own")):
        if path.stem.endswith("learner"):
            assert foreign(path) == {path.parent.name, "tutorial_utils"} and ours(path) == {"learner", "metric"}
        elif not path.stem.startswith("make_") and path.stem not in ("client", "recipe"):
            assert foreign(path) <= {"numpy", "pandas", "sklearn", "torch", "torchvision"}


def test_nothing_needs_the_studies_of_privacy() -> None:
    assert not any("privacy" in foreign(path) for path in CODE if path.parent.name != "privacy")


@pytest.mark.parametrize("name", sorted(SHIPS))
def test_what_ships_needs_torch_numpy_psutil_flare_and_what_ships(name: str) -> None:
    path = ROOT / "tutorial_utils" / f"{name.replace('.', '/')}.py"
    assert foreign(path) - OPTIONAL.get(name, set()) <= {"torch", "numpy", "psutil", "nvflare", "tutorial_utils"}
    assert ours(path) <= SHIPS


def test_a_site_s_part_in_the_statistics_needs_flare_and_what_that_needs() -> None:
    """FLARE's own part there needs pandas: so it ships with that job, and with no other."""
    path = ROOT / "tutorial_utils/site_rows.py"
    assert foreign(path) == {"nvflare", "pandas"} and ours(path) == set()


def test_what_a_runner_adds_to_a_job_needs_nothing_else_of_ours() -> None:
    for name in (*GUARDS, "_simulate.pace"):
        assert ours(ROOT / "tutorial_utils" / f"{name.replace('.', '/')}.py") <= GUARDS
    assert foreign(ROOT / "tutorial_utils/_simulate/keeper.py") == {"psutil"}, "it must be there at once"


@pytest.mark.parametrize("path", [path for path in PACKAGE if path.parent.name == "tutorial_utils"], ids=module)
def test_the_insides_are_known_to_their_own_doors_alone(path: Path) -> None:
    """What reads a run's results, or draws them, knows no runner."""
    doors = {"_simulate": {"simulate"}, "_deploy": {"deploy"}}
    doors["_simulate"].add("deploy")
    for inside, known_to in doors.items():
        if module(path) not in known_to:
            assert not {name for name in ours(path) if name.split(".")[0] == inside}


def test_the_simulator_s_insides_know_no_deployment() -> None:
    for path in (ROOT / "tutorial_utils/_simulate").glob("*.py"):
        assert not {name for name in ours(path) if "deploy" in name}


@pytest.mark.parametrize("path", sorted((ROOT / "tutorial_utils").rglob("__init__.py")), ids=module)
def test_package_init_imports_nothing(path: Path) -> None:
    assert not imported(path)


def test_what_ships_pulls_in_no_plots_no_tables_no_torchvision() -> None:
    """A site's process must not pay for them."""
    modules = ", ".join(f"tutorial_utils.{name}" for name in sorted(SHIPS))
    code = f"import sys, {modules}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"matplotlib", "pandas", "torchvision", "sklearn"} & set(loaded.stdout.split())


def test_code_is_not_a_package() -> None:
    assert not list((ROOT / "code").rglob("__init__.py"))


@pytest.mark.parametrize("path", [*PACKAGE, *CODE], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_small_enough_to_take_in(path: Path) -> None:
    assert sum(bool(line.strip()) for line in path.read_text(encoding="utf-8").splitlines()) <= 250


@pytest.mark.parametrize("name", sorted({module(path) for path in PACKAGE if path.stem != "__init__"}))
def test_a_module_s_tests_are_found_by_its_name(name: str) -> None:
    folder, _, stem = name.rpartition(".")
    usual = {"": f"test_{stem.lstrip('_')}", "_simulate": f"test_{stem}", "_deploy": "test_deploy"}
    files = {TESTED_IN.get(name), usual.get(folder)} - {None}
    assert any((ROOT / "tests" / f"{file}.py").is_file() for file in files), f"tests/{sorted(files)}: none is there"
    assert name not in TESTED_IN or (ROOT / "tests" / f"{TESTED_IN[name]}.py").is_file()
