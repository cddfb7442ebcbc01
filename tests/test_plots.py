"""The figures: what they say, what they show, and that they leave nothing behind."""

from __future__ import annotations

import base64
import io
from typing import Any

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from nbclient import NotebookClient
from PIL import Image

from tutorial_utils import plots
from tutorial_utils._draw import LUMA, PALETTE, line
from tutorial_utils.errors import TutorialError
from tutorial_utils.metric import Metric

SPLITS = ["IID", "alpha 0.5", "alpha 0.1"]
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def site_names(sites: int) -> list[str]:
    return [f"site-{n + 1}" for n in range(sites)]


def label_counts(sites: int) -> pd.DataFrame:
    shares = np.random.default_rng(0).dirichlet([0.3] * sites, 10)
    return pd.DataFrame((4500 * shares).astype(int).T, index=site_names(sites), columns=CLASSES)


def round_table(sites: int, rounds: int = 5) -> pd.DataFrame:
    rows = [
        {"round": n, "site": site, "accuracy": 0.1 + 0.08 * n + 0.01 * k, "loss": 2.0, "weight": 100 * (k + 1)}
        for n in range(rounds)
        for k, site in enumerate(site_names(sites))
    ]
    return pd.DataFrame(rows)


def cross_site_table(sites: int) -> pd.DataFrame:
    values = np.random.default_rng(1).uniform(0.2, 0.8, (sites, sites + 2))
    return pd.DataFrame(values, index=site_names(sites), columns=["global", "best global", *site_names(sites)])


def seed_table(seeds: int, epochs: int = 0) -> pd.DataFrame:
    reached = {"centralised": 0.62, "federated": 0.55, "site-1 alone": 0.42, "site-2 alone": 0.39}
    rows = [
        {"model": model, "seed": seed, "accuracy": top + 0.01 * seed}
        for model, top in reached.items()
        for seed in range(seeds)
    ]
    if epochs:
        rows = [{**r, "epochs": n, "accuracy": r["accuracy"] * n / epochs} for r in rows for n in range(1, epochs + 1)]
    return pd.DataFrame(rows)


def split_table() -> pd.DataFrame:
    """Two models on three splits, three seeds, four rounds; the splits in an order that no sorting gives."""
    rows = [
        {"split": split, "model": model, "seed": seed, "round": n, "accuracy": 0.4 - 0.1 * k + 0.01 * seed}
        | {"drift": (1 + k) * n + 0.1 * seed, "less": 0.5 * (1 + k) * n}
        for model in ("federated", "alone")
        for k, split in enumerate(SPLITS)
        for seed in range(3)
        for n in range(1, 5)
    ]
    return pd.DataFrame(rows)


