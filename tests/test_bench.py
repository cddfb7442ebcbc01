"""The benchmark itself: it counts right, the floor does the same work, nothing is left behind."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # the benchmark's scripts import each other by name

from bench import find_data, parse, slopes
from contest import Contestant, Result, find_differences, table
from flare import use_default_periods
from measure import MARK, Outcome, markdown, ratios, run_measured, spread
from phases import PHASES, draw, split_time
from spec import Spec, round_seed

from fl.by_hand import federated_averaging
from fl.job import build_job
from tutorial_utils import learner
from tutorial_utils.errors import TutorialError
from tutorial_utils.results import sha256


def test_median_smallest_and_largest() -> None:
    assert spread([3.0, 1.0, 2.5]).text() == "2.5 (1.0 to 3.0)"
    assert spread([1.26]).text(1) == "1.3"
    assert spread([]) is None


def test_ratio_is_of_the_same_repeat_and_skips_failures() -> None:
    ratio = ratios([2.0, 9.0, None, 4.0], [1.0, 3.0, 5.0, None])
    assert (ratio.median, ratio.low, ratio.high, ratio.repeats) == (2.5, 2.0, 3.0, 2)


def test_table_is_markdown_with_numbers_to_the_right() -> None:
    lines = markdown(("who", "s"), [("a", "12.5"), ("bcd", "3")]).splitlines()
    assert lines == ["| who |    s |", "|-----|-----:|", "| a   | 12.5 |", "| bcd |    3 |"]


def test_price_of_a_round_is_taken_between_the_fewest_and_the_most() -> None:
    found = slopes({"the floor": {1: 5.0, 5: 9.0, 20: 24.0}, "ours": {1: 7.0, 20: 29.8}})
    assert found == pytest.approx({"the floor": 1.0, "ours": 1.2})


def contestant(key: str, spec: Spec) -> Contestant:
    return Contestant(key, key, ("true",), spec, 100, (), same_work=key != "flower")


def test_other_weights_or_another_matrix_are_not_the_same_work() -> None:
    spec = Spec("data", "out")
    everyone = [contestant(key, spec) for key in ("floor", "ours", "flare", "flower")]
    matrix = {"global": {"site-1": 0.5}}
    good = Result(Outcome(seconds=1.0), 0.5, "a" * 64, {"cross_site": matrix})
    other = replace(good, sha256="b" * 64)
    skewed = replace(good, told={"cross_site": {"global": {"site-1": 0.51}}})
    results = {"floor": [good], "ours": [good], "flare": [good], "flower": [other]}
    assert find_differences(everyone, results) == []
    (fault,) = find_differences(everyone, results | {"ours": [other]})
    assert "ours ended with other weights" in fault
    (fault,) = find_differences(everyone, results | {"flare": [skewed]})
    assert "flare has another cross-site matrix" in fault


def test_a_failure_is_a_sentence_under_the_table() -> None:
    spec = Spec("data", "out")
    everyone = [contestant("floor", spec), contestant("ours", spec)]
    results = {
        "floor": [Result(Outcome(seconds=2.0), 0.5, "a" * 64)],
        "ours": [Result(Outcome(seconds=0.0, failure="took more than 9 s and was ended"))],
    }
    *rows, last = table(everyone, results).splitlines()
    assert last == "ours: took more than 9 s and was ended"
    assert "|       - |" in rows[-1]


def test_floor_does_the_work_of_federated_averaging_by_hand(sites: list[Path], tmp_path: Path) -> None:
    spec = Spec(str(sites[0].parent), str(tmp_path), rounds=1, batch_size=8)
    outcome = run_measured([sys.executable, str(BENCHMARKS / "floor.py"), str(spec.write())], tmp_path, 60)
    assert outcome.failure is None
    with np.load(tmp_path / "model.npz") as arrays:
        made = {name: arrays[name] for name in arrays.files}
    assert sha256(made) == sha256(federated_averaging(sites, 1, batch_size=8))
    told = json.loads((tmp_path / "result.json").read_text())
    assert set(told["cross_site"]) == {"global", "site-1", "site-2"}, "one round leaves no best global model"
    assert outcome.left == 0
    assert len(outcome.peaks) == 2
    assert min(outcome.peaks.values()) > 100e6, "torch alone is larger"
    phases = split_time(told["stamps"], outcome.begin, outcome.end)
    assert sum(phases.values()) == pytest.approx(outcome.seconds, abs=0.1)
    assert min(phases.values()) >= 0


def test_seeds_are_the_learners() -> None:
    assert [round_seed(7, "site-3", number) for number in range(3)] == [
        learner.round_seed(7, "site-3", number) for number in range(3)
    ]


def test_who_takes_too_long_is_ended_with_all_its_processes(tmp_path: Path) -> None:
    """Also with those that left its session, as FLARE's do."""
    child = "import subprocess, time; subprocess.Popen(['sleep', '61'], start_new_session=True); time.sleep(60)"
    start = time.monotonic()
    outcome = run_measured([sys.executable, "-c", child], tmp_path, 1.5)
    assert time.monotonic() - start < 10
    assert outcome.failure == "took more than 2 s and was ended"
    assert outcome.left >= 2
    assert not [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", "61"]]


def test_who_fails_says_why_in_a_sentence(tmp_path: Path) -> None:
    outcome = run_measured([sys.executable, "-c", "raise SystemExit('there is no data')"], tmp_path, 30)
    assert outcome.failure == "failed (code 1): there is no data"


def test_a_contestant_puts_its_temporary_files_where_they_are_deleted(tmp_path: Path) -> None:
    code = f"import tempfile, os; print(tempfile.mkdtemp(), {MARK!r} in os.environ)"
    run_measured([sys.executable, "-c", code], tmp_path, 30)
    made, marked = (tmp_path / "output.txt").read_text().split()
    assert Path(made).parent == tmp_path
    assert marked == "True"


def test_defaults_differ_from_our_job_in_the_waiting_alone(sites: list[Path], tmp_path: Path) -> None:
    build_job(sites[0].parent, rounds=3).export_job(str(tmp_path))
    (path,) = (path for path in tmp_path.glob("*/*/config/config_fed_server.json") if "workflows" in path.read_text())
    before = json.loads(path.read_text())
    use_default_periods(path)
    after = json.loads(path.read_text())
    text = path.read_text()
    assert "task_request_interval" not in text
    assert "task_check_period" not in text
    assert before.pop("server")["task_request_interval"] < 2
    for workflow in before["workflows"]:
        assert workflow["args"].pop("task_check_period") < 0.5
    assert after == before


def test_time_is_that_of_the_busiest_site_and_adds_up(tmp_path: Path) -> None:
    def stamps(train: float) -> list[dict[str, object]]:
        spans = [("validate", 3, 4), ("train", 4, 4 + train), ("validate", 9, 9.5), ("cross-site", 11, 11.1)]
        spans.append(("cross-site", 12, 12.5))
        return [{"phase": phase, "begin": 100.0 + begin, "end": 100.0 + end} for phase, begin, end in spans]

    phases = split_time({"site-1": stamps(2), "site-2": stamps(5)}, 100.0, 114.0)
    assert tuple(phases) == PHASES
    assert list(phases.values()) == pytest.approx([3, 5, 1.5, 1.5, 1.5, 1.5])
    draw({"ours": phases, "the floor": phases}, "digits: where", tmp_path / "seconds.png")
    assert 5_000 < (tmp_path / "seconds.png").stat().st_size < 100_000


def test_without_arguments_all_five_run_side_by_side() -> None:
    args = parse([])
    assert args.what == []
    assert args.repeats >= 3
    assert args.contestants == ["floor", "ours", "flare", "flower", "ancestor"]
    assert parse(["rounds", "sites"]).what == ["rounds", "sites"]


def test_wrong_folder_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(TutorialError, match="holds no folder site-1"):
        find_data(parse(["--data", str(tmp_path)]))
