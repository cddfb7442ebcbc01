"""Figures of what an update gives away, beside those of plots.py: rebuilt pictures, and noise against
all it stops.

As there, each function returns one figure with its alt text, and `data` says what it is made from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from tutorial_utils._draw import (
    TutorialFigure,
    as_pixels,
    band,
    find_metric,
    in_our_style,
    lay_out,
    measure,
    need,
    new_figure,
)
from tutorial_utils.errors import TutorialError
from tutorial_utils.metric import Metric


@in_our_style
def rebuilt(rows: Mapping[str, np.ndarray], notes: Mapping[str, Sequence[float]], data: str) -> TutorialFigure:
    """Rows of pictures [N, C, H, W] by name, the same number in each; under a picture stands its number
    in `notes`.

    Floats are in -1..1 (black to white), bytes as they are.
    """
    need(list(rows))
    counts = {len(pictures) for pictures in rows.values()}
    if len(counts) != 1:
        raise TutorialError(f"The rows have {', '.join(map(str, sorted(counts)))} pictures: give as many in each.")
    (count,) = counts
    whole = np.concatenate([_as_light(np.asarray(pictures)) for pictures in rows.values()])
    pixels, _ = as_pixels(whole)
    grid, below = lay_out(pixels, count)
    said = [f"{name}: {', '.join(f'{one:.2f}' for one in notes[name])}" for name in rows if name in notes]
    figure, axes = new_figure(0.6 + 0.78 * len(rows), f"{data}", f"Rows: {'; '.join(rows)}. {'; '.join(said)}.")
    axes.imshow(grid, interpolation="nearest")
    marks = [f"{one:.2f}" for name in rows for one in notes.get(name, [np.nan] * count)]
    for (x, y), mark in zip(below, marks, strict=True):
        axes.text(x, y, mark.replace("nan", ""), ha="center", va="top", fontsize=7.5)
    for number, name in enumerate(rows):
        axes.text(
            -4,
            below[number * count][1] - pixels.shape[1] / 2,
            name,
            ha="right",
            va="center",
            fontsize=8.5,
        )
    axes.set_axis_off()
    return figure


def _as_light(pictures: np.ndarray) -> np.ndarray:
    return pictures / 255 if pictures.dtype == np.uint8 else np.clip((pictures + 1) / 2, 0, 1)


@in_our_style
def noise(
    costs: pd.DataFrame,
    attacks: pd.DataFrame,
    gains: Mapping[str, str],
    data: str,
    *,
    metric: Metric | None = None,
    of: str = "test images",
) -> TutorialFigure:
    """One knob, the noise: left the metric by number of sites, right what attacks read. Mean and range
    of the seeds.

    Args:
        costs: columns sites, noise, and the metric's; a row for each seed.
        attacks: columns noise and those of `gains`, {column: its name in the figure}.
        metric: what the noise costs, as in plots.compare.
        of: what it was measured on.
    """
    metric = find_metric(costs, metric, "sites", "noise", "seed")
    need(costs, "sites", "noise")
    need(attacks, "noise", *gains)
    figure, (left, right) = new_figure(3.6, f"{data}: one knob, the noise on each update", "", 2)
    percent = metric.is_fraction(costs[metric.name])
    for n, (sites, runs) in enumerate(costs.groupby("sites")):
        mean = band(left, _by_word(runs, metric.name), n, f"{sites} sites")["mean"]
        said = ", ".join(metric.format(one, percent) for one in mean)
        figure.alt += f"The {metric.name} with {sites} sites: {said}. "
    for n, (column, name) in enumerate(gains.items()):
        mean = band(right, _by_word(attacks, column), n, name)["mean"]
        figure.alt += f"{name}: {', '.join(f'{one:.2f}' for one in mean)}. "
    measure(left, metric, percent, "noise multiplier", of)
    left.set_title("what it costs")
    lowest = min(right.get_ylim()[0], 0)
    right.set(title="what can still be read", ylabel="correlation with the truth", ylim=(lowest, 1.05))
    right.set_xlabel("noise multiplier")
    right.grid(axis="y", color="#DDDDDD", linewidth=0.7)
    for axes in (left, right):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=8)
    return figure


def _by_word(frame: pd.DataFrame, column: str) -> pd.core.groupby.SeriesGroupBy:
    """Values far apart, 0 among them, as words at even distances, in their order."""
    ordered = frame.sort_values("noise")
    return ordered.assign(noise=ordered["noise"].map("{:g}".format)).groupby("noise", sort=False)[column]