def some_images(number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    blocks = rng.integers(0, 256, (number, 3, 8, 8), dtype=np.uint8)
    return blocks.repeat(4, axis=2).repeat(4, axis=3), rng.integers(0, 10, number)


ACCURACY = Metric("accuracy")
MAE = Metric("mae", higher_is_better=False)


def every_figure(data: str, sites: int) -> dict[str, plots.TutorialFigure]:
    images, labels = some_images(16)
    true = np.random.default_rng(3).integers(0, 10, 500)
    epochs = pd.DataFrame({"epoch": [1, 2, 3], "loss": [2.0, 1.5, 1.2], "accuracy": [0.3, 0.4, 0.5]})
    counts = label_counts(sites)
    return {
        "images": plots.images(images, labels, CLASSES, data),
        "labels": plots.labels_by_site(counts, data),
        "two labels": plots.labels_by_site({"IID": counts, "Dirichlet": counts}, data),
        "three labels": plots.labels_by_site(dict.fromkeys(SPLITS, counts), data),
        "rounds": plots.learning_curves(round_table(sites), data, 0.5512, 10000, ACCURACY),
        "training": plots.training_curves(epochs, data),
        "cross-site": plots.cross_site_heatmap(cross_site_table(sites), data, 10000, ACCURACY),
        "confusion": plots.confusion_matrix(true, (true + 1) % 10, CLASSES, data),
        "bars": plots.compare(seed_table(3), data, 10000),
        "one seed": plots.compare(seed_table(1), data, 10000),
        "by epoch": plots.compare(seed_table(3, epochs=4), data, 10000),
        "by split": plots.compare(split_table(), data, 10000, x="split", metric=ACCURACY),
        "two matrices": plots.cross_site_heatmap(dict.fromkeys(SPLITS[::2], cross_site_table(sites)), data, 10000),
        "drift": plots.drift(split_table(), data, {"drift": "all weights", "less": "the last biases"}),
        "mae by round": plots.learning_curves(errors_by_round(sites), data, 103.2, 400, MAE, rows="patients"),
        "mae": plots.cross_site_heatmap(errors_at_sites(sites), data, 400, MAE, rows="patients"),
        "mae compared": plots.compare(error_table(), data, 400, of="test patients"),
    }


def errors_by_round(sites: int) -> pd.DataFrame:
    """A mean absolute error about 100, far from 0; the last site cannot measure it in round 1."""
    table = round_table(sites).rename(columns={"accuracy": "mae"})
    table["mae"] = 104 - 2 * table["mae"]
    table.loc[(table["round"] == 1) & (table["site"] == f"site-{sites}"), "mae"] = np.nan
    return table


def errors_at_sites(sites: int) -> pd.DataFrame:
    table = 4 * cross_site_table(sites)
    table.loc["site-2", "global"] = np.nan
    return table


def error_table() -> pd.DataFrame:
    table = seed_table(3).rename(columns={"accuracy": "mae"}).assign(mae=lambda frame: 4 - frame["mae"])
    table.attrs["metric"] = {"name": "mae", "higher_is_better": False, "fraction": None}
    return table


def words_in(figure: plots.TutorialFigure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def grey(colour: str) -> float:
    return float(np.dot(to_rgb(colour), LUMA))


@pytest.mark.parametrize(("sites", "data"), [(2, "CIFAR-10"), (5, "scikit-learn digits"), (10, "CIFAR-10")])
def test_every_figure_says_its_data_stays_small_and_cuts_no_word_off(sites: int, data: str) -> None:
    for name, figure in every_figure(data, sites).items():
        assert figure.get_suptitle().startswith(f"{data}: "), name
        assert figure.alt.startswith(f"{data}: "), name
        bundle, metadata = figure._repr_mimebundle_()
        assert metadata == {"image/png": {"alt": figure.alt}}, name
        assert len(bundle["image/png"]) < 100_000, name
        assert Image.open(io.BytesIO(bundle["image/png"])).width == 640, name
        box = figure.get_tightbbox()
        assert min(box.x0, box.y0) >= -0.01, name
        assert max(box.x1 - figure.get_figwidth(), box.y1 - figure.get_figheight()) <= 0.01, name


def test_nothing_is_left_open_or_changed() -> None:
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    figures = every_figure("CIFAR-10", 2)
    assert all(isinstance(figure, matplotlib.figure.Figure) for figure in figures.values())
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def test_the_readers_dark_style_does_not_leak_in() -> None:
    plain = plots.learning_curves(round_table(2), "CIFAR-10", metric=ACCURACY)._repr_mimebundle_()[0]["image/png"]
    with matplotlib.style.context("dark_background"):
        dark = plots.learning_curves(round_table(2), "CIFAR-10", metric=ACCURACY)._repr_mimebundle_()[0]["image/png"]
    assert dark == plain


def test_colours_differ_in_grey_and_lines_differ_without_colour() -> None:
    greys = sorted(grey(colour) for colour in PALETTE)
    assert min(np.diff(greys)) > 0.09
    lines = [line(n) for n in range(10)]
    assert len({(line["linestyle"], line["marker"]) for line in lines}) == 10
    assert len({(line["color"], line["linestyle"]) for line in lines}) == 10


def test_images_names_each_image() -> None:
    images, labels = some_images(11)
    figure = plots.images(images, labels, CLASSES, "CIFAR-10", columns=4)
    assert words_in(figure) == [CLASSES[label] for label in labels]
    assert all(CLASSES[label] in figure.alt for label in labels)
    assert words_in(plots.images(images[:1], labels[:1], CLASSES, "CIFAR-10")) == [CLASSES[labels[0]]]


def test_images_shows_the_pixels_it_was_given() -> None:
    images, labels = some_images(3)
    shown = plots.images(images, labels, CLASSES, "CIFAR-10").axes[0].images[0].get_array()
    np.testing.assert_array_equal(shown[12:44, 56:88], images[1].transpose(1, 2, 0))


def test_labels_by_site_prints_every_count() -> None:
    counts = label_counts(5)
    figure = plots.labels_by_site(counts, "CIFAR-10")
    assert words_in(figure) == [f"{value:,}" for value in counts.to_numpy().ravel()]
    widths = np.array([bar.get_width() for bar in figure.axes[0].patches])
    np.testing.assert_allclose(widths / widths.max(), counts.to_numpy().ravel() / counts.to_numpy().max())
    assert f"site-2: {counts.loc['site-2'].sum():,} images" in figure.alt


def test_labels_by_site_draws_two_tables_at_one_scale() -> None:
    small, large = label_counts(2) // 10, label_counts(2)
    figure = plots.labels_by_site({"IID": small, "Dirichlet": large}, "CIFAR-10")
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("IID", "Dirichlet")
    assert max(bar.get_width() for bar in left.patches) < 0.11 * max(bar.get_width() for bar in right.patches)


def test_learning_curves_weights_the_mean_by_steps() -> None:
    table = round_table(2, rounds=2)
    table["accuracy"], table["weight"] = [0.2, 0.5, 0.4, 0.7], [100, 200, 100, 200]
    figure = plots.learning_curves(table, "CIFAR-10", final=0.6, test_rows=2000, metric=ACCURACY)
    by_name = {line.get_label(): line for line in figure.axes[0].lines}
    np.testing.assert_allclose(by_name["mean, weighted by steps"].get_ydata(), [0.4, 0.6])
    np.testing.assert_allclose(by_name["site-2"].get_ydata(), [0.5, 0.7])
    assert by_name["mean, weighted by steps"].get_linewidth() > by_name["site-1"].get_linewidth()
    star = by_name["last model, 2,000 test images: 60.0%"]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (2, 0.6)


def test_a_round_without_a_site_is_a_gap_in_its_line_and_a_grey_band() -> None:
    table = round_table(2, rounds=4)
    whole = plots.learning_curves(table, "CIFAR-10", metric=ACCURACY)
    assert not whole.axes[0].patches
    without = table[(table["site"] != "site-2") | (table["round"] != 1)]
    holed = plots.learning_curves(without, "CIFAR-10", metric=ACCURACY)
    by_name = {line.get_label(): line for line in holed.axes[0].lines}
    assert list(np.isnan(by_name["site-2"].get_ydata())) == [False, True, False, False]
    assert list(np.isnan(by_name["site-1"].get_ydata())) == [False] * 4
    (band,) = holed.axes[0].patches
    assert (band.get_x(), band.get_width()) == (0.5, 1)
    assert "A site is missing in round 1." in holed.alt
    assert "a site is missing" in [text.get_text() for text in holed.legends[0].get_texts()]


def test_accuracy_axes_are_in_percent() -> None:
    figure = plots.learning_curves(round_table(2), "CIFAR-10", metric=ACCURACY)
    axes = figure.axes[0]
    assert axes.get_ylabel().replace("\n", " ") == "accuracy on the sites' validation images, %"
    assert axes.get_xlabel() == "rounds averaged"
    assert axes.yaxis.get_major_formatter()(0.4) == "40"
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_one_round_and_one_epoch_have_whole_numbers_on_the_axis() -> None:
    one = plots.learning_curves(round_table(2, rounds=1), "CIFAR-10", metric=ACCURACY).axes[0]
    epoch = pd.DataFrame({"epoch": [1], "loss": [2.0], "accuracy": [0.3]})
    for axes in (one, *plots.training_curves(epoch, "CIFAR-10").axes):
        low, high = axes.get_xlim()
        assert all(float(tick).is_integer() for tick in axes.get_xticks() if low <= tick <= high)


@pytest.mark.parametrize("sites", [2, 5, 10])
def test_heatmap_cells_hold_the_tables_numbers_and_the_diagonal_is_boxed(sites: int) -> None:
    table = cross_site_table(sites)
    figure = plots.cross_site_heatmap(table, "CIFAR-10", 10000)
    axes = figure.axes[0]
    columns = dict(zip([tick.get_text() for tick in axes.get_xticklabels()], axes.get_xticks(), strict=True))
    printed = {text.get_position(): text.get_text() for text in axes.texts}
    for row, site in enumerate(table.index):
        for model, x in columns.items():
            assert printed[x, row] == f"{table.loc[site, model]:.0%}"
    boxes = [(box.get_x() + box.get_width() / 2, box.get_y() + box.get_height() / 2) for box in axes.patches]
    np.testing.assert_allclose(boxes, [(columns[site], row) for row, site in enumerate(table.index)])
    assert columns["site-1"] - columns["best global"] > columns["best global"] - columns["global"]
    assert "10,000 test images" in figure.get_suptitle()


def test_heatmap_takes_any_order_a_missing_best_model_and_a_missing_value() -> None:
    table = cross_site_table(3)[["site-2", "site-1", "global"]]
    table.loc["site-3", "site-2"] = np.nan
    axes = plots.cross_site_heatmap(table, "CIFAR-10", 100).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["global", "site-2", "site-1"]
    assert len(axes.patches) == 2
    assert len(plots.cross_site_heatmap(table[["global"]], "CIFAR-10", 100).axes[0].patches) == 0


def test_text_stands_out_from_its_cell() -> None:
    axes = plots.cross_site_heatmap(cross_site_table(5), "CIFAR-10", 100).axes[0]
    cells = {
        (np.mean(image.get_extent()[:2]), row): image.to_rgba(value)[:3]
        for image in axes.images
        for (row, _), value in np.ndenumerate(image.get_array())
    }
    assert len(cells) == len(axes.texts) == 35
    for text in axes.texts:
        assert abs(np.dot(cells[text.get_position()], LUMA) - grey(text.get_color())) > 0.4


def test_confusion_matrix_is_in_percent_of_the_row() -> None:
    figure = plots.confusion_matrix([0, 0, 0, 0, 1], [0, 0, 0, 1, 1], ["cat", "dog"], "CIFAR-10")
    assert words_in(figure) == ["75%", "25%", "0%", "100%"]
    assert "5 test images" in figure.get_suptitle()
    assert "cat 75%" in figure.alt
    absent = plots.confusion_matrix([0], [0], ["cat", "dog"], "CIFAR-10")
    assert absent.axes[0].images[0].get_array().mask.tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize("seeds", [1, 3])
def test_compare_shows_the_mean_and_every_seed(seeds: int) -> None:
    table = seed_table(seeds)
    figure = plots.compare(table, "CIFAR-10", 10000)
    axes = figure.axes[0]
    means = table.groupby("model", sort=False)["accuracy"].mean()
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], means)
    assert words_in(figure) == [f"{mean:.1%}" for mean in means]
    np.testing.assert_allclose(np.concatenate([line.get_ydata() for line in axes.lines]), table["accuracy"])
    assert len({bar.get_hatch() for bar in axes.patches}) == 4
    assert axes.get_ylabel().replace("\n", " ") == "accuracy on the 10,000 test images, %"
    assert ("3 seeds" if seeds == 3 else "1 seed") in figure.get_suptitle()


