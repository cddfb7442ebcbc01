"""Tables dealt out: every row at one site in one file, by a label or by a column, the same each time."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutorial_utils import plots
from tutorial_utils.data import SPLITS
from tutorial_utils.errors import DataError, PartitionError
from tutorial_utils.partition import count_labels, split_table
from tutorial_utils.table import read_table

ROOT = Path(__file__).resolve().parents[1]
HOSPITALS = ["Mercy Hospital", "st-anne", "ward_7"]
PLACES = {"Mercy Hospital": "mercy", "st-anne": "st-anne", "ward_7": "ward_7"}


def patients(rows: int = 300) -> pd.DataFrame:
    """Every row is different; hospitals of very different size, the last one with few rows."""
    rng = np.random.default_rng(0)
    hospital = np.repeat(HOSPITALS, [rows - 33, 30, 3])
    return pd.DataFrame(
        {
            "id": [f"{k:04d}" for k in range(rows)],
            "age": rng.normal(60, 12, rows),
            "smokes": rng.random(rows) < 0.3,
            "note": rng.choice(["", "NA", "a, b", 'said "no"', "two\nlines", "é"], rows),
            "hospital": rng.permutation(hospital),
            "outcome": rng.choice(["ill", "well", "unknown"], rows, p=[0.3, 0.6, 0.1]),
        }
    )


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return patients()


@pytest.fixture
def file(frame: pd.DataFrame, tmp_path: Path) -> Path:
    frame.to_csv(tmp_path / "patients.csv", index=False)
    return tmp_path / "patients.csv"


def texts(paths: list[Path]) -> dict[Path, dict[str, pd.DataFrame]]:
    """Each site's frames as they stand in its files."""
    whole = {"dtype": str, "keep_default_na": False}
    return {path: {split: pd.read_csv(path / f"{split}.csv", **whole) for split in SPLITS} for path in paths}


def check_rows(paths: list[Path], frame: pd.DataFrame) -> None:
    """Every row is in one file, once; rows keep their order; no file is empty."""
    parts = [part for site in texts(paths).values() for part in site.values()]
    assert all(len(part) and list(part.columns) == list(frame.columns) for part in parts)
    assert sorted(number for part in parts for number in part["id"]) == sorted(frame["id"])
    assert all(part["id"].is_monotonic_increasing for part in parts)
    together = pd.concat(parts).sort_values("id", ignore_index=True)
    for name in ("note", "hospital", "outcome"):
        assert together[name].tolist() == frame[name].tolist()
    assert together["age"].astype(float).tolist() == frame["age"].tolist(), "to the bit"


def test_by_label(frame: pd.DataFrame, tmp_path: Path) -> None:
    paths = split_table(frame, 3, label="outcome", alpha=0.5, out=tmp_path / "out")
    assert [path.relative_to(tmp_path) for path in paths] == [Path(f"out/site-{k}") for k in (1, 2, 3)]
    check_rows(paths, frame)
    table = count_labels(paths)
    assert list(table.index) == ["site-1", "site-2", "site-3"] and list(table.columns) == ["ill", "unknown", "well"]
    for path in paths:
        assert sorted(file.name for file in path.iterdir()) == ["table.json", "test.csv", "train.csv", "valid.csv"]
        parts = read_table(path)
        counts = {split: Counter(part["outcome"]) for split, part in parts.items()}
        assert {name: count for name, count in table.loc[path.name].items() if count} == counts["train"]
        sizes = {split: len(part) for split, part in parts.items()}
        total = sum(sizes.values())
        assert sizes["train"] >= 20 and abs(sizes["valid"] - 0.2 * total) <= 1 and abs(sizes["test"] - 0.2 * total) <= 1
        for name, count in sum(counts.values(), Counter()).items():
            assert abs(counts["valid"][name] - 0.2 * count) < 1.01, "the same mix in each file"
    mixes = table.div(table.sum(axis=1), axis=0)
    assert (mixes.max() - mixes.min()).max() > 0.3, "and the sites differ"
    iid = count_labels(split_table(frame, 3, label="outcome", alpha=None, out=tmp_path / "iid"))
    assert (iid.max() - iid.min()).max() <= 2


