"""The benchmark on a GPU: all of it that is not CUDA itself, on the processor."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))  # the benchmark's scripts import each other by name

import gpu
import gpu_runs
from gpu_learner import DEVIATION, MEAN, PLACE, ExampleNet, ExampleSite, PlacedExample, look_at
from gpu_runs import Bench, Case, deal, plan_places, run_example
from niid_learner import Augmented

from dl.train import load_data, make_loader, normalize
from tutorial_utils.data import Dataset, read_dataset, write_dataset
from tutorial_utils.drive import test_drive as drive
from tutorial_utils.learner import round_seed, seed_everything
from tutorial_utils.results import Run, sha256

ROUND = {"alpha": 0.1, "sizes": [100, 5000], "start": 36.0, "round": 72.0, "sites": {"site-1": {"peak": 900e6}}}


def run_main(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *map(str, words)])
    gpu.main()


def test_without_a_card_one_sentence_says_what_would_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run_main(monkeypatch)
    told = capsys.readouterr().out
    assert told.count("\n") == 1 and "no NVIDIA card" in told and "`--device cpu` measures the same" in told


def test_too_few_images_are_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """The draw would look for a split without end."""
    with pytest.raises(SystemExit):
        run_main(monkeypatch, "--device", "cpu", "--images", 79)
    assert "--images is 79: FLARE's example has eight sites, which need 160 or more." in capsys.readouterr().err


def test_the_net_is_that_of_the_example() -> None:
    net, before = ExampleNet(), torch.random.get_rng_state()
    assert sum(parameter.numel() for parameter in net.parameters()) == 3_491_530
    kinds = [module for module in net.modules() if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.Linear))]
    shapes = [getattr(one, "out_channels", None) or getattr(one, "out_features", "pool") for one in kinds]
    assert shapes == [32, 64, "pool", 128, 128, "pool", 256, 256, "pool", 512, 512, 10]
    assert [one.p for one in net.modules() if isinstance(one, (nn.Dropout, nn.Dropout2d))] == [0.05, 0.1, 0.1]
    assert sha256(ExampleNet().state_dict()) == sha256(net.state_dict()) != sha256(ExampleNet(1).state_dict())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_net_sees_each_channel_as_the_example_normalizes_it() -> None:
    net, seen, images = ExampleNet(), [], torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    net.features.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net(normalize(images))
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) / 255 for values in (MEAN, DEVIATION))
    assert torch.allclose(seen[0], (images / 255 - mean) / deviation, atol=1e-5)
    assert all("mean" not in name and "deviation" not in name for name in net.state_dict()), "they do not travel"


@pytest.fixture
def small(digits: Dataset, tmp_path: Path) -> Path:
    """site-1 with 48 images to train on."""
    splits = {name: tuple(array[:48] for array in digits.arrays(name)) for name in ("train", "valid", "test")}
    about = {"name": digits.name, "classes": digits.classes, "source": digits.source}
    return write_dataset(tmp_path / "small" / "site-1", splits, **about).folder


def test_a_site_keeps_its_momentum_from_round_to_round(small: Path) -> None:
    """Mutation that must not live: a fresh optimizer in each round."""
    how = {"epochs": 2, "batch_size": 16}
    driven = drive(ExampleSite(str(small.parent), **how), ExampleNet(), site="site-1", rounds=3).params

    net, train = ExampleNet().to(memory_format=torch.channels_last), load_data(small).train
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for number in range(3):
        seed = round_seed(0, "site-1", number)
        seed_everything(seed)
        net.train()
        loader = Augmented(make_loader(train, 16, seed), seed)
        for images, labels in (batch for _ in range(2) for batch in loader):
            optimizer.zero_grad()
            functional.cross_entropy(net(normalize(images)), labels).backward()
            optimizer.step()
    assert sha256(driven) == sha256(net.state_dict())


def test_the_clock_changes_no_bit(small: Path) -> None:
    how = {"epochs": 1, "batch_size": 16}
    plain = drive(ExampleSite(str(small.parent), **how), ExampleNet(), site="site-1").params
    timed = drive(PlacedExample(str(small.parent), device="cpu", **how), ExampleNet(), site="site-1").params
    assert sha256(timed) == sha256(plain)


def test_every_image_is_dealt_to_one_site(digits: Dataset, tmp_path: Path) -> None:
    folders = deal(Bench(digits, "cpu", None, tmp_path), 0.1, tmp_path / "sites")
    assert len(folders) == 8 and deal(Bench(digits, "cpu", None, tmp_path), 0.1, tmp_path / "sites") == folders
    data = [load_data(folder) for folder in folders]
    for names, parts in (
        (("train", "valid"), [one.train for one in data]),
        (("test",), [one.valid for one in data]),
    ):
        whole = np.concatenate([digits.arrays(name)[0] for name in names])
        dealt = torch.cat([part.tensors[0] for part in parts]).numpy()
        assert sorted(image.tobytes() for image in dealt) == sorted(image.tobytes() for image in whole)
    tested = [len(one.valid) for one in data]
    assert max(tested) - min(tested) <= 1


def test_of_few_images_there_are_few_in_all(digits: Dataset, tmp_path: Path) -> None:
    counts = [read_dataset(one).counts for one in deal(Bench(digits, "cpu", 160, tmp_path), 0.5, tmp_path / "sites")]
    assert [sum(count[split] for count in counts) for split in ("train", "valid")] == [160, 160]


@pytest.mark.parametrize(
    ("device", "count", "cards"),
    [
        ("cpu", 0, [None] * 4),
        ("cpu", 2, [None] * 4),
        ("cuda", 1, [[0], [0], [0], None]),
        ("cuda", 2, [[0], [0], [0], None, [0, 1]]),
    ],
)
def test_each_case_has_its_cards(device: str, count: int, cards: list[list[int] | None]) -> None:
    cases = plan_places(device, count)
    assert [case[3] for case in cases] == cards and [case[1] for case in cases] == [1, 2, 2, 2, 2][: len(cases)]
    assert [case[2] for case in cases] == ["cpu" if name == "two sites on the CPU" else device for name, *_ in cases]


def test_what_a_learner_sees_of_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The card's own words stand in for it. Bytes in use are those that are not free."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 100))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert look_at(torch.device("cuda")) == {"visible": "1", "device": "NVIDIA H100", "peak": 7, "card": 70}
    seen = look_at(torch.device("cpu"))
    assert seen["device"] == "cpu" and seen["peak"] > 100e6 and seen["card"] is None


@pytest.mark.parametrize(("device", "said"), [("cuda", "Not where it should: a case: site-2."), ("cpu", "site-1.")])
def test_a_site_that_trained_elsewhere_is_named(device: str, said: str, tmp_path: Path) -> None:
    run = Run(tmp_path, ("site-1", "site-2"), 1.0)
    for site, name in zip(run.sites, ("NVIDIA H100", "cpu"), strict=True):
        (app := run.site_folder(site) / f"app_{site}").mkdir(parents=True)
        (app / PLACE).write_text(json.dumps({"visible": "0", "device": name, "peak": 5e6, "card": None}))
        stamps = [("validate", 0, 1), ("train", 1, 3), ("train", 4, 4.5)]
        lines = [json.dumps({"phase": phase, "begin": begin, "end": end}) for phase, begin, end in stamps]
        (app / "stamps.jsonl").write_text("\n".join(lines))
    told = gpu.tell_places([Case("a case", device, run, 0.5)])
    assert told.endswith(said) and "| NVIDIA H100 |         0 |       2.00 |       0.50 |" in told


def test_hours_are_the_start_and_fifty_rounds() -> None:
    row = gpu.tell_rounds([ROUND]).splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["alpha 0.1", "5,000", "72.0", "1.01", "900", "77.3"]


@pytest.mark.slow
def test_all_of_it_runs_on_the_processor(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [digits.folder, "--device", "cpu", "--images", 160, "--alpha", 0.1, "--runs", tmp_path / "runs"]
    run_main(monkeypatch, *words)
    done = json.loads((tmp_path / "runs" / "cpu.json").read_text())
    assert done["machine"]["torch"] and done["device"] == "cpu" and done["images"] == 160
    assert [len(case["sites"]) for case in done["places"]] == [1, 2, 2, 2]
    assert all(
        seen["device"] == "cpu" and len(seen["train"]) == 2 for one in done["places"] for seen in one["sites"].values()
    )
    assert [pair["equal"] for pair in done["bits"]] == [True, True], "on a processor the same bits, twice"
    assert [pair["apart"] for pair in done["bits"]] == [0, 0] and [pair["points"] for pair in done["bits"]] == [0, 0]
    (example,) = done["example"]
    assert len(example["sizes"]) == len(example["sites"]) == 8 and sum(example["sizes"]) == 160
    assert example["round"] > max(site["train"][0] for site in example["sites"].values()) and example["start"] > 0
    assert len(example["accuracy"]) == 2 and all(0 <= value <= 1 for value in example["accuracy"])


@pytest.mark.slow
def test_the_whole_example_goes_on_with_its_momentum_where_it_was_stopped(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(gpu_runs, "SITES", 2)
    bench = Bench(digits, "cpu", 160, tmp_path / "runs")
    first = run_example(bench, 0.5, 1, whole=True)
    words = [digits.folder, "--device", "cpu", "--images", 160, "--full", 0.5, "--rounds", 2, "--runs", bench.runs]
    run_main(monkeypatch, *words)
    kept = json.loads((bench.runs / "cpu.json").read_text())
    done = kept["whole"]["0.5"]
    assert done["accuracy"][:2] == pytest.approx(first["accuracy"], abs=1e-6) and len(done["accuracy"]) == 3
    at_once = run_example(Bench(digits, "cpu", 160, tmp_path / "others"), 0.5, 2, whole=True)
    assert done["sha256"] == at_once["sha256"] != first["sha256"]

    capsys.readouterr()
    run_main(monkeypatch, *words)  # it stands there: nothing is run again
    assert json.loads((bench.runs / "cpu.json").read_text()) == kept and "| alpha 0.5" in capsys.readouterr().out
    assert done["on"]["device"] == "cpu" and done["on"]["machine"]["torch"]
