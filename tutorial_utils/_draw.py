"""What the figures of plots.py are drawn with: their look, their axes, and which metric a table is about."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from tutorial_utils.errors import TutorialError
from tutorial_utils.metric import Metric

# Okabe and Ito's blue, vermillion, bluish green and sky blue, two made darker: the four differ in grey too.
PALETTE = ("#004C80", "#D55E00", "#008A64", "#56B4E9")
LINES, HATCHES, MARKERS = ("-", "--", "-.", ":"), ("", "///", "...", "\\\\\\"), "os^Dv<>pP*"
LUMA = (0.299, 0.587, 0.114)  # how bright red, green and blue look in grey (ITU-R BT.601)
WIDTH = 6.4  # inches: 640 pixels in a notebook
NO_FRAME = {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
LOOK = {"font.size": 9, "axes.titlesize": 9, "axes.axisbelow": True, **NO_FRAME}
in_our_style = style.context(["default", LOOK])  # a decorator: the reader's own style stays out, and as it was


class TutorialFigure(Figure):
    """A matplotlib figure whose `alt`, the picture in words, goes with it into a notebook's output."""

    alt = ""

    @in_our_style
    def draw(self, renderer: object) -> None:
        super().draw(renderer)  # axis ticks take their style now, not when the figure is made

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, bytes | str], dict[str, dict[str, str]]]:
        self.savefig(file := io.BytesIO(), format="png", dpi=self.dpi)  # pyplot, where in use, draws it anew
        return {"image/png": file.getvalue(), "text/plain": self.alt}, {"image/png": {"alt": self.alt}}


def new_figure(height: float, title: str, alt: str, panels: int = 1) -> tuple[TutorialFigure, Axes | np.ndarray]:
    figure = TutorialFigure(figsize=(WIDTH, height), dpi=100, layout="constrained")
    figure.suptitle(textwrap.fill(title, 78), x=0.01, ha="left", fontsize=10, fontweight="bold")
    figure.alt = f"{title}. {alt}"
    return figure, figure.subplots(1, panels)


def need(table: Sequence | np.ndarray | pd.DataFrame, *columns: str) -> None:
    missing = [column for column in columns if column not in table]
    if missing or len(table) == 0:
        fault = f"has no column {' or '.join(missing)}" if missing else "is empty"
        raise TutorialError(f"What is to be drawn {fault}: give it {', '.join(columns) or 'a row or more'}.")


def find_metric(table: pd.DataFrame, metric: Metric | None, *others: str) -> Metric:
    """The metric that is named, else the one that the table came with (`Run.rounds` does), else its only number."""
    if metric is None:
        said, numbers = table.attrs.get("metric"), list(table.select_dtypes("number"))
        numbers = [said["name"]] if said and said["name"] in table else [name for name in numbers if name not in others]
        if len(numbers) > 1:
            raise TutorialError(
                f"Which of {', '.join(numbers)} shall be drawn? Say metric=Metric({numbers[0]!r}), and "
                "higher_is_better=False in it if lower is better."
            )
        metric = Metric(**said) if said and numbers == [said["name"]] else Metric(*numbers or ["a metric"])
    need(table, metric.name)
    return metric


def line(n: int) -> dict[str, str]:
    """Colour, line and marker of the n-th site or model; no two of the first ten are alike, even in grey."""
    return {"color": PALETTE[n % 4], "linestyle": LINES[(n + n // 4) % 4], "marker": MARKERS[n % 10]}


def measure(axes: Axes, metric: Metric, percent: bool, along: str, of: str, from_zero: bool = False) -> None:
    """Name and scale the axes of a plot of `metric` over `along`; call it when all is drawn.

    The metric's axis starts at 0 for fractions and bars, and where 0 is not far from what is drawn.
    """
    (_, low), (_, high) = axes.dataLim.get_points()
    bottom, top = axes.get_ylim()
    if percent or from_zero or 0 <= low < high / 2:
        bottom = 0 if low >= 0 else bottom
        top = min(1.05, 1.05 * top) if percent and high <= 1 else top + 0.06 * (top - bottom)
    unit = ", %" if percent else "" if metric.higher_is_better else ", lower is better"
    axes.set(xlabel=along, ylabel=textwrap.fill(f"{metric.name} on the {of}{unit}", 26), ylim=(bottom, top))
    if percent:
        decimals = int(top - bottom < 0.05)  # there the ticks lie closer than one in a hundred
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=decimals, symbol=""))
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)


