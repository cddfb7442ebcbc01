"""How the images come: a folder prepared already, a copy that you name, the official download, the digits."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import pickle
import socket
import tarfile
import tempfile
from http.client import HTTPException
from itertools import chain, islice
from numbers import Integral
from pathlib import Path

import numpy as np

from tutorial_utils.errors import DataError, OfflineError
from tutorial_utils.folder import SPLITS, Dataset, check_arrays, expand, explained, read_dataset, write_dataset

__all__ = ["SPLITS", "DataError", "Dataset", "prepare", "read_dataset", "subset", "write_dataset"]
PATIENCE = 6.0  # seconds without a word from the server after which a download is given up
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGITS_CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".ppm", ".pgm")
log = logging.getLogger(__name__)


def prepare(
    dataset: str = "auto",
    *,
    source: str | Path | None = None,
    out: str | Path | None = None,
    root: str | Path = "data",
) -> Dataset:
    """The ladder: a prepared folder, a copy you name, the official download, offline ("auto") the digits.

    `source`, else the variable CIFAR10_SOURCE, names a copy: the folder cifar-10-batches-py, one that holds
    it, or the archive. `out`, by default `root`/NAME, is the folder to make. Every rung is logged.
    """
    if dataset not in ("auto", "cifar10", "digits") or (source is not None and dataset == "digits"):
        words = "a source goes with the first two only, and images of your own come in by write_dataset"
        raise DataError(f"The dataset is auto, cifar10 or digits; {words}.")
    if source is not None:  # who names a copy wants it, and wants to hear of a wrong path at once
        dataset, source = "cifar10", _find_copy(source)
    target = expand(out or Path(root, "digits" if dataset == "digits" else "cifar10"))
    if ready := _prepared(target, dataset):
        return ready
    if dataset != "digits":
        if source is None and os.environ.get("CIFAR10_SOURCE"):
            source = _find_copy(os.environ["CIFAR10_SOURCE"])
        try:
            return _make_cifar10(target, source)
        except OfflineError as error:
            if dataset == "cifar10":
                raise
            log.info("%s\nTaking the digits that scikit-learn ships instead of CIFAR-10.", error)
    target = expand(out or Path(root, "digits"))
    return _prepared(target, "digits") or _make_digits(target)


def subset(dataset: Dataset, images: int | None) -> Dataset:
    """At most so many of the training images, each class in its share, in a folder of their own; None is all.

    The valid and test images stay as they are, so that scores can be compared. The folder lies beside the dataset's;
    its card holds the SHA-256 of what it was taken from, and it is refused where that is not this dataset.
    """
    if images is None:
        return dataset
    if not isinstance(images, Integral) or isinstance(images, bool) or images < 1:
        raise DataError(f"images is {images!r}: it must be a whole number above 0, or None for all.")
    if images >= dataset.counts["train"]:
        return dataset
    target = dataset.folder.with_name(f"{dataset.folder.name}-{images}-images")
    if ready := _prepared(target, dataset.name):
        if ready.part_of != dataset.sha256:
            raise DataError(f"{target} was taken from other images than {dataset.folder} holds now: delete it.")
        return ready
    splits = {split: dataset.arrays(split) for split in SPLITS}
    few = _draw(splits["train"][1], int(images), dataset)
    splits["train"] = tuple(array[np.sort(few)] for array in splits["train"])
    about = {"name": dataset.name, "classes": dataset.classes, "source": dataset.source}
    return write_dataset(target, splits, **about, site=dataset.site, part_of=dataset.sha256)


def _draw(labels: np.ndarray, images: int, dataset: Dataset) -> np.ndarray:
    """So many of the labels' places, each class in its share."""
    from sklearn.model_selection import train_test_split

    counts = np.bincount(labels)
    if (counts == 1).any():
        lone = dataset.classes[np.flatnonzero(counts == 1)[0]]
        raise DataError(
            f"{dataset.folder} has one training image of {lone!r}, and no share of it can be taken: add more."
        )
    with explained(
        f"{images} of the {len(labels)} images in {dataset.folder} cannot be taken", "ask for another number"
    ):
        return train_test_split(np.arange(len(labels)), train_size=images, stratify=labels, random_state=0)[0]


