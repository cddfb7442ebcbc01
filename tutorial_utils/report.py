"""The short account of a run: for people on the terminal, for programs in report.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import ConcatDataset

from dl.train import Net, evaluate, load_data
from tutorial_utils.results import Run, mean_by_round


def score(state: Mapping[str, Any], folders: Sequence[Path]) -> tuple[float, int]:
    """Accuracy (0..1) of these weights on the test images of all the folders, and how many they are."""
    net = Net()
    net.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})
    test = ConcatDataset([load_data(folder).test for folder in folders])
    return evaluate(net, test)["accuracy"], len(test)


@dataclass
class Report:
    """What a run did.

    Attributes:
        run: the finished run.
        dataset: the name of the data, for titles.
        test_accuracy: of the global model on the global test set, 0..1.
        test_images: how many images that set has.
        settings: what the job was built with.
    """

    run: Run
    dataset: str
    test_accuracy: float
    test_images: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, Path]:
        folder = self.run.folder
        return {
            "learning_curve": folder / "learning_curve.png",
            "cross_site": folder / "cross_site.png",
        }

    def as_dict(self) -> dict[str, Any]:
        run = self.run
        return {
            "dataset": self.dataset,
            "sites": list(run.sites),
            "rounds": int(run.rounds["round"].max()) + 1,
            "test_accuracy": self.test_accuracy,
            "test_images": self.test_images,
            "sha256": run.sha256,
            "seconds": round(run.seconds, 1),
            "bytes": run.bytes,
            "round_metrics": json.loads(run.rounds.to_json(orient="records", double_precision=15)),
            "cross_site": json.loads(run.cross_site.to_json(orient="index", double_precision=15)),
            "settings": dict(self.settings),
            "model": str(run.global_model_path),
            "figures": {name: str(path) for name, path in self.figures.items()},
        }

    def write(self) -> None:
        """Draw the two figures and write report.json, all in the run's folder."""
        from tutorial_utils import plots  # matplotlib: half a second that a run need not wait for

        curve = plots.learning_curves(self.run.rounds, self.dataset, self.test_accuracy, self.test_images)
        curve.savefig(self.figures["learning_curve"], dpi=150)
        heatmap = plots.cross_site_heatmap(self.run.cross_site, self.dataset, self.test_images)
        heatmap.savefig(self.figures["cross_site"], dpi=150)
        text = json.dumps(self.as_dict(), indent=2)
        (self.run.folder / "report.json").write_text(text + "\n", encoding="utf-8")

    def _matrix(self) -> str:
        """The cross-site matrix as plain text; a model's name is one word."""
        table = self.run.cross_site.rename(columns=lambda model: model.replace(" ", "-"))
        table = table.map("{:.1%}".format)
        return table.rename_axis(index=None, columns=None).to_string()

    def text(self) -> str:
        run = self.run
        by_round = mean_by_round(run.rounds)
        lines = [
            f"Data: {self.dataset}, {len(run.sites)} sites, seed {self.settings.get('seed')}",
            "",
            "Accuracy of the model that the sites received, on validation images, weighted by steps:",
            *(f"  after {number:2d} averagings {value:7.1%}" for number, value in by_round.items()),
            "",
            "Cross-site matrix: accuracy of each model (column) on the test images of each site (row):",
            self._matrix(),
            "",
            f"Global model after {len(by_round)} rounds: {self.test_accuracy:.1%} "
            f"on the global test set ({self.test_images:,} images)",
            f"SHA-256  {run.sha256}",
            f"Spent    {run.seconds:.0f} seconds; {run.bytes:,} bytes between server and sites",
            f"Model    {run.global_model_path}",
            *(f"Figure   {path}" for path in self.figures.values()),
            f"Report   {run.folder / 'report.json'}",
        ]
        return "\n".join(lines)
