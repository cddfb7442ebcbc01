"""What a run left behind, read from FLARE's own files: rounds, cross-site matrix, models, bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from tutorial_utils.settings import TutorialError

SERVER_MODELS = {"SRV_FL_global_model.pt": "global", "SRV_best_FL_global_model.pt": "best global"}
MEBIBYTE = 2**20


class ResultsError(TutorialError):
    """A run's file is missing or does not hold what it should."""


@dataclass(frozen=True)
class Run:
    """One finished federated run.

    Attributes:
        folder: where everything of this run lies (job, workspace, simulator.log).
        sites: names of the sites, in order.
        seconds: wall time from start to the last process's end.
    """

    folder: Path
    sites: tuple[str, ...]
    seconds: float

    @property
    def workspace(self) -> Path:
        """The simulator's workspace: one folder for the server, one a site."""
        return self.folder / "workspace"

    @property
    def job_folder(self) -> Path:
        return self.workspace / "server" / "simulate_job"

    @property
    def global_model_path(self) -> Path:
        return self.job_folder / "app_server" / "FL_global_model.pt"

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row a round and site: round, site, one column a metric, steps.

        The metrics are those of the model that the site RECEIVED in that round, on its validation images:
        in round r the average made r times, in round 0 the first weights.
        """
        return read_rounds(self.job_folder / "metrics" / "round_metrics.jsonl")

    @cached_property
    def cross_site(self) -> pd.DataFrame:
        """Accuracy 0..1: a row for each site whose test images were used, a column for each model."""
        return read_cross_site(self.job_folder / "cross_site_val" / "cross_val_results.json")

    @cached_property
    def global_model(self) -> dict[str, torch.Tensor]:
        """The state dict after the last round."""
        return read_model(self.global_model_path)

    @cached_property
    def best_model(self) -> dict[str, torch.Tensor] | None:
        """The global model that scored best on the validation images, None after a single round.

        FLARE scores a model when the next round hands it out, so the last average is never a candidate.
        """
        path = self.global_model_path.with_name("best_FL_global_model.pt")
        return read_model(path) if path.is_file() else None

    @property
    def sha256(self) -> str:
        """Fingerprint of the global model: equal only if every bit of every weight is equal."""
        return sha256(self.global_model)

    @cached_property
    def bytes(self) -> int:
        """Bytes that the server sent and received in streams, models included, as FLARE counted them."""
        return read_bytes(self.workspace / "server" / "pool_stats" / "simulator_cell_stats.json")

    def log(self, who: str = "server") -> str:
        """The log of one site, or of the "server"."""
        path = self.workspace / who / "log.txt"
        if not path.is_file():
            raise ResultsError(f"No log of {who!r}: ask for 'server' or one of {', '.join(self.sites)}.")
        return path.read_text(encoding="utf-8", errors="replace")


def read_rounds(path: Path) -> pd.DataFrame:
    """FLARE's round_metrics.jsonl as a table (see Run.rounds). ResultsError if it is missing or damaged."""
    rows = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            for site in record["sites"]:
                metrics = {metric["name"]: metric["value"] for metric in site["metrics"]}
                rows.append({"round": record["round"], "site": site["name"], **metrics, "steps": site.get("weight")})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{path} does not hold the metrics of the rounds ({error}): run the job again.") from error
    if not rows:
        raise ResultsError(f"{path} holds no round: the job ended before its first round did.")
    return pd.DataFrame(rows).sort_values(["round", "site"], ignore_index=True)


def mean_by_round(rounds: pd.DataFrame, metric: str = "accuracy") -> pd.Series:
    """The sites' metric in each round, averaged as the model is: weighted by the sites' steps."""
    weighted = (rounds[metric] * rounds["steps"]).groupby(rounds["round"]).sum()
    return weighted / rounds["steps"].groupby(rounds["round"]).sum()


def read_cross_site(path: Path) -> pd.DataFrame:
    """FLARE's cross_val_results.json as a table (see Run.cross_site). ResultsError if missing or damaged."""
    try:
        results: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        cells = {
            site: {SERVER_MODELS.get(model, model): metrics["accuracy"] for model, metrics in row.items()}
            for site, row in results.items()
        }
        frame = pd.DataFrame.from_dict(cells, orient="index", dtype=float)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{path} does not hold a cross-site matrix ({error}): run the job again.") from error
    order = [name for name in SERVER_MODELS.values() if name in frame.columns]
    order += sorted(set(frame.columns) - set(order), key=_by_number)
    frame = frame.loc[sorted(frame.index, key=_by_number), order]
    return frame.rename_axis(index="test images of", columns="model")


def _by_number(name: str) -> tuple[str, int]:
    """site-2 before site-10."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0)


def read_model(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a file of FLARE's PyTorch persistor. Nothing in the file is executed."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["model"]
        return {name: torch.as_tensor(value) for name, value in state.items()}
    except FileNotFoundError as error:
        raise ResultsError(f"{path} is missing: the job saved no model.") from error
    except Exception as error:
        raise ResultsError(f"{path} does not hold a model ({type(error).__name__}): run the job again.") from error


def read_bytes(path: Path) -> int:
    """The total of FLARE's histograms of stream sizes, which it keeps in MiB."""
    try:
        pools = json.loads(path.read_text(encoding="utf-8"))
        bars = [
            bar["total"]
            for name in ("sent_stream_sizes", "received_stream_sizes")
            for histogram in pools[name]["pool"]["cat_data"].values()
            for bar in histogram
            if bar
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{path} does not hold FLARE's message statistics ({error}).") from error
    return round(sum(bars) * MEBIBYTE)


def sha256(state: Mapping[str, torch.Tensor | np.ndarray]) -> str:
    """SHA-256 over the names, types, shapes and bytes of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = np.ascontiguousarray(np.asarray(state[name]))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