def _prepared(target: Path, dataset: str) -> Dataset | None:
    with explained(f"{target} cannot be used", "name another folder"):
        if not target.exists() or not any(target.iterdir()):
            return None
    ready = read_dataset(target)
    if dataset not in ("auto", ready.name):
        raise DataError(f"{target} holds the {ready.title}, not {dataset}: name another folder.")
    log.info("%s: prepared already in %s", ready.title, target)
    return ready


def _make_digits(target: Path) -> Dataset:
    from sklearn.datasets import load_digits  # these imports take seconds: only who needs them pays
    from sklearn.model_selection import train_test_split

    log.info("Drawing the digits that scikit-learn ships as 32x32 RGB.")
    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    images, labels = np.stack([grey] * 3, axis=1), digits.target
    rest, test = train_test_split(np.arange(len(labels)), test_size=397, stratify=labels, random_state=0)
    train, valid = train_test_split(rest, test_size=200, stratify=labels[rest], random_state=0)
    splits = {s: (images[i], labels[i]) for s, i in zip(SPLITS, (train, valid, test), strict=True)}
    source = "shipped with scikit-learn, drawn as 32x32 RGB"
    return write_dataset(target, splits, name="digits", classes=DIGITS_CLASSES, source=source)


def _make_cifar10(target: Path, copy: Path | None) -> Dataset:
    from sklearn.model_selection import train_test_split
    from torchvision.datasets import CIFAR10

    if copy:
        log.info("Reading the copy of CIFAR-10 at %s", copy)
        batches, phrase = _read_batches(copy), "a copy, MD5 as the official one"
        md5 = dict(CIFAR10.train_list + CIFAR10.test_list)
        if other := [name for name in BATCHES if batches[name][2] != md5[name]]:
            log.warning("MD5 is not the official one, accepted as you named it: %s", ", ".join(other))
            phrase = "a copy, MD5 not the official one"
    else:
        with explained(f"{target} cannot be written", "name another folder"):
            target.resolve().parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".download-", dir=target.resolve().parent) as temp:
                batches, phrase = _read_batches(_download(temp)), "the official download"
    images, labels = (np.concatenate([batches[name][i] for name in BATCHES[:5]]) for i in (0, 1))
    with explained("The training images cannot be split", "name another copy"):
        parts = train_test_split(np.arange(len(labels)), test_size=0.1, stratify=labels, random_state=0)
    splits = {s: (images[i], labels[i]) for s, i in zip(("train", "valid"), parts, strict=True)}
    splits["test"] = batches["test_batch"][:2]
    del batches, images  # 340 MB that nobody needs while the files are written
    return write_dataset(target, splits, name="cifar10", classes=CIFAR10_CLASSES, source=phrase)


def _find_copy(source: str | Path) -> Path:
    with explained(f"{str(source)!r} cannot be read", "name another copy"):
        source = Path(source).expanduser().resolve()
        for place in (source, source / "cifar-10-batches-py", source / "cifar-10-python.tar.gz"):
            if (place.is_file() and "cifar-100" not in place.name) or (place / BATCHES[0]).is_file():
                return place
        if (source / "dataset.json").is_file():
            raise DataError(f"{source} is a dataset folder already: use it as it is, or name it as out.")
        if other := _recognise(source):
            raise DataError(_not_cifar10(source, other))
    names = "the folder cifar-10-batches-py, a folder that holds it, or cifar-10-python.tar.gz"
    raise DataError(f"There is no CIFAR-10 at {source}: name (--source, CIFAR10_SOURCE) {names}.")