def test_compare_by_epoch_draws_a_line_and_a_band_a_model() -> None:
    figure = plots.compare(seed_table(3, epochs=4), "CIFAR-10", 10000)
    axes = figure.axes[0]
    assert [line.get_label() for line in axes.lines] == [
        "centralised",
        "federated",
        "site-1 alone",
        "site-2 alone",
    ]
    np.testing.assert_allclose(axes.lines[0].get_ydata()[-1], 0.63)
    band = axes.collections[0].get_paths()[0].vertices
    assert band[band[:, 0] == 4][:, 1].max() == pytest.approx(0.64)
    assert axes.get_xlabel() == "epochs"
    renamed = seed_table(1, epochs=4).rename(columns={"epochs": "passes"})
    assert len(plots.compare(renamed, "CIFAR-10", 10000, x="passes").axes[0].lines) == 4


def test_compare_by_words_keeps_their_order() -> None:
    axes = plots.compare(split_table(), "CIFAR-10", 10000, x="split", metric=ACCURACY).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels() if tick.get_text()] == SPLITS
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.41, 0.31, 0.21])
    other = plots.compare(split_table(), "CIFAR-10", 5000, "split", "validation images", ACCURACY).axes[0]
    assert other.get_ylabel().replace("\n", " ") == "accuracy on the 5,000 validation images, %"


