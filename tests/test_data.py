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
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision.datasets import CIFAR10

from dl.train import load_data
from tutorial_utils import data
from tutorial_utils.data import SPLITS, Dataset, prepare, read_dataset, subset, write_dataset
from tutorial_utils.errors import DataError
from tutorial_utils.folder import FORMAT, new_folder

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


ANY_IMAGES = {
    "MNIST": (np.uint8, (1, 28, 28)),
    "bits": (np.bool_, (1, 8, 8)),
    "X-rays": (np.uint16, (1, 40, 30)),
    "scans": (np.int16, (5, 16, 16)),
    "large": (np.uint8, (3, 96, 64)),
    "floats": (np.float32, (3, 32, 32)),
    "half": (np.float16, (4, 9, 7)),
    "double": (np.float64, (2, 1, 50)),
    "an ECG": (np.float32, (12, 200, 1)),
    "complex": (np.complex64, (1, 6, 6)),
    "one pixel": (np.uint8, (1, 1, 1)),
}


def images_of(dtype: Any, shape: tuple[int, ...], count: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (count, *shape)).astype(dtype)


def write_images(folder: Path, images: Any, labels: Any, **about: Any) -> Dataset:
    return write_dataset(folder, dict.fromkeys(SPLITS, (images, labels)), **TOY | about)


@pytest.mark.parametrize("dtype, shape", ANY_IMAGES.values(), ids=ANY_IMAGES)
def test_images_of_any_size_and_type(dtype: Any, shape: tuple[int, int, int], tmp_path: Path) -> None:
    images, labels = images_of(dtype, shape), np.arange(6) % 3
    made = write_images(tmp_path / "toy", images, labels)
    assert (made.shape, made.dtype) == (shape, np.dtype(dtype).name)
    got, numbers = read_dataset(made.folder).arrays("valid")
    assert got.dtype == dtype and np.array_equal(got, images) and np.array_equal(numbers, labels)
    tensors = load_data(made.folder).train.tensors  # the script reads them too
    assert tuple(tensors[0].shape) == (6, *shape) and tensors[1].dtype == torch.int64


def test_whatever_holds_images_and_labels(tmp_path: Path) -> None:
    """Grey without a channel, lists, tensors, another byte order, another layout: the same file each time."""
    images, labels = images_of(np.uint16, (1, 5, 4)), [0, 1, 2, 2, 1, 0]
    kinds = {
        "array": (images, np.array(labels)),
        "grey": (images[:, 0], labels),
        "lists": (images[:, 0].astype(np.uint16), tuple(labels)),
        "big-endian": (images.astype(">u2"), np.array(labels, ">i4")),
        "small": (images, np.array(labels, np.uint8)),
        "strided": (np.ascontiguousarray(images.transpose(2, 3, 1, 0)).transpose(3, 2, 0, 1), pd.Series(labels)),
        "tensors": (torch.from_numpy(images), torch.tensor(labels)),
    }
    made = [write_images(tmp_path / kind, *pair) for kind, pair in kinds.items()]
    assert all(one.sha256 == made[0].sha256 for one in made) and made[0].shape == (1, 5, 4)
    listed = write_images(tmp_path / "nested", images[:, 0].tolist(), labels)
    assert np.array_equal(listed.arrays("train")[0], images) and listed.shape == (1, 5, 4)


def test_a_hundred_classes(tmp_path: Path) -> None:
    made = write_images(
        tmp_path / "many",
        images_of(np.uint8, (3, 4, 4), 200),
        np.arange(200) % 100,
        classes=[f"c{k}" for k in range(100)],
    )
    assert len(made.classes) == 100 and made.arrays("test")[1].max() == 99