def test_by_a_column(frame: pd.DataFrame, tmp_path: Path) -> None:
    paths = split_table(frame, PLACES, label="outcome", by="hospital", out=tmp_path / "out")
    assert [path.name for path in paths] == ["mercy", "st-anne", "ward_7"]
    check_rows(paths, frame)
    for path, hospital in zip(paths, HOSPITALS, strict=True):
        parts = read_table(path)
        assert {value for part in parts.values() for value in part["hospital"]} == {hospital}
    assert [len(part) for part in read_table(paths[2]).values()] == [1, 1, 1]
    assert list(count_labels(paths).index) == ["mercy", "st-anne", "ward_7"]
    merged = dict.fromkeys(HOSPITALS[1:], "small") | {"Mercy Hospital": "large"}
    two = split_table(frame, merged, by="hospital", out=tmp_path / "two")
    assert [path.name for path in two] == ["small", "large"]
    check_rows(two, frame)
    assert count_labels(two).to_dict("list") == {"rows": [20, 160]}, "without a label all rows are alike"
    tidy = frame.assign(hospital=frame["hospital"].map(PLACES))
    straight = split_table(tidy, label="outcome", by="hospital", out=tmp_path / "straight")
    assert [path.name for path in straight] == ["mercy", "st-anne", "ward_7"]


def test_numbers_as_labels(frame: pd.DataFrame, tmp_path: Path) -> None:
    """Measured ones are dealt out IID, quarter by quarter; whole ones are classes, written as 1 or as 1.0."""
    paths = split_table(frame, ["a", "b"], label="age", out=tmp_path / "age")
    check_rows(paths, frame)
    table = count_labels(paths)
    assert table.shape == (2, 4) and (table.max() - table.min()).max() <= 2 and table.to_numpy().min() > 15
    means = [part["age"].mean() for path in paths for part in read_table(path).values()]
    assert max(means) - min(means) < 6
    one = frame.assign(grade=np.arange(300) % 3 + 8, half=1.5)
    assert list(count_labels(split_table(one, 2, label="grade", out=tmp_path / "int")).columns) == ["8", "9", "10"]
    assert list(count_labels(split_table(one, 2, label="smokes", out=tmp_path / "bool")).columns) == ["False", "True"]
    floats = one.assign(grade=one["grade"].astype(float))
    assert list(count_labels(split_table(floats, 2, label="grade", out=tmp_path / "float")).columns) == ["8", "9", "10"]
    counted = one.assign(score=np.arange(300) % 150)  # two rows a value: no class could be dealt out
    for name, scores in {"whole": counted, "as floats": counted.astype({"score": float})}.items():
        assert count_labels(split_table(scores, 2, label="score", out=tmp_path / name)).shape == (2, 4)
    assert count_labels(split_table(one, 2, label="half", out=tmp_path / "half")).sum(axis=1).tolist() == [90, 90]


def test_a_csv_file_is_passed_on_as_it_stands(file: Path, frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    paths = split_table("patients.csv", 2, label="outcome")
    assert paths[0].parent == file.parent / "patients-2-sites-alpha-0.3-seed-0"
    check_rows(paths, frame)
    assert set(read_table(paths[0], dtype={"id": str})["test"]["id"].str.len()) == {4}, "0007 is no 7"
    named = split_table(str(file), PLACES, by="hospital", seed=3)
    assert named[0].parent.name == "patients-mercy+st-anne+ward_7-by-hospital-seed-3"
    bare = frame.drop(columns=["note"])  # a frame and the file of it are dealt out alike
    bare.to_csv(file.parent / "bare.csv", index=False)
    for out, table in {"frame": bare, "file": "bare.csv"}.items():
        split_table(table, 2, label="outcome", out=out)
    assert Path("frame/site-2/train.csv").read_bytes() == Path("file/site-2/train.csv").read_bytes()


def test_the_same_arguments_give_the_same_split(frame: pd.DataFrame, tmp_path: Path) -> None:
    def sums(paths: list[Path]) -> list[dict[str, str]]:
        return [json.loads((path / "table.json").read_text())["sha256"] for path in paths]

    how = {"label": "outcome", "alpha": 1.0}
    first = split_table(frame, 2, **how, out=tmp_path / "a")
    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "a").rglob("*"))]
    assert split_table(frame.copy(), 2, **how, out=tmp_path / "a") == first
    assert before == [path.stat().st_mtime_ns for path in sorted((tmp_path / "a").rglob("*"))]
    named = split_table(frame, ["x", "y"], **how, out=tmp_path / "b")
    assert sums(named) == sums(first), "by the place in the list"
    assert sums(split_table(frame, 2, **how, seed=1, out=tmp_path / "c")) != sums(first)
    changes = [{"seed": 1}, {"alpha": 2.0}, {"valid": 0.1}, {"test": 0.3}, {"min_rows": 5}, {"label": "smokes"}]
    for change in changes:
        with pytest.raises(PartitionError, match=rf"another split \(.*{next(iter(change))} "):
            split_table(frame, 2, **how | change, out=tmp_path / "a")
    with pytest.raises(PartitionError, match=r"another split \(the sha256 of other data\)"):
        split_table(frame.assign(age=0.5), 2, **how, out=tmp_path / "a")
    card = json.loads((tmp_path / "a" / "split.json").read_text())
    assert card["numpy"] == np.__version__ and len(card["plan"]) == 64


