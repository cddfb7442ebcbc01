"""Partitions: every image at one site, every site with enough, the same each time, and never for ever."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutorial_utils._split import make_card
from tutorial_utils.data import SPLITS, Dataset, read_dataset, write_dataset
from tutorial_utils.errors import DataError, PartitionError
from tutorial_utils.partition import assign, count_labels, deal_labels, draw_shares, draw_sizes, split_dataset

ROOT = Path(__file__).resolve().parents[1]


def toy(folder: Path, sizes: tuple[int, int, int] = (60, 20, 20), classes: int = 4) -> Dataset:
    """Images that are all different, so that each can be recognised."""
    total, splits = sum(sizes), {}
    images = np.zeros((total, 3, 32, 32), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(total) % 256, np.arange(total) // 256
    parts = np.split(images, np.cumsum(sizes)[:-1])
    for split, part in zip(SPLITS, parts, strict=True):
        splits[split] = part, np.arange(len(part)) % classes
    names = [f"class {k}" for k in range(classes)]
    return write_dataset(folder, splits, name="toy", classes=names, source="made for a test")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return toy(tmp_path_factory.mktemp("small") / "toy")


OWN = {"name": "own", "source": "made for a test"}


def hashes(paths: list[Path]) -> list[dict[str, str]]:
    return [read_dataset(path).sha256 for path in paths]


@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=10),
    sites=st.integers(1, 12),
    alpha=st.none() | st.floats(1e-6, 1e6),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=150, deadline=None)
def test_each_image_goes_to_one_site_as_the_shares_say(
    counts: list[int], sites: int, alpha: float | None, seed: int
) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    shares = draw_shares(len(counts), sites, alpha, seed)
    assert shares.shape == (len(counts), sites) and (shares >= 0).all()
    assert np.allclose(shares.sum(axis=1), 1)
    parts = assign(labels, shares, seed)
    assert len(parts) == sites
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert all((np.diff(part) > 0).all() for part in parts)
    got = np.array([np.bincount(labels[part], minlength=len(counts)) for part in parts]).T
    assert (np.abs(got - shares * np.array(counts)[:, None]) < 1 + 1e-6).all()
    again = assign(labels, draw_shares(len(counts), sites, alpha, seed), seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    if alpha is None:
        assert (got.max(axis=1) - got.min(axis=1) <= 1).all()
        assert got.sum(axis=0).max() - got.sum(axis=0).min() <= 1


def count(labels: np.ndarray, parts: list[np.ndarray], classes: int) -> np.ndarray:
    """How many images of each class each site got: [classes, sites]."""
    return np.array([np.bincount(labels[part], minlength=classes) for part in parts]).T


@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=10),
    sites=st.integers(1, 12),
    per_site=st.integers(1, 10),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=150, deadline=None)
def test_each_site_holds_so_many_labels(counts: list[int], sites: int, per_site: int, seed: int) -> None:
    classes = len(counts)
    if not per_site <= classes <= sites * per_site:
        with pytest.raises(PartitionError, match=rf"{sites} sites and {classes} labels: labels_per_site must"):
            deal_labels(classes, sites, per_site, seed)
        return
    shares = deal_labels(classes, sites, per_site, seed)
    assert shares.shape == (classes, sites) and np.allclose(shares.sum(axis=1), 1)
    assert ((shares > 0).sum(axis=0) == per_site).all(), "a site holds just so many labels"
    holders = (shares > 0).sum(axis=1)
    assert holders.min() >= 1 and holders.max() - holders.min() <= 1, "no label is rarer than another by two sites"
    assert np.allclose(shares[shares > 0], np.repeat(1 / holders, holders)), "who holds a label has an equal part"
    assert np.array_equal(shares, deal_labels(classes, sites, per_site, seed))
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), counts))
    parts = assign(labels, shares, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert (count(labels, parts, classes)[shares == 0] == 0).all()


@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=10),
    sites=st.integers(1, 12),
    alpha=st.floats(1e-6, 1e6),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=150, deadline=None)
def test_sizes_differ_and_labels_do_not(counts: list[int], sites: int, alpha: float, seed: int) -> None:
    shares = draw_sizes(len(counts), sites, alpha, seed)
    assert shares.shape == (len(counts), sites) and np.allclose(shares.sum(axis=1), 1)
    assert (shares == shares[0]).all(), "one share of every label"
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    parts = assign(labels, shares, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    off = count(labels, parts, len(counts)) - shares * np.array(counts)[:, None]
    assert (np.abs(off) < 1 + 1e-6).all(), "each site has its share of each label, rounded"
    assert (np.abs(off.sum(axis=0)) < 2).all(), "and of all images"
    assert np.array_equal(shares, draw_sizes(len(counts), sites, alpha, seed))


def test_small_quantity_alpha_differs_and_large_does_not() -> None:
    spread = [np.mean([draw_sizes(1, 5, alpha, k).std() for k in range(50)]) for alpha in (0.05, 0.5, 5, 500)]
    assert spread == sorted(spread, reverse=True) and spread[0] > 0.25 and spread[-1] < 0.02


def test_labels_are_dealt_by_chance() -> None:
    firsts = {tuple(np.flatnonzero(deal_labels(4, 2, 2, k)[:, 0])) for k in range(60)}
    assert len(firsts) == 6, "each of the six pairs of labels comes to the first site"


def test_partitions_worked_by_hand(tmp_path: Path) -> None:
    """60 training images of 4 classes, 15 each: 2 sites of 2 labels have 30; 4 of 2 share each label, 7 or 8 each."""
    whole = toy(tmp_path / "toy")
    two = split_dataset(whole.folder, 2, labels_per_site=2, min_images=1)
    assert sorted(map(sorted, count_labels(two).to_numpy().tolist())) == [[0, 0, 15, 15]] * 2
    assert (count_labels(two).sum(axis=0) == 15).all()
    four = split_dataset(whole.folder, 4, labels_per_site=2, min_images=1)
    table = count_labels(four).to_numpy()
    assert ((table > 0).sum(axis=1) == 2).all() and ((table > 0).sum(axis=0) == 2).all()
    assert set(table[table > 0]) == {7, 8} and (table.sum(axis=1) >= 14).all()
    skew = split_dataset(whole.folder, 3, quantity_alpha=1, min_images=1)
    table = count_labels(skew).to_numpy()
    assert (table.max(axis=1) - table.min(axis=1) <= 1).all() and table.sum() == 60
    assert len(set(table.sum(axis=1))) == 3, "the sizes differ"


def test_small_alpha_differs_and_large_alpha_does_not() -> None:
    spread = [draw_shares(10, 4, alpha, 0).std() for alpha in (0.05, 0.5, 5, 500)]
    assert spread == sorted(spread, reverse=True) and spread[0] > 0.3 and spread[-1] < 0.02


def test_the_odd_image_does_not_always_go_to_the_same_site() -> None:
    firsts = {np.argmax([len(part) for part in assign(np.zeros(4), np.full((1, 3), 1 / 3), k)]) for k in range(30)}
    assert firsts == {0, 1, 2}


@pytest.mark.parametrize(
    "labels, shares",
    [([0, 1, 2], np.full((2, 2), 0.5)), ([0, 1], np.full((2, 2), 0.4)), ([0, 0], np.full((1, 2), math.nan))],
)
def test_shares_that_would_lose_images(labels: list[int], shares: np.ndarray) -> None:
    with pytest.raises(PartitionError, match="a row for every label"):
        assign(np.array(labels), shares, 0)


@given(
    sizes=st.tuples(st.integers(1, 80), st.integers(1, 25), st.integers(1, 25)),
    sites=st.integers(1, 6),
    kind=st.sampled_from(
        [{"alpha": alpha} for alpha in (None, 0.01, 0.3, 1.0, 100.0)]
        + [{"labels_per_site": labels} for labels in (1, 2, 4)]
        + [{"quantity_alpha": alpha} for alpha in (0.01, 0.5, 10.0)]
    ),
    seed=st.integers(0, 1000),
    least=st.integers(1, 20),
)
@settings(max_examples=40, deadline=None)
def test_a_split_meets_the_minimum_or_says_that_it_cannot(
    sizes: tuple[int, int, int],
    sites: int,
    kind: dict[str, float | None],
    seed: int,
    least: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tutorial_utils.partition.TRIES", 50)
        whole = toy(tmp_path_factory.mktemp("split") / "toy", sizes)
        try:
            paths = split_dataset(whole.folder, sites, **kind, seed=seed, min_images=least)
        except PartitionError as error:
            ((name, value),) = kind.items()
            said = "iid" if value is None else f"{name.split('_')[0]} {value:g}"
            assert said in str(error) or "4 labels: labels_per_site must" in str(error)
            assert f"{sites} sites" in str(error)
            assert [path.name for path in whole.folder.parent.iterdir()] == ["toy"]
            return
    assert [path.name for path in paths] == [f"site-{k + 1}" for k in range(sites)]
    parts = [read_dataset(path) for path in paths]
    assert all(p.counts["train"] >= least and p.counts["valid"] >= 1 and p.counts["test"] >= 1 for p in parts)
    for split in SPLITS:
        images, labels = (np.concatenate([part.arrays(split)[k] for part in parts]) for k in (0, 1))
        order = np.argsort(images[:, 0, 0, 0] + 256 * images[:, 0, 0, 1].astype(int))
        assert np.array_equal(images[order], whole.arrays(split)[0])
        assert np.array_equal(labels[order], whole.arrays(split)[1])


def test_a_site_is_a_dataset_folder_with_its_own_mix(digits: Dataset, tmp_path: Path) -> None:
    paths = split_dataset(digits.folder, 2, alpha=0.3, seed=0, out=tmp_path / "out")
    for k, path in enumerate(paths):
        site = read_dataset(path)
        assert site.site == f"site-{k + 1}"
        assert (site.name, site.classes, site.source) == (digits.name, digits.classes, digits.source)
        mix = [np.bincount(site.arrays(split)[1], minlength=10) / site.counts[split] for split in SPLITS]
        assert np.abs(mix[0] - mix[1]).max() < 0.03 and np.abs(mix[0] - mix[2]).max() < 0.03
    card = json.loads((tmp_path / "out" / "split.json").read_text())
    assert [card[key] for key in ("sites", "alpha", "seed", "sha256")] == [["site-1", "site-2"], 0.3, 0, digits.sha256]


def test_the_same_arguments_give_the_same_split(small: Dataset, tmp_path: Path) -> None:
    runs = [
        split_dataset(small.folder, 3, alpha=1.0, seed=seed, out=tmp_path / f"out-{k}", min_images=5)
        for k, seed in enumerate((1, 1, 2))
    ]
    assert hashes(runs[0]) == hashes(runs[1]) != hashes(runs[2])


def test_a_split_that_is_there_stays_and_another_is_refused(small: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    paths = split_dataset(small.folder, 2, alpha=None, seed=3, out=out)
    before = [path.stat().st_mtime_ns for path in sorted(out.rglob("*"))]
    assert split_dataset(str(small.folder), np.int64(2), alpha=None, seed=3, out=str(out)) == paths
    assert before == [path.stat().st_mtime_ns for path in sorted(out.rglob("*"))]
    for change in ({"sites": 3}, {"alpha": 0.5}, {"seed": 4}, {"labels_per_site": 2}, {"quantity_alpha": 0.5}):
        arguments = {"sites": 2, "alpha": None, "seed": 3} | change
        with pytest.raises(PartitionError, match=rf"another split .*{next(iter(change))}"):
            split_dataset(small.folder, **arguments, out=out)
    other = toy(tmp_path / "toy", (50, 30, 20))
    with pytest.raises(PartitionError, match=r"another split .*sha256"):
        split_dataset(other.folder, 2, alpha=None, seed=3, out=out)
    shutil.rmtree(out / "site-2")
    with pytest.raises(PartitionError, match="delete the whole of it"):
        split_dataset(small.folder, 2, alpha=None, seed=3, out=out)


NAMES = ["st-anne", "Mercy_Hospital"]


def test_a_site_gets_what_its_place_in_the_list_gets(small: Dataset, tmp_path: Path) -> None:
    """Not its name: the same images under names and under numbers."""
    how = {"alpha": 0.5, "min_images": 5}
    numbered = split_dataset(small.folder, 2, **how, out=tmp_path / "numbered")
    named = split_dataset(small.folder, NAMES, **how, out=tmp_path / "named")
    assert [path.relative_to(tmp_path / "named") for path in named] == [Path(name) for name in NAMES]
    assert hashes(named) == hashes(numbered) and hashes(named)[0] != hashes(named)[1]
    cards = [json.loads((tmp_path / kind / "split.json").read_text()) for kind in ("numbered", "named")]
    assert [card["sites"] for card in cards] == [["site-1", "site-2"], NAMES] and cards[0]["plan"] == cards[1]["plan"]
    assert [read_dataset(path).site for path in named] == NAMES
    assert all(read_dataset(path).part_of == small.sha256 for path in named)
    assert list(count_labels(named).index) == NAMES
    turned = split_dataset(small.folder, NAMES[::-1], **how, out=tmp_path / "turned")
    assert hashes(turned) == hashes(named)
    for other in (2, NAMES[::-1], [*NAMES, "third"]):
        with pytest.raises(PartitionError, match=r"another split \(sites st-anne, Mercy_Hospital, not "):
            split_dataset(small.folder, other, **how, out=tmp_path / "named")


def test_the_plan_says_who_holds_what(small: Dataset, tmp_path: Path) -> None:
    cards = []
    for k, seed in enumerate((1, 1, 2)):
        split_dataset(small.folder, 3, alpha=1.0, seed=seed, out=tmp_path / f"{k}", min_images=5)
        cards.append(json.loads((tmp_path / f"{k}" / "split.json").read_text()))
    assert cards[0]["plan"] == cards[1]["plan"] != cards[2]["plan"]
    assert all(card["numpy"] == np.__version__ for card in cards)
    moved = {"train": [[0, 1], [2]], "valid": [[0], [1]]}, {"train": [[0], [1, 2]], "valid": [[0], [1]]}
    assert make_card({}, moved[0])["plan"] != make_card({}, moved[1])["plan"]


def test_a_split_that_another_numpy_dealt(small: Dataset, tmp_path: Path) -> None:
    """It is used where both deal alike. Else a colleague's numbers would differ, and nobody would know why."""
    out = tmp_path / "out"
    paths = split_dataset(small.folder, 2, out=out)
    card = json.loads((out / "split.json").read_text())
    (out / "split.json").write_text(json.dumps(card | {"numpy": "1.26.4"}))
    assert split_dataset(small.folder, 2, out=out) == paths
    (out / "split.json").write_text(json.dumps(card | {"numpy": "1.26.4", "plan": "0" * 64}))
    with pytest.raises(
        PartitionError, match=rf"dealt by numpy 1\.26\.4, and numpy {np.__version__} deals otherwise: del"
    ):
        split_dataset(small.folder, 2, out=out)
    (out / "split.json").write_text(json.dumps(card | {"plan": "0" * 64}))
    with pytest.raises(PartitionError, match=r"another split \(other parts at the same sites\)"):
        split_dataset(small.folder, 2, out=out)