def band(axes: Axes, by_x: pd.core.groupby.SeriesGroupBy, n: int, label: str) -> pd.DataFrame:
    """The mean as the n-th line, lowest to highest as its band; these three are returned."""
    spread = by_x.agg(["mean", "min", "max"])
    axes.plot(spread["mean"], label=label, markersize=4, **line(n))
    axes.fill_between(spread.index, spread["min"], spread["max"], color=PALETTE[n % 4], alpha=0.2)
    return spread


def show(value: float, percent: bool) -> str:
    """A number as short as a cell wants it: 61%, 0.613, 1,234."""
    if math.isnan(value):
        return "n/a"
    if percent:
        return f"{value:.0%}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 100_000 else f"{value:.3g}"


def shading(values: np.ndarray, metric: Metric, percent: bool) -> dict[str, object]:
    """Better is darker: of fractions from 0 to the highest, of other numbers from the worst to the best."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    low = min(low, 0.0) if percent and metric.higher_is_better else low
    if low == high:  # all alike, none is worse
        low, high = (low - 1, high) if metric.higher_is_better else (low, high + 1)
    return {"cmap": "Blues" if metric.higher_is_better else "Blues_r", "vmin": low, "vmax": high}


def shade(axes: Axes, values: np.ndarray, percent: bool, left: float = 0, **colours: object) -> None:
    """Values as cells with their number inside, the first column at x = `left`; what is no number stays empty."""
    edges = (left - 0.5, left + values.shape[1] - 0.5, len(values) - 0.5, -0.5)
    shown = axes.imshow(np.ma.masked_invalid(values), extent=edges, aspect="auto", **colours)
    for (row, column), value in np.ndenumerate(values):
        dark = math.isfinite(value) and np.dot(shown.to_rgba(value)[:3], LUMA) < 0.42
        colour = "white" if dark else "black"
        text = show(value, percent)
        axes.text(left + column, row, text, ha="center", va="center", color=colour, fontsize=8)


def name_cells(axes: Axes, x: Sequence[float], columns: Sequence[str], rows: Sequence[str]) -> None:
    crowded = max(map(len, "\n".join(columns).split("\n"))) * len(columns) * len(axes.figure.axes) > 80
    slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axes.set_xticks(x, columns, **slant)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlim=(x[0] - 0.55, x[-1] + 0.55), ylim=(len(rows) - 0.45, -0.55), frame_on=False)
    axes.tick_params(length=0)


def by_name(tables: pd.DataFrame | Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """One table, or several by name, which are drawn side by side."""
    return dict(tables) if isinstance(tables, Mapping) else {"": tables}


def as_pixels(images: np.ndarray) -> tuple[np.ndarray, str]:
    """[N, C, H, W] of any type as uint8 [N, H, W, 3], and what was done to them in words.

    Bytes are shown as they are, truth values as black and white, floats in 0..1 as shares of full light, and other
    numbers from the lowest (black) to the highest (white). One channel is grey, three are red, green and blue; of
    another number the mean is shown.
    """
    images = np.asarray(images)
    if images.ndim != 4 or not images.size:
        raise TutorialError(f"Images of the shape {images.shape} cannot be drawn: give [N, channels, height, width].")
    done = ""
    if images.shape[1] not in (1, 3):
        mean, done = images.mean(axis=1, keepdims=True), f", the mean of {images.shape[1]} channels"
        images = mean.round().astype(np.uint8) if images.dtype == np.uint8 else mean
    if images.dtype != np.uint8:
        light = np.nan_to_num(images.astype(float), posinf=0, neginf=0)
        low, high = light.min(), light.max()
        if low < 0 or high > 1:
            light, done = (light - low) / (high - low or 1), f"{done}, {low:.4g} as black and {high:.4g} as white"
        images = (255 * light).round().astype(np.uint8)
    return np.broadcast_to(images.transpose(0, 2, 3, 1), (*images.shape[:1], *images.shape[2:], 3)), done


def lay_out(pixels: np.ndarray, columns: int) -> tuple[np.ndarray, list[tuple[float, int]]]:
    """Images uint8 [N, H, W, 3] as one, on white, and the middle below each, where its name goes."""
    number, high, wide, _ = pixels.shape
    gap = max(1, round(0.375 * wide))
    grid = np.full((-(-number // columns) * (high + gap) + gap, columns * (wide + gap) + gap, 3), 255, dtype=np.uint8)
    below = []
    for place, image in enumerate(pixels):
        x, y = (place % columns) * (wide + gap) + gap, (place // columns) * (high + gap) + gap
        grid[y : y + high, x : x + wide] = image
        below.append((x + (wide - 1) / 2, y + high))
    return grid, below
