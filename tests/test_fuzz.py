"""Damaged files: a reader returns what it promises or raises its own error, and it runs nothing that a file holds.

Every test starts from a file as a run or `write_dataset` makes it and cuts it, flips a byte, or changes its JSON in
any place. A reader's own error is one sentence that names the file; any other exception fails the test.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import os
import pickle
import shutil
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nvflare.app_opt.pt.model_persistence_format_manager import PTModelPersistenceFormatManager

from dl.train import load_data
from tutorial_utils.errors import DataError, PartitionError, ResultsError, TutorialError
from tutorial_utils.folder import SPLITS, Dataset, read_dataset, write_dataset
from tutorial_utils.partition import assign, count_labels, draw_shares, parse_alpha, split_dataset, split_table
from tutorial_utils.results import mean_by_round, read_bytes, read_cross_site, read_model, read_rounds
from tutorial_utils.table import read_table

many = settings(max_examples=300, deadline=None, derandomize=True)
some = settings(many, max_examples=100)
few = settings(many, max_examples=25)


# ---- how to damage ----

ODD = (None, True, False, -1, 0, 1, 0.5, 1.5, 2**63, 10**400, 1e308, -1e308, math.nan, math.inf, -math.inf, [], {}, "")
ODD += ("0.5", "1", "site-1", "site-" + 5000 * "9", "\ud800", "\n", "\u2028", "é", "../train", "global", "accuracy")
VALUES = st.recursive(
    st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
DEEP = b"[" * 100_000
NO_JSON = (b"", b"\n", b"{", b"null", b"\xff\xfe", b"\x00", b"1e999", b"[" + 5000 * b"9" + b"]", DEEP)


def places(value: Any) -> Iterator[tuple]:
    """The path of every node of a JSON value, () for the whole."""
    yield ()
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in below:
        yield from ((key, *path) for path in places(inner))


def change(value: Any, path: tuple, how: str, new: Any) -> Any:
    """One node replaced, deleted, doubled or (a key) renamed; any change to the root replaces it."""
    if not path:
        return new
    root = copy.deepcopy(value)
    parent = root
    for key in path[:-1]:
        parent = parent[key]
    key = path[-1]
    if how == "replace":
        parent[key] = new
    elif how == "delete":
        del parent[key]
    elif isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
    else:
        parent[str(new)[:20]] = parent.pop(key) if how == "rename" else copy.deepcopy(parent[key])
    return root


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """The JSON value with one to three changes."""
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        path = draw(st.sampled_from(list(places(value))))
        how = draw(st.sampled_from(("replace", "replace", "delete", "double", "rename")))
        value = change(value, path, how, draw(VALUES))
    return value


@st.composite
def broken(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes cut short, with some of them flipped, or something else."""
    kind = draw(st.sampled_from(("cut", "flip", "flip", "other")))
    if kind == "other":
        return draw(st.binary(max_size=60) | st.sampled_from(NO_JSON))
    at = draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4))
    if kind == "cut":
        return content[: at[0]]
    damaged = bytearray(content)
    for position in at:
        damaged[position] ^= draw(st.integers(1, 255))
    return bytes(damaged)


def attempt(read: Callable[[], Any], error: type[TutorialError], name: str | Path) -> Any:
    """What the reader returns, or None if it raised its own error: one line, printable, with the file's name."""
    try:
        return read()
    except error as raised:
        text = str(raised)
        assert str(name) in text and text.isprintable() and text.endswith(".") and len(text) < 3 * len(str(name)) + 400
        assert "weights_only" not in text  # torch's advice would run what the file holds
        return None


# ---- what a run leaves behind ----


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def metric(name: str, value: Any) -> dict[str, Any]:
    return {"name": name, "value": value}


def round_record(number: int) -> dict[str, Any]:
    """A line of FLARE's MetricsArtifactWriter."""
    sites = [
        {
            "name": f"site-{k}",
            "metrics": [metric("accuracy", 0.2 * k + 0.1 * number), metric("loss", 2.25 - number)],
            "weight": 70 + k,
            "weight_key": "NUM_STEPS_CURRENT_ROUND",
        }
        for k in (2, 1)
    ]
    return {"round": number, "aggregated_metrics": [], "sites": sites, "skipped_metrics": []}


def lines(records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in (records if isinstance(records, list) else [records]))


ROUNDS = [round_record(number) for number in range(3)]
MODELS = ("SRV_FL_global_model.pt", "SRV_best_FL_global_model.pt", "site-2", "site-10")
MATRIX = {site: {model: {"accuracy": 0.9, "loss": 0.1} for model in MODELS} for site in ("site-10", "site-2")}


def pool(name: str) -> dict[str, Any]:
    """A histogram of FLARE's StatsPoolManager: a bar is "" where nothing was counted."""
    bars = ["", {"count": 2, "total": 0.5, "min": 0.25, "max": 0.25}, {"count": 1, "total": 1.0, "min": 1, "max": 1}]
    about = {"name": name, "description": "sizes", "marks": [0.1, 0.6], "unit": "MB"}
    return {"type": "hist", "pool": about | {"cat_data": {"server:stream:a": bars, "site-1:blob": [*bars[:2], ""]}}}


