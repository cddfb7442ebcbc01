"""The short account of a run: for people on the terminal, for programs in report.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from tutorial_utils.metric import Metric
from tutorial_utils.results import Run, mean_by_round


@dataclass
class Report:
    """What a run did, by the metric that decides in it. What it has not (a score, rounds, a matrix) is left out.

    Attributes:
        run: the finished run.
        title: of the data, for titles ("CIFAR-10").
        score: of the global model on the global test set: the run's metric, measured by the caller.
        test_rows: how many rows or images that set has.
        settings: what the job was built with.
        rows: what the data consist of: "images", "rows", "patients".
        weighted_by: what the sites' updates weigh in the average: their steps, unless the learner says otherwise.
    """

    run: Run
    title: str = ""
    score: float | None = None
    test_rows: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    rows: str = "images"
    weighted_by: str = "steps"

    @cached_property
    def metric(self) -> Metric:
        """The run's, and all of its values shown alike: as %, or as numbers."""
        metric, values = self.run.metric, [] if self.score is None else [self.score]
        if metric.name in self.run.rounds:
            values += pd.to_numeric(self.run.rounds[metric.name], errors="coerce").tolist()
        if self.evaluated:
            values += self.run.cross_site.to_numpy().ravel().tolist()
        return replace(metric, fraction=metric.is_fraction(values))

    @property
    def trained(self) -> bool:
        """Has it rounds? A job that only evaluates has none."""
        return len(self.run.rounds) > 0

    @property
    def evaluated(self) -> bool:
        """Has it a cross-site matrix?"""
        return self.run.cross_site_path.is_file()

    @property
    def path(self) -> Path:
        return self.run.folder / "report.json"

    @property
    def figures(self) -> dict[str, Path]:
        """Where `write` draws: the curve of a run that trained, the matrix of one that evaluated."""
        drawn = {"learning_curve": self.trained, "cross_site": self.evaluated}
        return {name: self.run.folder / f"{name}.png" for name, there in drawn.items() if there}

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the keys test_... have the names of the metric and of the rows: test_accuracy, test_images."""
        run = self.run
        return {
            "dataset": self.title,
            "sites": list(run.sites),
            "metric": asdict(run.metric),
            "rounds": _count_rounds(run),
            f"test_{run.metric.name}": _finite(self.score),
            f"test_{self.rows}": self.test_rows,
            "sha256": run.sha256 if self.trained else None,
            "seconds": round(run.seconds, 1),
            "bytes": run.bytes,
            "round_metrics": _plain(run.rounds, "records"),
            "cross_site": _plain(run.cross_site, "index") if self.evaluated else None,
            "settings": dict(self.settings),
            "model": str(run.global_model_path) if self.trained else None,
            "figures": {name: str(path) for name, path in self.figures.items()},
        }

    def write(self) -> None:
        """Draw the figures and write report.json, all in the run's folder."""
        from tutorial_utils import plots  # matplotlib: half a second that a run need not wait for

        how = {"metric": self.metric, "rows": self.rows}
        if path := self.figures.get("learning_curve"):
            more = {"test_rows": self.test_rows, "weighted_by": self.weighted_by}
            plots.learning_curves(self.run.rounds, self.title, self.score, **more, **how).savefig(path, dpi=150)
        if path := self.figures.get("cross_site"):
            plots.cross_site_heatmap(self.run.cross_site, self.title, self.test_rows, **how).savefig(path, dpi=150)
        text = json.dumps(self.as_dict(), indent=2, allow_nan=False)
        self.path.write_text(text + "\n", encoding="utf-8")

    def text(self) -> str:
        """The account, line by line."""
        sections = [[self._heading()]]
        if self.trained:
            sections.append(self._rounds())
        if self.evaluated:
            sections.append(self._matrix())
        sections.append(self._end())
        return "\n\n".join("\n".join(lines) for lines in sections)

    def _heading(self) -> str:
        seed = self.settings.get("seed")
        parts = [f"Data: {self.title}"] * bool(self.title) + [f"{len(self.run.sites)} sites"]
        return ", ".join(parts + ([] if seed is None else [f"seed {seed}"]))

    def _rounds(self) -> list[str]:
        means = mean_by_round(self.run.rounds, self.metric.name)
        what = f"{_begin(self.metric.name)} of the model that the sites received, on validation {self.rows}"
        lines = [f"  after {number:2d} averagings {self._show(mean):>7}" for number, mean in means.items()]
        return [f"{what}, weighted by {self.weighted_by}:", *lines]

    def _matrix(self) -> list[str]:
        """As plain text; a model's name is one word."""
        table = self.run.cross_site.rename(columns=lambda model: model.replace(" ", "-")).map(self._show)
        what = f"{self.metric.name} of each model (column) on the test {self.rows} of each site (row):"
        return [f"Cross-site matrix: {what}", table.rename_axis(index=None, columns=None).to_string()]

    def _end(self) -> list[str]:
        run = self.run
        lines = [f"Spent    {run.seconds:.0f} seconds; {run.bytes:,} bytes between server and sites"]
        if self.trained:
            lines = [f"SHA-256  {run.sha256}", *lines, f"Model    {run.global_model_path}"]
        if self.score is not None:
            of = f" ({self.test_rows:,} {self.rows})" if self.test_rows else ""
            what = f"Global model after {_count_rounds(run)} rounds"
            lines = [f"{what}: {self._show(self.score)} on the global test set{of}", *lines]
        drawn = [f"Figure   {path}" for path in self.figures.values() if path.is_file()]
        return lines + drawn + [f"Report   {self.path}"] * self.path.is_file()

    def _show(self, value: float) -> str:
        return self.metric.format(value, bool(self.metric.fraction))


def _count_rounds(run: Run) -> int:
    return int(run.rounds["round"].max()) + 1 if len(run.rounds) else 0


def _begin(name: str) -> str:
    """The name as the first word of a line; a short one is a symbol, such as auc or mae."""
    return name[0].upper() + name[1:] if len(name) > 4 else name


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _plain(table: pd.DataFrame, orient: str) -> Any:  # noqa: ANN401
    return json.loads(table.to_json(orient=orient, double_precision=15))
