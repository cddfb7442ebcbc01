"""What the tests share: the digits, split, and one federated run that many tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tutorial_utils.data import Dataset, prepare
from tutorial_utils.partition import split_dataset
from tutorial_utils.results import Run
from tutorial_utils.settings import FAST

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepare("digits", root=tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def sites(digits: Dataset) -> list[Path]:
    """The running example: two sites that differ."""
    return split_dataset(digits.folder, FAST.sites, alpha=FAST.alpha, seed=FAST.seed)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def run(sites: list[Path], runs: Path) -> Run:
    """The running example, federated."""
    from fl.job import build_job  # not above: the learner's own tests run with a FLARE that makes no job like these
    from tutorial_utils.simulate import simulate

    job = build_job(sites[0].parent, rounds=FAST.rounds, training=FAST.training)
    return simulate(job, runs=runs, progress=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The seconds that tests noted: the figures of tests/README.md."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if report.when == "call" and name == "seconds":
                terminalreporter.write_line(f"{value:6.1f} s  {report.nodeid.split('::')[1]}")
