"""The benchmark: the same federation by plain PyTorch, by this project, by FLARE's defaults, by Flower, as it once was.

    make bench                                      # side by side, one table
    make bench ARGS="rounds --flower-python ENV/bin/python"
    make bench ARGS="all --json numbers.json"

What each part measures, and what is equal in it, stands in README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from contest import HERE, Contestant, Results, race, ratio_to, report, seconds_of
from measure import GB, MB, machine, markdown, say, spread
from spec import Spec

from tutorial_utils.data import SPLITS, Dataset, prepare, read_dataset, subset, write_dataset
from tutorial_utils.errors import TutorialError
from tutorial_utils.partition import parse_alpha, split_dataset

ROOT = HERE.parents[1]
WITHOUT = {  # ours with one lever left out
    "waits": "to FLARE's own end",
    "long-naps": "with FLARE's naps at the start",
    "unpaced": "each round looked for, not called",
    "two-seconds": "with 2 s between tasks",
}
FLOWER_RECIPE = (
    "Flower is missing: name its Python with --flower-python ENV/bin/python. These two commands make one:\n"
    "    python3 -m venv ENV\n"
    "    ENV/bin/python -m pip install torch=={torch} numpy=={numpy} 'flwr[simulation]==1.38.*'"
)


class BenchError(TutorialError):
    """The benchmark cannot be run as it was asked for."""


@dataclass(frozen=True)
class Data:
    """What all contestants work on.

    Attributes:
        sites: the site folders.
        whole: the dataset that they were cut from, None where the reader named site folders.
    """

    sites: tuple[Path, ...]
    whole: Dataset | None

    @property
    def folder(self) -> Path:
        return self.sites[0].parent

    @property
    def images(self) -> int:
        return sum(read_dataset(site).counts["train"] for site in self.sites)

    @property
    def title(self) -> str:
        first = read_dataset(self.sites[0])
        return f"{first.title}, {self.images:,} training images at {len(self.sites)} sites"


def find_whole(args: argparse.Namespace) -> Dataset:
    """The real data where the reader has said where they lie, else the digits."""
    wanted = args.dataset or ("auto" if os.environ.get("CIFAR10_SOURCE") else "digits")
    dataset = subset(prepare(wanted, root=ROOT / "data"), args.images)
    if dataset.name == "digits" and not args.dataset:
        say("The digits that scikit-learn ships: set CIFAR10_SOURCE to measure on CIFAR-10.")
    return dataset


def cut(whole: Dataset, sites: int, args: argparse.Namespace) -> Data:
    return Data(tuple(split_dataset(whole.folder, sites, alpha=args.alpha, seed=args.seed)), whole)


def find_data(args: argparse.Namespace) -> Data:
    if not args.data:
        return cut(find_whole(args), args.sites, args)
    folders = sorted(args.data.resolve().glob("site-*"), key=lambda path: int(path.name.removeprefix("site-")))
    if not folders:
        raise BenchError(f"{args.data} holds no folder site-1: make some with data/split.py.")
    return Data(tuple(read_dataset(folder).folder for folder in folders), None)


def need_whole(data: Data, what: str) -> Dataset:
    if data.whole is None:
        raise BenchError(f"{what} cuts the data itself: leave --data out, and name them by --dataset and --images.")
    return data.whole


def make_spec(data: Data, args: argparse.Namespace, **changes: Any) -> Spec:
    how = {name: getattr(args, name) for name in ("rounds", "epochs", "batch_size", "lr", "seed")}
    return replace(Spec(str(data.folder), "", sites=len(data.sites), **how), **changes)


def python(script: str, *words: str) -> tuple[str, ...]:
    return (sys.executable, str(HERE / script), *words)


def main_contestants(data: Data, spec: Spec, args: argparse.Namespace, keys: Sequence[str]) -> list[Contestant]:
    """Those of `keys` that do the whole work, in a fixed order."""
    common = {"spec": spec, "images": data.images, "test": data.sites}
    flower = str(args.flower_python or "")
    everyone = [
        Contestant("floor", "plain PyTorch, the floor", python("floor.py"), **common, same_work=True),
        Contestant("ours", "ours", python("flare.py", "ours"), **common, same_work=True),
        *(
            Contestant(key, f"ours, {title}", python("flare.py", key), **common, same_work=True)
            for key, title in WITHOUT.items()
        ),
        Contestant("flare", "FLARE's defaults", python("flare.py", "defaults"), **common, same_work=True),
        Contestant(
            "flower",
            "Flower (no cross-site evaluation)",
            (flower, str(HERE / "flower_app.py")),
            **common,
            missing=None if flower else FLOWER_RECIPE.format_map(machine()),
        ),
    ]
    return [contestant for contestant in everyone if contestant.key in keys]


def take_fraction(whole: Dataset, images: int) -> Dataset:
    """So many training images, and as large a share of the others, in a folder of their own."""
    target = whole.folder.with_name(f"{whole.folder.name}-fraction-{images}")
    if target.exists():
        return read_dataset(target)
    share, splits = images / whole.counts["train"], {}
    for split in SPLITS:
        pictures, labels = whole.arrays(split)
        count = max(1, round(share * len(labels)))
        few = np.sort(np.random.default_rng(0).permutation(len(labels))[:count])
        splits[split] = pictures[few], labels[few]
    return write_dataset(target, splits, name=whole.name, classes=whole.classes, source=whole.source)


def ancestor_contestants(data: Data, args: argparse.Namespace) -> list[Contestant]:
    """The old settings and ours, on the same small fraction of the data, scored on all test images."""
    whole = need_whole(data, "the ancestor's row")
    images = min(args.ancestor_images, whole.counts["train"])
    part = take_fraction(whole, images)
    ours = cut(part, args.sites, args)
    small = Contestant(
        "ours-small",
        "ours, on a fraction",
        python("flare.py", "ours"),
        make_spec(ours, args),
        images,
        data.sites,
        base="ours-small",
    )
    old = Contestant(
        "ancestor",
        "the ancestor's settings, on a fraction (its ratio: to ours on it)",
        python("flare.py", "ancestor"),
        replace(small.spec, data=str(part.folder), batch_size=4),
        images * args.sites,
        data.sites,
        base="ours-small",
    )
    return [small, old]


def compare(data: Data, args: argparse.Namespace) -> dict[str, Any]:
    """All five, side by side."""
    contestants = main_contestants(data, make_spec(data, args), args, args.contestants)
    if "ancestor" in args.contestants:
        if data.whole:
            contestants += ancestor_contestants(data, args)
        else:
            say("The ancestor's row needs the data before they were split: leave --data out to see it.")
    results = race(contestants, args.repeats, args.limit)
    return report(f"{data.title}, {args.rounds} rounds, {args.repeats} repeats", contestants, results)


def vary_rounds(data: Data, args: argparse.Namespace) -> dict[str, Any]:
    """The same at several numbers of rounds, and what a further round costs."""
    parts: dict[str, Any] = {}
    medians: dict[str, dict[int, float]] = {}
    for number in args.round_numbers:
        contestants = main_contestants(data, make_spec(data, args, rounds=number), args, args.contestants)
        results = race(contestants, args.repeats, args.limit)
        parts[str(number)] = report(f"{data.title}, {number} round(s)", contestants, results)
        for contestant in contestants:
            if time := spread(value for value in seconds_of(results, contestant.key) if value is not None):
                medians.setdefault(contestant.title, {})[number] = time.median
    parts["seconds_a_round"] = slopes(medians)
    return parts


def slopes(medians: dict[str, dict[int, float]]) -> dict[str, float]:
    """Seconds of one more round, from the fewest rounds to the most; and what it costs beyond the floor's."""
    found = {}
    for title, by_rounds in medians.items():
        few, many = min(by_rounds), max(by_rounds)
        if many > few:
            found[title] = (by_rounds[many] - by_rounds[few]) / (many - few)
    if found:
        floor = next(iter(found.values())) if "floor" in next(iter(found)) else float("nan")
        rows = [(title, f"{slope:.2f}", f"{slope - floor:.2f}") for title, slope in found.items()]
        say("\n" + markdown(("one more round", "seconds", "beyond the floor's"), rows))
    return found


