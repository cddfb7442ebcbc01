"""The one shape of all images here, a dataset folder: how it is written, read and verified.

A dataset folder holds train.npz, valid.npz, test.npz (`images` [N, C, H, W] of one size and type, `labels` int64 [N])
and dataset.json. No split serves two purposes: train gives gradients, valid chooses models, test is reported.
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
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from tutorial_utils.errors import DataError, TutorialError

SPLITS = ("train", "valid", "test")
FORMAT = 2
Arrays = tuple[np.ndarray, np.ndarray]
PathLike = str | Path
T = TypeVar("T")


@dataclass(frozen=True)
class Dataset:
    """What lies in a dataset folder.

    Attributes:
        folder: where it lies, an absolute path.
        name, classes: of the data, and of the labels 0, 1, 2, ...
        source: one phrase that says where the images came from.
        counts, sha256: the images of each split, and the SHA-256 of its file.
        shape, dtype: of one image, such as (3, 32, 32) and "uint8".
        site: whose images these are, None for the whole.
        part_of: `sha256` of the dataset that these images were taken from, None for the whole.
    """

    folder: Path
    name: str
    classes: tuple[str, ...]
    source: str
    counts: dict[str, int]
    sha256: dict[str, str]
    shape: tuple[int, int, int]
    dtype: str
    site: str | None = None
    part_of: dict[str, str] | None = None

    @property
    def title(self) -> str:
        """The name for people, to stand in every printed line and figure."""
        return {"cifar10": "CIFAR-10", "digits": "scikit-learn digits"}.get(self.name, self.name)

    def arrays(self, split: str) -> Arrays:
        """Images [N, *shape] of type `dtype` and labels int64 [N] of one of SPLITS; DataError if damaged."""
        if split not in SPLITS:
            raise DataError(f"{self.folder} has no split {split!r}: ask for train, valid or test.")
        with explained(f"{self.folder} is damaged", "delete it and make it again"):
            with np.load(self.folder / f"{split}.npz", allow_pickle=False) as file:
                images, labels = file["images"], file["labels"]
            check_arrays(images, labels, len(self.classes))
            count = self.counts[split]
            if labels.dtype != np.int64 or type(count) is not int or len(labels) != count:  # True is no count
                raise ValueError(f"{len(labels)} {split} labels of type {labels.dtype}")
            if (images.dtype.name, images.dtype.isnative, images.shape[1:]) != (self.dtype, True, self.shape):
                raise ValueError(f"the {split} images are {images.dtype} {list(images.shape)}")
            return images, labels


def to_arrays(images: ArrayLike, labels: ArrayLike) -> Arrays:
    """Arrays of what people have: of lists and tensors, of grey images without a channel, of any byte order."""
    try:
        images, labels = np.asarray(images), np.asarray(labels)
    except (TypeError, ValueError, RuntimeError) as error:  # numpy, and torch with a gradient or on another device
        raise ValueError(
            f"images and labels make no arrays ({reason(error)}): all images must be of one size"
        ) from error
    images = images[:, None] if images.ndim == 3 else images
    return np.asarray(images, images.dtype.newbyteorder("="), order="C"), labels


def check_arrays(images: np.ndarray, labels: np.ndarray, classes: int) -> None:
    """ValueError says what is wrong with images or labels, and what to do."""
    shape, kind = list(images.shape), images.dtype
    if kind.kind not in "buifc" or kind.itemsize > (16 if kind.kind == "c" else 8):
        raise ValueError(f"images are of type {kind}: give numbers that torch knows, such as uint8 or float32")
    if images.ndim != 4 or 0 in shape:
        raise ValueError(f"images are {shape}: give at least one, as [N, C, H, W], or [N, H, W] where they are grey")
    if shape[1] > 4 and (shape[3] in (3, 4) or (shape[3] == 1 and shape[1] == shape[2])):
        raise ValueError(f"images are {shape}, channels last: give images.transpose(0, 3, 1, 2), which is [N, C, H, W]")
    if kind.kind in "fc" and (bad := np.count_nonzero(~np.isfinite(images).all(axis=(1, 2, 3)))):
        raise ValueError(f"images hold NaN or infinite values, {bad} of {shape[0]}: mend them or leave them out")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels are of type {labels.dtype}: give whole numbers, the classes counted from 0")
    if labels.shape != (shape[0],):
        raise ValueError(f"labels are {list(labels.shape)} for {shape[0]} images: give one number for each image")
    if labels.min() < 0 or labels.max() >= classes:
        span = f"labels go from {labels.min()} to {labels.max()}"
        raise ValueError(f"{span}, and {classes} classes have names: count labels from 0, and name every class")


def check_texts(name: str, source: str, site: str | None, classes: Sequence[str]) -> None:
    """TypeError or ValueError for a card's texts that nobody could print or tell apart."""
    if isinstance(classes, str):
        raise TypeError("classes are one text: give a list of names")
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
def explained(what: str, advice: str) -> Iterator[None]:
    """What fails in here (a damaged file can raise anything) becomes a DataError: what (reason): advice."""
    try:
        yield
    except TutorialError:
        raise
    except Exception as error:
        why = reason(error)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            why, advice = "the disk is full", "free 1 GB there and run this again"
        raise DataError(f"{what} ({why}): {advice}.") from error


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
    splits: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    name: str,
    classes: Sequence[str],
    source: str,
    site: str | None = None,
    part_of: Mapping[str, str] | None = None,
) -> Dataset:
    """Write images of your own as a dataset folder, whole or not at all.

    Args:
        splits: for each of train, valid and test the pair (images, labels). Images are numbers of any type, [N, C, H,
            W], or [N, H, W] where they are grey (kept as [N, 1, H, W]); of one size and type in all three. Labels
            are N whole numbers, arrays or lists, the classes counted from 0.
        name, classes, source, site, part_of: see Dataset; they stand in every title, and in dataset.json.

    DataError: arrays or texts that cannot be used, a disk that is full or refuses, other data in the folder already.
    """
    folder = expand(folder)
    about = {
        "name": name,
        "classes": classes,
        "source": source,
        "site": site,
        "part_of": None if part_of is None else dict(part_of),
    }
    card, arrays = _make_card(splits, about)
    with explained(f"{folder} cannot be written", "name another folder"), new_folder(folder) as temp:
        for split, (images, labels) in arrays.items():
            np.savez(temp / f"{split}.npz", images=images, labels=labels.astype(np.int64))
            card["sha256"][split] = _sha256(temp / f"{split}.npz")
        (temp / "dataset.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    if not (folder / "dataset.json").is_file():
        raise DataError(f"{folder} holds other files: name another folder.")
    written = read_dataset(folder)
    if written.sha256 != card["sha256"]:
        raise DataError(f"{folder} holds other data already: delete it or name another folder.")
    there = {key: getattr(written, key) for key in about} | {"classes": list(written.classes)}
    if other := [f"{key} {there[key]!r:.60}, not {card[key]!r:.60}" for key in about if there[key] != card[key]]:
        raise DataError(f"{folder} holds these images as {'; '.join(other)}: delete it or name another folder.")
    return written


def _make_card(splits: Mapping[str, Any], about: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Arrays]]:
    """dataset.json, but for the SHA-256 of the files, and the arrays to write; DataError names what is wrong."""
    pairs = isinstance(splits, Mapping) and all(isinstance(pair, tuple | list) for pair in splits.values())
    if not pairs or set(splits) != set(SPLITS) or {len(pair) for pair in splits.values()} != {2}:
        raise DataError("The splits are a dict of train, valid and test, each a pair (images, labels), and no others.")
    arrays = {}
    try:
        check_texts(*(about[key] for key in ("name", "source", "site", "classes")))
    except (TypeError, ValueError) as error:
        raise DataError(f"The dataset cannot be described so: {error}.") from error
    for split in SPLITS:
        try:
            arrays[split] = to_arrays(*splits[split])
            check_arrays(*arrays[split], len(about["classes"]))
        except (TypeError, ValueError) as error:
            raise DataError(f"The {split} {error}.") from error
    kinds = {split: f"{images.dtype} {list(images.shape[1:])}" for split, (images, _) in arrays.items()}
    if len(set(kinds.values())) > 1:
        told = ", ".join(f"{split} {kind}" for split, kind in kinds.items())
        raise DataError(f"All images must be of one type and size, and these are {told}: bring them to one.")
    images, counts = arrays["train"][0], {split: len(labels) for split, (_, labels) in arrays.items()}
    about = about | {"classes": list(about["classes"]), "shape": list(images.shape[1:]), "dtype": images.dtype.name}
    return {"format": FORMAT} | about | {"counts": counts, "sha256": {}}, arrays