def _recognise(place: Path) -> str | None:
    """What else a reader may have there, in words."""
    names = {path.name for path in place.iterdir()} if place.is_dir() else {place.name} if place.exists() else set()
    if {"train", "test", "meta"} <= names or any(name.startswith("cifar-100") for name in names):
        return "CIFAR-100"
    if any("-ubyte" in name for name in (*names, *(path.name for path in place.glob("raw/*")))):
        return "data in the files of MNIST"
    below = chain.from_iterable(place.glob(pattern) for pattern in ("*", "*/*", "*/*/*"))
    pictures = any(path.suffix.lower() in PICTURES for path in islice(below, 10_000))
    if pictures or any(path.is_dir() for name in ("train", "val", "test") for path in place.glob(f"{name}/*")):
        return "a folder of pictures, as torchvision's ImageFolder reads it"
    return None


def _not_cifar10(place: Path, other: str) -> str:
    advice = "read its images and labels yourself and hand them to write_dataset (data/README.md shows how)"
    return f"{place} is {other}, and prepare makes a dataset folder of CIFAR-10 alone: {advice}."


def _read_batches(place: Path) -> dict[str, tuple[np.ndarray, np.ndarray, str]]:
    """Images, labels and MD5 of each batch in a folder or an archive; nothing is unpacked to disk."""
    with explained(f"{place} is not a whole CIFAR-10", "fetch it again"):
        if place.is_dir():
            return {name: _read_batch((place / name).read_bytes()) for name in BATCHES}
        found = {}
        with tarfile.open(place) as tar:
            for member in tar:  # in the archive's order: to go back in a gzip is to read it again
                if "cifar-100" in member.name:
                    raise DataError(_not_cifar10(place, "CIFAR-100"))
                if member.isfile() and Path(member.name).name in BATCHES:
                    found[Path(member.name).name] = _read_batch(tar.extractfile(member).read())
        if missing := sorted(set(BATCHES) - set(found)):
            raise ValueError(f"{', '.join(missing)} not found")
        return found


class _ArraysOnly(pickle.Unpickler):
    """A pickle may call whatever it names. This one knows what rebuilds an array, and imports nothing."""

    def find_class(self, module: str, name: str) -> object:
        modules = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "_codecs")
        known = {"ndarray": np.ndarray, "dtype": np.dtype, "encode": str.encode}
        known["_reconstruct"] = np.empty(0).__reduce__()[0]
        if module not in modules or name not in known:
            raise pickle.UnpicklingError(f"its pickle asks for {module}.{name}, which no image needs")
        return known[name]


def _read_batch(data: bytes) -> tuple[np.ndarray, np.ndarray, str]:
    batch = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
    batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
    images, labels = batch["data"].reshape(-1, 3, 32, 32), np.asarray(batch["labels"])
    if images.dtype != np.uint8:
        raise ValueError(f"its images are {images.dtype}")
    check_arrays(images, labels, len(CIFAR10_CLASSES))
    return images, labels, hashlib.md5(data, usedforsecurity=False).hexdigest()


def _download(folder: str) -> Path:
    """The official archive, fetched into `folder` by torchvision, which checks its MD5 and shows progress."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_url

    log.info("Downloading CIFAR-10 (170 MB) from %s", CIFAR10.url)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        download_url(CIFAR10.url, folder, CIFAR10.filename, CIFAR10.tgz_md5)
    except (RuntimeError, HTTPException) as error:
        advice = "run this again, or name a copy with --source, or ask for --dataset digits"
        raise DataError(f"The download is damaged (wrong checksum or cut short): {advice}.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise  # the disk's fault, not the network's
        advice = "CIFAR-10 needs a network once, or a copy that you name with --source"
        raise OfflineError(f"{CIFAR10.url} gives no whole answer ({error}): {advice}.") from error
    finally:
        socket.setdefaulttimeout(before)
    return Path(folder, CIFAR10.filename)
