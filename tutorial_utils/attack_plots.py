"""Figures of what an update gives away, beside those of plots.py: rebuilt pictures, and noise against
all it stops.

As there, each function returns one figure with its alt text, and `data` says what it is made from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.ticker import PercentFormatter

from tutorial_utils._draw import TutorialFigure, as_pixels, band, in_our_style, lay_out, need, new_figure
from tutorial_utils.errors import TutorialError


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
def noise(costs: pd.DataFrame, attacks: pd.DataFrame, gains: Mapping[str, str], data: str) -> TutorialFigure:
    """One knob, the noise: left the accuracy by number of sites, right what attacks read. Mean and range
    of the seeds.

    Args:
        costs: columns sites, noise, accuracy (0..1); a row for each seed.
        attacks: columns noise and those of `gains`, {column: its name in the figure}.
    """
    need(costs, "sites", "noise", "accuracy")
    need(attacks, "noise", *gains)
    figure, (left, right) = new_figure(3.6, f"{data}: one knob, the noise on each update", "", 2)
    for n, (sites, runs) in enumerate(costs.groupby("sites")):
        mean = band(left, _by_word(runs, "accuracy"), n, f"{sites} sites")["mean"]
        figure.alt += f"Accuracy with {sites} sites: {', '.join(f'{one:.0%}' for one in mean)}. "
    for n, (column, name) in enumerate(gains.items()):
        mean = band(right, _by_word(attacks, column), n, name)["mean"]
        figure.alt += f"{name}: {', '.join(f'{one:.2f}' for one in mean)}. "
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    left.set(title="what it costs", ylabel="accuracy on the test images, %", ylim=(0, 1.05))
    lowest = min(right.get_ylim()[0], 0)
    right.set(title="what can still be read", ylabel="correlation with the truth", ylim=(lowest, 1.05))
    for axes in (left, right):
        axes.set_xlabel("noise multiplier")
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=8)
    return figure


def _by_word(frame: pd.DataFrame, column: str) -> pd.core.groupby.SeriesGroupBy:
    """Values far apart, 0 among them, as words at even distances, in their order."""
    ordered = frame.sort_values("noise")
    return ordered.assign(noise=ordered["noise"].map("{:g}".format)).groupby("noise", sort=False)[column]
