"""What a run left behind, read from FLARE's own files: rounds, cross-site matrix, models, bytes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from tutorial_utils._read import (
    FIXED,
    read_bytes,
    read_cross_site,
    read_metric,
    read_model,
    read_rounds,
    read_scores,
    read_server_configs,
)
from tutorial_utils.errors import ResultsError
from tutorial_utils.metric import Metric

__all__ = ["Run", "mean_by_round", "read_bytes", "read_cross_site", "read_model", "read_rounds", "sha256"]

GUARD_FOLDER = "guard"  # as in _simulate/guard.py, which ships to the sites and imports nothing of ours
CHECKPOINT = re.compile("checkpoint-([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class Run:
    """One finished federated run.

    Attributes:
        folder: where everything of this run lies (job, workspace, simulator.log).
        sites: names of the sites, in order.
        seconds: wall time from start to the last process's end; of a resumed run, its own part alone.
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

    def site_folder(self, site: str) -> Path:
        return self.workspace / site / "simulate_job"

    @property
    def global_model_path(self) -> Path:
        return self.job_folder / "app_server" / "FL_global_model.pt"

    @property
    def earlier_rounds_path(self) -> Path:
        return self.folder / "earlier_rounds.jsonl"

    @property
    def cross_site_path(self) -> Path:
        return self.job_folder / "cross_site_val" / "cross_val_results.json"

    @cached_property
    def metric(self) -> Metric:
        """Which number decides, and in which direction.

        What the job says (`build_job` writes it down), else the metric of its IntimeModelSelector, else the only
        number that was measured. ResultsError where that leaves several: `matrix(name)` reads each of them.
        """
        return read_metric(self.folder / "job", lambda: self.metrics)

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The names of all numbers that the sites told, in the rounds or in the cross-site evaluation."""
        rounds = self._rounds
        names = [name for name in rounds if _is_measured(rounds, name) and rounds[name].notna().any()]
        scores = read_scores(self.cross_site_path) if self.cross_site_path.is_file() else {}
        cells = [cell for row in scores.values() for found in row.values() for cell in found.items()]
        names += [name for name, value in cells if type(value) in (int, float)]
        return tuple(dict.fromkeys(names))

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row a round and site: round, site, one column a metric, weight.

        The metrics are those of the model that the site RECEIVED in that round, on its validation data: in round r
        the average made r times, in round 0 the first weights. NaN where a site could not measure one.

        `weight` is what the site's update weighed in the average: its steps, unless the learner returned a weight.
        It is 0 for a site without one in a round where others have theirs, and NaN where FLARE noted none: for all
        sites of a round if nobody counted, and for a site that had no number to tell at all.

        Empty where the job only evaluates.
        """
        return self._follow(self._rounds)

    @cached_property
    def _rounds(self) -> pd.DataFrame:
        path = self.job_folder / "metrics" / "round_metrics.jsonl"
        if self.earlier_rounds_path.is_file():  # of the run that this one goes on from
            earlier = read_rounds(self.earlier_rounds_path, self.sites)
            return pd.concat([earlier, read_rounds(path, self.sites)], ignore_index=True) if path.is_file() else earlier
        if not path.is_file() and self._only_evaluates:
            return pd.DataFrame({"round": np.array([], int), "site": np.array([], object), "weight": np.array([])})
        return read_rounds(path, self.sites)

    def _follow(self, table: pd.DataFrame) -> pd.DataFrame:
        """The plots ask a table which metric decides."""
        with suppress(ResultsError):  # of several metrics: then a plot wants to be told
            table.attrs["metric"] = asdict(self.metric)
        return table

    @property
    def _only_evaluates(self) -> bool:
        configs = read_server_configs(self.folder / "job")
        workflows = [one for config in configs for one in config.get("workflows") or []]
        return bool(workflows) and all("CrossSite" in str(one.get("path")) for one in workflows)

    @property
    def missing(self) -> dict[int, tuple[str, ...]]:
        """The sites that sat out, for each round that lacked one: lost (min_sites), or not drawn (sampling)."""
        took_part = self._rounds.groupby("round")["site"].agg(set)
        absent = {number: tuple(site for site in self.sites if site not in who) for number, who in took_part.items()}
        return {int(number): names for number, names in absent.items() if names}

    @property
    def state(self) -> dict[str, Any]:
        """What the guard on the server saw last; {} before it saw anything."""
        return _read_dict(self.job_folder / GUARD_FOLDER / "state.json") or {}

    @property
    def checkpoint(self) -> Path | None:
        """The folder with the last global model that was safely on disk: `simulate(resume_from=...)` starts there.

        Of several, which a crash may leave, it is the last whole one: with a model, and a record that can be read.
        """
        folders = (self.job_folder / GUARD_FOLDER).glob("checkpoint-*")
        found = {int(name[1]): path for path in folders if (name := CHECKPOINT.fullmatch(path.name))}
        whole = [
            number
            for number, path in found.items()
            if (path / "FL_global_model.pt").is_file() and _read_dict(path / "checkpoint.json")
        ]
        return found[max(whole)] if whole else None

    @property
    def rounds_kept(self) -> int:
        """The rounds that the checkpoint holds."""
        return int(self.checkpoint.name.removeprefix("checkpoint-")) if self.checkpoint else 0

    @cached_property
    def cross_site(self) -> pd.DataFrame:
        """The metric that decides: a row for each site whose test data were used, a column for each model.

        The columns are the averaged models "global" and "best global" (that of the best round), then models that the
        server was given, then each site's own best. NaN where a site could not measure the metric.
        """
        return self._follow(self.matrix(self.metric.name))

    def matrix(self, name: str) -> pd.DataFrame:
        """`cross_site` of any other metric that the sites told, such as "loss". ResultsError lists which there are."""
        return read_cross_site(self.cross_site_path, name, self.sites)

    @cached_property
    def global_model(self) -> dict[str, torch.Tensor]:
        """The state dict after the last round."""
        if not self.global_model_path.is_file() and self._only_evaluates:
            raise ResultsError(f"The job of {self.folder} only evaluates, so it has no global model.")
        return read_model(self.global_model_path)

    @cached_property
    def best_model(self) -> dict[str, torch.Tensor] | None:
        """The global model that scored best on the validation data, None after a single round.

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
        return read_bytes(self.job_folder / GUARD_FOLDER / "messages.json")

    def log(self, who: str = "server") -> str:
        """The log of one site, or of the "server"."""
        path = self.workspace / who / "log.txt"
        if who not in ("server", *self.sites) or not path.is_file():
            raise ResultsError(f"No log of {who!r}: ask for 'server' or one of {', '.join(self.sites)}.")
        return path.read_text(encoding="utf-8", errors="replace")


def _read_dict(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds; None where it is not there, half written, or no dict."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _is_measured(rounds: pd.DataFrame, name: str) -> bool:
    return name in rounds and name not in FIXED and rounds[name].dtype.kind in "iuf"


def mean_by_round(rounds: pd.DataFrame, metric: str) -> pd.Series:
    """The sites' metric in each round, averaged as the model is: by the sites' weights.

    A site without the metric is left out. Where no weight is left (nobody counted, or those that did could not measure
    it), every site counts once; where no metric is left, the mean is NaN. ResultsError if it is no number anywhere.
    """
    if not _is_measured(rounds, metric):
        raise ResultsError(f"The rounds have no numbers called {metric}: choose from {', '.join(rounds.columns)}.")
    told = rounds[rounds[metric].notna()]
    weights = told["weight"].fillna(0).astype(float)
    totals = weights.groupby(told["round"]).transform("sum")
    counts = told.groupby("round")["site"].transform("size")
    shares = (weights / totals).where(totals > 0, 1 / counts)
    parts = (told[metric] * shares).where(shares > 0, 0)  # an infinite value of no weight is none
    return parts.groupby(told["round"]).sum().reindex(sorted(set(rounds["round"]))).rename(metric).rename_axis("round")


def sha256(state: Mapping[str, torch.Tensor | np.ndarray]) -> str:
    """SHA-256 over the names, types, shapes and bytes of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = _as_array(state[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _as_array(value: torch.Tensor | np.ndarray) -> np.ndarray:
    """The same bytes, type and shape; what numpy has no type for (bfloat16) by its name and its bits."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        if value.dtype == torch.bfloat16:
            return value.view(torch.int16).numpy().view([("bfloat16", "i2")])
    return np.asarray(value, order="C")