def test_two_matrices_stand_side_by_side_at_one_scale() -> None:
    table = cross_site_table(3)
    figure = plots.cross_site_heatmap({"IID": table, "alpha 0.1": table / 2}, "CIFAR-10", 10000)
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("IID", "alpha 0.1")
    assert {image.norm.vmax for axes in (left, right) for image in axes.images} == {table.to_numpy().max()}
    assert [len(axes.patches) for axes in (left, right)] == [3, 3]
    means = table["global"].mean()
    assert f"IID: global {means:.0%}" in figure.alt and f"alpha 0.1: global {means / 2:.0%}" in figure.alt


def test_drift_draws_a_line_and_a_band_a_split_in_each_panel() -> None:
    table = split_table().query("model == 'federated'")
    figure = plots.drift(table, "CIFAR-10", {"drift": "all weights", "less": "the last biases"})
    left, right = figure.axes
    assert [line.get_label() for line in left.lines] == SPLITS
    np.testing.assert_allclose(left.lines[1].get_ydata(), [2.1, 4.1, 6.1, 8.1])
    band = left.collections[1].get_paths()[0].vertices
    assert band[band[:, 0] == 4][:, 1].max() == pytest.approx(8.2)
    np.testing.assert_allclose(right.lines[2].get_ydata(), [1.5, 3, 4.5, 6])
    assert right.get_title() == "the last biases"
    assert "all weights, alpha 0.5: from 2.10 to 8.10." in figure.alt
    with pytest.raises(TutorialError, match="no column drift"):
        plots.drift(table.drop(columns="drift"), "CIFAR-10", {"drift": "all weights"})