POOLS = {name: pool(name) for name in ("sent_stream_sizes", "received_stream_sizes")}


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def check_rounds(table: pd.DataFrame) -> None:
    """A table that a plot and a mean can be made of."""
    assert list(table.columns[:2]) == ["round", "site"] and table.columns[-1] == "weight" and len(table)
    assert table["round"].dtype == np.int64 and (table["round"] >= 0).all()
    assert all(isinstance(site, str) and site.isprintable() for site in table["site"])
    assert not table.duplicated(["round", "site"]).any()
    assert table["weight"].dtype.kind in "if" and table["weight"].dropna().between(0, 1e300, "left").all()
    if "accuracy" not in table or table["accuracy"].dtype.kind not in "if":  # words
        with pytest.raises(ResultsError, match="accuracy"):
            mean_by_round(table, "accuracy")
        return
    by_round = table.groupby("round")["accuracy"]
    mean = mean_by_round(table, "accuracy")
    assert list(mean.index) == sorted(set(table["round"]))
    if np.isfinite(table["accuracy"].dropna()).all():
        assert (mean.isna() == by_round.min().isna()).all()
        low, high = by_round.min(), by_round.max()
        assert (
            (mean >= low - 1e-9 * low.abs() - 1e-300) & (mean <= high + 1e-9 * high.abs() + 1e-300) | mean.isna()
        ).all()


def without_steps(record: dict[str, Any]) -> dict[str, Any]:
    return record | {"sites": [{key: site[key] for key in ("name", "metrics")} for site in record["sites"]]}


@many
@given(records=changed(ROUNDS))
@example(records=[without_steps(ROUNDS[0])])
@example(records=change(ROUNDS, (0, "sites", 0, "metrics", 0, "value"), "replace", 10**400))
@example(records=change(ROUNDS, (0, "sites", 0, "metrics", 0, "name"), "replace", "round"))
@example(records=change(ROUNDS, (0, "sites", 0, "metrics", 0), "delete", None))
@example(records=change(ROUNDS, (0, "sites", 0, "metrics", 0, "name"), "replace", {}))
@example(records=change(ROUNDS, (0,), "double", None))
@example(records=change(ROUNDS, (0, "round"), "replace", 2**63))
def test_rounds_with_any_json(records: Any, place: Path) -> None:
    path = write(place / "round_metrics.jsonl", lines(records))
    table = attempt(lambda: read_rounds(path), ResultsError, path)
    if table is not None:
        check_rounds(table)
        assert len(table) == sum(len(record["sites"]) for record in records)


@some
@given(content=broken(lines(ROUNDS).encode()))
@example(content=DEEP)
def test_rounds_with_any_bytes(content: bytes, place: Path) -> None:
    path = write(place / "round_metrics.jsonl", content)
    table = attempt(lambda: read_rounds(path), ResultsError, path)
    if table is not None:
        check_rounds(table)
        if lines(ROUNDS).encode().startswith(content):  # cut short: what is left of it is true
            whole = read_rounds(write(path, lines(ROUNDS)))
            pd.testing.assert_frame_equal(table, whole.head(len(table)))


AT = ("sites", 0, "metrics", 0, "value")
SENSELESS = [
    (AT, [0.5]),
    (AT, {}),
    (AT, 10**400),
    (("round",), True),
    (("round",), -1),
    (("round",), 1.0),
    (("round",), "1"),
    (("round",), None),
    (("sites", 0, "name"), 1),
    (("sites", 0, "name"), ""),
    (("sites", 0, "name"), "site-1"),  # the other site's name: it would count twice
    (("sites", 0, "weight"), [70]),
    (("sites", 0, "weight"), "70"),
    (("sites", 0, "weight"), -70),
    (("sites", 0, "weight"), 0),  # FLARE writes none below it
    (("sites", 0, "weight"), math.inf),
    (("sites", 0, "weight"), None),
    (("sites",), {}),
    (("sites", 0, "metrics"), ""),
    (("skipped_metrics",), {}),
    (("skipped_metrics",), ["accuracy"]),
    (("skipped_metrics",), [{"site": 1}]),
    (("skipped_metrics",), [{"site": "site-1", "name": ["loss"], "reason": "non_finite_number"}]),
]


@pytest.mark.parametrize("path, value", SENSELESS)
def test_rounds_that_would_mislead_are_refused(path: tuple, value: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "round_metrics.jsonl", lines([change(ROUNDS[0], path, "replace", value)]))
    assert attempt(lambda: read_rounds(file), ResultsError, file) is None


@pytest.mark.parametrize("value", [63.2, -0.1, 0, 2**63, 1e308, math.inf])
def test_any_number_is_a_score(value: float, tmp_path: Path) -> None:
    file = write(tmp_path / "rounds", lines([change(ROUNDS[0], AT, "replace", value)]))
    assert read_rounds(file)["accuracy"].tolist() == [0.2, value]
    file = write(tmp_path / "matrix", json.dumps(change(MATRIX, ("site-2", "site-2", "accuracy"), "replace", value)))
    assert read_cross_site(file, "accuracy").loc["site-2", "site-2"] == value


@pytest.mark.parametrize("value", [math.nan, None])
def test_what_a_site_could_not_measure_is_an_empty_cell(value: float | None, tmp_path: Path) -> None:
    file = write(tmp_path / "rounds", lines([change(ROUNDS[0], AT, "replace", value)]))
    table = read_rounds(file)
    assert table["accuracy"].isna().tolist() == [False, True] and mean_by_round(table, "accuracy").tolist() == [0.2]
    for how in ("replace", "delete"):
        damaged = change(MATRIX, ("site-2", "site-2", "accuracy"), how, value)
        matrix = read_cross_site(write(tmp_path / "matrix", json.dumps(damaged)), "accuracy")
        assert matrix.isna().sum().sum() == 1 and np.isnan(matrix.loc["site-2", "site-2"])