SOUND = images_of(np.uint8, (3, 8, 8), 4)
WRONG_ARRAYS = [
    (images_of(np.uint8, (32, 32, 3), 4), [0, 1, 2, 0], r"\[4, 32, 32, 3\], channels last: .*transpose\(0, 3, 1, 2\)"),
    (images_of(np.float32, (32, 20, 4), 4), [0, 1, 2, 0], "channels last"),
    (images_of(np.uint8, (28, 28, 1), 4), [0, 1, 2, 0], "channels last"),
    (images_of(np.float32, (3, 8, 8), 4) * np.nan, [0, 1, 2, 0], "NaN or infinite values, 4 of 4: mend them"),
    (np.where(SOUND > 190, np.inf, SOUND), [0, 1, 2, 0], "NaN or infinite values, "),
    (SOUND[0, 0], [0] * 8, r"images are \[8, 8\]: give at least one, as \[N, C, H, W\], or \[N, H, W\]"),
    (SOUND[None], [0], r"images are \[1, 4, 3, 8, 8\]"),
    (SOUND[:0], [], r"images are \[0, 3, 8, 8\]: give at least one"),
    (SOUND[:, :, :0], [0, 1, 2, 0], "give at least one"),
    ([SOUND[0], SOUND[0, :, 1:]], [0, 1], "all images must be of one size"),
    (SOUND.astype(str), [0, 1, 2, 0], "images are of type <U3: give numbers that torch knows"),
    (SOUND.astype(object), [0, 1, 2, 0], "images are of type object"),
    (SOUND.astype("datetime64[s]"), [0, 1, 2, 0], "images are of type datetime"),
    (None, [0], "images are of type object"),
    (SOUND, [0, 1, 2], r"labels are \[3\] for 4 images: give one number for each"),
    (SOUND, [[0], [1], [2], [0]], r"labels are \[4, 1\] for 4 images"),
    (SOUND, [0.0, 1.0, 2.0, 0.0], "labels are of type float64: give whole numbers, the classes counted from 0"),
    (SOUND, ["a", "b", "c", "a"], "labels are of type <U1: give whole numbers"),
    (SOUND, [True, False, True, False], "labels are of type bool"),
    (SOUND, [0, 1, 3, 0], "labels go from 0 to 3, and 3 classes have names: count labels from 0, and name every"),
    (SOUND, [1, 2, -1, 0], "labels go from -1 to 2"),
    (SOUND, np.array([2**63, 0, 0, 0], np.uint64), "labels go from 0 to 9223372036854775808"),
]


@pytest.mark.parametrize("images, labels, hint", WRONG_ARRAYS, ids=[hint[:40] for *_, hint in WRONG_ARRAYS])
def test_wrong_arrays_are_not_written(images: Any, labels: Any, hint: str, tmp_path: Path) -> None:
    sound = (SOUND, [0, 1, 2, 0])
    with pytest.raises(DataError, match=hint) as caught:
        write_dataset(tmp_path / "toy", dict.fromkeys(SPLITS, sound) | {"valid": (images, labels)}, **TOY)
    text = str(caught.value)
    assert text.startswith("The valid ") and text.endswith(".") and text.isprintable(), "the reason comes first"
    assert "folder" not in text, "no other folder would help"
    assert names(tmp_path) == []


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="a double on this machine")
def test_numbers_that_torch_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"The train images are of type float\d+: give numbers that torch knows"):
        write_images(tmp_path / "toy", SOUND.astype(np.longdouble), [0, 1, 2, 0])


