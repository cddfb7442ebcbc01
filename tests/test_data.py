"""The data ladder: every rung, every way to fall, and what is left behind (nothing)."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import pickle
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision.datasets import CIFAR10

from tutorial_utils import data
from tutorial_utils.data import SPLITS, Dataset, prepare, read_dataset, subset, write_dataset
from tutorial_utils.errors import DataError
from tutorial_utils.folder import FORMAT

ROOT = Path(__file__).resolve().parents[1]
TRAIN_IMAGES, TEST_IMAGES = 40, 15  # in each of the five batches, and in the test batch


@pytest.fixture(autouse=True)
def no_copy_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CIFAR10_SOURCE", raising=False)


def python2_pickle(images: np.ndarray, labels: np.ndarray) -> bytes:
    """A batch as Python 2 pickled the official ones: {"data": uint8 [N, 3072], "labels": []}."""
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return b"".join(
        (
            b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01M" + struct.pack("<H", len(images)) + b"M\x00\x0c\x86" + dtype + b"\x89",
            b"T" + struct.pack("<i", images.size) + images.tobytes() + b"tb",
            b"U\x06labels](" + b"".join(b"K" + bytes([label]) for label in labels) + b"eu.",
        )
    )


def make_batches() -> dict[str, bytes]:
    rng, batches = np.random.default_rng(0), {}
    for name in data.BATCHES:
        count = TEST_IMAGES if name == "test_batch" else TRAIN_IMAGES
        images = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        batches[name] = python2_pickle(images, np.arange(count) % 10)
    return batches


def write_batches(folder: Path, batches: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in batches.items():
        (folder / name).write_bytes(content)
    return folder


def make_archive(batches: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in sorted(batches.items(), key=lambda item: item[0][-1]):  # in no helpful order
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture(scope="module")
def batches() -> dict[str, bytes]:
    return make_batches()


@pytest.fixture(scope="module")
def archive(batches: dict[str, bytes]) -> bytes:
    return make_archive(batches)


@pytest.fixture
def copy(tmp_path: Path, batches: dict[str, bytes]) -> Path:
    return write_batches(tmp_path / "hand" / "cifar-10-batches-py", batches)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("small") / "toy", small_splits(), **TOY)


TOY = {"name": "toy", "classes": ("a", "b", "c"), "source": "made for a test"}


def small_splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    sizes = zip(SPLITS, (6, 4, 5), strict=True)
    return {s: (rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8), np.arange(n) % 3) for s, n in sizes}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# ---- the folder ----


def test_a_written_dataset_reads_back(small: Dataset) -> None:
    again = read_dataset(str(small.folder))
    assert again == small
    assert (again.title, again.site, again.counts) == ("toy", None, {"train": 6, "valid": 4, "test": 5})
    for split, (images, labels) in small_splits().items():
        got_images, got_labels = again.arrays(split)
        assert np.array_equal(images, got_images) and np.array_equal(labels, got_labels)
        assert (got_images.dtype, got_labels.dtype) == (np.uint8, np.int64)
    assert names(small.folder) == ["dataset.json", "test.npz", "train.npz", "valid.npz"]
    assert names(small.folder.parent) == ["toy"]


def test_writing_the_same_again_is_fine_and_other_data_are_refused(small: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    shutil.copytree(small.folder, folder)
    assert write_dataset(folder, small_splits(), **TOY).sha256 == small.sha256
    other = small_splits() | {"test": (small_splits()["test"][0], np.zeros(5, np.int64))}
    with pytest.raises(DataError, match="holds other data"):
        write_dataset(folder, other, **TOY)
    assert read_dataset(folder).sha256 == small.sha256


@pytest.mark.parametrize(
    "images, labels",
    [
        (np.zeros((2, 3, 32, 32)), np.zeros(2, np.int64)),
        (np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, np.int64)),
        (np.zeros((2, 3, 32, 32), np.uint8), np.zeros(3, np.int64)),
        (np.zeros((2, 3, 32, 32), np.uint8), np.zeros(2)),
        (np.zeros((2, 3, 32, 32), np.uint8), np.array([0, 3])),
        (np.zeros((2, 3, 32, 32), np.uint8), np.array([0, -1])),
        (np.zeros((0, 3, 32, 32), np.uint8), np.zeros(0, np.int64)),
    ],
)
def test_wrong_arrays_are_not_written(images: np.ndarray, labels: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        write_dataset(tmp_path / "toy", small_splits() | {"valid": (images, labels)}, **TOY)
    assert names(tmp_path) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    savez = np.savez

    def full(file: Path, **arrays: np.ndarray) -> None:
        savez(file, **arrays)
        if "valid" in str(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(DataError, match=r"the disk is full\): free \d+ GB"):
        write_dataset(tmp_path / "toy", small_splits(), **TOY)
    assert names(tmp_path) == []


def test_an_interrupt_leaves_nothing_and_the_next_try_works(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:

        def interrupt(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(np, "savez", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_dataset(tmp_path / "toy", small_splits(), **TOY)
    assert names(tmp_path) == []
    assert write_dataset(tmp_path / "toy", small_splits(), **TOY).counts["train"] == 6


def test_the_slower_of_two_writers_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    savez, folder = np.savez, tmp_path / "toy"

    def overtaken(file: Path, **arrays: np.ndarray) -> None:
        monkeypatch.setattr(np, "savez", savez)
        write_dataset(folder, small_splits(), **TOY)
        savez(file, **arrays)

    monkeypatch.setattr(np, "savez", overtaken)
    assert write_dataset(folder, small_splits(), **TOY) == read_dataset(folder)
    assert names(tmp_path) == ["toy"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_place_that_refuses(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(DataError, match="cannot be written"):
            write_dataset(tmp_path / "toy", small_splits(), **TOY)
    finally:
        tmp_path.chmod(0o700)


def test_no_dataset_there(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError, match=r"no dataset\.json"):
            read_dataset(folder)


def test_another_version_says_so(small: Dataset, tmp_path: Path) -> None:
    shutil.copytree(small.folder, tmp_path / "toy")
    card = json.loads((tmp_path / "toy" / "dataset.json").read_text())
    (tmp_path / "toy" / "dataset.json").write_text(json.dumps(card | {"format": FORMAT + 1, "new": 1}))
    for read in (read_dataset, lambda folder: prepare("auto", out=folder)):
        with pytest.raises(DataError, match="another version: delete it and prepare it again"):
            read(tmp_path / "toy")


def test_a_changed_file_is_noticed(small: Dataset, tmp_path: Path) -> None:
    shutil.copytree(small.folder, tmp_path / "toy")
    content = bytearray((tmp_path / "toy" / "valid.npz").read_bytes())
    content[5000] ^= 1
    (tmp_path / "toy" / "valid.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"valid\.npz .*SHA-256 differs"):
        prepare("auto", out=tmp_path / "toy")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(SPLITS), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ("format", "name", "classes", "source", "counts", "sha256", "site")
damage = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@damage
@given(name=st.sampled_from(("dataset.json", *(f"{s}.npz" for s in SPLITS))), part=st.floats(0, 0.999))
def test_truncated_files_end_in_a_data_error(name: str, part: float, small: Dataset) -> None:
    path = small.folder / name
    content = path.read_bytes()
    try:
        path.write_bytes(content[: int(part * (len(content) - 2))])
        with pytest.raises(DataError):
            read_dataset(small.folder)
    finally:
        path.write_bytes(content)


@damage
@given(field=st.sampled_from(FIELDS), value=JSON, drop=st.booleans())
def test_a_strange_card_ends_in_a_data_error_or_reads(field: str, value: object, drop: bool, small: Dataset) -> None:
    path = small.folder / "dataset.json"
    content = path.read_text()
    card = json.loads(content) | {field: value}
    if drop:
        del card[field]
    try:
        path.write_text(json.dumps(card))
        read = read_dataset(small.folder)
    except DataError:
        return
    finally:
        path.write_text(content)
    texts = (read.name, read.source, read.title, *read.classes)
    assert all(isinstance(text, str) for text in texts)
    assert not drop or field == "site"  # the central folder has none


@damage
@given(value=JSON | st.binary(max_size=20))
def test_a_card_that_is_no_card(value: object, small: Dataset) -> None:
    path = small.folder / "dataset.json"
    content = path.read_bytes()
    try:
        path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
        with pytest.raises(DataError):
            read_dataset(small.folder)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": np.zeros((4, 3, 32, 32), np.uint8)},
        {"images": np.zeros((4, 3, 32, 32), np.float32), "labels": np.zeros(4, np.int64)},
        {"images": np.zeros((4, 3, 32, 32), np.uint8), "labels": np.zeros(4, np.int32)},
        {"images": np.zeros((3, 3, 32, 32), np.uint8), "labels": np.zeros(3, np.int64)},
        {"images": np.zeros((4, 3, 32, 32), np.uint8), "labels": np.array([0, 1, 2, 9])},
        {"images": np.array([print] * 4), "labels": np.zeros(4, np.int64)},  # an object array is a pickle
        None,
    ],
)
def test_wrong_arrays_with_the_right_checksum(
    arrays: dict[str, np.ndarray] | None, small: Dataset, tmp_path: Path
) -> None:
    shutil.copytree(small.folder, tmp_path / "toy")
    path, card_path = tmp_path / "toy" / "valid.npz", tmp_path / "toy" / "dataset.json"
    if arrays is None:
        path.write_bytes(b"no archive at all")
    else:
        np.savez(path, **arrays)
    card = json.loads(card_path.read_text())
    card["sha256"]["valid"] = hashlib.sha256(path.read_bytes()).hexdigest()
    card_path.write_text(json.dumps(card))
    with pytest.raises(DataError, match="is damaged"):
        read_dataset(tmp_path / "toy")


# ---- a copy that the reader names ----


def check_cifar10(dataset: Dataset, batches: dict[str, bytes]) -> None:
    """All images arrived, once each: 90 % train, 10 % valid, class by class; the test batch as it was."""
    assert (dataset.name, dataset.title) == ("cifar10", "CIFAR-10")
    assert dataset.counts == {"train": 180, "valid": 20, "test": TEST_IMAGES}
    assert np.bincount(dataset.arrays("valid")[1]).tolist() == [2] * 10
    given_ = {name: pickle.loads(content, encoding="latin1") for name, content in batches.items()}
    official = np.concatenate([given_[name]["data"] for name in data.BATCHES[:5]])
    kept = np.concatenate([dataset.arrays(split)[0].reshape(-1, 3072) for split in ("train", "valid")])
    assert sorted(map(bytes, official)) == sorted(map(bytes, kept))
    assert np.array_equal(dataset.arrays("test")[0].reshape(-1, 3072), given_["test_batch"]["data"])
    assert dataset.arrays("test")[1].tolist() == given_["test_batch"]["labels"]


def test_every_way_to_name_a_copy(
    copy: Path, batches: dict[str, bytes], archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive_path = tmp_path / "arch" / CIFAR10.filename
    archive_path.parent.mkdir()
    archive_path.write_bytes(archive)
    monkeypatch.chdir(tmp_path)
    made = [
        prepare(source=source, root=tmp_path / f"root-{k}")
        for k, source in enumerate((copy, copy.parent, archive_path, archive_path.parent, "hand"))
    ]
    monkeypatch.setenv("CIFAR10_SOURCE", "hand")
    made.append(prepare(root=tmp_path / "root-env"))
    for dataset in made:
        check_cifar10(dataset, batches)
    assert len({json.dumps(dataset.sha256) for dataset in made}) == 1  # the split is the same each time
    assert names(tmp_path / "root-0") == ["cifar10"]


def test_the_md5_of_a_copy_is_reported(
    copy: Path,
    batches: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dataset = prepare(source=copy, out=tmp_path / "one")
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "MD5" in warnings[0] and "data_batch_3" in warnings[0]
    assert "not the official" in dataset.source
    caplog.clear()
    md5 = [[name, hashlib.md5(content).hexdigest()] for name, content in batches.items()]
    monkeypatch.setattr(CIFAR10, "train_list", md5[:5])
    monkeypatch.setattr(CIFAR10, "test_list", md5[5:])
    assert "as the official" in prepare(source=copy, out=tmp_path / "two").source
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


def test_a_copy_that_python_3_wrote(copy: Path, batches: dict[str, bytes], tmp_path: Path) -> None:
    for name, content in batches.items():
        batch = pickle.loads(content, encoding="latin1")
        if name in data.BATCHES[:3]:
            batch = {key.encode(): value for key, value in batch.items()}
        (copy / name).write_bytes(pickle.dumps(batch, protocol=2 if name < "data_batch_2" else 4))
    check_cifar10(prepare(source=copy, out=tmp_path / "out"), batches)


def test_a_wrong_source_is_an_error_on_every_rung(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    for dataset in ("auto", "cifar10"):
        with pytest.raises(DataError, match="cannot be read"):
            prepare(dataset, source="~nobody-of-that-name/cifar10", root=tmp_path / "root")
        for source in (tmp_path / "nowhere", tmp_path / "empty", ""):
            monkeypatch.chdir(tmp_path / "empty")
            with pytest.raises(DataError, match="no CIFAR-10 at"):
                prepare(dataset, source=source, root=tmp_path / "root")
        with pytest.raises(DataError, match="no CIFAR-10 at"):  # even where nothing needs to be read
            prepare(dataset, source=tmp_path / "nowhere", out=small.folder)
        monkeypatch.setenv("CIFAR10_SOURCE", str(tmp_path / "nowhere"))
        with pytest.raises(DataError, match="CIFAR10_SOURCE"):
            prepare(dataset, root=tmp_path / "root")
        monkeypatch.delenv("CIFAR10_SOURCE")
    with pytest.raises(DataError, match="a source goes with"):
        prepare("digits", source=tmp_path, root=tmp_path / "root")
    with pytest.raises(DataError, match="auto, cifar10 or digits"):
        prepare("mnist", root=tmp_path / "root")
    assert names(tmp_path / "root") == []


class Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("packed", [False, True])
def test_a_pickle_is_read_without_executing_it(
    packed: bool, copy: Path, batches: dict[str, bytes], tmp_path: Path
) -> None:
    evil = pickle.dumps({"data": Evil(f"touch {tmp_path}/ran"), "labels": [0]})
    pickle.loads(evil.replace(b"touch", b"true "))  # the harmless twin would run
    source = copy
    (copy / "data_batch_4").write_bytes(evil)
    if packed:
        source = tmp_path / CIFAR10.filename
        source.write_bytes(make_archive(batches | {"data_batch_4": evil}))
    with pytest.raises(DataError, match=r"asks for (posix|nt)\.system"):
        prepare(source=source, out=tmp_path / "out")
    assert names(tmp_path) == sorted(["hand"] + [CIFAR10.filename] * packed)


@pytest.mark.parametrize("call", ["builtins\neval", "numpy\nload", "numpy.core.multiarray\nfromfile", "os\nsystem"])
def test_other_calls_are_not_found_either(call: str, copy: Path, tmp_path: Path) -> None:
    (copy / "test_batch").write_bytes(b"\x80\x02c" + call.encode() + b"\nU\x011\x85R.")
    with pytest.raises(DataError, match="asks for"):
        prepare(source=copy, out=tmp_path / "out")


@pytest.mark.parametrize(
    "batch",
    [
        {"data": np.zeros((3, 3072), np.float32), "labels": [0, 1, 2]},
        {"data": np.zeros((3, 3000), np.uint8), "labels": [0, 1, 2]},
        {"data": np.zeros((3, 3072), np.uint8), "labels": [0, 1]},
        {"data": np.zeros((3, 3072), np.uint8), "labels": [0, 1, 10]},
        {"data": np.zeros((3, 3072), np.uint8), "labels": ["a", "b", "c"]},
        {"data": np.zeros((0, 3072), np.uint8), "labels": []},
        {"data": [1, 2, 3], "labels": [0, 1, 2]},
        {"data": np.zeros((3, 3072), np.uint8)},
        [1, 2],
        b"",
    ],
)
def test_batches_of_another_shape(batch: object, copy: Path, tmp_path: Path) -> None:
    (copy / "data_batch_2").write_bytes(batch if batch == b"" else pickle.dumps(batch, protocol=2))
    with pytest.raises(DataError, match="not a whole CIFAR-10"):
        prepare(source=copy, out=tmp_path / "out")
    assert names(tmp_path) == ["hand"]


def test_a_missing_batch(copy: Path, batches: dict[str, bytes], tmp_path: Path) -> None:
    (copy / "data_batch_5").unlink()
    path = tmp_path / CIFAR10.filename
    path.write_bytes(make_archive({k: v for k, v in batches.items() if k != "data_batch_5"}))
    for source in (copy, path):
        with pytest.raises(DataError, match=r"not a whole CIFAR-10.*data_batch_5"):
            prepare(source=source, out=tmp_path / "out")


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.9, 0.9999])
def test_a_truncated_archive(part: float, archive: bytes, tmp_path: Path) -> None:
    path = tmp_path / CIFAR10.filename
    path.write_bytes(archive[: int(part * len(archive))])
    with pytest.raises(DataError, match="not a whole CIFAR-10"):
        prepare(source=path, out=tmp_path / "out")
    assert names(tmp_path) == [CIFAR10.filename]


# ---- the folder to make ----


def test_preparing_twice_changes_nothing(
    copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    first = prepare(source=copy, root=tmp_path / "root")
    before = {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    monkeypatch.setattr(CIFAR10, "url", closed_port())
    for again in (
        prepare(root=tmp_path / "root"),
        prepare("cifar10", root=tmp_path / "root"),
        prepare(source=copy, root=tmp_path / "root"),
        prepare(out=first.folder),
    ):
        assert again == first
        assert "prepared already" in caplog.messages[-1]
    assert before == {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()}


def test_a_folder_of_other_data_is_refused(digits: Dataset, copy: Path) -> None:
    for arguments in ({"dataset": "cifar10"}, {"source": copy}):
        with pytest.raises(DataError, match="holds the scikit-learn digits, not cifar10"):
            prepare(**arguments, out=digits.folder)
    assert prepare("auto", out=digits.folder) == prepare("digits", out=digits.folder) == digits


def test_a_foreign_folder_is_left_alone(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.npz").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for out in (tmp_path / "mine", tmp_path / "file", tmp_path / "file" / "below"):
        for arguments in ({"dataset": "digits"}, {"source": copy}):
            with pytest.raises(DataError):
                prepare(**arguments, out=out)
    assert names(tmp_path / "mine") == ["train.npz"]
    assert (tmp_path / "file").read_text() == (tmp_path / "mine" / "train.npz").read_text() == "precious"


def test_an_empty_folder_is_filled(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert prepare(source=copy, out=tmp_path / "out").folder == tmp_path / "out"


def test_the_digits(digits: Dataset) -> None:
    assert (digits.title, digits.counts) == (
        "scikit-learn digits",
        {"train": 1200, "valid": 200, "test": 397},
    )
    assert len(digits.classes) == 10
    images = np.concatenate([digits.arrays(split)[0] for split in SPLITS])
    assert (images.min(), images.max()) == (0, 255)
    assert (images == images[:, :1, ::4, ::4].repeat(4, axis=2).repeat(4, axis=3)).all()
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == 1797  # no image is in two splits
    for split in SPLITS:
        counts = np.bincount(digits.arrays(split)[1])
        assert counts.max() - counts.min() <= 0.12 * counts.mean()


# ---- the official download ----


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/{CIFAR10.filename}"


class Server(ThreadingHTTPServer):
    """Serves `content` in full, or what `manner` makes of it: cut, stall, silent, gone."""

    daemon_threads = True
    content, manner = b"", "good"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.over = threading.Event()
        self.asked = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{CIFAR10.filename}"

    def handle_error(self, *_: Any) -> None:
        """The client hangs up in most of these tests: no traceback for that."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content, manner = self.server.content, self.server.manner
        self.server.asked.set()
        if manner == "silent":
            self.server.over.wait(30)
            return
        self.send_response(404 if manner == "gone" else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content if manner == "good" else content[: len(content) // 2])
        self.wfile.flush()
        if manner == "stall":
            self.server.over.wait(30)

    def log_message(self, *_: Any) -> None:
        """Silence."""


@pytest.fixture
def server(archive: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        server.content = archive
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        monkeypatch.setattr(CIFAR10, "url", server.url)
        monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())
        monkeypatch.setattr(data, "PATIENCE", 0.4)
        yield server
        server.over.set()
        server.shutdown()


def test_a_good_download(server: Server, batches: dict[str, bytes], tmp_path: Path) -> None:
    before = socket.getdefaulttimeout()
    dataset = prepare("cifar10", root=tmp_path)
    check_cifar10(dataset, batches)
    assert dataset.source == "the official download"
    assert socket.getdefaulttimeout() == before
    assert names(tmp_path) == ["cifar10"]


@pytest.mark.parametrize("dataset", ["auto", "cifar10"])
@pytest.mark.parametrize("fault", ["cut", "wrong"])
def test_a_damaged_download_is_an_error_and_the_next_try_starts_clean(
    fault: str, dataset: str, server: Server, archive: bytes, tmp_path: Path
) -> None:
    if fault == "cut":
        server.manner = "cut"
    else:
        server.content = archive[:-9] + b"different"
    before = socket.getdefaulttimeout()
    with pytest.raises(DataError, match="damaged"):
        prepare(dataset, root=tmp_path / "root")
    assert socket.getdefaulttimeout() == before
    assert names(tmp_path / "root") == []
    server.manner, server.content = "good", archive
    assert prepare(dataset, root=tmp_path / "root").name == "cifar10"


@pytest.mark.parametrize("manner", ["stall", "silent", "gone"])
def test_a_server_that_does_not_deliver_is_given_up(manner: str, server: Server, tmp_path: Path) -> None:
    server.manner = manner
    start, before = time.monotonic(), socket.getdefaulttimeout()
    with pytest.raises(DataError, match="no whole answer"):
        prepare("cifar10", root=tmp_path / "root")
    assert time.monotonic() - start < 6 * data.PATIENCE + 1
    assert socket.getdefaulttimeout() == before
    assert names(tmp_path / "root") == []


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(CIFAR10, "url", closed_port())
    with pytest.raises(DataError, match="needs a network once"):
        prepare("cifar10", root=tmp_path)
    assert names(tmp_path) == []
    start = time.monotonic()
    digits = prepare("auto", root=tmp_path)
    assert time.monotonic() - start < 5
    assert digits.name == "digits" and names(tmp_path) == ["digits"]
    said = "\n".join(caplog.messages)
    assert "needs a network once" in said and "digits that scikit-learn ships" in said
    assert prepare("auto", root=tmp_path) == digits
    assert prepare("auto", root=tmp_path, out=tmp_path / "here").folder.name == "here"


def test_a_disk_that_fills_up_during_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(url: str, filename: str) -> None:
        Path(filename).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", full)
    with pytest.raises(DataError, match=r"the disk is full\): free \d+ GB"):
        prepare("auto", root=tmp_path)
    assert names(tmp_path) == []


def test_ctrl_c_during_the_download(server: Server, tmp_path: Path) -> None:
    server.manner = "stall"
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"  # a shell's & turns it off
        "from tutorial_utils import data; from torchvision.datasets import CIFAR10;"
        "data.PATIENCE = 20; CIFAR10.url = sys.argv[1]; data.prepare('cifar10', root=sys.argv[2])"
    )
    command = [sys.executable, "-c", code, server.url, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert server.asked.wait(30)
    deadline = time.monotonic() + 10
    while not list(tmp_path.glob(".download-*/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(tmp_path.glob(".download-*/*"))
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=20)[1]
    assert process.returncode != 0
    assert names(tmp_path) == []


# ---- the command line ----


def run_download(*arguments: str | Path, cwd: Path) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "data" / "download.py"), *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once_and_the_last_line(digits: Dataset, tmp_path: Path) -> None:
    pair = [run_download("--dataset", "digits", "--out", "out", cwd=tmp_path) for _ in range(2)]
    for process in pair:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        last = out.strip().splitlines()[-1]
        assert last.startswith("scikit-learn digits") and last.endswith(f" in {tmp_path / 'out'}")
        assert "1200 train, 200 valid, 397 test" in last
    assert read_dataset(tmp_path / "out").sha256 == digits.sha256
    assert names(tmp_path) == ["out"]


def test_a_mistake_is_one_sentence_and_exit_code_1(tmp_path: Path) -> None:
    process = run_download("--source", "nowhere", "--out", "out", cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("There is no CIFAR-10 at") and len(err.splitlines()) == 1
    assert names(tmp_path) == []


def test_subset_takes_each_class_in_its_share_and_leaves_valid_and_test(digits: Dataset) -> None:
    few = subset(digits, 300)
    assert few.counts == {"train": 300, "valid": 200, "test": 397}
    assert np.ptp(np.bincount(few.arrays("train")[1])) <= 2
    for split in ("valid", "test"):
        np.testing.assert_array_equal(few.arrays(split)[0], digits.arrays(split)[0])
    whole = {image.tobytes() for image in digits.arrays("train")[0]}
    assert {image.tobytes() for image in few.arrays("train")[0]} <= whole
    assert subset(digits, 300) == few
    assert subset(digits, None) is digits and subset(digits, 5_000) is digits
    with pytest.raises(DataError, match="ask for another number"):
        subset(digits, 3)
