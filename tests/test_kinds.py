"""Four scripts that have nothing to do with the example, each federated by a learner of a few lines.

Three lie in tests/kinds, the regression in code/more; no file of the project is copied or changed.
"""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_breast_cancer

from kinds import cancer, lbfgs, norm
from kinds.cancer_learner import CancerLearner
from kinds.lbfgs_learner import LBFGSLearner
from kinds.norm_learner import NormAtHomeLearner, NormLearner
from more import regression
from more.make_folders import make_regression
from more.regression_learner import RegressionLearner
from tutorial_utils.drive import compare_with_script, test_drive, train_alone
from tutorial_utils.job import LearnerJob, build_job
from tutorial_utils.keep import BestModel
from tutorial_utils.rehearse import rehearse
from tutorial_utils.report import Report
from tutorial_utils.results import Run, sha256
from tutorial_utils.simulate import simulate

HOSPITALS = {"university": 380, "st-anna": 129, "rural": 60}


def app_folder(run: Run, site: str) -> Path:
    return run.site_folder(site) / f"app_{site}"


def best_local(run: Run, site: str) -> dict:
    return BestModel(app_folder(run, site), RegressionLearner.metric).load()


# --- lower is better: the error of a regression ---


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_regression(tmp_path_factory.mktemp("diabetes") / "sites", sites=3)


def diabetes_job(patients: Path, rounds: int = 3) -> LearnerJob:
    torch.manual_seed(3)
    return build_job(
        RegressionLearner(str(patients)),
        regression.Net(),
        sites=3,
        rounds=rounds,
        name="diabetes",
    )


@pytest.fixture(scope="module")
def diabetes_run(patients: Path, runs: Path) -> Run:
    return simulate(diabetes_job(patients), runs=runs, progress=False)


def test_the_best_local_model_is_the_one_with_the_lowest_error(patients: Path) -> None:
    """Alone, a site receives in a round what it made in the one before. At this rate the error soon rises."""
    torch.manual_seed(3)
    net = regression.Net()
    drive, after = (test_drive(RegressionLearner(str(patients), lr=0.3), net, rounds=rounds) for rounds in (4, 5))
    made = [scores["mae"] for scores in after.received[1:]]
    assert drive.best.meta["round"] == int(np.argmin(made))
    assert drive.best.meta["round"] != int(np.argmax(made))


def test_a_federation_of_lower_is_better(diabetes_run: Run, patients: Path) -> None:
    run = diabetes_run
    assert run.metric == RegressionLearner.metric
    means = [np.average(rows["mae"], weights=rows["weight"]) for _, rows in run.rounds.groupby("round")]
    assert means[-1] < means[0], "it learns"
    best = score_of(run.best_model, patients, "valid", dict(run.rounds.query("round == 0")[["site", "weight"]].values))
    assert best == pytest.approx(min(means[1:]), rel=1e-6), "the best average is the one with the lowest error"
    for site in run.sites:
        kept = best_local(run, site)
        assert kept["score"] == pytest.approx(score_of(kept["params"], patients, "valid", {site: 1}), rel=1e-6)
        received = run.rounds.query("site == @site")["mae"]
        assert kept["score"] < received.iloc[0]


def test_three_sites_end_in_the_bits_of_a_rehearsal(diabetes_run: Run, patients: Path) -> None:
    """Their updates come in any order, and are added in that of the sites' names."""
    assert sha256(rehearse(diabetes_job(patients)).params) == diabetes_run.sha256


def score_of(params: dict, patients: Path, split: str, weights: dict[str, float]) -> float:
    net = regression.Net()
    net.load_state_dict(params)
    errors = [regression.score(net, regression.load(patients / site)[split])["mae"] for site in weights]
    return float(np.average(errors, weights=list(weights.values())))