def vary_sites(data: Data, args: argparse.Namespace) -> dict[str, Any]:
    """More sites, the same data in all: seconds, and the peak memory of a site's process."""
    whole = need_whole(data, "sites")
    rows, parts = [], {}
    for number in args.site_numbers:
        parted = cut(whole, number, args)
        contestants = main_contestants(parted, make_spec(parted, args), args, ("floor", "ours"))
        if args.threads and args.threads < number:
            slow = replace(contestants[-1].spec, threads=args.threads)
            contestants.append(replace(contestants[-1], key="few", title=f"ours, {args.threads} threads", spec=slow))
        results = race(contestants, args.repeats, args.limit)
        parts[str(number)] = report(f"{parted.title}, {args.rounds} rounds", contestants, results)
        bare = measure_bare(parted)
        parts[str(number)]["bare"] = bare
        rows += [memory_row(number, contestant, results, bare) for contestant in contestants]
    header = ("sites and who", "seconds", "to the floor", "MB a site, peak", "to a bare process", "GB, whole machine")
    say("\n" + markdown(header, rows))
    return parts


def memory_row(sites: int, contestant: Contestant, results: Results, bare: int) -> tuple[str, ...]:
    mine = [result.outcome for result in results[contestant.key] if not result.outcome.failure]
    title = f"{sites} sites: {contestant.title}"
    if not mine:
        return (title, *["-"] * 5)
    time = spread(outcome.seconds for outcome in mine)
    peak = spread(max(outcome.peaks.values(), default=0) for outcome in mine)
    used = spread(outcome.machine / GB for outcome in mine)
    ratio = ratio_to(results, contestant.key, "floor")
    numbers = (f"{peak.median / MB:.0f}", f"{peak.median / bare:.2f}", f"{used.median:.1f}")
    return (title, time.text(), ratio.text(2) if ratio else "", *numbers)


