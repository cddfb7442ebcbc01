"""What a run left behind, read from FLARE's own files: rounds, cross-site matrix, models, bytes."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from tutorial_utils._simulate.guard import FOLDER as GUARD_FOLDER
from tutorial_utils.errors import ResultsError
from tutorial_utils.folder import reason

SERVER_MODELS = {"SRV_FL_global_model.pt": "global", "SRV_best_FL_global_model.pt": "best global"}
MEBIBYTE = 2**20
LARGE = sys.float_info.max
T = TypeVar("T")


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

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row a round and site: round, site, one column a metric, steps.

        The metrics are those of the model that the site RECEIVED in that round, on its validation images:
        in round r the average made r times, in round 0 the first weights.
        """
        path = self.job_folder / "metrics" / "round_metrics.jsonl"
        if not self.earlier_rounds_path.is_file():
            return read_rounds(path)
        earlier = read_rounds(self.earlier_rounds_path)  # of the run that this one goes on from
        return pd.concat([earlier, read_rounds(path)], ignore_index=True) if path.is_file() else earlier

    @property
    def earlier_rounds_path(self) -> Path:
        return self.folder / "earlier_rounds.jsonl"

    @property
    def missing(self) -> dict[int, tuple[str, ...]]:
        """The sites that had no part in a round, for each round that lacked one: only with min_sites."""
        took_part = self.rounds.groupby("round")["site"].agg(set)
        absent = {number: tuple(site for site in self.sites if site not in who) for number, who in took_part.items()}
        return {int(number): names for number, names in absent.items() if names}

    @property
    def state(self) -> dict[str, Any]:
        """What the guard on the server saw last; {} before it saw anything."""
        try:
            return json.loads((self.job_folder / GUARD_FOLDER / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    @property
    def checkpoint(self) -> Path | None:
        """The folder with the last global model that was safely on disk: `simulate(resume_from=...)` starts there."""
        return next(iter((self.job_folder / GUARD_FOLDER).glob("checkpoint-*")), None)

    @property
    def rounds_kept(self) -> int:
        """The rounds that the checkpoint holds."""
        return int(self.checkpoint.name.removeprefix("checkpoint-")) if self.checkpoint else 0

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
        return read_bytes(self.job_folder / GUARD_FOLDER / "messages.json")

    def log(self, who: str = "server") -> str:
        """The log of one site, or of the "server"."""
        path = self.workspace / who / "log.txt"
        if not path.is_file():
            raise ResultsError(f"No log of {who!r}: ask for 'server' or one of {', '.join(self.sites)}.")
        return path.read_text(encoding="utf-8", errors="replace")


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """A damaged file can raise anything: it becomes a ResultsError that names the file and what it should hold."""
    try:
        yield
    except FileNotFoundError as error:
        raise ResultsError(f"{path} is missing: the job ended before it wrote {what}.") from error
    except Exception as error:
        raise ResultsError(f"{path} does not hold {what} ({reason(error)}): run the job again.") from error


def _need(what: str, value: object, kind: type[T]) -> T:
    """The value, if it is of just this type (True is no int), and of a text only one that can be printed."""
    if type(value) is not kind or (kind is str and not (value and value.isprintable())):
        raise ValueError(f"{what} is {value!r:.40}")
    return value


def _number(what: str, value: object, least: float = -LARGE, most: float = LARGE) -> float:
    if type(value) not in (int, float) or not least <= value <= most:  # NaN lies nowhere
        raise ValueError(f"{what} is {value!r:.40}")
    return value


def _metric(name: str, value: object) -> float | str | bool:
    """Accuracy is a number in 0..1; FLARE writes other metrics as numbers, words, True or False."""
    if name == "accuracy":
        return _number(name, value, 0, 1)
    return value if isinstance(value, (str, bool)) else _number(name, value)


def read_rounds(path: Path) -> pd.DataFrame:
    """FLARE's round_metrics.jsonl as a table (see Run.rounds); steps are NaN for a site that counted none.

    A metric called round, site or steps is left out. ResultsError if the file is missing, damaged or senseless.
    """
    rows = {}
    with _reading(path, "the metrics of its rounds"):
        for line in filter(None, path.read_text(encoding="utf-8").split("\n")):
            record = json.loads(line)
            number = _number("round", _need("round", record["round"], int), 0, 1e6)
            for site in _need("sites", record["sites"], list):
                metrics = _need("metrics", site["metrics"], list)
                row = {"round": number, "site": _need("site", site["name"], str)}
                steps = _number("steps", site["weight"], sys.float_info.min, 1e15) if "weight" in site else np.nan
                named = {_need("metric", m["name"], str): _metric(m["name"], m["value"]) for m in metrics}
                if (number, row["site"]) in rows:
                    raise ValueError(f"round {number} has {row['site']} twice")
                rows[number, row["site"]] = row | named | row | {"steps": steps}
    if not rows:
        raise ResultsError(f"{path} holds no round: the job ended before its first round did.")
    return pd.DataFrame(list(rows.values())).sort_values(["round", "site"], ignore_index=True)


def mean_by_round(rounds: pd.DataFrame, metric: str = "accuracy") -> pd.Series:
    """The sites' metric in each round, averaged as the model is: weighted by the sites' steps.

    As in FLARE's average, a site that counted no steps weighs as much as one step. A site without the metric is
    left out. ResultsError if it is no number anywhere.
    """
    if metric not in rounds or not pd.api.types.is_numeric_dtype(rounds[metric]):
        raise ResultsError(f"The rounds have no numbers called {metric}: choose from {', '.join(rounds.columns)}.")
    weights = rounds["steps"].fillna(1).where(rounds[metric].notna())
    return (rounds[metric] * weights).groupby(rounds["round"]).sum() / weights.groupby(rounds["round"]).sum()


def read_cross_site(path: Path) -> pd.DataFrame:
    """FLARE's cross_val_results.json as a table (see Run.cross_site). ResultsError if missing, damaged or senseless."""
    with _reading(path, "its cross-site matrix"):
        results = _need("the file", json.loads(path.read_text(encoding="utf-8")), dict)
        cells = {
            site: {
                SERVER_MODELS.get(model, model): _metric("accuracy", scores["accuracy"])
                for model, scores in row.items()
            }
            for site, row in results.items()
        }
        models = {_need("model", model, str) for row in cells.values() for model in row}
        if any(len(cells[_need("site", site, str)]) != len(row) for site, row in results.items()):
            raise ValueError("two models have the same name")
        columns = [name for name in SERVER_MODELS.values() if name in models]
        columns += sorted(models - set(columns), key=_by_number)
        frame = pd.DataFrame(cells, columns, sorted(cells, key=_by_number), dtype=float).T
    return frame.rename_axis(index="test images of", columns="model")


def _by_number(name: str) -> tuple[str, int]:
    """site-2 before site-10."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0)


def read_model(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a file of FLARE's PyTorch persistor. Nothing in the file is executed."""
    with _reading(path, "a model"):
        state = torch.load(path, map_location="cpu", weights_only=True)["model"]
        if not state:
            raise ValueError("it has no weights")
        return {_need("name", name, str): torch.as_tensor(value) for name, value in state.items()}


def read_bytes(path: Path) -> int:
    """The total of FLARE's histograms of stream sizes, which it keeps in MiB."""
    with _reading(path, "FLARE's message statistics"):
        pools = json.loads(path.read_text(encoding="utf-8"))
        sizes = [
            _number("total", bar["total"], 0)
            for name in ("sent_stream_sizes", "received_stream_sizes")
            for bars in _need("cat_data", pools[name]["pool"]["cat_data"], dict).values()
            for bar in _need("bars", bars, list)
            if bar != ""  # nothing was counted there
        ]
        return round(sum(sizes) * MEBIBYTE)


def sha256(state: Mapping[str, torch.Tensor | np.ndarray]) -> str:
    """SHA-256 over the names, types, shapes and bytes of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = np.ascontiguousarray(np.asarray(state[name]))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