def test_a_metric_in_words_is_kept_and_has_no_mean(tmp_path: Path) -> None:
    record = change(ROUNDS[0], ("sites", 0, "metrics", 1, "value"), "replace", "low")
    table = read_rounds(write(tmp_path / "rounds", lines([record])))
    assert "low" in table["loss"].tolist()
    for name in ("loss", "site", "weight", "nothing"):
        with pytest.raises(ResultsError, match=name):
            mean_by_round(table, name)


def check_matrix(matrix: pd.DataFrame) -> None:
    assert all(isinstance(name, str) and name.isprintable() for name in (*matrix.index, *matrix.columns))
    assert matrix.index.is_unique and matrix.columns.is_unique
    values = matrix.to_numpy()
    assert values.dtype == np.float64


@many
@given(results=changed(MATRIX))
@example(results=change(MATRIX, ("site-2", "site-2", "accuracy"), "replace", 10**400))
@example(results=change(MATRIX, ("site-2",), "rename", "site-" + 5000 * "9"))
@example(results=MATRIX | {"site-" + 5000 * "9": {}})
@example(results={})
@example(results={"site-1": {}})
@example(results={"site-1": {"site-1": {"loss": 0.9, "\n": 1, 5000 * "a": 1}}})
@example(results={"site-1": {"global": {"accuracy": 0.1}, "SRV_FL_global_model.pt": {"accuracy": 0.9}}})
@example(results={"site-1": {"SRV_a.pt": {"accuracy": 0.1}, "SRV_a.pth": {"accuracy": 0.9}, "a": {"accuracy": 0}}})
@example(results={"site-1": {"SRV_.pt": {"accuracy": 0.1}, "SRV_": {"accuracy": 0.9}, "SRV_\n.pt": {"accuracy": 0}}})
def test_matrix_with_any_json(results: Any, place: Path) -> None:
    path = write(place / "cross_val_results.json", json.dumps(results))
    matrix = attempt(lambda: read_cross_site(path, "accuracy"), ResultsError, path)
    if matrix is not None:
        check_matrix(matrix)
        assert set(matrix.index) == set(results)
        told = [scores.get("accuracy") for row in results.values() for scores in row.values()]
        assert matrix.notna().sum().sum() == sum(is_number(value) and value == value for value in told)


@some
@given(content=broken(json.dumps(MATRIX).encode()))
@example(content=DEEP)
def test_matrix_with_any_bytes(content: bytes, place: Path) -> None:
    path = write(place / "cross_val_results.json", content)
    matrix = attempt(lambda: read_cross_site(path, "accuracy"), ResultsError, path)
    if matrix is not None:
        check_matrix(matrix)
        assert len(content) == len(json.dumps(MATRIX))  # no part of the file is taken for the whole


@pytest.mark.parametrize("value", ["0.9", True, [0.9], {}, "tensor(0.9)", 10**400])
def test_a_matrix_that_would_mislead_is_refused(value: Any, tmp_path: Path) -> None:
    damaged = change(MATRIX, ("site-2", "site-2", "accuracy"), "replace", value)
    path = write(tmp_path / "cross_val_results.json", json.dumps(damaged))
    assert attempt(lambda: read_cross_site(path, "accuracy"), ResultsError, path) is None


@many
@given(pools=changed(POOLS))
@example(pools=change(POOLS, ("sent_stream_sizes", "pool", "cat_data", "site-1:blob", 1, "total"), "replace", "1"))
@example(pools=change(POOLS, ("sent_stream_sizes", "pool", "cat_data", "site-1:blob", 1, "total"), "replace", math.nan))
@example(pools=change(POOLS, ("sent_stream_sizes", "pool", "cat_data", "site-1:blob", 1), "replace", {}))
def test_bytes_with_any_json(pools: Any, place: Path) -> None:
    path = write(place / "messages.json", json.dumps(pools))
    total = attempt(lambda: read_bytes(path), ResultsError, path)
    if total is not None:
        data = [pools[name]["pool"]["cat_data"] for name in POOLS]
        bars = [bar for histograms in data for bars in histograms.values() for bar in bars if bar != ""]
        assert all(is_number(bar["total"]) and bar["total"] >= 0 for bar in bars)
        assert type(total) is int and total == round(sum(bar["total"] for bar in bars) * 2**20)


@some
@given(content=broken(json.dumps(POOLS).encode()))
@example(content=DEEP)
def test_bytes_with_any_bytes(content: bytes, place: Path) -> None:
    path = write(place / "messages.json", content)
    total = attempt(lambda: read_bytes(path), ResultsError, path)
    assert total is None or (type(total) is int and total >= 0 and len(content) == len(json.dumps(POOLS)))


def saved_model() -> bytes:
    """A small net's state in the file of FLARE's persistor."""
    torch.manual_seed(0)
    state = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict()
    file = io.BytesIO()
    torch.save(PTModelPersistenceFormatManager({"model": state}).to_persistence_dict(), file)
    return file.getvalue()


MODEL = saved_model()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch's word on a flipped byte
@many
@given(content=broken(MODEL))
@example(content=MODEL[:-1])
@example(content=MODEL.replace(b"little", b"l\0ttle"))
def test_model_with_any_bytes(content: bytes, place: Path) -> None:
    path = write(place / "FL_global_model.pt", content)
    state = attempt(lambda: read_model(path), ResultsError, path)
    if state is not None:
        assert len(content) == len(MODEL) and 1 <= len(state) <= 7  # a flip can make one name of two
        assert all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items())


