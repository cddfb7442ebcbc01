"""What sites agree on before they train: one mean and one standard deviation of each column, without a row that moves.

job = build_statistics(read_rows, "data/sites", sites=["hospital-a", "hospital-b"])
scaling = read_scaling(simulate(job))
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from nvflare.app_common.executors.statistics.statistics_executor import StatisticsExecutor
from nvflare.app_common.statistics.json_stats_file_persistor import JsonStatsFileWriter
from nvflare.app_common.workflows.statistics_controller import StatisticsController

from tutorial_utils import _checks
from tutorial_utils._flare import SplitJob
from tutorial_utils._ship import find_files
from tutorial_utils.errors import JobError, ResultsError
from tutorial_utils.results import Run
from tutorial_utils.site_rows import PART, SiteRows
from tutorial_utils.sites import check_site_names

FILE = "statistics/statistics.json"  # in the server's folder of the run
# FLARE (2.9.0) rounds what it sends to 4 decimals, by which a small column's deviation is 0. At 300 nothing is lost.
DECIMALS = 300
# FLARE wants "mean" and "var" to be asked for where a deviation is; they are read from neither.
ASKED = {name: {} for name in ("count", "sum", "mean", "var", "stddev")}

TOLD = ("count", "sum", "stddev")


class Moments(NamedTuple):
    """A column at one site: its rows, their sum, and their standard deviation (with rows - 1, as pandas has it)."""

    count: int
    sum: float
    deviation: float


@dataclass(frozen=True)
class Scaling:
    """One scaler for all sites, as scikit-learn's StandardScaler has it on the rows of all.

    Attributes:
        mean: of each column, by its name, in the column's unit.
        scale: the standard deviation (of the rows, no estimate: divided by N); 1 for a column that does not vary.
        rows: the rows of each site.
    """

    mean: pd.Series
    scale: pd.Series
    rows: dict[str, int]


def build_statistics(
    read_rows: Callable[[Path], pd.DataFrame],
    data: str | Path,
    *,
    sites: int | Sequence[str] = 2,
    min_rows: int = 10,
    name: str = "statistics",
) -> SplitJob:
    """FLARE's federated statistics, at full precision, as a job for `simulate` and for real sites.

    Each site sends the count, the sum and the deviation of every column, in two rounds; no row and no extreme value.

    Args:
        read_rows: of a module's top level; called at each site with the site's own folder, `data`/its-name. It returns
            a frame [N, columns] of numbers: the training rows. Missing ones are left out, column by column.
        data: the folder of the site folders.
        min_rows: a site with fewer says nothing, and the run ends with a sentence. 10 is FLARE's own rule.

    Raises: JobError for what cannot work, before anything starts.
    """
    names = check_site_names(sites)
    _checks.check_name("name is", name)
    _checks.check_count("min_rows", min_rows)
    if not callable(read_rows) or not getattr(read_rows, "__name__", "").isidentifier():  # a lambda's is none
        what = getattr(read_rows, "__name__", f"a {type(read_rows).__name__}")
        raise JobError(f"read_rows is {what}: give a function that reads a site's folder, by its name.")
    files = find_files(read_rows) | find_files(SiteRows)
    module = read_rows.__module__
    if module == "__main__":  # a site knows it by its file
        module = Path(inspect.getfile(read_rows)).stem
    where = str(data) if "$" in str(data) else str(Path(data).expanduser().resolve())
    props = {"sites": list(names), "data": where}
    job = SplitJob(name=name, min_clients=len(names), meta_props={"custom_props": props})
    job.named = () if isinstance(sites, Integral) else names
    how = {"precision": DECIMALS, "min_clients": len(names), "enable_pre_run_task": False}
    job.to_server(StatisticsController(ASKED, "statistics_writer", wait_time_after_min_received=0, **how))
    job.to_server(JsonStatsFileWriter(FILE), id="statistics_writer")
    job.to_clients(SiteRows(where, f"{module}:{read_rows.__name__}", int(min_rows)), id="rows")
    job.to_clients(StatisticsExecutor("rows", precision=DECIMALS), tasks=["fed_stats"])
    for path, folder in files.items():
        job.add_file_to_clients(str(path), dest_dir=folder)
    job.to_server({"server": {"task_request_interval": 0.05}})  # as build_job has it
    return job


def read_scaling(run: Run) -> Scaling:
    """The scaler that the sites of a finished run agreed on. ResultsError where the run has none."""
    path = run.job_folder / FILE
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        columns = {
            column: {site: Moments(*(told[what][site][PART] for what in TOLD)) for site in run.sites}
            for column, told in found.items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path} holds no statistics of all sites ({type(error).__name__}: {error}).") from error
    merged = {column: merge(list(moments.values())) for column, moments in columns.items()}
    rows = {site: max(moments[site].count for moments in columns.values()) for site in run.sites}
    frame = pd.DataFrame(merged, index=["mean", "scale"], dtype=float).T
    return Scaling(frame["mean"], frame["scale"], rows)


def merge(parts: Sequence[Moments]) -> tuple[float, float]:
    """Mean and scale of a column over all parts, whatever their order.

    Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979: squares
    within the parts, and between their means and the common one. `fsum` rounds once, at the end.
    """
    parts = [part for part in parts if part.count]
    count = sum(part.count for part in parts)
    mean = math.fsum(part.sum for part in parts) / count
    within = [part.deviation**2 * (part.count - 1) for part in parts]
    between = [part.count * (part.sum / part.count - mean) ** 2 for part in parts]
    variance = math.fsum(within + between) / count
    return mean, 1.0 if _is_constant(variance, mean, count) else math.sqrt(variance)


def _is_constant(variance: float, mean: float, count: int) -> bool:
    """scikit-learn's rule (1.9, sklearn.preprocessing): what rounding alone can make of a column of one value."""
    eps = float(np.finfo(float).eps)
    return variance <= count * eps * variance + (count * mean * eps) ** 2