def test_the_matrix_is_of_the_metric_that_decides_and_of_others_on_request(diabetes_run: Run, patients: Path) -> None:
    for metric, matrix in {"mae": diabetes_run.cross_site, "rmse": diabetes_run.matrix("rmse")}.items():
        assert list(matrix.index) == ["site-1", "site-2", "site-3"]
        assert list(matrix.columns) == ["global", "best global", "site-1", "site-2", "site-3"]
        net = regression.Net()
        for site in diabetes_run.sites:
            for model in diabetes_run.sites:
                net.load_state_dict(best_local(diabetes_run, model)["params"])
                by_hand = regression.score(net, regression.load(patients / site)["test"])[metric]
                assert matrix.loc[site, model] == pytest.approx(float(by_hand), rel=1e-5)


def test_a_report_and_its_figures_speak_of_the_error_and_of_patients(diabetes_run: Run) -> None:
    report = Report(diabetes_run, "scikit-learn diabetes", rows="patients")
    report.write()
    text = report.text()
    assert "mae of each model (column) on the test patients of each site (row)" in text
    assert "%" not in text and "accuracy" not in text and "images" not in text
    written = json.loads(report.path.read_text())
    assert written["metric"] == {"name": "mae", "higher_is_better": False, "fraction": None}
    assert (
        all(Path(path).stat().st_size > 5_000 for path in written["figures"].values()) and len(written["figures"]) == 2
    )


def test_what_each_site_can_do_alone_is_in_the_same_unit(patients: Path) -> None:
    alone = train_alone(diabetes_job(patients), rounds=1)
    assert (alone.min(axis=None), alone.max(axis=None)) > (20, 20), "an error, no share"