def test_damage_is_noticed(frame: pd.DataFrame, tmp_path: Path) -> None:
    how = {"label": "outcome", "out": tmp_path / "out"}
    paths = split_table(frame, 2, **how)
    content = (paths[1] / "valid.csv").read_text()
    (paths[1] / "valid.csv").write_text(content[:-1])
    for read in (read_table, lambda path: count_labels([path])):
        with pytest.raises(DataError, match=r"valid\.csv is not the file that was written"):
            read(paths[1])
    with pytest.raises(PartitionError, match=r"out is damaged: delete the whole of it and split again .*valid\.csv"):
        split_table(frame, 2, **how)
    shutil.rmtree(paths[1])
    shutil.copytree(paths[0], paths[1])
    with pytest.raises(PartitionError, match=r"delete the whole of it .*site-2 is another site's"):
        split_table(frame, 2, **how)
    with pytest.raises(DataError, match=r"has no table\.json: split_table makes such folders"):
        read_table(tmp_path)


def test_a_named_index_becomes_a_column_and_another_is_dropped(frame: pd.DataFrame, tmp_path: Path) -> None:
    paths = split_table(frame.set_index("id"), 2, label="outcome", out=tmp_path / "named")
    check_rows(paths, frame)
    shuffled = frame.sample(frac=1, random_state=0)
    paths = split_table(shuffled, 2, label="outcome", out=tmp_path / "other")
    assert list(read_table(paths[0])["test"].columns) == list(frame.columns)
    with pytest.raises(DataError, match=r"index cannot become a column .*: use reset_index first"):
        split_table(frame.set_index("id", drop=False), 2, out=tmp_path / "both")


WRONG = [
    ({"sites": None}, "sites is None"),
    ({"sites": 0}, "sites is 0"),
    ({"sites": ["a", "a"]}, "sites names 'a' twice"),
    ({"sites": PLACES}, "sites is {'Mercy"),
    ({"label": "dose"}, "no column 'dose' .label.: the table has id, age, smokes, note, hospital, outcome"),
    ({"sites": None, "by": "dose"}, "no column 'dose' .by."),
    ({"by": "hospital"}, "'hospital' says who the sites are: leave sites out, or give a dict"),
    ({"sites": None, "by": "hospital"}, "cannot be called 'Mercy Hospital'.*give a dict of the values of 'hospital'"),
    ({"sites": PLACES | {"st-luke": "luke"}, "by": "hospital"}, "each value of 'hospital' and no other: see st-luke"),
    ({"sites": {"st-anne": "a"}, "by": "hospital"}, "and no other: see Mercy Hospital, ward_7"),
    ({"sites": PLACES | {"ward_7": "server"}, "by": "hospital"}, "cannot be called 'server'"),
    ({"sites": None, "by": "id"}, "0000 has 1 rows, too few for train, valid and test: leave it out"),
    ({"label": "age", "alpha": 0.5}, "alpha deals out the classes of a label"),
    ({"label": None, "alpha": 0.5}, "alpha deals out the classes of a label"),
    ({"sites": PLACES, "by": "hospital", "alpha": 0.5}, "alpha deals out the classes of a label"),
    ({"alpha": 0}, "alpha is 0"),
    ({"seed": -1}, "seed is -1"),
    ({"min_rows": 0}, "min_rows is 0"),
    ({"valid": 0}, "valid is 0: it must be a part of the rows, between 0 and 1"),
    ({"test": "0.2"}, "test is '0.2'"),
    ({"test": math.nan}, "test is nan"),
    ({"valid": True}, "valid is True"),
    ({"valid": 0.5, "test": 0.5}, "valid is 0.5 and test 0.5: together"),
    ({"sites": 14}, "No split with alpha 0.3 leaves 20 train rows, a valid and a test one at each of 14 sites"),
    ({"sites": 2, "alpha": None, "min_rows": 100}, "No split with iid leaves 100 train rows"),
]


