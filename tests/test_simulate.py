"""Real simulations of the running example."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.job_config.api import FedJob
from torch.utils.data import ConcatDataset

from dl.train import Net, evaluate, load_data, make_loader, train
from fl.by_hand import federated_averaging
from fl.job import build_job
from tutorial_utils._simulate.job_folder import place_job
from tutorial_utils.data import Dataset
from tutorial_utils.errors import TutorialError
from tutorial_utils.partition import split_dataset
from tutorial_utils.report import Report
from tutorial_utils.results import Run, mean_by_round, sha256
from tutorial_utils.settings import FAST, Training
from tutorial_utils.simulate import simulate

SMALL = Training(batch_size=8)


def global_test(sites: list[Path]) -> ConcatDataset:
    return ConcatDataset([load_data(site).test for site in sites])


def accuracy(state: dict[str, torch.Tensor], sites: list[Path]) -> float:
    net = Net()
    net.load_state_dict(state)
    return evaluate(net, global_test(sites))["accuracy"]


def test_simulator_equals_federated_averaging_by_hand(run: Run, sites: list[Path]) -> None:
    by_hand = federated_averaging(sites, FAST.rounds, batch_size=FAST.batch_size, seed=FAST.seed)
    assert run.sha256 == sha256(by_hand)


def test_five_sites_equal_federated_averaging_by_hand(digits: Dataset, runs: Path) -> None:
    folders = split_dataset(digits.folder, 5, alpha=1.0, seed=0)
    made = simulate(build_job(folders[0].parent, 5, 2, SMALL), runs=runs, progress=False)
    assert made.sha256 == sha256(federated_averaging(folders, 2, batch_size=8))
    assert made.cross_site.shape == (5, 7)


def test_one_site_for_one_round_equals_the_script(digits: Dataset, runs: Path) -> None:
    (folder,) = split_dataset(digits.folder, 1, alpha=None, seed=0)
    made = simulate(build_job(folder.parent, 1, 1, SMALL), runs=runs, progress=False)
    net = Net(0)
    train(net, make_loader(load_data(folder).train, 8, seed=0))
    for name, value in net.state_dict().items():
        np.testing.assert_allclose(made.global_model[name], value, atol=1e-6)
    assert made.best_model is None, "a single round leaves no candidate"


def test_federation_beats_the_mean_site_alone_at_equal_steps(run: Run, sites: list[Path]) -> None:
    alone = []
    for site in sites:
        net = Net(FAST.seed)
        loader = make_loader(load_data(site).train, FAST.batch_size, FAST.seed)
        steps = train(net, loader, epochs=FAST.rounds * FAST.epochs)
        assert steps == run.rounds.loc[run.rounds["site"] == site.name, "weight"].sum()
        alone.append(evaluate(net, global_test(sites))["accuracy"])
    assert accuracy(run.global_model, sites) >= np.mean(alone) + 0.15


def test_rounds_hold_every_site_in_every_round(run: Run, sites: list[Path]) -> None:
    assert run.rounds["round"].tolist() == [number for number in range(FAST.rounds) for _ in sites]
    assert set(run.rounds["site"]) == {"site-1", "site-2"}
    first = evaluate(Net(FAST.seed), load_data(sites[0]).valid)["accuracy"]
    assert run.rounds.loc[0, "accuracy"] == pytest.approx(first), "round 0 scores the first weights"
    assert mean_by_round(run.rounds, "accuracy").between(0, 1).all()


def test_cross_site_matrix_is_right_on_test_images(run: Run, sites: list[Path]) -> None:
    assert list(run.cross_site.columns) == ["global", "best global", "site-1", "site-2"]
    assert list(run.cross_site.index) == ["site-1", "site-2"]
    for site in sites:
        alone = accuracy(run.global_model, [site])
        assert run.cross_site.loc[site.name, "global"] == pytest.approx(alone)
    best = torch.load(run.job_folder.parents[1] / "site-1/simulate_job/app_site-1/best_local_model.pt")
    assert run.cross_site.loc["site-2", "site-1"] == pytest.approx(accuracy(best["params"], sites[1:]))


def test_global_test_accuracy_is_the_weighted_row_mean(run: Run, sites: list[Path]) -> None:
    counts = [len(load_data(site).test) for site in sites]
    expected = np.average(run.cross_site["global"], weights=counts)
    assert accuracy(run.global_model, sites) == pytest.approx(expected)


def test_best_model_is_never_the_last_average(run: Run) -> None:
    assert run.best_model is not None
    assert sha256(run.best_model) != run.sha256


def test_bytes_are_plausible(run: Run) -> None:
    model = sum(value.numel() * 4 for value in run.global_model.values())
    exchanged = 2 * FAST.sites * FAST.rounds + FAST.sites + FAST.sites * 4  # rounds, submit, validate 4 models
    assert exchanged * model < run.bytes < 2 * exchanged * model


def test_log_of_a_site_and_of_nobody(run: Run) -> None:
    assert "CIFAR10ModelLearner" in run.log("site-1")
    with pytest.raises(TutorialError, match="site-1, site-2"):
        run.log("site-9")


def test_report_holds_it_all(run: Run, sites: list[Path]) -> None:
    report = Report(run, "scikit-learn digits", 0.9, 397, {"seed": 0})
    report.write()
    saved = json.loads((run.folder / "report.json").read_text())
    wanted = {"dataset", "sites", "rounds", "test_accuracy", "sha256", "seconds", "bytes", "round_metrics"}
    assert wanted | {"cross_site"} <= set(saved)
    assert saved["rounds"] == FAST.rounds and saved["sha256"] == run.sha256
    assert saved["cross_site"]["site-1"]["site-2"] == pytest.approx(run.cross_site.loc["site-1", "site-2"])
    assert all(Path(path).stat().st_size > 5_000 for path in saved["figures"].values())
    text = report.text()
    assert "digits" in text and run.sha256 in text and "90.0%" in text and "397 images" in text


@pytest.mark.parametrize(
    ("settings", "how", "text"),
    [
        ({"data": "nowhere"}, {}, r"nowhere has no folder site-1, site-2: split the data for 2 sites"),
        ({"sites": 3}, {}, r"has no folder site-3: split the data for 3 sites"),
        ({}, {"sites": 1}, r"The job needs 2 sites \(its min_clients\), and sites is 1"),
        ({}, {"sites": 3}, r"has no folder site-3"),
        ({}, {"threads": 3}, r"threads is 3: it must be from 1 to the number of sites, 2"),
        ({}, {"min_sites": 3}, r"min_sites is 3: it must be from 1 to the number of sites, 2"),
        ({}, {"min_sites": 0}, r"min_sites is 0: it must be from 1"),
        ({}, {"resume_from": "/never/was"}, r"/never/was holds no finished round to go on from"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(
    settings: dict[str, Any], how: dict[str, Any], text: str, sites: list[Path], tmp_path: Path
) -> None:
    job = build_job(**({"data": sites[0].parent} | settings), name="impossible")
    with pytest.raises(TutorialError, match=text):
        simulate(job, runs=tmp_path, progress=False, **how)
    assert not list(tmp_path.iterdir()), "and no empty folder is left"


def test_a_place_that_is_no_folder(sites: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TutorialError, match=r"Cannot write to .*name another folder with runs="):
        simulate(build_job(sites[0].parent), runs=tmp_path / "file" / "runs", progress=False)


def test_a_folder_that_is_no_job(tmp_path: Path) -> None:
    with pytest.raises(TutorialError, match=r"is not an exported job .*export_job"):
        simulate(tmp_path, runs=tmp_path / "runs", progress=False)


def test_an_exported_job_runs_as_the_job_does(run: Run, sites: list[Path], runs: Path, tmp_path: Path) -> None:
    job = build_job(sites[0].parent, rounds=FAST.rounds, training=FAST.training, name="exported")
    job.export_job(str(tmp_path))
    made = simulate(tmp_path / "exported", runs=runs, progress=False)
    assert made.sha256 == run.sha256
    assert "guard" not in (tmp_path / "exported/app/config/config_fed_server.json").read_text(), "only the copy"


class SlowToExport(FedJob):
    """Notes whether another thread exports at the same time."""

    one_at_a_time = threading.Lock()

    def export_job(self, job_root: str) -> None:
        if not self.one_at_a_time.acquire(blocking=False):
            raise RuntimeError("two exports at once")
        time.sleep(0.05)
        super().export_job(job_root)
        self.one_at_a_time.release()


def test_two_threads_never_export_at_once(tmp_path: Path) -> None:
    """CPython's ast.parse, which FLARE's export calls, fails now and then where two threads do it at once."""
    jobs = [SlowToExport(name=f"job-{number}") for number in range(3)]
    for job in jobs:
        job.to_server(FedAvg(num_clients=1, num_rounds=1))
    with ThreadPoolExecutor(3) as pool:
        copies = list(pool.map(lambda job: place_job(job, tmp_path / job.name), jobs))
    assert [copy.rounds for copy in copies] == [range(1)] * 3


def test_a_resume_beyond_the_end_is_refused(run: Run, sites: list[Path], runs: Path) -> None:
    with pytest.raises(TutorialError, match=rf"did {FAST.rounds} rounds, and this job asks for 2 in all"):
        simulate(build_job(sites[0].parent, rounds=2), runs=runs, resume_from=run, progress=False)


def test_runs_get_folders_of_their_own(run: Run, runs: Path) -> None:
    from tutorial_utils.simulate import fresh_folder

    assert fresh_folder(runs, run.folder.name) != run.folder


def test_simulate_asks_for_the_number_of_sites(runs: Path, sites: list[Path]) -> None:
    job = build_job(sites[0].parent)
    job.job.meta_props, job.job.min_clients = {}, 1  # FedJob's own defaults
    with pytest.raises(TutorialError, match="sites=2"):
        simulate(job, runs=runs)
