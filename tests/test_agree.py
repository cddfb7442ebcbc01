"""One scaler for all sites, of sums alone: tutorial_utils/agree.py, and the site's part, site_rows.py."""

from __future__ import annotations

import json
import statistics
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from own.script import read_rows
from tutorial_utils._simulate.asked import Asked
from tutorial_utils._simulate.job_folder import place_job
from tutorial_utils._simulate.verdict import find_lack
from tutorial_utils.agree import FILE, Moments, build_statistics, merge, read_scaling
from tutorial_utils.errors import JobError, ResultsError, SimulationError
from tutorial_utils.results import Run
from tutorial_utils.simulate import simulate
from tutorial_utils.site_rows import PART, SiteRows

EPS = float(np.finfo(float).eps)
HARD = {"town": 3, "valley": 1, "city": 40}


def moments(values: np.ndarray) -> Moments:
    """What a site sends of a column."""
    rows = SiteRows("data", "a:b")
    rows.data = {PART: pd.DataFrame({"x": values})}
    return Moments(rows.count(PART, "x"), rows.sum(PART, "x"), rows.stddev(PART, "x"))


@st.composite
def columns(draw: st.DrawFn) -> list[np.ndarray]:
    """One column at one to five sites, some with one row or none; its numbers may lie far from 0 and close together."""
    offset = draw(st.sampled_from([0.0, 1.0, -3e3, 1e6, 1e9]))
    spread = draw(st.sampled_from([0.0, 1e-9, 1e-3, 1.0, 1e6]))
    sizes = draw(st.lists(st.integers(0, 8), min_size=1, max_size=5).filter(any))
    numbers = st.floats(-1, 1, allow_subnormal=False)
    return [offset + spread * np.array(draw(st.lists(numbers, min_size=n, max_size=n)), dtype=float) for n in sizes]


@given(parts=columns())
@settings(max_examples=150, deadline=None)
def test_merged_sums_are_the_pooled_scaler_s(parts: list[np.ndarray]) -> None:
    every = np.concatenate(parts)
    mean, scale = merge([moments(part) for part in parts])
    exact = [Fraction(float(value)) for value in every]
    fault = 8 * EPS * np.abs(every).max()  # of a sum in floating point
    assert abs(mean - float(statistics.mean(exact))) <= fault
    deviation = float(statistics.pvariance(exact)) ** 0.5
    assert abs(scale - deviation) <= 1e-9 * deviation + fault or (scale == 1 and deviation <= 1e3 * fault)
    pooled = StandardScaler().fit(every[:, None])
    if np.ptp(every) == 0:
        assert scale == 1 == pooled.scale_[0], "what does not vary is not divided"
    assert merge([moments(part) for part in reversed(parts)]) == (mean, scale), "in any order, to the bit"


@pytest.mark.parametrize("value", [0.0, 3.7, 1e9, -1e-12])
def test_a_column_of_one_value_is_left_as_it_is(value: float) -> None:
    assert merge([moments(np.full(rows, value)) for rows in (7, 1, 50)]) == (pytest.approx(value), 1.0)


def test_one_row_s_sums_are_the_row() -> None:
    assert moments(np.array([4.5])) == Moments(1, 4.5, 0.0)
    assert merge([Moments(1, 4.5, 0.0)]) == (4.5, 1.0)


# --- at a site ---


def read_texts(folder: Path) -> pd.DataFrame:
    return pd.DataFrame({"age": [1, 2], "name": ["a", "b"]})


def read_lack(folder: Path) -> pd.DataFrame:
    return pd.DataFrame({"age": [1.0, 2.0], "height": [np.nan, np.nan]})


def read_folder(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "rows.csv")


@pytest.mark.parametrize(
    ("read", "least", "words"),
    [
        (read_texts, 1, "read_texts must give columns of numbers alone"),
        (read_lack, 1, "clinic has no number in the column height"),
        (read_lack, 10, r"clinic has 2 rows, and says nothing of fewer than 10 \(min_rows\)"),
    ],
)
def test_a_site_says_what_is_wrong_with_its_rows(read: object, least: int, words: str) -> None:
    rows = SiteRows("data", f"{__name__}:{read.__name__}", least)
    rows.initialize(SimpleNamespace(get_identity_name=lambda: "clinic"))
    with pytest.raises(ValueError, match=words):
        rows.features()