@pytest.mark.parametrize("change, hint", WRONG, ids=[hint[:30] for _, hint in WRONG])
def test_what_makes_no_sense(change: dict[str, Any], hint: str, frame: pd.DataFrame, tmp_path: Path) -> None:
    arguments = {"sites": 2, "label": "outcome", "out": tmp_path / "out"} | change
    with pytest.raises(PartitionError, match=hint):
        split_table(frame, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_tables_that_cannot_be_dealt_out(frame: pd.DataFrame, tmp_path: Path) -> None:
    holes = frame.assign(outcome=frame["outcome"].where(frame.index > 1))
    for how in ({"label": "outcome"}, {"sites": None, "by": "outcome"}):
        with pytest.raises(PartitionError, match=r"2 rows have no 'outcome' \((label|by)\): fill it in"):
            split_table(holes, **{"sites": 2} | how, out=tmp_path / "out")
    with pytest.raises(PartitionError, match="holds infinite numbers"):
        split_table(frame.assign(age=np.inf), 2, label="age", out=tmp_path / "out")
    for columns in (["a"] * 6, range(6), [None, *"bcdef"]):
        with pytest.raises(PartitionError, match="each must have a name of its own"):
            split_table(frame.set_axis(columns, axis=1), 2, out=tmp_path / "out")
    with pytest.raises(PartitionError, match=r"A frame lies in no folder: .*out="):
        split_table(frame, 2)
    with pytest.raises(PartitionError, match="No split with iid"):
        split_table(frame.head(0), 2, out=tmp_path / "out")
    files = {"ragged": "a,b\n1,2,3\n1,2,3\n", "wide": "a,b\n1,2\n1,2,3\n", "empty": "", "bytes": b"\xff\xfe\x00"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(DataError, match=f"{name} cannot be read .*: give a CSV file with a header"):
            split_table(tmp_path / name, 2)
    with pytest.raises(DataError, match="nowhere cannot be read"):
        split_table(tmp_path / "nowhere", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)


def test_a_foreign_folder_is_left_alone(frame: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    for out in (tmp_path, tmp_path / "mine", tmp_path / "mine" / "below"):
        with pytest.raises((PartitionError, DataError)):
            split_table(frame, 2, label="outcome", out=out)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_interrupt_leaves_nothing(frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = Path.write_text, []

    def interrupt(path: Path, *arguments: Any, **more: Any) -> int:
        calls.append(path)
        if len(calls) == 2:  # the second site's card
            raise KeyboardInterrupt
        return write(path, *arguments, **more)

    monkeypatch.setattr(Path, "write_text", interrupt)
    with pytest.raises(KeyboardInterrupt):
        split_table(frame, 2, label="outcome", out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


LABELS = st.one_of(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=60),
    st.lists(st.integers(-3, 3), min_size=1, max_size=60),
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60),
)


@given(
    labels=LABELS,
    sites=st.integers(1, 4),
    alpha=st.sampled_from([None, 0.3]),
    parts=st.tuples(st.floats(0.01, 0.6), st.floats(0.01, 0.39)),
    seed=st.integers(0, 2**40),
    by=st.booleans(),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_no_row_of_any_table_is_lost(
    labels: list,
    sites: int,
    alpha: float | None,
    parts: tuple[float, float],
    seed: int,
    by: bool,
    tmp_path_factory: Any,
) -> None:
    rows = len(labels)
    frame = pd.DataFrame({"id": range(rows), "y": labels, "who": [f"s{k % sites}" for k in range(rows)]})
    who = {"by": "who"} if by else {"sites": sites, "alpha": alpha}
    out = tmp_path_factory.mktemp("any") / "out"
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tutorial_utils.table.TRIES", 30)
            paths = split_table(frame, **who, label="y", valid=parts[0], test=parts[1], seed=seed, min_rows=1, out=out)
    except PartitionError as error:
        assert "too few" in str(error) or "No split with" in str(error)
        assert rows < 3 * sites or (not by and alpha), "where rows are enough for all, IID and a column always fit"
        return
    found = [part for path in paths for part in read_table(path).values()]
    assert all(len(part) for part in found)
    assert sorted(number for part in found for number in part["id"]) == list(range(rows))
    again = pd.concat(found).sort_values("id")["y"]
    assert again.tolist() == labels
    assert count_labels(paths).to_numpy().sum() == sum(len(read_table(path)["train"]) for path in paths)


def test_the_counts_can_be_drawn(frame: pd.DataFrame, tmp_path: Path) -> None:
    paths = split_table(frame, 2, label="age", out=tmp_path / "out")
    assert "site-2: 90 " in plots.labels_by_site(count_labels(paths), "patients").alt


def test_the_readmes_example_runs(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """data/README.md, "Tables": the lines that a reader copies."""
    table = pd.read_csv(file, dtype=str)
    table.assign(hospital=table["hospital"].map(PLACES)).to_csv(file, index=False)
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Tables")[2].partition("\n## ")[0]
    monkeypatch.chdir(file.parent)
    found: dict[str, Any] = {}
    exec("\n".join(line[4:] for line in section.splitlines() if line.startswith("    ")), found)
    assert [path.name for path in found["sites"]] == ["mercy", "st-anne", "ward_7"]
