"""The figures of the series: each function returns one, and shows or saves nothing behind the caller's back.

In a notebook let the call be the last line of a cell: Jupyter shows the figure once, with its alt text. In a
script call `figure.savefig("curve.png")`. `data` ("CIFAR-10") says what a figure is made from, in its title.

Where a figure shows a metric, a `Run`'s own tables bring it along; of other tables it is the only column of numbers
that has no other meaning, or the one that `metric` names. Its name stands on the axes. Fractions are shown as %, other
numbers as they are, and where lower is better, lower is darker in a matrix.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from tutorial_utils._draw import (
    HATCHES,
    PALETTE,
    SITES,
    WIDTH,
    TutorialFigure,
    as_pixels,
    band,
    by_name,
    colours_of,
    draw_holdings,
    find_metric,
    in_our_style,
    lay_out,
    line,
    measure,
    name_cells,
    need,
    new_figure,
    shade,
    shading,
    show,
)
from tutorial_utils.metric import Metric
from tutorial_utils.results import mean_by_round


@in_our_style
def images(
    images: np.ndarray, labels: Sequence[int], classes: Sequence[str], data: str, columns: int = 8
) -> TutorialFigure:
    """Images [N, C, H, W] of any type and size, each over its class's name; `labels` are N numbers into `classes`."""
    need(images)
    pixels, done = as_pixels(images)
    grid, below = lay_out(pixels, columns)
    names = [classes[int(label)] for label in labels]
    height, title = 0.4 + WIDTH * grid.shape[0] / grid.shape[1], f"{data}: images and their classes{done}"
    figure, axes = new_figure(height, title, f"The classes, row by row: {', '.join(names)}.")
    axes.imshow(grid, interpolation="nearest")
    for (x, y), name in zip(below, names, strict=True):
        axes.text(x, y, name, ha="center", va="top", fontsize=min(8.5, 68 / columns))
    axes.set_axis_off()
    figure.colours = None  # photographs
    axes.set_anchor("N")  # what the layout leaves over goes below, not under the title
    return figure


@in_our_style
def labels_by_site(
    counts: pd.DataFrame | Mapping[str, pd.DataFrame], data: str, rows: str = "images"
) -> TutorialFigure:
    """Who holds what: images (or other `rows`) of each class (columns) at each site (index), as numbers and as bars.

    Several tables by name, {"IID": ..., "Dirichlet": ...}, are drawn side by side at one scale. Where the sites are
    too many for bars, a cell is the darker the more it holds, and the site's size is a bar above its column.
    """
    tables = by_name(counts)
    need(everyone := pd.concat(tables.values()))
    roomy = len(everyone) < 12
    height, title = 1 + 0.26 * len(everyone.columns), f"{data}: training {rows} of each class at each site"
    figure, panels = new_figure(height + (not roomy), title, "", len(tables), 1 if roomy else 2)
    draw_holdings(panels, tables, roomy)
    for name, table in tables.items():
        held = [f"{at}: {n.sum():,} {rows}, {n.max():,} of them {n.idxmax()}" for at, n in table.iterrows()]
        figure.alt += f"{name} {'; '.join(held)}. ".lstrip()
    figure.supxlabel(f"site, its training {rows}" if roomy else f"site (bars: all its training {rows})", fontsize=9)
    return figure


@in_our_style
def learning_curves(
    rounds: pd.DataFrame,
    data: str,
    final: float | None = None,
    test_rows: int | None = None,
    metric: Metric | None = None,
    rows: str = "images",
    weighted_by: str = "steps",
) -> TutorialFigure:
    """The global model by round: its metric at each site (thin) and the mean, weighted as the average is (thick).

    `rounds` has round (0-based: the model that a site received), site, the metric, and weight, as `Run.rounds`;
    `final` is the metric of the last global model on `test_rows` test images (or other `rows`), drawn as a star.
    """
    metric = find_metric(rounds, metric, "round", "weight")
    need(rounds, "round", "site", metric.name, "weight")
    mean = mean_by_round(rounds, metric.name)
    percent = metric.is_fraction([*rounds[metric.name], *([] if final is None else [final])])
    first, last = (metric.format(mean.iloc[at], percent) for at in (0, -1))
    alt = f"The sites' mean {metric.name} goes from {first} to {last}."
    figure, axes = new_figure(3.8, f"{data}: the global model, round by round", alt)
    axes.set_xlim(mean.index[0] - 0.4, mean.index[-1] + 1.4)
    holes = [number for number, here in rounds.groupby("round")["site"] if here.nunique() < rounds["site"].nunique()]
    for number, (site, mine) in enumerate(rounds.groupby("site", sort=False)):
        whole = mine.set_index("round")[metric.name].reindex(mean.index)  # a hole in the line, not a bridge over it
        axes.plot(whole, label=site, linewidth=1, markersize=3.5, **line(number, SITES))
    weighed = f"mean, weighted by {weighted_by}" if (rounds["weight"] > 0).any() else "mean of the sites"
    axes.plot(mean, color=PALETTE[0], linewidth=3, marker=".", label=weighed)
    for number in holes:
        label = "a site is missing" if number == holes[0] else None
        axes.axvspan(number - 0.5, number + 0.5, color="#E5E5E5", linewidth=0, zorder=0, label=label)
    figure.alt += f" A site is missing in round {', '.join(map(str, holes))}." if holes else ""
    if final is not None:
        on = f"{test_rows:,} test {rows}" if test_rows else f"the test {rows}"
        label = f"last model, {on}: {metric.format(final, percent)}"
        axes.plot(mean.index[-1] + 1, final, "*", color=PALETTE[0], markersize=13, label=label)
        figure.alt += f" The {label}."
    star = f" (star: test {rows})" if final is not None else ""
    measure(axes, metric, percent, "rounds averaged", f"sites' validation {rows}{star}")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@in_our_style
