"""Studies: the bits of FedAvg by hand, drift by hand, the same numbers from any number of processes, none left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from fl.by_hand import federated_averaging
from tutorial_utils.data import Dataset, prepare, subset
from tutorial_utils.partition import split_dataset
from tutorial_utils.report import score
from tutorial_utils.results import sha256
from tutorial_utils.study import compare_splits, distance, drift, drift_of, federate, run_tasks, train_alone

HOW = {"batch_size": 8, "epochs": 1, "lr": 0.01, "momentum": 0.9}
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """So few digits that a training takes a blink."""
    return subset(prepare("digits", root=tmp_path_factory.mktemp("few")), 100)


def test_drift_by_hand() -> None:
    """Sites at 0 and 4 with 1 and 3 steps: average 3, distances 3 and 1, mean square (9 * 1 + 1 * 3) / 4 = 3."""
    updates = [({"a": np.float32([0, 0])}, 1), ({"a": np.float32([0, 4])}, 3)]
    assert drift(updates) == pytest.approx(3**0.5)
    assert drift(updates[:1]) == 0
    two = [(params | {"b": np.float32([8 * k])}, steps) for k, (params, steps) in enumerate(updates)]
    assert drift_of("a", two) == pytest.approx(3**0.5)
    assert drift_of("b", two) == pytest.approx(12**0.5)  # twice as far: four times the mean square
    assert drift(two) == pytest.approx(15**0.5)
    assert distance({"a": np.float32([0, 0])}, {"a": np.float32([3, -4])}) == 5


def test_a_study_federates_with_the_bits_of_fedavg_by_hand(few: Dataset) -> None:
    sites = split_dataset(few.folder, 2, alpha=0.5)
    averages = []
    federated_averaging(sites, 2, seed=1, **HOW, after_round=lambda _, params: averages.append(params))
    rows = federate(sites[::-1], 2, seed=1, **HOW)
    assert [row["sha256"] for row in rows] == [sha256(params) for params in averages]
    assert [row["accuracy"] for row in rows] == [score(params, sites)[0] for params in averages]
    assert [row["round"] for row in rows] == [1, 2]
    assert all(row["drift"] > row["drift_of_biases"] > 0 for row in rows)


def test_alone_is_as_many_epochs_in_one_go(few: Dataset) -> None:
    expected = federated_averaging([few.folder], 1, seed=2, **HOW | {"epochs": 6})
    assert train_alone(few.folder, 3, [few.folder], seed=2, **HOW | {"epochs": 2}) == score(expected, [few.folder])[0]


def test_the_numbers_are_those_of_one_process(few: Dataset) -> None:
    splits = {"IID": split_dataset(few.folder, 2, alpha=None), "apart": split_dataset(few.folder, 2, alpha=0.5)}
    table = compare_splits(splits, few.folder, (0, 1), 2, processes=2, **HOW)
    last = table[table["round"] == 2].set_index(["split", "seed", "model"])["accuracy"]
    assert len(last) == len(last.index.unique()) == 2 * 2 * 3
    assert len(table) == len(last) + 4  # and the federations' first rounds
    for split, sites in splits.items():
        for seed in (0, 1):
            alone = [train_alone(site, 2, sites, seed=seed, **HOW) for site in sites]
            assert last[split, seed, "one site alone"] == pytest.approx(sum(alone) / 2)
            assert last[split, seed, "federated"] == federate(sites, 2, seed=seed, **HOW)[-1]["accuracy"]
            assert last[split, seed, "centralised"] == train_alone(few.folder, 2, [few.folder], seed=seed, **HOW)


def test_what_a_task_raises_comes_back_and_ends_the_rest() -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match="invalid literal"):
        run_tasks([(int, ("no number",), {}), *[(time.sleep, (0.5,), {})] * 60], processes=2)
    assert time.monotonic() - start < 25, "the tasks that were waiting are not done any more"
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


PARENT = """
import sys, time
sys.path.insert(0, "code")
from tutorial_utils.study import run_tasks
if __name__ == "__main__":
    run_tasks([(time.sleep, (60,), {})] * 2, 2)
"""


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT.replace('"code"', repr(str(ROOT / "code"))))
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], stderr=subprocess.DEVNULL)
    try:
        workers = wait_for_workers(parent.pid)
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    for process in alive:
        process.kill()
    assert not alive


def wait_for_workers(parent: int) -> list[psutil.Process]:
    """Its two workers, once they sleep in their task: imports are done, and no more of the processor is used."""
    for _ in range(300):
        workers = [c for c in psutil.Process(parent).children() if "spawn_main" in " ".join(c.cmdline())]
        if len(workers) == 2 and all(worker.num_threads() > 1 for worker in workers):
            time.sleep(1)
            return workers
        time.sleep(0.1)
    raise AssertionError("no workers came up")


@pytest.mark.slow
def test_the_comparison_with_niid_bench_is_fedavg_by_hand(digits: Dataset) -> None:
    script = [sys.executable, str(ROOT / "tests/benchmarks/niid.py"), str(digits.folder), "--rounds", "2"]
    told = subprocess.run([*script, "--epochs", "1"], capture_output=True, text=True, check=True).stdout
    how = {"batch_size": 64, "epochs": 1, "lr": 0.01, "momentum": 0.9}
    for split, alpha in (("IID", None), ("Dirichlet 0.5", 0.5)):
        sites = split_dataset(digits.folder, 10, alpha=alpha)
        expected, images = score(federated_averaging(sites, 2, **how), sites)
        (line,) = [line for line in told.splitlines() if line.startswith(f"| {split} ")]
        assert line.split("|")[2].strip() == f"{100 * expected:.1f}"
    assert f"{images} test images" in told
    assert "ours 2 (2 rounds of 1), theirs 500" in told