def test_a_site_of_other_data_is_noticed(small: Dataset, tmp_path: Path) -> None:
    other = toy(tmp_path / "toy", (50, 30, 20))
    paths = split_dataset(small.folder, 2, alpha=None, out=tmp_path / "out")
    for stranger in (split_dataset(other.folder, 2, alpha=None)[1], paths[0]):
        shutil.rmtree(paths[1])
        shutil.copytree(stranger, paths[1])
        with pytest.raises(PartitionError, match=r"delete the whole of it.*site-2 is a part of other data"):
            split_dataset(small.folder, 2, alpha=None, out=tmp_path / "out")


def test_any_images_are_dealt_out(tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(90, 1, 7, 5)).astype(np.float32)
    whole = write_dataset(
        tmp_path / "own", dict.fromkeys(SPLITS, (images, np.arange(90) % 30)), **OWN, classes=list(map(str, range(30)))
    )
    sites = [read_dataset(path) for path in split_dataset(whole.folder, 3, alpha=None)]
    assert all((site.shape, site.dtype, site.counts["test"]) == ((1, 7, 5), "float32", 30) for site in sites)
    got = np.concatenate([site.arrays("train")[0] for site in sites])
    assert sorted(map(bytes, got)) == sorted(map(bytes, images))
    assert count_labels([site.folder for site in sites]).shape == (3, 30)