def expand(path: PathLike) -> Path:
    """The path in full, seen from here: ~ filled in, absolute. A link at its end stays a link, so that what is made
    beside it lies where its reader looks. DataError where there is no such user, or no such path can be."""
    with explained(f"{str(path)!r} cannot be used", "name another folder"):
        path = Path(path).expanduser().absolute()
        return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def _sha256(path: Path) -> str:
    return hashlib.sha256(np.memmap(path, np.uint8, mode="r")).hexdigest()


def read_dataset(folder: PathLike) -> Dataset:
    """The dataset in a folder, every file of it verified (SHA-256, shapes); DataError says what is wrong."""
    folder = expand(folder)
    with explained(f"{folder} is damaged", "delete it and make it again"):
        if not (folder / "dataset.json").is_file():
            raise DataError(
                f"{folder} has no dataset.json: write_dataset makes a dataset folder of your images, data/download.py "
                "one of CIFAR-10 or the digits, data/split.py those of the sites."
            )
        card = json.loads((folder / "dataset.json").read_bytes())
        if card.pop("format") != FORMAT:
            raise DataError(f"{folder} was prepared by another version: delete it and prepare it again.")
        dataset = Dataset(folder=folder, **card | {key: tuple(_need(list, card[key])) for key in ("classes", "shape")})
        check_texts(dataset.name, dataset.source, dataset.site, dataset.classes)
        if not all(type(size) is int for size in dataset.shape) or set(dataset.counts) != set(SPLITS):
            raise TypeError("dataset.json has something else where the shape or the counts belong")
        for sums in (dataset.sha256, *(() if dataset.part_of is None else (dataset.part_of,))):
            if set(_need(dict, sums)) != set(SPLITS) or not all(isinstance(one, str) for one in sums.values()):
                raise TypeError("dataset.json has something else where a SHA-256 belongs")
        for split in SPLITS:
            if _sha256(folder / f"{split}.npz") != dataset.sha256[split]:
                raise ValueError(f"{split}.npz is not the file that was written, its SHA-256 differs")
            dataset.arrays(split)
    return dataset


def _need(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"dataset.json has {value!r:.40} where a {kind.__name__} belongs")
    return value
