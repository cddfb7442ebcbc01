"""FLARE's own files as tables, models and numbers. A damaged or a senseless one is a ResultsError that names it.

What may be empty is NaN: a metric that a site could not measure is no reason to lose a run.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from tutorial_utils.errors import EncryptedError, ResultsError
from tutorial_utils.folder import reason
from tutorial_utils.metric import Metric

SERVER_MODELS = {"SRV_FL_global_model.pt": "global", "SRV_best_FL_global_model.pt": "best global"}
FIXED = ("round", "site", "weight")  # the columns of the rounds that are no metric
SELECTORS = ("IntimeModelSelector", "IntimeModelSelectionHandler")
MEBIBYTE = 2**20
LARGE = sys.float_info.max
T = TypeVar("T")
Scores = dict[str, dict[str, dict[str, Any]]]


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
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


def _score(name: str, value: object) -> float:
    """Any number; NaN for what a site could not measure."""
    if value is None:
        return np.nan
    if type(value) not in (int, float):
        raise ValueError(f"{name} is {value!r:.40}, where a number belongs")
    return float(value)


def ranked(names: Sequence[str], first: Sequence[str] = ()) -> list[str]:
    """Those of `first` in their order, then all others, site-2 before site-10."""

    def rank(name: str) -> tuple[int, list[object]]:
        words = re.split("([0-9]+)", name)
        words[1::2] = [(len(digits := number.lstrip("0")), digits) for number in words[1::2]]
        return places.get(name, len(places)), words

    places = {name: place for place, name in enumerate(first)}
    return sorted(names, key=rank)


def read_rounds(path: Path, sites: Sequence[str] = ()) -> pd.DataFrame:
    """FLARE's round_metrics.jsonl as a table (see Run.rounds), the rows of a round in the order of `sites`.

    A metric called round, site or weight is left out. ResultsError if the file is missing, damaged or senseless.
    """
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    with reading(path, "the metrics of its rounds"):
        for line in filter(None, path.read_text(encoding="utf-8").split("\n")):
            for row in _rows(json.loads(line)):
                if (key := (row["round"], row["site"])) in rows:
                    raise ValueError(f"round {key[0]} has {key[1]} twice")
                rows[key] = row
    if not rows:
        raise ResultsError(f"{path} holds no round: the job ended before its first round did.")
    places = {site: place for place, site in enumerate(ranked(sorted({site for _, site in rows}), sites))}
    frame = pd.DataFrame([rows[key] for key in sorted(rows, key=lambda key: (key[0], places[key[1]]))])
    return frame[["round", "site", *(name for name in frame if name not in FIXED), "weight"]]


def _rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """One round's row of each site.

    FLARE's MetricsArtifactWriter notes a weight above 0 alone. So a site without one, in a round where others have
    theirs, weighed 0: it made no steps. Where nobody has one, nobody counted, and FLARE took each as often.
    """
    number = int(_number("round", _need("round", record["round"], int), 0, 1e6))
    sites = _need("sites", record["sites"], list)
    uncounted = 0.0 if any("weight" in site for site in sites) else np.nan
    rows = {}
    for site in sites:
        metrics = _need("metrics", site["metrics"], list)
        named = {_need("metric", metric["name"], str): metric["value"] for metric in metrics}
        weight = _number("weight", site["weight"], sys.float_info.min, 1e15) if "weight" in site else uncounted
        name = _need("site", site["name"], str)
        if name in rows:
            raise ValueError(f"round {number} has {name} twice")
        rows[name] = _row(number, name, weight, named)
    for skipped in _need("skipped_metrics", record.get("skipped_metrics", []), list):
        if site := skipped.get("site"):  # without a single number it is listed here alone, and took part all the same
            row = rows.setdefault(_need("site", site, str), _row(number, site, np.nan, {}))
            if skipped.get("reason") == "non_finite_number" and skipped["name"] not in FIXED:
                row.setdefault(_need("metric", skipped["name"], str), np.nan)
    return list(rows.values())


def _row(number: int, site: str, weight: float, metrics: dict[str, Any]) -> dict[str, Any]:
    """FLARE writes a metric that is no number as a word, True or False: it stays."""
    kept = {
        name: value if isinstance(value, (str, bool)) else _score(name, value)
        for name, value in metrics.items()
        if name not in FIXED
    }
    return {"round": number, "site": site, **kept, "weight": weight}


def read_scores(path: Path) -> Scores:
    """All of FLARE's cross_val_results.json: {site: {model: {metric: value}}}, the models by readable names."""
    with reading(path, "its cross-site matrix"):
        results = _need("the file", json.loads(path.read_text(encoding="utf-8")), dict)
        names = _model_names({model for row in results.values() for model in _need("a row", row, dict)}, set(results))
        return {
            _need("site", site, str): {names[model]: _need("a cell", scores, dict) for model, scores in row.items()}
            for site, row in results.items()
        }