def test_a_table_that_cannot_be_drawn_gets_a_plain_sentence() -> None:
    with pytest.raises(TutorialError, match="no column weight"):
        plots.learning_curves(round_table(2).drop(columns="weight"), "CIFAR-10", metric=ACCURACY)
    with pytest.raises(TutorialError, match="is empty"):
        plots.compare(seed_table(1).head(0), "CIFAR-10", 10)
    with pytest.raises(TutorialError, match="is empty"):
        plots.images(some_images(1)[0][:0], [], CLASSES, "CIFAR-10")


# ---- any metric ----


def shown(rounds: pd.DataFrame, **more: Any) -> plots.TutorialFigure:
    return plots.learning_curves(rounds, "heart data", **more)


def test_a_table_brings_its_metric_along_and_else_its_only_number_is_drawn() -> None:
    table = round_table(2).rename(columns={"accuracy": "auc"})
    with pytest.raises(TutorialError, match=r"Which of auc, loss shall be drawn\? Say metric=Metric\('auc'\)"):
        shown(table)
    assert "mean auc goes from 10.7% to 42.7%" in shown(table.drop(columns="loss")).alt
    table.attrs["metric"] = {"name": "loss", "higher_is_better": False, "fraction": None}
    for carried in (table, table.query("round < 3"), table[table["site"] == "site-1"].reset_index(drop=True)):
        assert "mean loss goes from 2 to 2" in shown(carried).alt
    assert "mean auc goes" in shown(table, metric=Metric("auc")).alt
    assert "mean auc goes" in shown(table.drop(columns="loss")).alt, "what it says is not in it any more"
    with pytest.raises(TutorialError, match="no column f1"):
        shown(table, metric=Metric("f1"))