def training_curves(
    epochs: pd.DataFrame, data: str, of: str = "validation images", metric: Metric | None = None, loss: str = "loss"
) -> TutorialFigure:
    """A script by epoch: its training loss (the column `loss`), and its metric `of` which data. Column epoch, too."""
    metric = find_metric(epochs, metric, "epoch", loss)
    need(epochs, "epoch", loss, metric.name)
    percent, end = metric.is_fraction(epochs[metric.name]), epochs.iloc[-1]
    alt = f"At the end the {loss} is {end[loss]:.2f} and the {metric.name} {metric.format(end[metric.name], percent)}."
    figure, (left, right) = new_figure(2.9, f"{data}: {loss} and {metric.name}, epoch by epoch", alt, 2)
    central = [PALETTE[2]]  # the script is the centralised model
    right.plot(epochs["epoch"], epochs[metric.name], **line(0, central))
    measure(right, metric, percent, "epochs", of)
    left.plot(epochs["epoch"], epochs[loss], **line(1, central))
    left.sharex(right)  # whole epochs on the axis
    left.set(xlabel="epochs", ylabel=loss)
    if (epochs[loss] >= 0).all():
        left.set_ylim(0, None)
    return figure


@in_our_style
def cross_site_heatmap(
    cross_site: pd.DataFrame | Mapping[str, pd.DataFrame],
    data: str,
    test_rows: int | None = None,
    metric: Metric | None = None,
    rows: str = "images",
) -> TutorialFigure:
    """The metric of each model (columns: global ones, the sites') on each site's test data (index); better is darker.

    Several matrices by name, {"IID": ..., "Dirichlet": ...}, are drawn side by side at one scale. A table that is not
    `Run.cross_site` does not know its metric: name it. What is NaN is an empty cell, "n/a".
    """
    tables = by_name(cross_site)
    need(everyone := pd.concat(tables.values()))
    said = [table.attrs["metric"] for table in tables.values() if "metric" in table.attrs]
    metric = metric or (Metric(**said[0]) if said else Metric("score"))
    percent = metric.is_fraction(everyone.to_numpy(dtype=float).ravel())
    colours = shading(everyone.to_numpy(dtype=float), metric, percent)
    notes = [f"{test_rows:,} test {rows}"] if test_rows else []
    notes += [] if metric.higher_is_better else ["lower is better"]
    title = f"{data}: {metric.name} of each model at each site" + f" ({'; '.join(notes)})" * bool(notes)
    height = 1.5 + 0.32 * max(map(len, tables.values())) + 0.6 * (len(tables) > 1)
    figure, panels = new_figure(height, title, "Mean over the sites, by model:", len(tables))
    for axes, (name, table) in zip(np.atleast_1d(panels), tables.items(), strict=True):
        sites, split = list(table.index), sum(model not in table.index for model in table)
        models = sorted(table, key=lambda model: model in sites)  # the global ones first, else as they come
        values = table[models].to_numpy(dtype=float)
        x = [n + 0.25 * (n >= split > 0) for n in range(len(models))]  # a gap before the sites' models
        for n, left in enumerate(x):
            shade(axes, values[:, n : n + 1], percent, left, **colours)
        for left, site in zip(x[split:], models[split:], strict=True):
            axes.bar(left, 0.92, 0.94, sites.index(site) - 0.46, fill=False, edgecolor=PALETTE[1], linewidth=2.5)
        name_cells(axes, x, models, sites)
        axes.set(title=name, xlabel=textwrap.fill("whose model (boxed: a site's own model at home)", 60 // len(tables)))
        axes.tick_params(labelleft=axes is figure.axes[0])
        means = [f"{model} {show(column.mean(), percent)}" for model, column in table[models].items()]
        empty = [f"{models[n]} at {sites[row]}" for row, n in np.argwhere(np.isnan(values))]
        figure.alt += f" {name}: {'; '.join(means)}.".replace(" : ", " ")
        figure.alt += f" Empty (n/a): {', '.join(empty)}." if empty else ""
    figure.axes[0].set_ylabel(f"whose test {rows}")
    return figure


@in_our_style
def confusion_matrix(
    true: Sequence[int], predicted: Sequence[int], classes: Sequence[str], data: str, rows: str = "images"
) -> TutorialFigure:
    """What the images (or other `rows`) of each class are taken for (columns), % of the row; N labels, N answers."""
    from sklearn import metrics

    need(true)
    counts = pd.DataFrame(metrics.confusion_matrix(true, predicted, labels=range(len(classes))))
    shares = counts.div(counts.sum(axis=1), axis=0).to_numpy()  # NaN for a class without a test image
    right = ", ".join(f"{name} {show(share, True)}" for name, share in zip(classes, np.diag(shares), strict=True))
    title = f"{data}: what each class is taken for ({len(true):,} test {rows})"
    figure, axes = new_figure(4.6, title, f"Recognised: {right}.")
    shade(axes, shares, percent=True, cmap="Blues", vmin=0, vmax=1)
    name_cells(axes, range(len(classes)), classes, classes)
    axes.set(xlabel="predicted class", ylabel="true class")
    return figure


@in_our_style
def compare(
    frame: pd.DataFrame,
    data: str,
    test_rows: int | None = None,
    x: str = "epochs",
    of: str = "test images",
    metric: Metric | None = None,
) -> TutorialFigure:
    """Models compared: mean over seeds as a bar, each seed as a dot. Columns model, seed, and the metric.

    Where `frame` has a column `x` too: the mean by `x` as a line, lowest to highest as its band. Words in it keep
    their order. The metric was measured on `test_rows` rows `of` what.
    """
    metric = find_metric(frame, metric, "model", "seed", x)
    need(frame, "model", "seed", metric.name)
    by_x, seeds, percent = x in frame, frame["seed"].nunique(), metric.is_fraction(frame[metric.name])
    models, spread_of = list(frame["model"].unique()), f"mean and range of {seeds} seeds" if seeds > 1 else "1 seed"
    named = ", ".join(models) if len(models) < 5 else f"{len(models)} models"
    figure, axes = new_figure(3.5, f"{data}: {metric.name} of {named} ({spread_of})", "")
    colours = colours_of(models)
    for n, (model, runs) in enumerate(frame.groupby("model", sort=False)):
        words = by_x and not pd.api.types.is_numeric_dtype(frame[x])
        grouped = runs.groupby(x if by_x else "model", sort=not words)[metric.name]
        spread = band(axes, grouped, n, model, colours) if by_x else grouped.agg(["mean", "min", "max"])
        mean, low, high = (metric.format(value, percent) for value in spread.iloc[-1])
        if not by_x:
            height, top = spread["mean"].iloc[-1], max(spread["max"].iloc[-1], 0)
            axes.bar(n, height, 0.6, color=colours[n], alpha=0.6, hatch=HATCHES[n % 4], edgecolor="white")
            beside = n + 0.08 * (np.arange(len(runs)) - (len(runs) - 1) / 2)
            axes.plot(beside, runs[metric.name], "o", color="black", markersize=4)
            above = {"xytext": (0, 4), "textcoords": "offset points"}
            axes.annotate(mean, (n, top), ha="center", fontweight="bold", **above)
        seen = f"from {metric.format(spread['mean'].iloc[0], percent)} to " if by_x else ""
        figure.alt += f"{model}: {seen}{mean}" + (f" ({low} to {high}). " if seeds > 1 else ". ")
    on = f"{test_rows:,} {of}" if test_rows else of
    measure(axes, metric, percent, x if by_x else "", on, from_zero=not by_x)
    if by_x:
        figure.legend(loc="outside lower center", ncols=4)
    else:
        axes.set_xticks(range(n + 1), [textwrap.fill(name, 14) for name in models])
    return figure


@in_our_style
def drift(frame: pd.DataFrame, data: str, panels: Mapping[str, str]) -> TutorialFigure:
    """How far the sites' models lie from their average, by round: a line for each split, with its spread.

    Columns split, seed, round, and those of `panels`, {column: title}: a distance each, in the weights' own unit.
    """
    need(frame, "split", "seed", "round", *panels)
    figure, several = new_figure(3.3, f"{data}: how far the sites' models lie from their average", "", len(panels))
    for axes, (column, name) in zip(np.atleast_1d(several), panels.items(), strict=True):
        for n, (split, runs) in enumerate(frame.groupby("split", sort=False)):
            mean = band(axes, runs.groupby("round")[column], n, split)["mean"]
            figure.alt += f"{name}, {split}: from {mean.iloc[0]:.2f} to {mean.iloc[-1]:.2f}. "
        axes.set(title=name, xlabel="round", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.axes[0].set_ylabel("distance")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