@pytest.mark.parametrize(
    "saved",
    [{}, [], "model", None, {"weights": {}}, {"model": None}, {"model": {}}, {"model": [torch.ones(1)]}]
    + [{"model": {name: value}} for name, value in ((1, torch.ones(1)), ("a", "text"), ("a", None), ("a", {}))],
)
def test_a_file_of_torch_that_is_no_model(saved: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(saved, path)
    assert attempt(lambda: read_model(path), ResultsError, path) is None


def test_the_undamaged_files_are_read(tmp_path: Path) -> None:
    table = read_rounds(write(tmp_path / "rounds", lines(ROUNDS)))
    check_rounds(table)
    assert table["accuracy"].tolist() == pytest.approx([0.2, 0.4, 0.3, 0.5, 0.4, 0.6])
    assert table["site"].tolist() == 3 * ["site-1", "site-2"] and table["weight"].tolist() == 3 * [71, 72]
    matrix = read_cross_site(write(tmp_path / "matrix", json.dumps(MATRIX)), "accuracy")
    assert list(matrix.columns) == ["global", "best global", "site-2", "site-10"]
    assert list(matrix.index) == ["site-2", "site-10"] and (matrix == 0.9).all(axis=None)
    assert read_bytes(write(tmp_path / "bytes", json.dumps(POOLS))) == 4 * 2**20
    state = read_model(write(tmp_path / "model", MODEL))
    assert {name: value.shape for name, value in state.items()}["0.weight"] == (2, 3) and len(state) == 7


def read_accuracies(path: Path) -> pd.DataFrame:
    return read_cross_site(path, "accuracy")


@pytest.mark.parametrize("read", [read_rounds, read_accuracies, read_bytes, read_model])
def test_no_file_and_a_folder_in_its_place(read: Callable[[Path], Any], tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere" / "file", tmp_path):
        with pytest.raises(ResultsError, match=str(path)):
            read(path)


# ---- dataset folders ----

SIZES = dict(zip(SPLITS, (6, 4, 5), strict=True))


def toy_splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    return {
        split: (rng.integers(0, 256, (size, 3, 32, 32), dtype=np.uint8), np.arange(size) % 3)
        for split, size in SIZES.items()
    }


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("toy") / "toy"
    return write_dataset(folder, toy_splits(), name="toy", classes=("a", "b", "c"), source="made for a test")


def card_of(dataset: Dataset) -> dict[str, Any]:
    return json.loads((dataset.folder / "dataset.json").read_text())


def check_dataset(read: Dataset, like: Dataset) -> None:
    """Of the promised types, and true: the files behind it are as they were."""
    texts = [read.name, read.source, read.title, *read.classes, *([] if read.site is None else [read.site])]
    assert all(isinstance(text, str) and text.isprintable() for text in texts)
    assert isinstance(read.classes, tuple) and len(set(read.classes)) == len(read.classes)
    assert (read.folder, read.counts, read.sha256) == (like.folder, like.counts, like.sha256)
    assert (read.shape, read.dtype) == (like.shape, like.dtype) and all(type(size) is int for size in read.shape)
    assert read.part_of is None or set(read.part_of) == set(SPLITS)
    assert all(type(count) is int for count in read.counts.values())


@many
@given(data=st.data())
def test_card_with_any_json(data: st.DataObject, toy: Dataset) -> None:
    path = toy.folder / "dataset.json"
    content = path.read_bytes()
    card = data.draw(changed(card_of(toy)))
    try:
        write(path, json.dumps(card))
        read = attempt(lambda: read_dataset(toy.folder), DataError, toy.folder)
    finally:
        path.write_bytes(content)
    if read is not None:
        check_dataset(read, toy)


@pytest.mark.parametrize(
    "field, value",
    [
        ("\U00093c13", "unprintable"),
        ("site", 0),
        ("site", False),
        ("site", []),
        ("site", 7),
        ("name", "\ud800"),
        ("source", None),
    ]
    + [
        ("classes", value)
        for value in ("abc", ["a", "a", "c"], [], ["a", "b"], ["a", "b", 3], {"a": 1, "b": 2, "c": 3})
    ]
    + [("counts", SIZES | change_) for change_ in ({"more": 1}, {"train": 6.0}, {"train": "6"}, {"train": 7})]
    + [("counts", []), ("sha256", {}), ("sha256", None), ("folder", "elsewhere"), ("unknown", 1)]
    + [("shape", value) for value in ([3, 32, 31], [3.0, 32, 32], [3, 32], 3, None, "3x3", [32, 32, 3])]
    + [("dtype", value) for value in ("uint16", "int8", None, 1, "O")]
    + [("part_of", value) for value in ({}, [], "", 0, {"train": "a"}, dict.fromkeys(SPLITS, 1))],
)
def test_a_card_that_would_mislead_is_refused(field: str, value: Any, toy: Dataset, tmp_path: Path) -> None:
    folder = shutil.copytree(toy.folder, tmp_path / "toy")
    write(folder / "dataset.json", json.dumps(card_of(toy) | {field: value}))
    assert attempt(lambda: read_dataset(folder), DataError, folder) is None


def test_a_count_that_is_true_is_no_count(tmp_path: Path) -> None:
    one = {split: (images[:1], labels[:1]) for split, (images, labels) in toy_splits().items()}
    made = write_dataset(tmp_path / "toy", one, name="toy", classes=["a"], source="one image each")
    write(made.folder / "dataset.json", json.dumps(card_of(made) | {"counts": dict.fromkeys(SPLITS, True)}))
    assert attempt(lambda: read_dataset(made.folder), DataError, made.folder) is None


@pytest.mark.parametrize("change_", [{"classes": ["a", "a", "c"]}, {"classes": [1, 2, 3]}, {"name": 5}, {"site": 1}])
def test_what_would_not_be_read_is_not_written(change_: dict[str, Any], tmp_path: Path) -> None:
    about = {"name": "toy", "classes": ["a", "b", "c"], "source": "made for a test"} | change_
    with pytest.raises(DataError, match="cannot be described so"):
        write_dataset(tmp_path / "toy", toy_splits(), **about)
    assert list(tmp_path.iterdir()) == []


TYPES = ("?", "u1", "i2", "<u2", ">u2", "i8", "f2", "f4", "<f8", ">f8", "c8", "O", "U3", "M8[s]", "V4")


@many
@given(
    dtype=st.sampled_from(TYPES),
    shape=st.lists(st.integers(0, 5), max_size=5) | st.tuples(*[st.integers(1, 5)] * 4).map(list),
    labels=st.lists(st.integers(-1, 4) | st.sampled_from((0.5, "a", None, True, 2**70)), max_size=5) | VALUES,
    fill=st.sampled_from((0, 1, 200, math.nan, math.inf)),
)
@example(dtype="u1", shape=[2, 9, 9, 3], labels=[0, 1], fill=1)
@example(dtype="f4", shape=[2, 1, 3, 3], labels=[0, 1], fill=math.inf)
@example(dtype=">f8", shape=[2, 3, 3], labels=[0, 1], fill=1)
def test_any_arrays_are_written_as_they_are_or_refused(
    dtype: str, shape: list[int], labels: Any, fill: float, place: Path
) -> None:
    images = np.zeros(shape, dtype)
    if images.dtype.kind in "uifc" and (math.isfinite(fill) or images.dtype.kind in "fc"):
        images[...] = min(fill, 100)
    folder = place / "arrays"
    shutil.rmtree(folder, ignore_errors=True)
    about = {"name": "toy", "classes": ["a", "b", "c"], "source": "made for a test"}
    try:
        made = write_dataset(folder, dict.fromkeys(SPLITS, (images, labels)), **about)
    except DataError as error:
        assert str(error).startswith("The train ") and str(error).endswith(".") and str(error).isprintable()
        assert not folder.exists()
        return
    got, numbers = made.arrays("test")
    assert got.shape == (len(images), *made.shape) and got.dtype.isnative and np.isfinite(got).all()
    assert np.array_equal(got.reshape(images.shape), images) and got.dtype == images.dtype.newbyteorder("=")
    assert numbers.tolist() == list(labels) and 0 <= numbers.min() <= numbers.max() <= 2


@some
@given(data=st.data())
def test_card_with_any_bytes(data: st.DataObject, toy: Dataset) -> None:
    path = toy.folder / "dataset.json"
    content = path.read_bytes()
    damaged = data.draw(broken(content) | st.just(DEEP))
    try:
        path.write_bytes(damaged)
        read = attempt(lambda: read_dataset(toy.folder), DataError, toy.folder)
    finally:
        path.write_bytes(content)
    if read is not None:
        check_dataset(read, toy)


def read_resealed(toy: Dataset, split: str, content: bytes, seal: bytes | None = None) -> Any:
    """The arrays of the folder with other bytes in a split, and a card with the SHA-256 of these (or of `seal`)."""
    path, card_path = toy.folder / f"{split}.npz", toy.folder / "dataset.json"
    before, card = path.read_bytes(), card_path.read_bytes()
    try:
        path.write_bytes(content)
        digest = hashlib.sha256(content if seal is None else seal).hexdigest()
        write(card_path, json.dumps(json.loads(card) | {"sha256": toy.sha256 | {split: digest}}))
        found = attempt(lambda: read_dataset(toy.folder), DataError, toy.folder)
        arrays = attempt(lambda: toy.arrays(split), DataError, toy.folder)
        assert found is None or arrays is not None
        return None if found is None else arrays
    finally:
        path.write_bytes(before)
        card_path.write_bytes(card)


def check_arrays(arrays: tuple[np.ndarray, np.ndarray] | None, split: str) -> None:
    if arrays is not None:
        images, labels = arrays
        assert (images.dtype, images.shape) == (np.uint8, (SIZES[split], 3, 32, 32))
        assert (labels.dtype, labels.shape) == (np.int64, (SIZES[split],))
        assert labels.min() >= 0 and labels.max() <= 2


@many
@given(data=st.data(), split=st.sampled_from(SPLITS))
def test_images_with_any_bytes_and_the_right_checksum(data: st.DataObject, split: str, toy: Dataset) -> None:
    """Arrays of the right kind or an error. Only the card's SHA-256 finds every flip: numpy stops reading before the
    archive's own sum is compared, so one in the length of an array's header moves all pixels."""
    content = (toy.folder / f"{split}.npz").read_bytes()
    names = st.sampled_from([at for at in range(len(content)) if content[at : at + 2] == b"PK"])
    near = st.builds(lambda start, more: start + more, names, st.integers(0, 45)).filter(lambda at: at < len(content))
    damaged = bytearray(data.draw(broken(content)))
    if data.draw(st.booleans()) and len(damaged) == len(content):
        damaged[data.draw(near)] ^= data.draw(st.integers(1, 255))  # the headers are few bytes among many
    check_arrays(read_resealed(toy, split, bytes(damaged)), split)
    if bytes(damaged) != content:
        assert read_resealed(toy, split, bytes(damaged), seal=content) is None


def test_the_reason_is_short_where_the_archives_names_are_long(toy: Dataset) -> None:
    content = bytearray((toy.folder / "valid.npz").read_bytes())
    content[27] ^= 192  # the high byte of a name's length: the name is then half the file
    assert read_resealed(toy, "valid", bytes(content)) is None


DTYPES = ("uint8", "int8", ">i8", "int64", "int32", "uint64", "float32", "float64", "bool", "U3", "M8[s]", "complex64")
DIMENSIONS = st.lists(st.sampled_from((0, 1, 3, 4, 32)), max_size=4)


@st.composite
def any_array(draw: st.DrawFn, kept: np.ndarray) -> np.ndarray:
    """The array, or one of another type, shape or content."""
    how = draw(st.sampled_from(("keep", "type", "shape", "value", "fewer")))
    array = kept.astype(draw(st.sampled_from(DTYPES))) if how == "type" else kept.copy()
    if how == "shape":
        array = np.zeros(draw(DIMENSIONS), kept.dtype)
    if how == "value":
        array.flat[draw(st.integers(0, array.size - 1))] = draw(st.integers(np.iinfo(array.dtype).min, 255))
    return array[: draw(st.integers(0, len(array)))] if how == "fewer" else array


@some
@given(data=st.data(), split=st.sampled_from(SPLITS))
def test_any_arrays_with_the_right_checksum(data: st.DataObject, split: str, toy: Dataset) -> None:
    images, labels = toy_splits()[split]
    arrays = {"images": data.draw(any_array(images)), "labels": data.draw(any_array(labels))}
    if data.draw(st.integers(0, 9)) == 0:
        arrays[data.draw(st.sampled_from(("image", "labels.npy", "../labels")))] = arrays.pop("labels")
    file = io.BytesIO()
    data.draw(st.sampled_from((np.savez, np.savez_compressed)))(file, **arrays)
    check_arrays(read_resealed(toy, split, file.getvalue()), split)


@pytest.mark.parametrize("split", ["tset", "", "../toy/train", None, 0])
def test_a_split_that_does_not_exist_is_not_called_damaged(split: Any, toy: Dataset) -> None:
    with pytest.raises(DataError, match="train, valid or test"):
        toy.arrays(split)


@some
@given(name=st.text(min_size=1, max_size=300) | st.sampled_from(("~nobody-of-this-name/data", "a" * 300, "a\0b")))
@example(name="~nobody-of-this-name/data")
def test_a_folder_of_any_name(name: str, place: Path) -> None:
    for folder in (name if name.startswith("~") else place / "nowhere" / name.replace("/", "-"),):
        with pytest.raises(DataError):
            read_dataset(folder)


@few
@given(missing=st.sets(st.sampled_from(SPLITS), min_size=1))
def test_the_script_names_the_first_file_that_is_missing(missing: set[str], toy: Dataset, place: Path) -> None:
    folder = shutil.copytree(toy.folder, place / "script")
    try:
        for split in missing:
            (folder / f"{split}.npz").unlink()
        first = next(split for split in SPLITS if split in missing)
        with pytest.raises(FileNotFoundError, match=f"{folder / first}.npz is missing"):
            load_data(folder)
    finally:
        shutil.rmtree(folder)


# ---- files that would run something ----


class Hostile:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Hostile]:
    """It works where pickles are taken; after the test it must not have."""
    made = tmp_path / "made by the file"
    pickle.loads(pickle.dumps(Hostile(made)))
    made.rmdir()
    yield Hostile(made)
    assert not made.exists()


def saved(save: Callable[..., None], *args: Any, **kwargs: Any) -> bytes:
    file = io.BytesIO()
    save(file, *args, **kwargs)
    return file.getvalue()


def test_no_pickle_in_a_model_is_run(hostile: Hostile, tmp_path: Path) -> None:
    model = {"model": {"weight": torch.ones(2)}}
    for value in (hostile, {"model": hostile}, {"model": {"weight": hostile}}, model | {"train_conf": hostile}):
        for content in (
            saved(lambda file, value=value: torch.save(value, file)),
            saved(lambda file, value=value: torch.save(value, file, _use_new_zipfile_serialization=False)),
            pickle.dumps(value, protocol=2),
        ):
            path = write(tmp_path / "FL_global_model.pt", content)
            assert attempt(lambda path=path: read_model(path), ResultsError, path) is None


def test_no_pickle_in_a_dataset_is_run(hostile: Hostile, toy: Dataset) -> None:
    images, labels = toy_splits()["valid"]
    objects = np.array([hostile] * 4, dtype=object)
    for content in (
        saved(np.savez, images=objects, labels=labels),
        saved(np.savez, images=images, labels=objects),
        saved(np.save, objects, allow_pickle=True),
        pickle.dumps(hostile),
        pickle.dumps({"images": hostile, "labels": labels}),
    ):
        assert read_resealed(toy, "valid", content) is None
    more = saved(np.savez, images=images, labels=labels, more=objects)  # nobody asks for it: it stays in the file
    assert read_resealed(toy, "valid", more) is not None


# ---- partitions ----

NUMBERS = st.one_of(
    st.sampled_from(("iid", "IID", "nan", "inf", "-inf", "1e400", "5e-324", "0", "-0.0", "1_0", "٣", " 1 ", "1e-7")),
    st.floats().map(str),
    st.integers().map(str),
)


@many
@given(text=st.text(max_size=12) | NUMBERS)
@example(text="inf")
@example(text="5e-324")
def test_alpha_of_any_text_is_usable_or_refused(text: str) -> None:
    try:
        alpha = parse_alpha(text)
    except ArgumentTypeError as error:
        assert str(error).startswith(f"alpha is {text}: ")
        return
    assert (alpha is None) == (text.lower() == "iid")
    shares = draw_shares(3, 2, alpha, 0)
    assert np.isfinite(shares).all() and np.allclose(shares.sum(axis=1), 1)


ALPHAS = st.one_of(
    st.none(),
    st.floats(),
    st.integers(),
    st.fractions(),
    st.booleans(),
    st.sampled_from((5e-324, 1e-310, 10**400, Fraction(1, 10**400), "0.3", np.float32(0.3), Fraction(1, 3))),
)
SEEDS = st.integers(-2, 2**70) | st.lists(st.integers(-1, 9), max_size=3).map(tuple) | st.sampled_from((None, 1.5, "0"))


@many
@given(classes=st.integers(1, 12), sites=st.integers(-1, 40), alpha=ALPHAS, seed=SEEDS)
@example(classes=1, sites=2, alpha=5e-324, seed=0)
@example(classes=1, sites=1, alpha=0.5, seed=-1)
@example(classes=1, sites=1, alpha=Fraction(1, 10**400), seed=0)
@example(classes=1, sites=1, alpha=True, seed=0)
def test_shares_of_any_arguments(classes: int, sites: int, alpha: Any, seed: Any) -> None:
    try:
        shares = draw_shares(classes, sites, alpha, seed)
    except PartitionError as error:
        assert any(name in str(error) for name in ("sites is", "alpha is", "seed is"))
        return
    assert shares.shape == (classes, sites) and (shares >= 0).all() and np.allclose(shares.sum(axis=1), 1)
    assert not isinstance(alpha, bool)


ROWS = st.lists(st.floats(-1, 2) | st.sampled_from((0.0, 0.5, 1.0, math.nan)), min_size=2, max_size=2)


@many
@given(
    labels=st.lists(st.integers(0, 3), max_size=40)
    | st.lists(st.sampled_from((-1, 0, 1, 0.5, 2**40, math.nan, math.inf)), max_size=6),
    shares=st.lists(ROWS | st.sampled_from(([0.5, 0.5], [1.0, 0.0], [1.5, -0.5])), max_size=4)
    | st.integers(0, 99).map(lambda seed: np.random.default_rng(seed).dirichlet([0.3] * 5, 4)),
    seed=SEEDS,
)
@example(labels=[-1, 0], shares=[[0.5, 0.5]], seed=0)
@example(labels=[0.5], shares=[[0.5, 0.5]], seed=0)
@example(labels=[0, 0], shares=[[1.5, -0.5]], seed=0)
@example(labels=[], shares=np.zeros((0, 3)), seed=0)
@example(labels=[0], shares=[[1.0]], seed=-1)
@example(labels=[0], shares=[1.0], seed=0)
def test_any_labels_and_shares_lose_no_image(labels: list, shares: Any, seed: Any) -> None:
    try:
        parts = assign(np.array(labels), np.array(shares), seed)
    except PartitionError:
        return
    assert len(parts) == np.shape(shares)[1]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))


