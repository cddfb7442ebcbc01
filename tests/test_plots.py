"""The figures: what they say, what they show, and that they leave nothing behind."""

from __future__ import annotations

import base64
import io

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from nbclient import NotebookClient
from PIL import Image

from tutorial_utils import plots
from tutorial_utils.errors import TutorialError

SPLITS = ["IID", "alpha 0.5", "alpha 0.1"]
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def site_names(sites: int) -> list[str]:
    return [f"site-{n + 1}" for n in range(sites)]


def label_counts(sites: int) -> pd.DataFrame:
    shares = np.random.default_rng(0).dirichlet([0.3] * sites, 10)
    return pd.DataFrame((4500 * shares).astype(int).T, index=site_names(sites), columns=CLASSES)


def round_table(sites: int, rounds: int = 5) -> pd.DataFrame:
    rows = [
        {"round": n, "site": site, "accuracy": 0.1 + 0.08 * n + 0.01 * k, "loss": 2.0, "steps": 100 * (k + 1)}
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
        "rounds": plots.learning_curves(round_table(sites), data, final=0.5512, test_images=10000),
        "training": plots.training_curves(epochs, data),
        "cross-site": plots.cross_site_heatmap(cross_site_table(sites), data, 10000),
        "confusion": plots.confusion_matrix(true, (true + 1) % 10, CLASSES, data),
        "bars": plots.compare(seed_table(3), data, 10000),
        "one seed": plots.compare(seed_table(1), data, 10000),
        "by epoch": plots.compare(seed_table(3, epochs=4), data, 10000),
        "by split": plots.compare(split_table(), data, 10000, x="split"),
        "two matrices": plots.cross_site_heatmap(dict.fromkeys(SPLITS[::2], cross_site_table(sites)), data, 10000),
        "drift": plots.drift(split_table(), data, {"drift": "all weights", "less": "the last biases"}),
    }


def words_in(figure: plots.TutorialFigure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def grey(colour: str) -> float:
    return float(np.dot(to_rgb(colour), plots.LUMA))


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
    plain = plots.learning_curves(round_table(2), "CIFAR-10")._repr_mimebundle_()[0]["image/png"]
    with matplotlib.style.context("dark_background"):
        dark = plots.learning_curves(round_table(2), "CIFAR-10")._repr_mimebundle_()[0]["image/png"]
    assert dark == plain


def test_colours_differ_in_grey_and_lines_differ_without_colour() -> None:
    greys = sorted(grey(colour) for colour in plots.PALETTE)
    assert min(np.diff(greys)) > 0.09
    lines = [plots._line(n) for n in range(10)]
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
    table["accuracy"], table["steps"] = [0.2, 0.5, 0.4, 0.7], [100, 200, 100, 200]
    figure = plots.learning_curves(table, "CIFAR-10", final=0.6, test_images=2000)
    by_name = {line.get_label(): line for line in figure.axes[0].lines}
    np.testing.assert_allclose(by_name["mean, weighted by steps"].get_ydata(), [0.4, 0.6])
    np.testing.assert_allclose(by_name["site-2"].get_ydata(), [0.5, 0.7])
    assert by_name["mean, weighted by steps"].get_linewidth() > by_name["site-1"].get_linewidth()
    star = by_name["last model, 2,000 test images: 60.0%"]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (2, 0.6)


def test_a_round_without_a_site_is_a_gap_in_its_line_and_a_grey_band() -> None:
    table = round_table(2, rounds=4)
    whole = plots.learning_curves(table, "CIFAR-10")
    assert not whole.axes[0].patches
    holed = plots.learning_curves(table[(table["site"] != "site-2") | (table["round"] != 1)], "CIFAR-10")
    by_name = {line.get_label(): line for line in holed.axes[0].lines}
    assert list(np.isnan(by_name["site-2"].get_ydata())) == [False, True, False, False]
    assert list(np.isnan(by_name["site-1"].get_ydata())) == [False] * 4
    (band,) = holed.axes[0].patches
    assert (band.get_x(), band.get_width()) == (0.5, 1)
    assert "A site is missing in round 1." in holed.alt
    assert "a site is missing" in [text.get_text() for text in holed.legends[0].get_texts()]


def test_accuracy_axes_are_in_percent() -> None:
    figure = plots.learning_curves(round_table(2), "CIFAR-10")
    axes = figure.axes[0]
    assert axes.get_ylabel().replace("\n", " ") == "accuracy on the sites' validation images, %"
    assert axes.get_xlabel() == "rounds averaged"
    assert axes.yaxis.get_major_formatter()(0.4) == "40"
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_one_round_and_one_epoch_have_whole_numbers_on_the_axis() -> None:
    one = plots.learning_curves(round_table(2, rounds=1), "CIFAR-10").axes[0]
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
        assert abs(np.dot(cells[text.get_position()], plots.LUMA) - grey(text.get_color())) > 0.4


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
    axes = plots.compare(split_table(), "CIFAR-10", 10000, x="split").axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels() if tick.get_text()] == SPLITS
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.41, 0.31, 0.21])
    other = plots.compare(split_table(), "CIFAR-10", 5000, x="split", of="validation images").axes[0]
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
    with pytest.raises(TutorialError, match="no column steps"):
        plots.learning_curves(round_table(2).drop(columns="steps"), "CIFAR-10")
    with pytest.raises(TutorialError, match="is empty"):
        plots.compare(seed_table(1).head(0), "CIFAR-10", 10)
    with pytest.raises(TutorialError, match="is empty"):
        plots.images(some_images(1)[0][:0], [], CLASSES, "CIFAR-10")


NOTEBOOK_CELL = """
import pandas as pd
from tutorial_utils import plots
plots.cross_site_heatmap(pd.DataFrame({"global": [0.5], "site-1": [0.6]}, index=["site-1"]), "CIFAR-10", 100)
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