@pytest.mark.parametrize(
    ("metric", "values", "label", "bottom", "top"),
    [
        (Metric("auc"), [0.6, 0.9], "auc on the sites' validation images, %", 0, (0.9, 1.05)),
        (Metric("accuracy"), [60, 90], "accuracy on the sites' validation images", 50, (90, 100)),
        (Metric("accuracy", fraction=False), [0.1, 0.9], "accuracy on the sites' validation images", 0, (0.9, 1)),
        (MAE, [0.6, 0.2], "mae on the sites' validation images, lower is better", 0, (0.6, 0.7)),
        (MAE, [104.0, 102.0], "mae on the sites' validation images, lower is better", 101, (104, 105)),
        (Metric("minus_mae"), [-3.0, -1.0], "minus_mae on the sites' validation images", -4, (-1, 0)),
        (Metric("r2"), [-0.5, 0.5], "r2 on the sites' validation images", -1, (0.5, 1)),
    ],
)
def test_the_axis_says_the_metric_and_fits_it(
    metric: Metric, values: list[float], label: str, bottom: float, top: tuple[float, float]
) -> None:
    rows = [{"round": n, "site": "a", metric.name: value, "weight": 1} for n, value in enumerate(values)]
    figure = shown(pd.DataFrame(rows), metric=metric)
    axes = figure.axes[0]
    assert axes.get_ylabel().replace("\n", " ") == label
    low, high = axes.get_ylim()
    assert (low == 0 if bottom == 0 else bottom < low < min(values)) and top[0] < high < top[1] + 1e-9
    figure.savefig(io.BytesIO())
    ticks = [text.get_text() for text in axes.get_yticklabels()]
    assert ("80" in ticks) == (metric.name == "auc" or values[0] == 60)


def test_the_marks_of_small_shares_are_told_apart() -> None:
    wrong = Metric("wrong", higher_is_better=False, fraction=True)
    table = pd.DataFrame({"model": ["a", "b"], "seed": 0, "wrong": [0.003, 0.021]})
    figure = plots.compare(table, "CIFAR-10", metric=wrong)
    figure.savefig(io.BytesIO())
    ticks = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(ticks) > 2 and len(set(ticks)) == len(ticks)


def test_a_metric_that_a_site_could_not_measure_is_a_gap_and_no_weight() -> None:
    figure = shown(errors_by_round(2), metric=MAE)
    by_label = {one.get_label(): one.get_ydata() for one in figure.axes[0].lines}
    assert np.isnan(by_label["site-2"]).tolist() == [False, True, False, False, False]
    assert by_label["mean, weighted by steps"][1] == by_label["site-1"][1]
    assert not figure.axes[0].patches, "it was there, so the round has no band"