def dataset_of(labels: dict[str, list[int]], folder: Path) -> Dataset:
    """Every image is different, so that each can be recognised."""
    splits = {}
    for split, numbers in labels.items():
        images = np.zeros((len(numbers), 3, 32, 32), np.uint8)
        images[:, 0, 0, 0] = np.arange(len(numbers))
        splits[split] = images, np.array(numbers)
    return write_dataset(folder, splits, name="toy", classes=list("abcd"), source="made for a test")


@few
@given(
    labels=st.fixed_dictionaries({s: st.lists(st.integers(0, 3), min_size=1, max_size=n) for s, n in SIZES.items()})
    | st.fixed_dictionaries({s: st.lists(st.integers(0, 3), min_size=20, max_size=60) for s in SPLITS}),
    sites=st.integers(1, 5),
    alpha=st.none() | st.floats(1e-6, 1e6),
    seed=st.integers(0, 2**70),
    least=st.integers(1, 8),
)
@example(labels={split: [0, 1] for split in SPLITS}, sites=2, alpha=1e-6, seed=0, least=1)
@example(labels={split: 9 * [0] for split in SPLITS}, sites=3, alpha=1e-6, seed=0, least=1)
def test_any_labels_are_dealt_out_whole_or_refused(
    labels: dict[str, list[int]],
    sites: int,
    alpha: float | None,
    seed: int,
    least: int,
    place: Path,
) -> None:
    """With all of its tries, so that the refusal is known to end as well."""
    shutil.rmtree(place / "split", ignore_errors=True)
    dataset = dataset_of(labels, place / "split" / "whole")
    try:
        paths = split_dataset(
            dataset.folder, sites, alpha=alpha, seed=seed, out=place / "split" / "out", min_images=least
        )
    except PartitionError as error:
        assert f"{sites} sites" in str(error)
        assert [path.name for path in (place / "split").iterdir()] == ["whole"]
        return
    parts = [read_dataset(path) for path in paths]
    assert len(parts) == sites and all(part.counts["train"] >= least for part in parts)
    for split in SPLITS:
        images, got = (np.concatenate([part.arrays(split)[k] for part in parts]) for k in (0, 1))
        order = images[:, 0, 0, 0].argsort()
        assert images[order, 0, 0, 0].tolist() == list(range(len(labels[split])))
        assert got[order].tolist() == labels[split]