def test_a_site_reads_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clinic").mkdir()
    pd.DataFrame({"age": [1, 2, 3]}).to_csv(tmp_path / "clinic/rows.csv", index=False)
    monkeypatch.setenv("WHERE", str(tmp_path))
    rows = SiteRows("$WHERE", f"{__name__}:read_folder", 3)
    rows.initialize(SimpleNamespace(get_identity_name=lambda: "clinic"))
    assert [feature.feature_name for feature in rows.features()[PART]] == ["age"]
    assert (rows.count(PART, "age"), rows.sum(PART, "age"), rows.stddev(PART, "age")) == (3, 6.0, 1.0)


# --- the job ---


@pytest.mark.parametrize("read", [lambda folder: None, "read_rows", None])
def test_what_a_site_could_not_import_is_refused(read: object) -> None:
    with pytest.raises(JobError, match=r"move it to the top of its module|give a function"):
        build_statistics(read, "data")


def test_a_job_ships_the_reader_s_module_and_asks_for_one_file(tmp_path: Path) -> None:
    job = build_statistics(read_rows, tmp_path, sites=["a", "b"])
    copy = place_job(job, tmp_path / "job")
    assert copy.asked == Asked(statistics=FILE) and copy.choose_sites(None) == ("a", "b")
    shipped = {path.relative_to(copy.path).as_posix() for path in copy.path.rglob("*.py")}
    for file in ("own/script.py", "tutorial_utils/site_rows.py"):
        assert f"app_sites/custom/{file}" in shipped
    assert not any(path.startswith("app_server/custom/own") for path in shipped), "the server reads no rows"


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Columns on which a sum of squares fails, or four decimals do; a site has one row."""
    draw, folder = np.random.default_rng(0), tmp_path_factory.mktemp("hard")
    for name, rows in HARD.items():
        table = pd.DataFrame({"far": 1e9 + draw.normal(size=rows), "tiny": 1e-7 * draw.normal(size=rows), "same": 3.7})
        table["gaps"] = np.where(draw.random(rows) < 0.3, np.nan, draw.normal(5, 2, rows))
        table.loc[0, "gaps"] = 4.0
        (folder / name).mkdir()
        table.to_csv(folder / name / "rows.csv", index=False)
    return folder


def test_sites_agree_on_the_pooled_scaler(hard: Path, runs: Path) -> None:
    job = build_statistics(read_folder, hard, sites=list(HARD), min_rows=1, name="agree")
    scaling = read_scaling(simulate(job, runs=runs, progress=False))
    pooled = StandardScaler().fit(pd.concat([read_folder(hard / name) for name in HARD]))
    assert scaling.rows == HARD and list(scaling.mean.index) == ["far", "tiny", "same", "gaps"]
    np.testing.assert_allclose(scaling.mean, pooled.mean_, rtol=1e-14, atol=1e-21)
    np.testing.assert_allclose(scaling.scale, pooled.scale_, rtol=1e-6)
    np.testing.assert_allclose(scaling.scale[["tiny", "same", "gaps"]], pooled.scale_[1:], rtol=1e-14)


@pytest.mark.slow
def test_a_site_of_few_rows_ends_the_run_with_its_sentence(hard: Path, runs: Path) -> None:
    job = build_statistics(read_folder, hard, sites=list(HARD), min_rows=2, name="few")
    with pytest.raises(SimulationError, match=r"^valley failed.*: valley has 1 rows, and says nothing of fewer than 2"):
        simulate(job, runs=runs, progress=False)


def test_a_run_without_all_sites_sums_is_not_whole(tmp_path: Path) -> None:
    run = Run(tmp_path, ("a", "b"), 0.0)
    assert "does not hold its statistics" in find_lack(run, Asked(statistics=FILE))
    path = run.job_folder / FILE
    path.parent.mkdir(parents=True)
    told = {"count": {"a": {PART: 3}}, "sum": {"a": {PART: 3.0}}, "stddev": {"a": {PART: 1.0}}}
    path.write_text(json.dumps({"age": told}))
    assert find_lack(run, Asked(statistics=FILE)) == "the statistics lack age of b"
    with pytest.raises(ResultsError, match=r"holds no statistics of all sites"):
        read_scaling(run)