@pytest.mark.parametrize("weights", [0, np.nan])
def test_without_weights_the_curve_is_the_plain_mean_and_says_so(weights: float) -> None:
    figure = shown(round_table(2).assign(weight=weights), metric=ACCURACY)
    by_label = {one.get_label(): one.get_ydata() for one in figure.axes[0].lines}
    np.testing.assert_allclose(by_label["mean of the sites"], 0.105 + 0.08 * np.arange(5))


def test_the_words_are_the_callers() -> None:
    figure = shown(errors_by_round(2), metric=MAE, final=100.0, test_rows=1234, rows="patients", weighted_by="patients")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"mean, weighted by patients", "last model, 1,234 test patients: 100"} <= set(labels)
    assert "image" not in figure.alt + figure.axes[0].get_ylabel()
    counts = plots.labels_by_site(label_counts(2), "heart data", rows="patients")
    confusion = plots.confusion_matrix([0, 1], [0, 1], ["ill", "well"], "heart data", rows="patients")
    assert counts.get_suptitle() == "heart data: training patients of each class at each site"
    assert "(2 test patients)" in confusion.get_suptitle()


def cells_of(figure: plots.TutorialFigure, table: pd.DataFrame) -> dict[tuple[str, str], float]:
    """How bright each cell is, 1 for white."""
    axes = figure.axes[0]
    at = dict(zip(axes.get_xticks(), [label.get_text() for label in axes.get_xticklabels()], strict=True))
    return {
        (table.index[row], at[np.mean(image.get_extent()[:2])]): float(np.dot(image.to_rgba(value)[:3], LUMA))
        for image in axes.images
        for (row, _), value in np.ma.ndenumerate(image.get_array())  # without what is masked
    }


@pytest.mark.parametrize(("metric", "sign"), [(ACCURACY, 1), (Metric("r2"), 1), (MAE, -1)])
def test_better_is_darker(metric: Metric, sign: int) -> None:
    scale = {"accuracy": 1, "r2": -3, "mae": 4}[metric.name]
    table = scale * cross_site_table(3)
    bright = cells_of(plots.cross_site_heatmap(table, "heart data", metric=metric), table)
    best_first = sorted(bright, key=lambda cell: -sign * table.loc[cell])
    brightness = [bright[cell] for cell in best_first]
    assert brightness == sorted(brightness) and brightness[0] < 0.3 < 0.6 < brightness[-1]


def test_an_empty_cell_is_drawn_empty_and_named() -> None:
    table = errors_at_sites(3)
    figure = plots.cross_site_heatmap(table, "heart data", 400, MAE, rows="patients")
    assert words_in(figure).count("n/a") == 1 and "nan" not in figure.alt
    assert "Empty (n/a): global at site-2." in figure.alt
    assert f"global {table['global'].mean():.3g}" in figure.alt
    assert figure.get_suptitle().replace("\n", " ").endswith("(400 test patients; lower is better)")
    assert ("site-2", "global") not in cells_of(figure, table)
    (empty,) = [text for text in figure.axes[0].texts if text.get_text() == "n/a"]
    assert empty.get_color() == "black", "on the white page"
    nothing = plots.cross_site_heatmap(table * np.nan, "heart data", metric=MAE)
    assert set(words_in(nothing)) == {"n/a"}


def test_a_matrix_of_one_value_and_an_infinite_one_can_be_drawn() -> None:
    table = pd.DataFrame({"global": [2.0, np.inf], "a": [2.0, 2.0]}, index=["a", "b"])
    figure = plots.cross_site_heatmap(table, "heart data", metric=MAE)
    assert sorted(words_in(figure)) == ["2", "2", "2", "inf"]
    figure.savefig(io.BytesIO())


def test_a_matrix_without_a_name_is_called_a_score() -> None:
    assert "score of each model" in plots.cross_site_heatmap(cross_site_table(2), "CIFAR-10", 10).get_suptitle()
    table = cross_site_table(2)
    table.attrs["metric"] = {"name": "f1", "higher_is_better": True, "fraction": None}
    assert "f1 of each model" in plots.cross_site_heatmap({"IID": table}, "CIFAR-10").get_suptitle()


