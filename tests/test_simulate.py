"""Real simulations of the running example."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather
from nvflare.job_config.api import FedJob
from torch.utils.data import ConcatDataset

from dl.train import Net, evaluate, load_data, make_loader, train
from faults import odd_learner
from fl.by_hand import federated_averaging
from fl.job import build_job
from tutorial_utils import job as general
from tutorial_utils._simulate.job_folder import place_job
from tutorial_utils.data import Dataset
from tutorial_utils.errors import TutorialError
from tutorial_utils.job import LearnerJob
from tutorial_utils.partition import split_dataset
from tutorial_utils.report import Report
from tutorial_utils.results import Run, mean_by_round, sha256
from tutorial_utils.settings import FAST, Training
from tutorial_utils.simulate import simulate

CODE = Path(build_job.__code__.co_filename).parents[1]
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


@pytest.mark.slow  # fast: three sites, in test_kinds, end in the bits of a rehearsal
def test_five_sites_equal_federated_averaging_by_hand(digits: Dataset, runs: Path) -> None:
    folders = split_dataset(digits.folder, 5, alpha=1.0, seed=0)
    made = simulate(build_job(folders[0].parent, 5, 2, SMALL), runs=runs, progress=False)
    assert made.sha256 == sha256(federated_averaging(folders, 2, batch_size=8))
    assert made.cross_site.shape == (5, 7)


@pytest.mark.slow  # fast: test_drive holds one site against the script, and two sites stand above
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
        ({"data": "nowhere"}, {}, r"nowhere has no folder site-1, site-2 \(it has none\)"),
        ({"sites": 3}, {}, r"has no folder site-3 \(it has site-1, site-2"),
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


@pytest.mark.slow
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


def test_a_run_has_its_pace_and_last_its_guard(run: Run) -> None:
    """Mutation that must not live: no pace, and half a second more in every round."""
    for config in (run.folder / "job").rglob("config_fed_*.json"):
        assert [part["id"] for part in json.loads(config.read_text())["components"]][-2:] == ["pace", "guard"]


def test_runs_get_folders_of_their_own(run: Run, runs: Path) -> None:
    from tutorial_utils.simulate import fresh_folder

    assert fresh_folder(runs, run.folder.name) != run.folder


@pytest.fixture(scope="module")
def hospitals(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three sites under names of their own."""
    names = ["north", "south", "west"]
    return split_dataset(digits.folder, names, alpha=1.0, seed=0, out=tmp_path_factory.mktemp("hospitals") / "sites")


def names_of(folders: list[Path]) -> list[str]:
    return [folder.name for folder in folders]


def odd_job(folders: list[Path], rounds: int = 2, **more: Any) -> LearnerJob:
    own = {name: more.pop(name) for name in ("slow", "blind", "idle", "seconds") if name in more}
    learner = odd_learner.OddLearner(str(folders[0].parent), **own)
    job = general.build_job(learner, odd_learner.OddNet(), sites=names_of(folders), rounds=rounds, **more)
    job.add_file_to_clients(str(Path(odd_learner.__file__).with_name("watch.py")))
    return job


@pytest.fixture(scope="module")
def odd(hospitals: list[Path], runs: Path) -> Run:
    """All at once that is unusual and no fault (see OddLearner): one site measures nothing, another makes no step."""
    return simulate(odd_job(hospitals, blind=["north"], idle=["south"], name="odd"), runs=runs, progress=False)


def test_sites_run_under_their_own_names(odd: Run) -> None:
    assert odd.sites == ("north", "south", "west")
    assert list(odd.cross_site.index) == list(odd.sites) and odd.missing == {}
    assert all(odd.log(site) for site in odd.sites)


def test_in_the_average_all_stays_what_it_is(odd: Run) -> None:
    first, last = odd_learner.OddNet().state_dict(), odd.global_model
    assert {name: value.dtype for name, value in last.items()} == {name: value.dtype for name, value in first.items()}
    for name in ("mask", "frozen.weight", "frozen.bias"):
        assert torch.equal(last[name], first[name]), f"{name} to the bit: no site has changed it"
    for name in ("norm.running_mean", "norm.num_batches_tracked"):
        assert torch.equal(last[name], first[name]), f"{name} stays at the sites"
    assert not torch.equal(last["head.weight"], first["head.weight"])