@many
@given(
    arguments=st.fixed_dictionaries(
        {"sites": st.integers(-1, 99) | VALUES},
        optional={"alpha": ALPHAS | VALUES, "seed": st.integers(-1, 9) | VALUES, "min_images": st.integers() | VALUES},
    )
)
@example(arguments={"sites": 2, "alpha": Fraction(1, 3), "min_images": 1})
@example(arguments={"sites": 2, "seed": 10**400})
def test_a_split_of_any_arguments(arguments: dict[str, Any], toy: Dataset, place: Path) -> None:
    out = place / "any"
    try:
        paths = split_dataset(toy.folder, **arguments, out=out)
    except PartitionError as error:
        assert str(error).endswith(".")
        assert not out.exists()
        return
    assert [path.name for path in paths] == [f"site-{k + 1}" for k in range(arguments["sites"])]
    shutil.rmtree(out)


@pytest.mark.parametrize("out", ["~nobody-of-this-name/out", "a" * 300, "a\0b"])
def test_an_impossible_place_for_a_split(out: str, toy: Dataset) -> None:
    with pytest.raises(TutorialError, match="name another folder"):
        split_dataset(toy.folder, 2, min_images=1, alpha=None, out=out)


@pytest.fixture(scope="module")
def split(toy: Dataset, place: Path) -> Path:
    return split_dataset(toy.folder, 2, alpha=None, out=place / "dealt", min_images=1)[0].parent