def test_bars_of_any_metric_begin_at_zero_and_leave_room_for_their_number() -> None:
    for sign in (1, -1):
        table = seed_table(3).rename(columns={"accuracy": "gain"})
        table["gain"] = sign * (2 + table["gain"])
        figure = plots.compare(table, "heart data", of="test rows")
        figure.savefig(io.BytesIO())
        axes = figure.axes[0]
        low, high = axes.get_ylim()
        assert low <= 0 <= high and len(axes.texts) == 4
        assert axes.get_ylabel() == "gain on the test rows"
        box = axes.get_window_extent()
        assert all(box.y0 <= text.get_window_extent().y0 < text.get_window_extent().y1 <= box.y1 for text in axes.texts)


def test_training_curves_of_another_metric() -> None:
    epochs = pd.DataFrame({"epoch": [1, 2], "nll": [-1.0, -2.0], "f1": [0.3, 0.4]})
    figure = plots.training_curves(epochs, "heart data", "validation rows", loss="nll")
    left, right = figure.axes
    assert left.get_ylabel() == "nll" and left.get_ylim()[0] < -2
    assert right.get_ylabel().replace("\n", " ") == "f1 on the validation rows, %"
    assert "the nll is -2.00 and the f1 40.0%" in figure.alt


@pytest.mark.parametrize(
    ("images", "wanted", "said"),
    [
        (np.full((2, 1, 4, 6), 7, np.uint8), [7, 7, 7], ""),
        (np.full((2, 3, 5, 4), 0.5, np.float32), [128, 128, 128], ""),
        (np.ones((2, 1, 4, 4), bool), [255, 255, 255], ""),
        (
            np.arange(2 * 4 * 4).reshape(2, 1, 4, 4).astype(np.uint16) * 1000,
            [0, 0, 0],
            "0 as black and 3.1e+04 as white",
        ),
        (np.stack([np.full((2, 4, 4), k * 10, np.uint8) for k in range(5)], 1), [20, 20, 20], "the mean of 5 channels"),
        (np.full((2, 3, 4, 4), np.nan), [0, 0, 0], ""),
    ],
)
def test_images_of_any_type_and_shape(images: np.ndarray, wanted: list[int], said: str) -> None:
    figure = plots.images(images, [0, 1], ["cat", "dog"], "scans")
    grid = figure.axes[0].images[0].get_array()
    gap = max(1, round(0.375 * images.shape[3]))
    assert grid[gap, gap].tolist() == wanted
    assert grid.shape[0] == images.shape[2] + 2 * gap
    assert said in figure.get_suptitle().replace("\n", " ")
    figure.savefig(io.BytesIO())


def test_what_is_no_image_is_told_so() -> None:
    with pytest.raises(TutorialError, match=r"shape \(2, 4, 4\) cannot be drawn"):
        plots.images(np.zeros((2, 4, 4)), [0, 1], ["cat", "dog"], "scans")


NOTEBOOK_CELL = """
import pandas as pd
from tutorial_utils import plots
from tutorial_utils.metric import Metric
table = pd.DataFrame({"global": [0.5], "site-1": [0.6]}, index=["site-1"])
plots.cross_site_heatmap(table, "CIFAR-10", 100, Metric("accuracy"))
"""


@pytest.mark.parametrize("first", ["", "%matplotlib inline"])
def test_a_notebook_shows_a_figure_once_with_its_alt_text(first: str) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(first + NOTEBOOK_CELL)])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    (output,) = notebook.cells[0].outputs
    assert output.output_type == "execute_result"
    assert output.metadata["image/png"]["alt"].startswith("CIFAR-10: accuracy of each model")
    assert output.data["text/plain"] == output.metadata["image/png"]["alt"]
    assert 1000 < len(base64.b64decode(output.data["image/png"])) < 100_000