# --- an area under a curve, at named sites of very different size; one has no positive to validate on ---


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows in their order, scaled; rural has all of its malignant growths in train and holdout."""
    folder = tmp_path_factory.mktemp("hospitals")
    data = load_breast_cancer()
    rows, malignant = (data.data - data.data.mean(0)) / data.data.std(0), data.target == 0
    start = 0
    for name, count in HOSPITALS.items():
        here = np.arange(start, start + count)
        start += count
        parts = {"train": here[0::2], "development": here[1::4], "holdout": here[3::4]}
        if name == "rural":
            parts["development"] = parts["development"][~malignant[parts["development"]]]
        (folder / name).mkdir()
        for part, chosen in parts.items():
            np.savez(folder / name / f"{part}.npz", rows=rows[chosen], malignant=malignant[chosen])
    return folder


def cancer_job(hospitals: Path, **more: object) -> LearnerJob:
    torch.manual_seed(1)
    return build_job(
        CancerLearner(str(hospitals)),
        cancer.Net(8),
        sites=list(HOSPITALS),
        rounds=3,
        name="auc",
        **more,
    )


@pytest.fixture(scope="module")
def cancer_run(hospitals: Path, runs: Path) -> Run:
    return simulate(cancer_job(hospitals), runs=runs, progress=False)


def test_a_script_that_draws_from_numpy_and_random_is_matched_to_the_bit(hospitals: Path) -> None:
    first = cancer.Net(8)
    trained = cancer.main(hospitals / "st-anna", first.state_dict())
    proof = compare_with_script(CancerLearner(str(hospitals)), first, trained, site="st-anna")
    assert proof.equal, proof


@pytest.mark.slow  # fast: test_simulate's odd run has such a site, and names; test_drive weighs by patients
def test_a_site_without_a_score_takes_part_and_has_no_say(cancer_run: Run, hospitals: Path) -> None:
    run = cancer_run
    assert run.sites == tuple(HOSPITALS) and not run.missing
    by_site = run.rounds.pivot(index="round", columns="site", values="auc")
    assert by_site["rural"].isna().all() and by_site[["university", "st-anna"]].notna().all(axis=None)
    weights = run.rounds.groupby("site")["weight"].first()
    assert weights.to_dict() == {"university": 190, "st-anna": 65, "rural": 30}, "patients, not steps"
    scored = weights[["university", "st-anna"]]
    means = (by_site[scored.index] * scored).sum(axis=1) / scored.sum()
    net = cancer.Net(8)
    net.load_state_dict(run.best_model)
    best = [cancer.score(net, *cancer.load(hospitals / site)["development"])["auc"] for site in scored.index]
    assert np.average(best, weights=scored) == pytest.approx(means[1:].max(), abs=1e-6)
    kept = BestModel(app_folder(run, "rural"), CancerLearner.metric).load()
    assert np.isnan(kept["score"]) and kept["round"] == 0, "the first is kept, and no other beats it"


@pytest.mark.slow
def test_the_matrix_has_all_that_can_be_scored(cancer_run: Run) -> None:
    assert cancer_run.cross_site.notna().all(axis=None), "on the holdout there are positives everywhere"
    assert cancer_run.matrix("brier").notna().all(axis=None)
    assert list(cancer_run.cross_site.columns) == ["global", "best global", *HOSPITALS]


@pytest.mark.slow  # fast: test_report
def test_what_cannot_be_scored_is_an_empty_cell_in_the_report(cancer_run: Run) -> None:
    report = Report(cancer_run, "scikit-learn breast cancer", rows="patients", weighted_by="patients")
    report.write()
    written = json.loads(report.path.read_text())
    assert {row["site"]: row["auc"] for row in written["round_metrics"]}["rural"] is None
    assert "%" in report.text() and "nan" not in report.text()


# --- BatchNorm, a frozen part, a checkpoint to start from ---


@pytest.fixture(scope="module")
def checkpoint(sites: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    net = norm.make_net()
    norm.train(net, *(part[:64] for part in norm.load(sites[0])["train"]))
    path = tmp_path_factory.mktemp("checkpoint") / "trained.pt"
    torch.save({"state_dict": net.state_dict(), "epoch": 1}, path)
    return path


def norm_job(learner: type[NormLearner], sites: list[Path], checkpoint: Path, **more: object) -> LearnerJob:
    return build_job(
        learner(str(sites[0].parent)),
        norm.make_net(),
        checkpoint=checkpoint,
        sites=2,
        rounds=2,
        name="norm",
        **more,
    )


@pytest.fixture(scope="module")
def norm_run(sites: list[Path], checkpoint: Path, runs: Path) -> Run:
    return simulate(norm_job(NormLearner, sites, checkpoint), runs=runs, progress=False)


@pytest.fixture(scope="module")
def at_home_run(sites: list[Path], checkpoint: Path, runs: Path) -> Run:
    return simulate(norm_job(NormAtHomeLearner, sites, checkpoint), runs=runs, progress=False)


@pytest.mark.parametrize("kind", [NormLearner, NormAtHomeLearner])
def test_batchnorm_and_a_frozen_part_are_matched_to_the_bit(
    kind: type[NormLearner], sites: list[Path], checkpoint: Path
) -> None:
    first = torch.load(checkpoint)["state_dict"]
    proof = compare_with_script(kind(str(sites[0].parent)), first, norm.main(sites[0], checkpoint))
    assert proof.equal, proof


@pytest.mark.slow  # fast: frozen weights and the checkpoint in the run below; counters in test_aggregator
def test_frozen_weights_are_untouched_and_counters_stay_integers(norm_run: Run, checkpoint: Path) -> None:
    first, last = torch.load(checkpoint)["state_dict"], norm_run.global_model
    assert set(last) == set(first)
    for name, value in first.items():
        assert last[name].dtype == value.dtype and last[name].shape == value.shape
        assert torch.equal(last[name], value) == name.startswith("features."), name
    assert last["norm.num_batches_tracked"] > first["norm.num_batches_tracked"]
    assert norm_run.rounds.query("round == 0")["accuracy %"].max() > 30, "it began from the checkpoint"


def test_batchnorm_that_stays_at_home_never_reaches_the_server(at_home_run: Run, checkpoint: Path) -> None:
    first, last = torch.load(checkpoint)["state_dict"], at_home_run.global_model
    assert set(last) == set(first)
    for name, value in first.items():
        untouched = name.startswith(("features.", "norm."))
        assert torch.equal(last[name], value) == untouched, name
    assert at_home_run.rounds.query("round == 0")["accuracy %"].max() > 30, "it began from the checkpoint"


def test_each_site_keeps_a_batchnorm_of_its_own(at_home_run: Run, checkpoint: Path, sites: list[Path]) -> None:
    first = torch.load(checkpoint)["state_dict"]
    kept = {}
    for site in at_home_run.sites:
        found = torch.load(app_folder(at_home_run, site) / "learner_state_1.pt", weights_only=True)
        assert set(found["local"]) == {name for name in first if name.startswith("norm.")}
        kept[site] = found["local"]
        net = norm.make_net()
        net.load_state_dict(at_home_run.global_model | kept[site])
        by_hand = float(norm.score(net, *norm.load(sites[0].parent / site)["test"])["accuracy %"])
        assert at_home_run.cross_site.loc[site, "global"] == pytest.approx(by_hand), "scored with its own BatchNorm"
        steps = len(norm.load(sites[0].parent / site)["train"][0].split(16))
        done = kept[site]["norm.num_batches_tracked"] - first["norm.num_batches_tracked"]
        assert done == 2 * steps, "it went on from round to round"
    assert not torch.equal(kept["site-1"]["norm.running_mean"], kept["site-2"]["norm.running_mean"])


@pytest.mark.slow
def test_a_new_process_for_every_task_finds_its_batchnorm_again(
    at_home_run: Run, sites: list[Path], checkpoint: Path, runs: Path
) -> None:
    with warnings.catch_warnings(record=True):
        other = simulate(norm_job(NormAtHomeLearner, sites, checkpoint), threads=1, runs=runs, progress=False)
    assert other.sha256 == at_home_run.sha256
    pd.testing.assert_frame_equal(other.cross_site, at_home_run.cross_site)


# --- float64, LBFGS, and a learner that remembers ---


def lbfgs_job(hospitals: Path, rounds: int = 3) -> LearnerJob:
    return build_job(
        LBFGSLearner(str(hospitals)),
        lbfgs.make_net().requires_grad_(),
        sites=["university", "st-anna"],
        rounds=rounds,
        name="lbfgs",
    )


@pytest.fixture(scope="module")
def lbfgs_run(hospitals: Path, runs: Path) -> Run:
    torch.manual_seed(0)
    return simulate(lbfgs_job(hospitals), runs=runs, progress=False)


def test_float64_under_lbfgs_is_matched_to_the_bit(hospitals: Path) -> None:
    torch.manual_seed(0)
    first = lbfgs.make_net()
    proof = compare_with_script(LBFGSLearner(str(hospitals)), first, lbfgs.main(hospitals / "rural"), site="rural")
    assert proof.equal, proof


def test_a_learner_remembers_from_round_to_round(hospitals: Path) -> None:
    torch.manual_seed(0)
    first = lbfgs.make_net()
    trained = copy.deepcopy(first)
    optimizer = torch.optim.LBFGS(trained.parameters(), lr=0.1, max_iter=5)
    rows = lbfgs.load(hospitals / "rural")["train"]
    for number in range(3):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.7**number
        lbfgs.train(trained, optimizer, *rows)
    driven = test_drive(LBFGSLearner(str(hospitals)), first, site="rural", rounds=3).params
    for name, value in trained.state_dict().items():
        assert driven[name].dtype == np.float64
        np.testing.assert_allclose(driven[name], value.numpy(), rtol=0, atol=1e-12)


@pytest.mark.slow  # fast: test_aggregator, and the drive above
def test_the_server_keeps_float64(lbfgs_run: Run) -> None:
    assert {value.dtype for value in lbfgs_run.global_model.values()} == {torch.float64}
    loss = lbfgs_run.rounds.groupby("round")["loss"].mean()
    assert loss.is_monotonic_decreasing


@pytest.mark.slow
def test_one_fingerprint_with_one_thread_with_as_many_as_sites_and_resumed(
    lbfgs_run: Run, hospitals: Path, runs: Path
) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True):
        anew = simulate(lbfgs_job(hospitals), threads=1, runs=runs, progress=False)
    torch.manual_seed(0)
    cut = simulate(lbfgs_job(hospitals, rounds=2), runs=runs, progress=False)
    resumed = simulate(lbfgs_job(hospitals), resume_from=cut, runs=runs, progress=False)
    assert cut.sha256 != lbfgs_run.sha256
    assert anew.sha256 == resumed.sha256 == lbfgs_run.sha256