def test_what_a_site_cannot_measure_is_an_empty_cell(odd: Run) -> None:
    blind = odd.rounds["site"] == "north"
    assert odd.rounds.loc[blind, "score"].isna().all() and odd.rounds.loc[~blind, "score"].notna().all()
    assert odd.cross_site.loc["north"].isna().all() and odd.cross_site.drop("north").notna().all(axis=None)


def test_the_best_model_is_chosen_by_those_that_measure(odd: Run) -> None:
    assert odd.best_model is not None


def test_a_site_that_makes_no_step_weighs_nothing(odd: Run, hospitals: list[Path], runs: Path) -> None:
    weights = odd.rounds.groupby("site")["weight"].sum()
    assert weights["south"] == 0 and weights["west"] > 0


def test_a_learner_s_module_is_not_shadowed_by_one_of_the_runner_s(odd: Run) -> None:
    assert all("watch is the learner's" in odd.log(site) for site in odd.sites)


@pytest.mark.slow  # fast: test_results reads the rounds of a site that sat out, test_job_folder such a workflow
def test_a_job_that_draws_its_sites_and_stops_early_is_whole(hospitals: list[Path], runs: Path) -> None:
    workflow = FedAvg(num_clients=2, num_rounds=20, stop_cond="score <= 1000")
    job = odd_job(hospitals, workflow=workflow, cross_site="none", name="drawn")
    run = simulate(job, runs=runs, progress=False)
    assert run.rounds["round"].tolist() == [0, 0], "it was content with the first round"
    assert [len(names) for names in run.missing.values()] == [1], "and says who sat out"
    assert set(run.global_model) <= set(odd_learner.OddNet().state_dict())


@pytest.mark.slow
def test_a_round_that_waits_for_some_sites_is_whole_without_a_straggler(hospitals: list[Path], runs: Path) -> None:
    """ScatterAndGather may go on with the first answers."""
    ids = {f"{part}_id": part for part in ("aggregator", "persistor", "shareable_generator")}
    workflow = ScatterAndGather(min_clients=2, num_rounds=6, wait_time_after_min_received=0, **ids)
    job = odd_job(hospitals, rounds=6, workflow=workflow, cross_site="global", slow=["west"], seconds=5.0, name="late")
    run = simulate(job, runs=runs, progress=False)
    assert (run.rounds.groupby("round")["site"].nunique() >= 2).all() and run.rounds["round"].nunique() == 6
    assert any("west" in names for names in run.missing.values())
    assert list(run.cross_site.columns) == ["global", "best global"]


@pytest.mark.slow
def test_a_job_of_flare_s_own_command_runs_without_the_parts_that_write_results(
    sites: list[Path], runs: Path, tmp_path: Path
) -> None:
    """The project's template, in HOCON, as an older FLARE would have had it."""
    build_job(sites[0].parent, name="source").export_job(str(tmp_path))
    words = ["job", "create", "-j", tmp_path / "job", "-w", CODE / "fl/job_template", "-force"]
    words += ["-sd", tmp_path / "source/app/custom", "-f", "config_fed_client.conf", f"data={sites[0].parent}"]
    subprocess.run([Path(sys.executable).with_name("nvflare"), *words], check=True, capture_output=True)
    path = tmp_path / "job/app/config/config_fed_server.conf"
    text = path.read_text()
    for kind in ("MetricsArtifactWriter", "ValidationJsonGenerator"):
        start = text.rindex("{", 0, text.index(kind))
        end = text.index("}", text.index("}", start) + 1) + 1
        text = text[:start] + text[end:].lstrip(" ,")
    path.write_text(text)
    run = simulate(tmp_path / "job", runs=runs, progress=False)
    assert run.rounds["round"].max() == 4 and run.cross_site.notna().all(axis=None)


def test_simulate_asks_for_the_number_of_sites(runs: Path, sites: list[Path]) -> None:
    job = build_job(sites[0].parent)
    job.job.meta_props, job.job.min_clients = {}, 1  # FedJob's own defaults
    with pytest.raises(TutorialError, match="sites=2"):
        simulate(job, runs=runs)
