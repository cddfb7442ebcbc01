"""What every contestant is told and leaves behind. The standard library and numpy only: all of them import it."""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

CODE = Path(__file__).resolve().parents[2] / "code"  # the folder of dl/ and fl/


@dataclass(frozen=True)
class Spec:
    """One run: the same for every contestant.

    Attributes:
        data: the folder of the site folders (for the ancestor: one dataset folder, which every site reads whole).
        out: an empty folder of this run's own; `leave` writes there.
        sites, rounds, epochs, batch_size, lr, momentum, seed: as in fl.job.build_job; epochs are local.
        threads: sites that run at once, all of them if None.
    """

    data: str
    out: str
    sites: int = 2
    rounds: int = 5
    epochs: int = 1
    batch_size: int = 32
    lr: float = 0.01
    momentum: float = 0.9
    seed: int = 0
    threads: int | None = None

    @property
    def names(self) -> list[str]:
        return [f"site-{number}" for number in range(1, self.sites + 1)]

    @property
    def training(self) -> dict[str, Any]:
        """What tutorial_utils.settings.Training takes."""
        wanted = ("epochs", "batch_size", "lr", "momentum", "seed")
        return {name: value for name, value in asdict(self).items() if name in wanted}

    def write(self) -> Path:
        path = Path(self.out) / "spec.json"
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: str | Path) -> Spec:
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))

    def leave(self, params: Mapping[str, np.ndarray], **result: Any) -> None:
        """Write the final global weights (model.npz) and whatever else is worth telling (result.json)."""
        np.savez(Path(self.out) / "model.npz", **params)
        (Path(self.out) / "result.json").write_text(json.dumps(result), encoding="utf-8")


def round_seed(seed: int, site: str, number: int) -> int:
    """tutorial_utils.learner.round_seed, written again for those who do not import FLARE."""
    return seed if number == 0 else zlib.crc32(f"{seed}/{site}/{number}".encode())


@contextmanager
def stamp(stamps: list[dict[str, Any]], phase: str) -> Iterator[None]:
    """Add {phase, begin, end} in seconds of the wall clock, which all processes of a machine share."""
    begin = time.time()
    yield
    stamps.append({"phase": phase, "begin": begin, "end": time.time()})


def find_code() -> None:
    """Let dl and fl be imported, as the notebooks and scripts do it."""
    if str(CODE) not in sys.path:
        sys.path.insert(0, str(CODE))
