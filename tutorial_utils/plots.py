"""The figures of the series: each function returns one, and shows or saves nothing behind the caller's back.

In a notebook let the call be the last line of a cell: Jupyter shows the figure once, with its alt text. In a
script call `figure.savefig("curve.png")`. `data` ("CIFAR-10") says what a figure is made from, in its title.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from tutorial_utils.errors import TutorialError
from tutorial_utils.results import mean_by_round

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


def _figure(height: float, title: str, alt: str, panels: int = 1) -> tuple[TutorialFigure, Axes | np.ndarray]:
    figure = TutorialFigure(figsize=(WIDTH, height), dpi=100, layout="constrained")
    figure.suptitle(textwrap.fill(title, 78), x=0.01, ha="left", fontsize=10, fontweight="bold")
    figure.alt = f"{title}. {alt}"
    return figure, figure.subplots(1, panels)


def _need(table: Sequence | np.ndarray | pd.DataFrame, *columns: str) -> None:
    missing = [column for column in columns if column not in table]
    if missing or len(table) == 0:
        fault = f"has no column {' or '.join(missing)}" if missing else "is empty"
        raise TutorialError(f"What is to be drawn {fault}: give it {', '.join(columns) or 'a row or more'}.")


def _line(n: int) -> dict[str, str]:
    """Colour, line and marker of the n-th site or model; no two of the first ten are alike, even in grey."""
    return {"color": PALETTE[n % 4], "linestyle": LINES[(n + n // 4) % 4], "marker": MARKERS[n % 10]}


def _accuracy_by(axes: Axes, steps: str, of: str) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    label, top = textwrap.fill(f"accuracy on the {of}, %", 26), min(1.05, 1.05 * axes.get_ylim()[1])
    axes.set(xlabel=steps, ylabel=label, ylim=(0, top))
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)


def _band(axes: Axes, by_x: pd.core.groupby.SeriesGroupBy, n: int, label: str) -> pd.DataFrame:
    """The mean as the n-th line, lowest to highest as its band; these three are returned."""
    spread = by_x.agg(["mean", "min", "max"])
    axes.plot(spread["mean"], label=label, markersize=4, **_line(n))
    axes.fill_between(spread.index, spread["min"], spread["max"], color=PALETTE[n % 4], alpha=0.2)
    return spread


def _shade(axes: Axes, values: np.ndarray, left: float = 0, top: float = 1) -> None:
    """Shares as cells with their % inside, the first column at x = `left`; the share `top` is the darkest."""
    edges = (left - 0.5, left + values.shape[1] - 0.5, len(values) - 0.5, -0.5)
    shown = axes.imshow(values, cmap="Blues", vmin=0, vmax=top, extent=edges, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if np.dot(shown.to_rgba(value)[:3], LUMA) < 0.42 else "black"  # on white: no value
        axes.text(left + column, row, f"{value:.0%}", ha="center", va="center", color=colour, fontsize=8)


def _name_cells(axes: Axes, x: Sequence[float], columns: Sequence[str], rows: Sequence[str]) -> None:
    crowded = max(map(len, "\n".join(columns).split("\n"))) * len(columns) * len(axes.figure.axes) > 80
    slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axes.set_xticks(x, columns, **slant)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlim=(x[0] - 0.55, x[-1] + 0.55), ylim=(len(rows) - 0.45, -0.55), frame_on=False)
    axes.tick_params(length=0)


@in_our_style
def images(
    images: np.ndarray, labels: Sequence[int], classes: Sequence[str], data: str, columns: int = 8
) -> TutorialFigure:
    """Images (uint8 [N, 3, 32, 32]), each over its class's name; `labels` are N numbers into `classes`."""
    import torch
    from torchvision.utils import make_grid

    _need(images)
    gap, pitch = 12, images.shape[-1] + 12
    blank = np.full((-len(images) % columns, *images.shape[1:]), 255, dtype=np.uint8)  # fills the last row
    grid = make_grid(torch.as_tensor(np.concatenate([images, blank])), columns, gap, pad_value=255)
    names = [classes[int(label)] for label in labels]
    height, title = 0.4 + WIDTH * grid.shape[1] / grid.shape[2], f"{data}: images and their classes"
    figure, axes = _figure(height, title, f"The classes, row by row: {', '.join(names)}.")
    axes.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_axis_off()
    axes.set_anchor("N")  # what the layout leaves over goes below, not under the title
    for number, name in enumerate(names):
        x, y = (number % columns + 0.5) * pitch + gap / 2, (number // columns + 1) * pitch
        axes.text(x, y, name, ha="center", va="top", fontsize=min(8.5, 68 / columns))
    return figure


@in_our_style
def labels_by_site(counts: pd.DataFrame | Mapping[str, pd.DataFrame], data: str) -> TutorialFigure:
    """Who holds what: images of each class (columns) at each site (index), as numbers and as bars.

    Several tables by name, {"IID": ..., "Dirichlet": ...}, are drawn side by side at one scale.
    """
    tables = dict(counts) if isinstance(counts, Mapping) else {"": counts}
    _need(everyone := pd.concat(tables.values()))
    height, title = 1 + 0.26 * len(everyone.columns), f"{data}: training images of each class at each site"
    figure, panels = _figure(height, title, "", len(tables))
    most, roomy = everyone.to_numpy().max(), len(everyone) < 12
    label = "site, its training images" if roomy else f"site (longest bar: {most:,} images)"
    for axes, (name, table) in zip(np.atleast_1d(panels), tables.items(), strict=True):
        for (site, row), value in np.ndenumerate(table.to_numpy()):
            axes.barh(row, 0.9 * value / most, 0.8, left=site - 0.45, color=PALETTE[3])
            axes.text(site - 0.43, row, f"{value:,}" if roomy else "", va="center", fontsize=8)
        sites = [f"{at}\n{total:,}" if roomy else at for at, total in table.sum(axis=1).items()]
        _name_cells(axes, range(len(sites)), sites, table.columns)
        axes.vlines(np.arange(len(sites)) - 0.45, -0.5, len(table.columns) - 0.5, PALETTE[0], linewidth=0.8)
        axes.tick_params(labelleft=axes is figure.axes[0])
        axes.set(title=name, xlabel=label if roomy else "")
        held = [f"{at}: {n.sum():,} images, {n.max():,} of them {n.idxmax()}" for at, n in table.iterrows()]
        figure.alt += f"{name} {'; '.join(held)}. ".lstrip()
    figure.supxlabel("" if roomy else label, fontsize=9)
    return figure


@in_our_style
def learning_curves(
    rounds: pd.DataFrame, data: str, final: float | None = None, test_images: int | None = None
) -> TutorialFigure:
    """The global model by round: its accuracy at each site (thin) and the mean, weighted by steps (thick).

    `rounds` has round (0-based: the model that a site received), site, accuracy (0..1), steps; `final` is the
    accuracy of the last global model on `test_images` test images, drawn as a star.
    """
    _need(rounds, "round", "site", "accuracy", "steps")
    mean = mean_by_round(rounds)
    alt = f"The sites' mean goes from {mean.iloc[0]:.1%} to {mean.iloc[-1]:.1%}."
    figure, axes = _figure(3.8, f"{data}: the global model, round by round", alt)
    axes.set_xlim(mean.index[0] - 0.4, mean.index[-1] + 1.4)
    holes = [number for number, here in rounds.groupby("round")["site"] if here.nunique() < rounds["site"].nunique()]
    for number, (site, mine) in enumerate(rounds.groupby("site", sort=False)):
        whole = mine.set_index("round")["accuracy"].reindex(mean.index)  # a hole in the line, not a bridge over it
        axes.plot(whole, label=site, linewidth=1, markersize=3.5, **_line(number))
    axes.plot(mean, color="black", linewidth=3, marker=".", label="mean, weighted by steps")
    for number in holes:
        label = "a site is missing" if number == holes[0] else None
        axes.axvspan(number - 0.5, number + 0.5, color="#E5E5E5", linewidth=0, zorder=0, label=label)
    figure.alt += f" A site is missing in round {', '.join(map(str, holes))}." if holes else ""
    if final is not None:
        on = f"{test_images:,} test images" if test_images else "the test images"
        label = f"last model, {on}: {final:.1%}"
        axes.plot(mean.index[-1] + 1, final, "*", color="black", markersize=13, label=label)
        figure.alt += f" The {label}."
    star = " (star: test images)" if final is not None else ""
    _accuracy_by(axes, "rounds averaged", f"sites' validation images{star}")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@in_our_style
def training_curves(epochs: pd.DataFrame, data: str, of: str = "validation images") -> TutorialFigure:
    """Loss and accuracy of a script by epoch (columns epoch, loss, accuracy); accuracy `of` which images."""
    _need(epochs, "epoch", "loss", "accuracy")
    alt = "At the end the loss is {loss:.2f} and the accuracy {accuracy:.1%}.".format(**epochs.iloc[-1])
    figure, (left, right) = _figure(2.9, f"{data}: loss and accuracy, epoch by epoch", alt, 2)
    right.plot(epochs["epoch"], epochs["accuracy"], **_line(0))
    _accuracy_by(right, "epochs", of)
    left.plot(epochs["epoch"], epochs["loss"], **_line(1))
    left.sharex(right)  # whole epochs on the axis
    left.set(xlabel="epochs", ylabel="loss (cross-entropy)", ylim=(0, None))
    return figure


@in_our_style
def cross_site_heatmap(
    cross_site: pd.DataFrame | Mapping[str, pd.DataFrame], data: str, test_images: int
) -> TutorialFigure:
    """Accuracy (0..1) of each model (columns: global ones, the sites') on each site's test images (index).

    Several matrices by name, {"IID": ..., "Dirichlet": ...}, are drawn side by side at one scale.
    """
    tables = dict(cross_site) if isinstance(cross_site, Mapping) else {"": cross_site}
    _need(everyone := pd.concat(tables.values()))
    title = f"{data}: accuracy of each model at each site ({test_images:,} test images)"
    height = 1.5 + 0.32 * max(map(len, tables.values())) + 0.6 * (len(tables) > 1)
    figure, panels = _figure(height, title, "Mean over the sites, by model:", len(tables))
    for axes, (name, table) in zip(np.atleast_1d(panels), tables.items(), strict=True):
        sites, split = list(table.index), sum(model not in table.index for model in table)
        models = sorted(table, key=lambda model: model in sites)  # the global ones first, else as they come
        values = table[models].to_numpy(dtype=float)
        x = [n + 0.25 * (n >= split > 0) for n in range(len(models))]  # a gap before the sites' models
        for n, left in enumerate(x):
            _shade(axes, values[:, n : n + 1], left, np.nanmax(everyone.to_numpy(dtype=float)))
        for left, site in zip(x[split:], models[split:], strict=True):
            axes.bar(left, 0.92, 0.94, sites.index(site) - 0.46, fill=False, edgecolor=PALETTE[1], linewidth=2.5)
        _name_cells(axes, x, models, sites)
        axes.set(title=name, xlabel=textwrap.fill("whose model (boxed: a site's own model at home)", 60 // len(tables)))
        axes.tick_params(labelleft=axes is figure.axes[0])
        means = [f"{model} {column.mean():.0%}" for model, column in table[models].items()]
        figure.alt += f" {name}: {'; '.join(means)}.".replace(" : ", " ")
    figure.axes[0].set_ylabel("whose test images")
    return figure


@in_our_style
def confusion_matrix(
    true: Sequence[int], predicted: Sequence[int], classes: Sequence[str], data: str
) -> TutorialFigure:
    """What the images of each class (rows) are taken for (columns), % of the row; N labels, N answers."""
    from sklearn import metrics

    _need(true)
    counts = pd.DataFrame(metrics.confusion_matrix(true, predicted, labels=range(len(classes))))
    shares = counts.div(counts.sum(axis=1), axis=0).to_numpy()  # NaN for a class without a test image
    right = ", ".join(f"{name} {share:.0%}" for name, share in zip(classes, np.diag(shares), strict=True))
    title = f"{data}: what each class is taken for ({len(true):,} test images)"
    figure, axes = _figure(4.6, title, f"Recognised: {right}.")
    _shade(axes, shares)
    _name_cells(axes, range(len(classes)), classes, classes)
    axes.set(xlabel="predicted class", ylabel="true class")
    return figure


@in_our_style
def compare(
    frame: pd.DataFrame, data: str, test_images: int, x: str = "epochs", of: str = "test images"
) -> TutorialFigure:
    """Models compared: mean over seeds as a bar, each seed as a dot. Columns model, seed, accuracy (0..1).

    Where `frame` has a column `x` too: the mean by `x` as a line, lowest to highest as its band. Words in it keep
    their order. `of` says what the accuracy was measured on, if not on test images.
    """
    _need(frame, "model", "seed", "accuracy")
    by_x, seeds = x in frame, frame["seed"].nunique()
    title = f"mean and spread of {seeds} seeds" if seeds > 1 else "1 seed"
    figure, axes = _figure(3.5, f"{data}: models compared, {title}", "")
    for n, (model, runs) in enumerate(frame.groupby("model", sort=False)):
        words = by_x and not pd.api.types.is_numeric_dtype(frame[x])
        grouped = runs.groupby(x if by_x else "model", sort=not words)["accuracy"]
        spread = _band(axes, grouped, n, model) if by_x else grouped.agg(["mean", "min", "max"])
        mean, low, high = spread.iloc[-1]
        if not by_x:
            axes.bar(n, mean, 0.6, color=PALETTE[n % 4], alpha=0.6, hatch=HATCHES[n % 4], edgecolor="white")
            beside = n + 0.08 * (np.arange(len(runs)) - (len(runs) - 1) / 2)
            axes.plot(beside, runs["accuracy"], "o", color="black", markersize=4)
            axes.text(n, high + 0.02, f"{mean:.1%}", ha="center", fontweight="bold")
        seen = f"from {spread['mean'].iloc[0]:.1%} to" if by_x else ""
        figure.alt += f"{model}: {seen} {mean:.1%}" + (f" ({low:.1%} to {high:.1%}). " if seeds > 1 else ". ")
    _accuracy_by(axes, x if by_x else "", f"{test_images:,} {of}")
    if by_x:
        figure.legend(loc="outside lower center", ncols=4)
    else:
        axes.set_xticks(range(n + 1), [textwrap.fill(name, 14) for name in frame["model"].unique()])
    return figure


@in_our_style
def drift(frame: pd.DataFrame, data: str, panels: Mapping[str, str]) -> TutorialFigure:
    """How far the sites' models lie from their average, by round: a line for each split, with its spread.

    Columns split, seed, round, and those of `panels`, {column: title}: a distance each, in the weights' own unit.
    """
    _need(frame, "split", "seed", "round", *panels)
    figure, several = _figure(3.3, f"{data}: how far the sites' models lie from their average", "", len(panels))
    for axes, (column, name) in zip(np.atleast_1d(several), panels.items(), strict=True):
        for n, (split, runs) in enumerate(frame.groupby("split", sort=False)):
            mean = _band(axes, runs.groupby("round")[column], n, split)["mean"]
            figure.alt += f"{name}, {split}: from {mean.iloc[0]:.2f} to {mean.iloc[-1]:.2f}. "
        axes.set(title=name, xlabel="round", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.axes[0].set_ylabel("distance")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
