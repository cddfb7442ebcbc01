"""The account of a run: by any metric, of what there is."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_results import EVALUATION, TRAINING, lines, make_run, put, record

from tutorial_utils.errors import ResultsError
from tutorial_utils.report import Report
from tutorial_utils.results import Run

ROUNDS = lines(
    record(0, north={"accuracy": 0.1, "loss": 2.3, "weight": 30}, south={"accuracy": 0.2, "loss": 2.5, "weight": 10}),
    record(1, north={"accuracy": 0.5, "loss": 1.25, "weight": 30}, south={"accuracy": 0.7, "weight": 10}),
)
NOT_MEASURED = {"accuracy": 0.6, "loss": math.nan}
MATRIX = {
    site: {
        "SRV_FL_global_model.pt": NOT_MEASURED if site == "south" else {"accuracy": 0.5, "loss": 1.5},
        "SRV_best_FL_global_model.pt": {"accuracy": 0.75, "loss": 1234.5},
        site: {"accuracy": 0.25, "loss": 0.03125},
    }
    for site in ("north", "south")
}
ACCURACY = {"custom_props": {"metric": {"name": "accuracy"}}}
LOSS = {"custom_props": {"metric": {"name": "loss", "higher_is_better": False}}}


def finished(folder: Path, meta: dict, rounds: str | None = ROUNDS, matrix: dict | None = MATRIX) -> Run:
    server = TRAINING if rounds else EVALUATION
    run = make_run(folder, rounds=rounds, matrix=matrix, meta=meta, server=server, sites=("north", "south"))
    if rounds:
        run.global_model_path.parent.mkdir(parents=True)
        torch.save({"model": {"weight": torch.arange(3.0)}}, run.global_model_path)
    pools = {f"{way}_stream_sizes": {"pool": {"cat_data": {"a": [{"total": 0.5}]}}} for way in ("sent", "received")}
    put(run.job_folder / "guard" / "messages.json", pools)
    return Run(run.folder, run.sites, 61.7)


def test_the_example_is_told_line_by_line(tmp_path: Path) -> None:
    run = finished(tmp_path, ACCURACY)
    report = Report(run, "CIFAR-10", 0.5512, 1000, {"seed": 3})
    report.write()
    expected = f"""\
Data: CIFAR-10, 2 sites, seed 3

Accuracy of the model that the sites received, on validation images, weighted by steps:
  after  0 averagings   12.5%
  after  1 averagings   55.0%

Cross-site matrix: accuracy of each model (column) on the test images of each site (row):
      global best-global  north  south
north  50.0%       75.0%  25.0%    n/a
south  60.0%       75.0%    n/a  25.0%

Global model after 2 rounds: 55.1% on the global test set (1,000 images)
SHA-256  {run.sha256}
Spent    62 seconds; 1,048,576 bytes between server and sites
Model    {run.global_model_path}
Figure   {tmp_path}/learning_curve.png
Figure   {tmp_path}/cross_site.png
Report   {tmp_path}/report.json"""
    assert report.text() == expected


def test_a_loss_is_a_number_and_a_hole_is_said(tmp_path: Path) -> None:
    report = Report(finished(tmp_path, LOSS), "heart data", 1.5, 80, rows="patients", weighted_by="patients")
    text = report.text()
    assert "%" not in text and "images" not in text
    assert text.splitlines()[2:5] == [
        "loss of the model that the sites received, on validation patients, weighted by patients:",
        "  after  0 averagings    2.35",
        "  after  1 averagings    1.25",
    ]
    assert [line.split() for line in text.splitlines()[8:10]] == [
        ["north", "1.5", "1234", "0.03125", "n/a"],
        ["south", "n/a", "1234", "n/a", "0.03125"],
    ]
    assert "after 2 rounds: 1.5 on the global test set (80 patients)" in text
    assert "Figure" not in text and "Report" not in text, "nothing is written yet"


def test_what_is_shown_as_a_share_is_so_everywhere(tmp_path: Path) -> None:
    meta = {"custom_props": {"metric": {"name": "r2"}}}
    rounds = lines(record(0, north={"r2": -0.5, "weight": 1}), record(1, north={"r2": 0.5, "weight": 1}))
    text = Report(finished(tmp_path, meta, rounds, None), "heart data", 0.625).text()
    assert "%" not in text and "0.625 on the global test set\n" in text


def test_the_json_is_for_any_reader(tmp_path: Path) -> None:
    cases = (("a", ACCURACY, 0.5512, "images"), ("b", LOSS, math.nan, "rows"))
    for where, meta, score, rows in cases:
        folder = tmp_path / where
        run = finished(folder, meta)
        report = Report(run, "some data", score, 1000, {"seed": 0}, rows)
        report.write()
        saved = json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)
        name = saved["metric"]["name"]
        assert saved[f"test_{name}"] == (None if math.isnan(score) else score) and saved[f"test_{rows}"] == 1000
        assert saved["rounds"] == 2 and saved["sha256"] == run.sha256 and saved["sites"] == ["north", "south"]
        assert (saved["dataset"], saved["seconds"], saved["bytes"]) == ("some data", 61.7, 2**20)
        assert saved["round_metrics"][0] == {"round": 0, "site": "north", "accuracy": 0.1, "loss": 2.3, "weight": 30}
        assert saved["round_metrics"][3]["loss"] is None
        assert saved["cross_site"]["south"] == {
            "global": MATRIX["south"]["SRV_FL_global_model.pt"][name] if name == "accuracy" else None,
            "best global": MATRIX["south"]["SRV_best_FL_global_model.pt"][name],
            "north": None,
            "south": MATRIX["south"]["south"][name],
        }
        assert saved["figures"] == {kind: str(folder / f"{kind}.png") for kind in ("learning_curve", "cross_site")}
        assert all(Image.open(path).width == 960 for path in saved["figures"].values())


def test_a_run_that_nobody_scored(tmp_path: Path) -> None:
    """An admin has no test data of the sites."""
    text = Report(finished(tmp_path, ACCURACY)).text()
    assert text.startswith("2 sites\n\nAccuracy of") and "global test set" not in text and "SHA-256" in text


def test_a_run_that_only_evaluates(tmp_path: Path) -> None:
    run = finished(tmp_path, LOSS, rounds=None)
    report = Report(run, "heart data")
    report.write()
    text = report.text()
    assert text.startswith("Data: heart data, 2 sites\n\nCross-site matrix: loss of each model")
    assert "averagings" not in text and "SHA-256" not in text and "Model " not in text
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["rounds"] == 0 and saved["round_metrics"] == [] and saved["sha256"] is saved["model"] is None
    assert list(saved["figures"]) == ["cross_site"] and Path(saved["figures"]["cross_site"]).is_file()


def test_a_run_without_an_evaluation(tmp_path: Path) -> None:
    report = Report(finished(tmp_path, ACCURACY, matrix=None), "CIFAR-10", 0.5, 10)
    report.write()
    assert "Cross-site" not in report.text() and "cross_site.png" not in report.text()
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["cross_site"] is None and list(saved["figures"]) == ["learning_curve"]


def test_a_metric_in_words_is_an_error_that_names_it(tmp_path: Path) -> None:
    rounds = lines(record(0, north={"accuracy": "high", "weight": 1}))
    with pytest.raises(ResultsError, match="The rounds have no numbers called accuracy"):
        Report(finished(tmp_path, ACCURACY, rounds, None)).text()