def test_labels_are_counted_by_name(small: Dataset, tmp_path: Path) -> None:
    """Whatever the order of the classes, and where two folders have one name."""
    images = np.zeros((5, 1, 2, 2), np.uint8)
    splits = dict.fromkeys(SPLITS, (images, [0, 0, 1, 1, 1]))
    other = write_dataset(tmp_path / "toy", splits, **OWN, classes=["class 3", "rare"])
    table = count_labels([small.folder, str(other.folder)])
    assert list(table.index) == ["toy", "toy"] and list(table.columns) == [f"class {k}" for k in range(4)] + ["rare"]
    assert table.to_numpy().tolist() == [[15, 15, 15, 15, 0], [0, 0, 0, 2, 3]]


def test_places_are_seen_from_where_the_caller_stands(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for out in ("out", "~/out"):
        (path, *_) = split_dataset(small.folder, 2, out=out)
        assert path.is_absolute() and path == Path(out.replace("~", "home")).absolute() / "site-1"


def test_the_default_folder_has_the_names(small: Dataset) -> None:
    def folder(sites: list[str] | int) -> str:
        return split_dataset(small.folder, sites, alpha=None, min_images=1)[0].parent.name

    assert folder(["a-b", "c"]) == "toy-a-b+c-iid-seed-0" != folder(["a", "b-c"])
    assert folder(["site-1", "site-2"]) == folder(2) == "toy-2-sites-iid-seed-0"
    long = [f"a-hospital-with-a-long-name-{k}" for k in range(3)]
    assert re.fullmatch(r"toy-3-sites-[0-9a-f]{8}-iid-seed-0", folder(long)) and folder(long) != folder(long[::-1])


def test_the_default_folder_lies_beside_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy(tmp_path / "toy").folder)
    assert split_dataset(".", 2, alpha=1)[0].parent == tmp_path / "toy-2-sites-alpha-1-seed-0"
    assert split_dataset(".", 2, alpha=None, seed=5)[0].parent == tmp_path / "toy-2-sites-iid-seed-5"
    assert split_dataset(".", 2, labels_per_site=2)[0].parent == tmp_path / "toy-2-sites-labels-2-seed-0"
    skew = split_dataset(".", 2, quantity_alpha=0.5, min_images=1)
    assert skew[0].parent == tmp_path / "toy-2-sites-quantity-0.5-seed-0"


