"""A federation in this process: the bits of the simulator's; tutorial_utils/rehearse.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fl.job import build_job as build_example
from hospitals import AGREED, NAMES, place_hospitals
from own.learner import CancerLearner
from own.script import make_net
from tutorial_utils.drive import score_models
from tutorial_utils.job import LearnerJob, build_evaluation, build_job
from tutorial_utils.learner import LearnerError
from tutorial_utils.rehearse import compare_seeds, rehearse
from tutorial_utils.results import Run, sha256
from tutorial_utils.settings import FAST
from tutorial_utils.simulate import simulate


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place_hospitals(tmp_path_factory.mktemp("hospitals"))


def make_job(hospitals: Path, seed: int = 0, rounds: int = 3) -> LearnerJob:
    learner = CancerLearner(str(hospitals), **AGREED, seed=seed)
    return build_job(learner, make_net(seed), sites=NAMES, rounds=rounds, name="hospitals")


def test_it_makes_the_bits_and_the_rounds_of_the_simulator(run: Run, sites: list[Path]) -> None:
    rehearsal = rehearse(build_example(sites[0].parent, rounds=FAST.rounds, training=FAST.training))
    assert sha256(rehearsal.params) == run.sha256
    order = ["round", "site"]
    simulated = run.rounds.sort_values(order).reset_index(drop=True)
    pd.testing.assert_frame_equal(rehearsal.rounds[simulated.columns], simulated, check_dtype=False)
    assert rehearsal.rounds.attrs == run.rounds.attrs


@pytest.mark.slow
def test_with_state_batchnorm_and_unequal_weights_too(hospitals: Path, runs: Path) -> None:
    job = make_job(hospitals)
    assert sha256(rehearse(job).params) == simulate(job, runs=runs, progress=False).sha256


def test_a_second_rehearsal_begins_anew(hospitals: Path) -> None:
    """The sites' states live in the rehearsal alone: nothing of it stays in the job's learner."""
    job = make_job(hospitals)
    first = rehearse(job)
    assert job.learner.state == {} and sha256(rehearse(job).params) == sha256(first.params)
    assert sha256(rehearse(job, rounds=1).params) != sha256(first.params)
    assert list(first.rounds["site"].unique()) == sorted(NAMES) and len(first.rounds) == 3 * len(NAMES)


class Stopped(CancerLearner):
    def train(self, model: object) -> str:
        return "TASK_ABORTED"


def test_what_no_server_could_average_is_said(hospitals: Path) -> None:
    job = build_job(Stopped(str(hospitals), **AGREED), make_net(), sites=NAMES, name="stopped")
    with pytest.raises(LearnerError, match=r"train\(\) at rural returned TASK_ABORTED"):
        rehearse(job)
    job = build_evaluation(CancerLearner(str(hospitals), **AGREED), {"mine": make_net()}, sites=NAMES)
    with pytest.raises(LearnerError, match="trains nothing"):
        rehearse(job)


def test_seeds_compared_begin_alike_and_are_scored_alike(hospitals: Path) -> None:
    frame = compare_seeds(lambda seed: make_job(hospitals, seed, rounds=1), [0, 3], pooled="everyone")
    assert list(frame["model"].unique()) == ["federated", *(f"{name} alone" for name in NAMES), "centralised"]
    assert set(frame["test data of"]) == {*NAMES, "everyone"} and set(frame["seed"]) == {0, 3}
    job = make_job(hospitals, seed=3, rounds=1)
    by_hand = score_models(job.learner, {"federated": rehearse(job).params}, ["everyone"]).iloc[0, 0]
    found = frame.query("model == 'federated' and seed == 3 and `test data of` == 'everyone'")["auc"]
    assert found.tolist() == [by_hand] and np.isfinite(frame["auc"]).all()
    assert frame.attrs["metric"]["name"] == "auc"