def test_three_splits_of_one_kind_and_no_others(tmp_path: Path) -> None:
    sound = dict.fromkeys(SPLITS, (SOUND, [0, 1, 2, 0]))
    for other in (SOUND[:, :, 1:], SOUND[:, :1], SOUND.astype(np.float32)):
        with pytest.raises(
            DataError, match=r"of one type and size.*train uint8 \[3, 8, 8\], .*test (uint8|float32) \["
        ):
            write_dataset(tmp_path / "toy", sound | {"test": (other, [0, 1, 2, 0])}, **TOY)
    fewer = {split: sound[split] for split in SPLITS[:2]}
    for splits in (
        fewer,
        sound | {"more": sound["test"]},
        sound | {"test": SOUND},
        sound | {"test": (SOUND,)},
        [sound],
    ):
        with pytest.raises(DataError, match="a dict of train, valid and test, each a pair"):
            write_dataset(tmp_path / "toy", splits, **TOY)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "about, hint",
    [
        ({"classes": ("cat", "dog", "ship")}, r"classes \['a', 'b', 'c'\], not \['cat', 'dog', 'ship'\]"),
        ({"classes": ("a", "b", "c", "d")}, "classes"),
        ({"name": "other"}, "name 'toy', not 'other'"),
        ({"source": "relabelled"}, "source 'made for a test', not 'relabelled'"),
        ({"site": "site-1"}, "site None, not 'site-1'"),
        ({"part_of": dict.fromkeys(SPLITS, "0")}, "part_of None, not"),
    ],
)
def test_no_new_word_is_dropped(about: dict[str, Any], hint: str, small: Dataset) -> None:
    with pytest.raises(DataError, match=rf"holds these images as {hint}.*: delete it or name another folder"):
        write_dataset(small.folder, small_splits(), **TOY | about)
    assert read_dataset(small.folder) == small


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="mine holds other files: name another folder"):
        write_dataset(tmp_path / "mine", small_splits(), **TOY)
    assert names(tmp_path) == ["mine"] and names(tmp_path / "mine") == ["thesis.txt"]


def test_a_rename_that_fails_is_an_error(tmp_path: Path) -> None:
    """But for one: where another process was quicker, its folder is as good."""
    (tmp_path / "file").write_text("precious")
    with pytest.raises(NotADirectoryError), new_folder(tmp_path / "file"):
        pass
    with pytest.raises(DataError, match=r"file cannot be written \(.*: name another folder"):
        write_dataset(tmp_path / "file", small_splits(), **TOY)
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "precious"


def test_paths_are_seen_from_where_the_caller_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "below")
    made = write_dataset("../toy", small_splits(), **TOY)
    home = [read_dataset(path) for path in ("~/toy", tmp_path / "below" / ".." / "toy")]
    few = subset(made, 3)
    digits = prepare("digits", root="~/data")
    monkeypatch.chdir(made.folder)
    assert [*home, read_dataset("."), read_dataset("../below/../toy")] == [made] * 4
    assert (made.folder, few.folder) == (tmp_path / "toy", tmp_path / "toy-3-images")
    assert digits.folder == tmp_path / "data" / "digits" and few.arrays("train")[1].shape == (3,)
    (tmp_path / "link").symlink_to(tmp_path / "toy")
    assert read_dataset(tmp_path / "link").folder == tmp_path / "link", "what is made beside it lies beside the link"


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