def test_a_split_of_another_version_says_so(small: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    split_dataset(small.folder, 2, out=out)
    card = json.loads((out / "split.json").read_text())
    (out / "split.json").write_text(json.dumps(card | {"format": 1, "sites": 2}))
    with pytest.raises(PartitionError, match=r"dealt by another version: delete the whole of it"):
        split_dataset(small.folder, 2, out=out)


@pytest.mark.parametrize(
    ("choice", "hint"),
    [
        ({"labels_per_site": 0}, "labels_per_site is 0: it must be a whole number, 1 or more"),
        ({"labels_per_site": 1.5}, "labels_per_site is 1.5"),
        ({"labels_per_site": "2"}, "labels_per_site is '2'"),
        ({"labels_per_site": 5}, "2 sites and 4 labels: labels_per_site must lie in 2..4"),
        ({"labels_per_site": 1}, "2 sites and 4 labels: labels_per_site must lie in 2..4"),
        ({"quantity_alpha": 0}, "quantity_alpha is 0"),
        ({"quantity_alpha": math.nan}, "quantity_alpha is nan"),
        ({"labels_per_site": 2, "quantity_alpha": 0.5}, "name one of them"),
        ({"labels_per_site": 2, "alpha": 0.5}, "name one of them"),
        ({"quantity_alpha": 0.5, "alpha": 0.1}, "name one of them"),
    ],
)
def test_kinds_that_make_no_sense(choice: dict[str, object], hint: str, small: Dataset, tmp_path: Path) -> None:
    with pytest.raises(PartitionError) as caught:
        split_dataset(small.folder, 2, **choice, out=tmp_path / "out")
    assert hint in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_folder_is_left_alone(small: Dataset, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    for out in (tmp_path, tmp_path / "mine", tmp_path / "mine" / "below"):
        with pytest.raises((PartitionError, DataError)):
            split_dataset(small.folder, 2, out=out)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_interrupt_leaves_nothing(small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    savez, calls = np.savez, []

    def interrupt(file: Path, **arrays: np.ndarray) -> None:
        savez(file, **arrays)
        calls.append(file)
        if len(calls) == 4:  # in the second site
            raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupt)
    with pytest.raises(KeyboardInterrupt):
        split_dataset(small.folder, 2, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sites", [0, -1, 1.5, "2", True, None, math.nan, 10**9, [], ["a", "a"], ["a/b"], ["server"]])
def test_sites_that_make_no_sense(sites: object, small: Dataset, tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match=r"sites (is|names)|A site cannot be called"):
        split_dataset(small.folder, sites, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("alpha", [0, -0.3, math.nan, math.inf, 1e9, "iid"])
def test_alphas_that_make_no_sense(alpha: object, small: Dataset, tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match="alpha is"):
        split_dataset(small.folder, 2, alpha=alpha, out=tmp_path / "out")


@pytest.mark.parametrize("seed", [-1, 0.5, None])
def test_seeds_that_make_no_sense(seed: object, small: Dataset, tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match="seed is"):
        split_dataset(small.folder, 2, seed=seed, out=tmp_path / "out")


@pytest.mark.parametrize("sites, alpha", [(4, 0.3), (10_000, 0.3), (4, None), (3, 0.001)])
def test_sites_that_cannot_be_filled(sites: int, alpha: float | None, small: Dataset, tmp_path: Path) -> None:
    with pytest.raises(PartitionError, match=rf"(iid|alpha {alpha}) leaves .* {sites} sites: ask for fewer"):
        split_dataset(small.folder, sites, alpha=alpha, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_no_data_to_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no dataset\.json"):
        split_dataset(tmp_path, 2)


def run_split(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "data" / "split.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_line(small: Dataset, tmp_path: Path) -> None:
    done = run_split(small.folder, "--sites", "2", "--alpha", "iid", "--out", "out", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["site-1", "site-2"]
    assert "train 30, valid 10, test 10" in lines[0] and "class 3" in lines[0]
    done = run_split(small.folder, "--sites", "2", "--labels-per-site", "2", "--out", "labels", cwd=tmp_path)
    assert done.returncode == 0 and re.findall(r"class \d (\d+)", done.stdout).count("15") == 4
    shutil.rmtree(tmp_path / "labels")
    done = run_split(small.folder, "--sites", "2", "--alpha", "1", "--quantity-alpha", "1", cwd=tmp_path)
    assert done.returncode == 2 and "not allowed with argument" in done.stderr
    done = run_split(small.folder, "--sites", "40", "--out", "other", cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    done = run_split(small.folder, "--sites", "st-anne, mercy", "--alpha", "iid", "--out", "named", cwd=tmp_path)
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["st-anne", "mercy"]
    done = run_split(small.folder, "--sites", "a/b,c", "--out", "other", cwd=tmp_path)
    assert done.returncode == 2 and "argument --sites: A site cannot be called 'a/b'" in done.stderr
