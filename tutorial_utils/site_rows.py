"""A site's part in FLARE's federated statistics: the numbers of its own training rows, and no others.

This file ships with a job of tutorial_utils.agree, and imports nvflare (whose part it extends needs pandas).
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.statistics_spec import Feature
from nvflare.app_opt.statistics.df.df_core_statistics import DFStatisticsCore

if TYPE_CHECKING:
    import pandas as pd

PART = "train"  # what FLARE calls a data set


class SiteRows(DFStatisticsCore):
    """Counts, sums and deviations of a site's columns, as FLARE's StatisticsExecutor asks for them.

    Args:
        folder: of the site folders; an environment variable in it ("$SITE_DATA") means what it means at the site.
        reader: "module:function" that reads a site's folder: a frame [N, columns] of numbers.
        min_rows: with fewer, nothing leaves the site.
    """

    def __init__(self, folder: str, reader: str, min_rows: int = 10) -> None:
        super().__init__()
        self.folder = folder
        self.reader = reader
        self.min_rows = min_rows
        self._site = ""

    def initialize(self, fl_ctx: FLContext) -> None:
        self._site = fl_ctx.get_identity_name()

    def features(self) -> dict[str, list[Feature]]:
        """Asked first in each task. What is raised here is an answer, which the server can tell; before, it is none."""
        if self.data is None:
            self.data = {PART: self._read()}
        return super().features()

    def _read(self) -> pd.DataFrame:
        module, _, function = self.reader.partition(":")
        read = getattr(importlib.import_module(module), function)
        frame = read(Path(os.path.expandvars(self.folder)).expanduser() / self._site)
        if len(frame) < self.min_rows:  # the sums of one row are this row
            raise ValueError(
                f"{self._site} has {len(frame)} rows, and says nothing of fewer than {self.min_rows} (min_rows): "
                "leave it out of the sites that are asked, it can train all the same."
            )
        try:
            numbers = frame.astype(float)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{function} must give columns of numbers alone ({error}).") from error
        if empty := [name for name in numbers if not numbers[name].count()]:
            raise ValueError(f"{self._site} has no number in the column {empty[0]}: leave this column out.")
        return numbers

    def count(self, dataset_name: str, feature_name: str) -> int:
        return int(super().count(dataset_name, feature_name))

    def stddev(self, dataset_name: str, feature_name: str) -> float:
        """Of one row there is none, and no number would not reach the server."""
        return super().stddev(dataset_name, feature_name) if self.count(dataset_name, feature_name) > 1 else 0.0

    def failure_count(self, dataset_name: str, feature_name: str) -> int:
        return 0
