"""What a site keeps on its disk, so that a process that FLARE starts anew, or a resumed run, goes on with it.

This file ships with every job: it imports torch, and metric.py and values.py beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutorial_utils.metric import Metric
from tutorial_utils.values import LearnerError


def save_safely(value: object, path: Path) -> None:
    """torch.save; a process that is killed while saving leaves the old file whole."""
    half_written = path.with_suffix(".tmp")
    torch.save(value, half_written)
    half_written.replace(path)


class BestModel:
    """The best model that a site has trained in this job. On disk: a process that FLARE starts anew goes on with it.

    Args:
        folder: the app's own folder at the site, where FLARE keeps the job (the learner's `app_root`).
        metric: which of two scores is better.
    """

    def __init__(self, folder: str | Path, metric: Metric) -> None:
        self.path = Path(folder) / "best_local_model.pt"
        self.metric = metric

    def offer(self, score: float, round_number: int | None, params: Mapping[str, Any]) -> None:
        """Keep these weights (tensors or arrays) if they beat all earlier ones; the first are kept in any case."""
        score = float(score)
        if self.path.is_file() and not self.metric.better(score, self.load()["score"]):
            return
        kept = {name: torch.as_tensor(value).cpu() for name, value in params.items()}
        save_safely({"score": score, "round": round_number, "params": kept}, self.path)

    def load(self) -> dict[str, Any]:
        """Its `score`, `round` and `params` (tensors). LearnerError before the first round."""
        if not self.path.is_file():
            raise LearnerError("This site has no best model yet: train at least one round first.")
        return torch.load(self.path, weights_only=True)


class SiteState:
    """What a learner keeps from round to round, on disk: by round, so that a resumed run finds the one it goes on from.

    Args:
        folder: as in BestModel.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def _files(self) -> dict[int, Path]:
        found = {path.stem.rpartition("_")[2]: path for path in self.folder.glob("learner_state_*.pt")}
        return {int(number): path for number, path in found.items() if number.isdecimal()}

    def save(self, round_number: int, state: dict[str, Any], local: dict[str, Tensor]) -> None:
        """Keep what this round has left, and of the earlier ones the last: the server may not have this one yet.

        What later rounds have left goes too: they will be done again.
        """
        save_safely({"state": state, "local": local}, self.folder / f"learner_state_{round_number}.pt")
        files = self._files()
        kept = sorted(number for number in files if number <= round_number)[-2:]
        for number in files.keys() - set(kept):
            files[number].unlink()

    def load(self, before: int | None) -> dict[str, Any] | None:
        """What the last round before this one has left (of all, if None); None where there was none."""
        rounds = [number for number in self._files() if before is None or number < before]
        return torch.load(self._files()[max(rounds)], weights_only=True) if rounds else None
