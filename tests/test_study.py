"""Studies: drift by hand, the same numbers from any number of processes, none left."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from tutorial_utils.metric import Metric
from tutorial_utils.study import compare_splits, distance, drift, drift_of, run_tasks

ROOT = Path(__file__).parents[1]


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


def test_counters_and_other_whole_numbers_are_no_weights() -> None:
    one, two = ({"a": np.float64([n]), "n": np.array(1000 * n)} for n in (0, 3))
    assert distance(one, two) == 3
    assert drift([(one, 1), (two, 1)]) == 1.5


def test_an_entry_without_dimensions_and_a_site_without_steps() -> None:
    updates = [({"scale": np.float32(value)}, steps) for value, steps in ((1, 2), (3, 2), (1e9, 0))]
    assert drift(updates) == 1


def grow(folders: Sequence[Path], rounds: int, *, seed: int, step: float) -> list[dict[str, Any]]:
    """A federation that is quickly made: its error is what is left of 10."""
    letters = sum(len(folder.name) for folder in folders)
    return [{"round": n, "mae": 10 - step * n - letters - seed, "left": letters} for n in range(1, rounds + 1)]


def grow_alone(folder: Path, rounds: int, tests: Sequence[Path], *, seed: int, step: float) -> float:
    return 10 - step * rounds / 2 - len(folder.name) - seed / 10 - len(tests) / 100


def test_a_study_deals_out_what_it_is_given_and_lays_out_what_comes_back() -> None:
    splits = {"one": [Path("a"), Path("bbb")], "two": [Path("cc")]}
    mae = Metric("mae", higher_is_better=False)
    trainings = {"federate": grow, "train_alone": grow_alone}
    table = compare_splits(splits, Path("all"), (0, 1), 2, **trainings, metric=mae, processes=2, step=0.5)
    assert list(table.columns) == ["split", "seed", "model", "round", "mae", "left"]
    assert len(table) == 2 * 2 * (2 + 2)
    assert table.attrs["metric"] == {"name": "mae", "higher_is_better": False, "fraction": None}
    rows = table.set_index(["split", "seed", "model", "round"])["mae"]
    for split, sites in splits.items():
        for seed in (0, 1):
            for number in (1, 2):
                letters = sum(len(site.name) for site in sites)
                assert rows[split, seed, "federated", number] == 10 - 0.5 * number - letters - seed
            alone = [9.5 - len(site.name) - seed / 10 - len(sites) / 100 for site in sites]
            assert math.isclose(rows[split, seed, "one site alone", 2], sum(alone) / len(alone))
            assert math.isclose(rows[split, seed, "centralised", 2], 9.5 - 3 - seed / 10 - 0.01)
    assert table.loc[table["model"] != "federated", "left"].isna().all()


def count_threads() -> int:
    return torch.get_num_threads()


def test_a_task_has_one_thread_as_a_site_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # what torch would take
    assert run_tasks([(count_threads, (), {})]) == [1]


def sleep_and_tell(file: Path) -> None:
    time.sleep(0.5)
    file.touch()


def test_what_a_task_raises_comes_back_and_ends_the_rest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        files = [tmp_path / str(number) for number in range(60)]
        run_tasks([(int, ("no number",), {}), *[(sleep_and_tell, (file,), {}) for file in files]], processes=2)
    assert len(list(tmp_path.iterdir())) < 60, "the tasks that were waiting are not done any more"
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
    _, alive = psutil.wait_procs(workers, timeout=60)
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