def make_cifar100(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("train", "test", "meta"):
        batch = {b"data": np.zeros((5, 3072), np.uint8), b"fine_labels": [0] * 5}
        (folder / name).write_bytes(pickle.dumps(batch))
    return folder


def make_file(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"some bytes")
    return path


def test_other_data_are_called_by_their_name(small: Dataset, tmp_path: Path) -> None:
    hundred = make_cifar100(tmp_path / "down" / "cifar-100-python")
    for kind in ("cifar-100-python.tar.gz", "mine.tar.gz"):
        (tmp_path / kind).mkdir()
        with tarfile.open(tmp_path / kind / kind, "w:gz") as tar:
            tar.add(hundred, hundred.name)
    shutil.copytree(hundred, tmp_path / "renamed")
    (tmp_path / "folders" / "train" / "cat").mkdir(parents=True)
    sources = {
        hundred: "CIFAR-100",
        hundred.parent: "CIFAR-100",
        tmp_path / "renamed": "CIFAR-100",
        tmp_path / "cifar-100-python.tar.gz": "CIFAR-100",
        tmp_path / "cifar-100-python.tar.gz" / "cifar-100-python.tar.gz": "CIFAR-100",
        tmp_path / "mine.tar.gz" / "mine.tar.gz": "CIFAR-100",
        make_file(tmp_path / "png" / "train" / "cat" / "1.png").parents[2]: "a folder of pictures, as .*ImageFolder",
        make_file(tmp_path / "jpg" / "cat" / "1.JPG").parents[1]: "a folder of pictures",
        tmp_path / "folders": "a folder of pictures",
        make_file(tmp_path / "mnist" / "MNIST" / "raw" / "train-images-idx3-ubyte").parents[1]: "the files of MNIST",
    }
    for source, other in sources.items():
        for dataset in ("auto", "cifar10"):
            with pytest.raises(DataError, match=rf" is (data in )?{other}.*hand them to write_dataset") as caught:
                prepare(dataset, source=source, out=tmp_path / "out")
            assert str(caught.value).startswith(str(source)) and not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="is a dataset folder already: use it as it is"):
        prepare(source=small.folder, out=tmp_path / "out")


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
    assert server.asked.wait(120)  # Python starts and imports torch: on a busy machine, not soon
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".download-*/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(tmp_path.glob(".download-*/*"))
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert names(tmp_path) == []


# ---- the command line ----


def run_download(*arguments: str | Path, cwd: Path) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "data" / "download.py"), *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once_and_the_last_line(digits: Dataset, tmp_path: Path) -> None:
    pair = [run_download("--dataset", "digits", "--out", "out", cwd=tmp_path) for _ in range(2)]
    for process in pair:
        out, err = process.communicate(timeout=120)
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
    places = [index_of(image, digits) for image in few.arrays("train")[0]]
    assert places == sorted(places), "in the order of the whole"
    assert (few.part_of, few.site) == (digits.sha256, None)
    assert subset(digits, None) is digits and subset(digits, 5_000) is digits
    with pytest.raises(DataError, match="ask for another number"):
        subset(digits, 3)


def index_of(image: np.ndarray, dataset: Dataset) -> int:
    (place,) = np.flatnonzero((dataset.arrays("train")[0] == image).all(axis=(1, 2, 3)))
    return int(place)


def test_a_subset_that_is_there_is_read_and_not_made_anew(tmp_path: Path) -> None:
    whole = write_dataset(tmp_path / "toy", small_splits(), **TOY)
    few = subset(whole, 3)
    (whole.folder / "train.npz").unlink()
    assert subset(whole, 3) == few


def test_a_subset_of_other_images_is_not_served(tmp_path: Path) -> None:
    old = subset(write_dataset(tmp_path / "toy", small_splits(), **TOY), 3)
    shutil.rmtree(tmp_path / "toy")
    other = {split: (255 - images, labels) for split, (images, labels) in small_splits().items()}
    whole = write_dataset(tmp_path / "toy", other, **TOY)
    with pytest.raises(DataError, match=r"toy-3-images was taken from other images than .*toy holds now: delete it"):
        subset(whole, 3)
    shutil.rmtree(old.folder)
    assert np.array_equal(subset(whole, 3).arrays("test")[0], other["test"][0])


@pytest.mark.parametrize("images", [0, -1, 2.5, "3", True])
def test_a_number_of_images_that_makes_no_sense(images: Any, small: Dataset) -> None:
    with pytest.raises(DataError, match=r"images is .*: it must be a whole number above 0, or None for all"):
        subset(small, images)


def test_no_share_of_a_single_image(tmp_path: Path) -> None:
    whole = write_images(tmp_path / "toy", images_of(np.uint8, (1, 4, 4)), [0, 0, 0, 1, 1, 2])
    with pytest.raises(DataError, match="one training image of 'c', and no share of it can be taken"):
        subset(whole, 4)


def test_the_readmes_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """data/README.md, "Images of your own": the lines that a reader copies."""
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Images of your own")[2].partition("\n## ")[0]
    lines = [
        line[4:] for line in section.splitlines() if line.startswith("    ") and not line.startswith("    python ")
    ]
    monkeypatch.chdir(tmp_path)
    exec("\n".join(lines), {})
    made = read_dataset("data/mine")
    assert made.shape == (1, 8, 8) and sum(made.counts.values()) == 1797
