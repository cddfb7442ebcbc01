"""The one shape of all data here, a dataset folder: how it is written, read and verified.

A dataset folder holds train.npz, valid.npz, test.npz (`images` uint8 [N, 3, 32, 32], `labels` int64 [N]) and
dataset.json. No split serves two purposes: train gives gradients, valid chooses models, test is reported.
"""

from __future__ import annotations

import errno
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tutorial_utils.errors import DataError, TutorialError

SPLITS = ("train", "valid", "test")
FORMAT = 1
Arrays = tuple[np.ndarray, np.ndarray]
PathLike = str | Path


@dataclass(frozen=True)
class Dataset:
    """What lies in a dataset folder; `source` is one phrase that says where it came from."""

    folder: Path
    name: str
    classes: tuple[str, ...]
    source: str
    counts: dict[str, int]
    sha256: dict[str, str]
    site: str | None = None

    @property
    def title(self) -> str:
        """The name for people, to stand in every printed line and figure."""
        return {"cifar10": "CIFAR-10", "digits": "scikit-learn digits"}.get(self.name, self.name)

    def arrays(self, split: str) -> Arrays:
        """Images uint8 [N, 3, 32, 32] and labels int64 [N] of one of SPLITS; DataError if damaged."""
        if split not in SPLITS:
            raise DataError(f"{self.folder} has no split {split!r}: ask for train, valid or test.")
        with explained(f"{self.folder} is damaged: delete it and prepare it again"):
            with np.load(self.folder / f"{split}.npz", allow_pickle=False) as file:
                images, labels = file["images"], file["labels"]
            check_arrays(images, labels, len(self.classes))
            count = self.counts[split]
            if labels.dtype != np.int64 or type(count) is not int or len(labels) != count:  # True is no count
                raise ValueError(f"{len(labels)} {split} labels of type {labels.dtype}")
            return images, labels


def check_arrays(images: np.ndarray, labels: np.ndarray, classes: int) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (3, 32, 32) or not len(images):
        raise ValueError(f"images are {images.dtype} {list(images.shape)}, not uint8 [N, 3, 32, 32]")
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)} for {len(images)} images")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels lie outside 0..{classes - 1}")


def check_texts(name: str, source: str, site: str | None, classes: Sequence[str]) -> None:
    texts = (name, source, *classes, *(() if site is None else (site,)))
    if not all(isinstance(text, str) and text.isprintable() for text in texts):
        raise TypeError("name, source, site and classes must be text that can be printed")
    if len(set(classes)) != len(classes):
        raise ValueError("two classes have the same name")


def reason(error: Exception) -> str:
    """Why, in a line: a damaged file can put anything into an error's text, and torch's own fill a page."""
    text = f"no {error}" if isinstance(error, KeyError) else str(error)
    return text[:300] if text and text.isprintable() else type(error).__name__


@contextmanager
def explained(sentence: str) -> Iterator[None]:
    """What fails in here (a damaged file can raise anything) becomes a DataError: sentence (reason)."""
    try:
        yield
    except TutorialError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            sentence = f"{sentence.partition(': ')[0]}: the disk is full; free 1 GB there and run this again"
        raise DataError(f"{sentence} ({reason(error)}).") from error


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill beside `target`: renamed to it in one step at the end, gone after error or interrupt.

    If another process was quicker, its folder stays and this one goes: read what lies there afterwards.
    """
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temp:
        folder = Path(temp, target.name)  # one deeper: a temporary folder itself is closed to other users
        folder.mkdir()
        yield folder
        try:
            folder.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def write_dataset(
    folder: PathLike,
    splits: Mapping[str, Arrays],
    *,
    name: str,
    classes: Sequence[str],
    source: str,
    site: str | None = None,
) -> Dataset:
    """Write a dataset folder, whole or not at all. `splits` maps each of SPLITS to (images, labels).

    DataError: wrong arrays, a disk that is full or refuses, other data in the folder already.
    """
    folder, counts, sha256 = expand(folder), {}, {}
    about = {"format": FORMAT, "name": name, "classes": list(classes), "source": source, "site": site}
    with explained(f"{folder} cannot be written: name another folder"), new_folder(folder) as temp:
        check_texts(name, source, site, classes)
        for split in SPLITS:
            images, labels = splits[split]
            check_arrays(images, labels, len(classes))
            np.savez(temp / f"{split}.npz", images=images, labels=labels.astype(np.int64))
            counts[split], sha256[split] = len(labels), _sha256(temp / f"{split}.npz")
        card = json.dumps(about | {"counts": counts, "sha256": sha256}, indent=2)
        (temp / "dataset.json").write_text(card + "\n", encoding="utf-8")
    written = read_dataset(folder)
    if written.sha256 != sha256:
        raise DataError(f"{folder} holds other data already: delete it or name another folder.")
    return written


def expand(path: PathLike) -> Path:
    """The path, with ~ filled in; DataError where there is no such user."""
    with explained(f"{path} cannot be used: name another folder"):
        return Path(path).expanduser()


def _sha256(path: Path) -> str:
    return hashlib.sha256(np.memmap(path, np.uint8, mode="r")).hexdigest()


def read_dataset(folder: PathLike) -> Dataset:
    """The dataset in a folder, every file of it verified (SHA-256, shapes); DataError says what is wrong."""
    folder = expand(folder)
    with explained(f"{folder} is damaged: delete it and prepare it again"):
        if not (folder / "dataset.json").is_file():
            raise DataError(
                f"{folder} has no dataset.json: data/download.py makes a dataset folder, data/split.py site folders."
            )
        card = json.loads((folder / "dataset.json").read_bytes())
        if card.pop("format") != FORMAT:
            raise DataError(f"{folder} was prepared by another version: delete it and prepare it again.")
        if not isinstance(card["classes"], list) or not set(card["counts"]) == set(card["sha256"]) == set(SPLITS):
            raise TypeError("dataset.json has something else where the classes, counts or SHA-256 belong")
        dataset = Dataset(folder=folder, **card | {"classes": tuple(card["classes"])})
        check_texts(dataset.name, dataset.source, dataset.site, dataset.classes)
        for split in SPLITS:
            if _sha256(folder / f"{split}.npz") != dataset.sha256[split]:
                raise ValueError(f"{split}.npz is not the file that was written, its SHA-256 differs")
            dataset.arrays(split)
    return dataset