def measure_bare(data: Data) -> int:
    """Peak bytes of a process with torch, nvflare, one step of SGD and the images of the largest site."""
    largest = max(data.sites, key=lambda site: read_dataset(site).counts["train"])
    told = subprocess.run(python("bare.py", str(largest)), capture_output=True, text=True, check=True)
    return int(told.stdout.split()[0])


def fixed_cost(data: Data, args: argparse.Namespace) -> dict[str, Any]:
    """What a run costs when there is next to nothing to train: a hundred digits."""
    tiny = cut(subset(prepare("digits", root=ROOT / "data"), 100), args.sites, args)
    contestants = main_contestants(tiny, make_spec(tiny, args), args, ("floor", "ours", *WITHOUT, "flare"))
    results = race(contestants, args.repeats, args.limit)
    part = report(f"Next to no training: {tiny.title}, {args.rounds} rounds", contestants, results)
    ratio = ratio_to(results, "ours", "flare")
    if ratio:
        say(f"\nours / FLARE's defaults: {ratio.text(2)}")
        part["ours_to_flare"] = ratio.median
    return part


def show_phases(data: Data, args: argparse.Namespace) -> dict[str, Any]:
    """Where the seconds go, as a table and a figure: the run of median length of each contestant."""
    from phases import PHASES, draw, split_time  # matplotlib: the other parts need not wait for it

    plain = {one.key: one for one in main_contestants(data, make_spec(data, args), args, ("floor", "ours", "flare"))}
    plain["ours"] = replace(plain["ours"], command=python("flare.py", "timed"))
    plain["flare"] = replace(plain["flare"], command=python("flare.py", "timed-defaults"))
    contestants = list(plain.values())
    results = race(contestants, args.repeats, args.limit)
    part = report(f"With a clock in the learner: {data.title}, {args.rounds} rounds", contestants, results)
    seconds = {}
    for contestant in contestants:
        done = sorted((r for r in results[contestant.key] if r.seconds), key=lambda result: result.seconds)
        if done:
            middle = done[len(done) // 2]
            times = middle.outcome.begin, middle.outcome.end
            seconds[contestant.title] = split_time(middle.told["stamps"], *times)
    rows = [(title, *(f"{phases[phase]:.1f}" for phase in PHASES)) for title, phases in seconds.items()]
    say("\n" + markdown(("seconds", *PHASES), rows))
    if seconds:
        title = f"Where the seconds go: {data.title}, {args.rounds} rounds, {machine()['cores']} cores"
        draw(seconds, title, args.figure)
        say(f"Figure   {args.figure}")
    return part | {"phases": seconds}


PARTS: dict[str, Callable[[Data, argparse.Namespace], dict[str, Any]]] = {
    "compare": compare,
    "rounds": vary_rounds,
    "sites": vary_sites,
    "fixed": fixed_cost,
    "phases": show_phases,
}


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parts = f"{', '.join(PARTS)} or all (default: compare)"
    parser = argparse.ArgumentParser(description="The same federation, several ways, measured side by side.")
    parser.add_argument("what", nargs="*", choices=[*PARTS, "all", []], metavar="PART", help=parts)
    parser.add_argument("--data", type=Path, metavar="SITES", help="a folder of site folders (default: cut one now)")
    parser.add_argument("--dataset", choices=["auto", "cifar10", "digits"], help="CIFAR10_SOURCE decides by default")
    parser.add_argument("--images", type=int, help="at most so many training images in all")
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--alpha", type=parse_alpha, default=None, help="of the split (default: iid, equal sites)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=900, help="seconds after which a run is ended")
    everyone = ["floor", "ours", "flare", "flower", "ancestor"]
    parser.add_argument("--contestants", nargs="+", choices=everyone, default=everyone)
    parser.add_argument("--flower-python", type=Path, help="the Python of an environment with flwr[simulation]")
    parser.add_argument("--ancestor-images", type=int, default=500, help="the ancestor's fraction of the data")
    parser.add_argument("--round-numbers", type=int, nargs="+", default=[1, 5, 20], help="of the part `rounds`")
    parser.add_argument("--site-numbers", type=int, nargs="+", default=[2, 4, 8, 16], help="of the part `sites`")
    parser.add_argument("--threads", type=int, help="in `sites`, ours once more with so few sites at once")
    parser.add_argument("--figure", type=Path, default=HERE / "seconds.png", help="of the part `phases`")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    return parser.parse_args(words)


def warm_up(data: Data, args: argparse.Namespace) -> None:
    """Read the libraries from disk once, so that the first contestant does not pay for all."""
    measure_bare(data)
    if args.flower_python:
        # Not resolved: the link in the environment's bin is what makes it that environment.
        probe = [str(args.flower_python), "-c", "import flwr.simulation, ray, torch"]
        try:
            subprocess.run(probe, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise BenchError(f"{args.flower_python} cannot import flwr, ray and torch: {error}.") from error


def stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # so that what was started is ended


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    signal.signal(signal.SIGTERM, stop)
    args = parse()
    try:
        data = find_data(args)
        warm_up(data, args)
        facts = machine()
        say(", ".join(f"{name} {value}" for name, value in facts.items()))
        names = list(PARTS) if "all" in args.what else list(args.what) or ["compare"]
        parts = {name: PARTS[name](data, args) for name in names}
    except TutorialError as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit("Stopped, and every process with it.") from None
    if args.json:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        numbers = {"machine": facts, "data": data.title, "settings": settings, "parts": parts}
        args.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    if '"faults": ["' in json.dumps(parts):
        raise SystemExit("Not all did the same work: see above.")


if __name__ == "__main__":
    main()