@some
@given(data=st.data())
def test_a_damaged_split_is_used_as_it_was_or_refused(data: st.DataObject, split: Path, toy: Dataset) -> None:
    card, index = split / "split.json", split / "site-2" / "dataset.json"
    path = data.draw(st.sampled_from((card, card, card, index, split / "site-1" / "test.npz")))
    content = path.read_bytes()
    damaged = data.draw(broken(content))
    if path.suffix == ".json" and data.draw(st.booleans()):
        damaged = json.dumps(data.draw(changed(json.loads(content)))).encode()
    try:
        path.write_bytes(damaged)
        paths = attempt(lambda: split_dataset(toy.folder, 2, alpha=None, out=split, min_images=1), TutorialError, split)
        assert path.read_bytes() == damaged  # nothing is mended, or lost, without a word
    finally:
        path.write_bytes(content)
    assert paths is None or paths == [split / "site-1", split / "site-2"]


# ---- tables ----


@pytest.fixture(scope="module")
def dealt_table(place: Path) -> Path:
    rows = 40
    frame = pd.DataFrame({"id": range(rows), "dose": np.arange(rows) / 7, "ill": np.arange(rows) % 2})
    return split_table(frame, 2, label="ill", alpha=None, min_rows=1, out=place / "tables")[0]


