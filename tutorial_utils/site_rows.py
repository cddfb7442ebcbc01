"""A site's part in FLARE's federated statistics: the numbers of its own training rows, and no others.

This file ships with a job of tutorial_utils.agree, and imports nvflare (whose part it extends needs pandas).
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from nvflare.apis.fl_context import FLContext
from nvflare.app_opt.statistics.df.df_core_statistics import DFStatisticsCore

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

    def initialize(self, fl_ctx: FLContext) -> None:
        site = fl_ctx.get_identity_name()
        module, _, function = self.reader.partition(":")
        read = getattr(importlib.import_module(module), function)
        frame = read(Path(os.path.expandvars(self.folder)).expanduser() / site)
        if len(frame) < self.min_rows:  # the sums of one row are this row
            raise ValueError(
                f"{site} has {len(frame)} rows, and says nothing of fewer than {self.min_rows} (min_rows): leave it "
                "out of the sites that are asked, it can train all the same."
            )
        try:
            numbers = frame.astype(float)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{function} must give columns of numbers alone ({error}).") from error
        if empty := [name for name in numbers if not numbers[name].count()]:
            raise ValueError(f"{site} has no number in the column {empty[0]}: leave this column out.")
        self.data = {PART: numbers}

    def count(self, dataset_name: str, feature_name: str) -> int:
        return int(super().count(dataset_name, feature_name))

    def stddev(self, dataset_name: str, feature_name: str) -> float:
        """Of one row there is none, and no number would not reach the server."""
        return super().stddev(dataset_name, feature_name) if self.count(dataset_name, feature_name) > 1 else 0.0

    def failure_count(self, dataset_name: str, feature_name: str) -> int:
        return 0