def _model_names(models: set[str], sites: set[str]) -> dict[str, str]:
    """ "global" for SRV_FL_global_model.pt, "start" for SRV_start.pt, and a site's name for its own model."""
    names = {}
    for model in models:
        short = re.sub(r"^SRV_(.+?)(\.(pt|pth|ckpt))?$", r"\1", _need("model", model, str))
        names[model] = SERVER_MODELS.get(model) or (model if short in models | sites else short)
    twice = [name for name in names.values() if list(names.values()).count(name) > 1]
    names |= {model: model for model, name in names.items() if name in twice and model not in SERVER_MODELS}
    if len(set(names.values())) < len(names):
        raise ValueError("two models have the same name")
    return names


def read_cross_site(path: Path, metric: str, sites: Sequence[str] = ()) -> pd.DataFrame:
    """One metric of FLARE's cross_val_results.json as a table (see Run.cross_site), in the order of `sites`.

    ResultsError if the file is missing, damaged or senseless, or if no model was scored by this metric.
    """
    scores = read_scores(path)
    with reading(path, "its cross-site matrix"):
        cells = {
            site: {model: _score(metric, found.get(metric)) for model, found in row.items()}
            for site, row in scores.items()
        }
    measured = {name: None for row in scores.values() for found in row.values() for name in found}
    if measured and metric not in measured:
        others = [name for name in measured if name.isprintable() and len(name) < 40]
        raise ResultsError(f"{path} has no scores called {metric!r}: choose from {', '.join(others[:20])}.")
    models = {model for row in cells.values() for model in row}
    averages = [name for name in SERVER_MODELS.values() if name in models]
    given = models - set(averages) - {*cells, *sites}  # the server's other models, such as a starting checkpoint
    own = models - set(averages) - given
    columns = [*averages, *ranked(sorted(given)), *ranked(sorted(own), sites)]
    frame = pd.DataFrame(cells, columns, ranked(sorted(cells), sites), dtype=float).T
    return frame.rename_axis(index="test data of", columns="model")


def read_metric(job: Path, measured: Callable[[], Sequence[str]]) -> Metric:
    """The metric that decides in a job (a folder of exported jobs): see Run.metric. ResultsError if nobody can tell."""
    for path in job.glob("*/meta.json"):
        with reading(path, "what a job is"):
            said = (json.loads(path.read_text(encoding="utf-8")).get("custom_props") or {}).get("metric")
            if said is not None:
                return to_metric(said)
    names = measured()
    for args in _selectors(job):
        name = args.get("key_metric", "val_accuracy")  # IntimeModelSelector's own default
        if name in names or (isinstance(name, str) and not names):
            return Metric(name, higher_is_better=not args.get("negate_key_metric", False))
    if len(names) == 1:
        return Metric(names[0])
    found = f"it measured {', '.join(names)}" if names else "it measured nothing"
    raise ResultsError(f"The job of {job.parent} does not say which metric decides, and {found}.")


def to_metric(said: dict[str, Any]) -> Metric:
    """A Metric from the dict that a job's meta.json, or a table's attrs, has of it. ValueError for another one."""
    said = {"higher_is_better": True, "fraction": None} | _need("metric", said, dict)
    fraction = said["fraction"]
    return Metric(
        _need("metric", said["name"], str),
        _need("higher_is_better", said["higher_is_better"], bool),
        fraction if fraction is None else _need("fraction", fraction, bool),
    )


def _selectors(job: Path) -> Iterator[dict[str, Any]]:
    """The arguments of each component that chooses the best global model."""
    for config in read_server_configs(job):
        for part in config.get("components") or []:
            path = part.get("path") or part.get("name") or ""
            if path.rpartition(".")[2] in SELECTORS:
                yield part.get("args") or {}


def read_server_configs(job: Path) -> list[dict[str, Any]]:
    """What the server runs, of each app that says it, in any format that FLARE reads."""
    configs = []
    for path in sorted(job.glob("*/*/config/config_fed_server.*")):
        with reading(path, "what a server runs"):
            if path.suffix == ".json":
                content = json.loads(path.read_text(encoding="utf-8"))
            else:
                from nvflare.fuel.utils.config_factory import ConfigFactory  # for the rare job in HOCON or YAML

                content = ConfigFactory.load_config(path.name, [str(path.parent)]).to_dict()
            configs.append(_need("the file", content, dict))
    return configs


def read_model(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a file of FLARE's PyTorch persistor. Nothing in the file is executed."""
    with reading(path, "a model"):
        state = torch.load(path, map_location="cpu", weights_only=True)["model"]
        if not state:
            raise ValueError("it has no weights")
        encrypted = any(isinstance(value, bytes) for value in state.values())
    if encrypted:
        raise EncryptedError(f"{path} is encrypted: tutorial_utils.encrypt.open_model opens it, with a site's kit.")
    with reading(path, "a model"):
        return {_need("name", name, str): torch.as_tensor(value) for name, value in state.items()}


def read_bytes(path: Path) -> int:
    """The total of FLARE's histograms of stream sizes, which it keeps in MiB."""
    with reading(path, "FLARE's message statistics"):
        pools = json.loads(path.read_text(encoding="utf-8"))
        sizes = [
            _number("total", bar["total"], 0)
            for name in ("sent_stream_sizes", "received_stream_sizes")
            for bars in _need("cat_data", pools[name]["pool"]["cat_data"], dict).values()
            for bar in _need("bars", bars, list)
            if bar != ""  # nothing was counted there
        ]
        return round(sum(sizes) * MEBIBYTE)