@some
@given(data=st.data())
def test_a_damaged_table_is_read_as_it_was_or_refused(data: st.DataObject, dealt_table: Path) -> None:
    card = dealt_table / "table.json"
    path = data.draw(st.sampled_from((card, card, dealt_table / "train.csv", dealt_table / "test.csv")))
    before, content = read_table(dealt_table), path.read_bytes()
    damaged = data.draw(broken(content))
    if path == card and data.draw(st.booleans()):
        damaged = json.dumps(data.draw(changed(json.loads(content)))).encode()
    try:
        path.write_bytes(damaged)
        counts = attempt(lambda: count_labels([dealt_table]), DataError, dealt_table)
        tables = attempt(lambda: read_table(dealt_table), DataError, dealt_table)
    finally:
        path.write_bytes(content)
    assert counts is None or (counts.to_numpy() >= 0).all()
    if tables is not None:
        assert all(tables[split].equals(before[split]) for split in SPLITS)


ARGUMENTS = dict.fromkeys(("alpha", "valid", "test", "seed", "min_rows"), VALUES)
COLUMNS = st.sampled_from(("a", "b", "c"))


@many
@given(
    arguments=st.fixed_dictionaries(
        {"sites": st.integers(1, 4) | VALUES}, optional={"label": COLUMNS | VALUES, "by": COLUMNS | VALUES, **ARGUMENTS}
    )
    | st.fixed_dictionaries({}, optional={"by": COLUMNS, "label": COLUMNS, "min_rows": st.just(1)}),
    column=st.lists(VALUES, min_size=12, max_size=12) | st.lists(st.sampled_from("xy"), min_size=12, max_size=12),
)
@example(arguments={"sites": 2, "label": "a", "min_rows": 1}, column=["x", 1, None] * 4)
@example(arguments={"sites": 2, "label": "a", "alpha": None, "min_rows": 1}, column=["x", 1, [], {}] * 3)
@example(arguments={"by": "a"}, column=["x", "y", "x"] * 4)
@example(arguments={"by": "a"}, column=[1, True, 1.0] * 4)
@example(arguments={"sites": 1, "min_rows": 1}, column=["\ud800"] * 12)
@example(arguments={"sites": 1, "min_rows": 1, "label": []}, column=["x"] * 12)
@example(arguments={"by": {}}, column=["x"] * 12)
def test_a_table_of_anything(arguments: dict[str, Any], column: list, place: Path) -> None:
    frame = pd.DataFrame({"a": pd.Series(column, dtype=object), "b": range(12), "c": np.arange(12) / 5})
    out = place / "any table"
    try:
        paths = split_table(frame, **arguments, out=out)
    except (PartitionError, DataError) as error:
        assert str(error).endswith(".") and not out.exists()
        return
    numbers = [number for path in paths for part in read_table(path).values() for number in part["b"]]
    assert sorted(numbers) == list(range(12))
    shutil.rmtree(out)
