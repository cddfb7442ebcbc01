"""Contestants, the race between them, and what is said of it."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from measure import Outcome, Spread, markdown, ratios, run_measured, say, spread
from spec import Spec, find_code

find_code()
from fl.by_hand import score
from tutorial_utils.results import sha256

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Contestant:
    """Who does the work of a spec.

    Attributes:
        key, title: its name in the JSON and in the table.
        command: its process, to which the spec's file is added.
        spec: the work; `out` is set anew for each run.
        images: training images at all sites together, each counted as often as sites hold it.
        test: the dataset folders whose test images score the final weights.
        base: whom its seconds are compared with, besides the floor.
        same_work: must end with the floor's weights, to the bit.
        missing: why it cannot run here, if so.
    """

    key: str
    title: str
    command: tuple[str, ...]
    spec: Spec
    images: int
    test: tuple[Path, ...]
    base: str = "ours"
    same_work: bool = False
    missing: str | None = None


@dataclass
class Result:
    """One run of a contestant."""

    outcome: Outcome
    accuracy: float | None = None
    sha256: str | None = None
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        return None if self.outcome.failure else self.outcome.seconds

    def as_dict(self) -> dict[str, Any]:
        kept = {name: self.told[name] for name in ("inside", "cross_site") if name in self.told}
        return {**asdict(self.outcome), "accuracy": self.accuracy, "sha256": self.sha256, **kept}


Results = dict[str, list[Result]]


def race(contestants: Sequence[Contestant], repeats: int, limit: float) -> Results:
    """A B C A B C ...: whatever the machine does meanwhile, it does to all of them."""
    results: Results = {contestant.key: [] for contestant in contestants}
    for repeat in range(repeats):
        for contestant in contestants:
            result = run_once(contestant, limit)
            results[contestant.key].append(result)
            told = result.outcome.failure or f"{result.seconds:.1f} s, accuracy {result.accuracy:.1%}"
            sys.stderr.write(f"  repeat {repeat + 1} of {repeats}: {contestant.title}: {told}\n")
    return results


def run_once(contestant: Contestant, limit: float) -> Result:
    if contestant.missing:
        return Result(Outcome(failure=contestant.missing))
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        spec = replace(contestant.spec, out=str(folder))
        outcome = run_measured([*contestant.command, str(spec.write())], folder, limit)
        if outcome.failure:
            return Result(outcome)
        with np.load(folder / "model.npz") as arrays:
            weights = {name: arrays[name] for name in arrays.files}
        told = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        accuracy, _ = score(weights, contestant.test)
        return Result(outcome, accuracy, sha256(weights), told)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def seconds_of(results: Results, key: str) -> list[float | None]:
    return [result.seconds for result in results.get(key, [])]


def ratio_to(results: Results, key: str, base: str) -> Spread | None:
    return ratios(seconds_of(results, key), seconds_of(results, base)) if base in results and base != key else None


def table(contestants: Sequence[Contestant], results: Results) -> str:
    """One row a contestant: medians with the smallest and the largest, and what became of those that failed."""
    header = ("", "training images", "seconds", "to the floor", "to ours", "test accuracy", "weights")
    rows, sentences = [], []
    for contestant in contestants:
        mine = results[contestant.key]
        time = spread(value for value in seconds_of(results, contestant.key) if value is not None)
        floor = ratio_to(results, contestant.key, "floor") if contestant.base == "ours" else None
        ours = ratio_to(results, contestant.key, contestant.base)
        accuracy = spread(result.accuracy for result in mine if result.accuracy is not None)
        prints = sorted({result.sha256[:8] for result in mine if result.sha256})
        cells = (time.text() if time else "-", *(ratio.text(2) if ratio else "" for ratio in (floor, ours)))
        shown = percent(accuracy) if accuracy else "-"
        rows.append((contestant.title, f"{contestant.images:,}", *cells, shown, " ".join(prints)))
        failures = {result.outcome.failure: None for result in mine if result.outcome.failure}
        sentences += [f"{contestant.title}: {failure}" for failure in failures]
    return "\n".join([markdown(header, rows), *sentences])


def percent(accuracy: Spread) -> str:
    if accuracy.low == accuracy.high:
        return f"{accuracy.median:.1%}"
    return f"{accuracy.median:.1%} ({accuracy.low:.1%} to {accuracy.high:.1%})"


def find_differences(contestants: Iterable[Contestant], results: Results) -> list[str]:
    """Sentences on whoever should have done the floor's work and ended with other weights or another matrix."""
    done = [result for result in results.get("floor", []) if result.sha256]
    if not done:
        return []
    faults = []
    for contestant in contestants:
        for result in results[contestant.key]:
            if not contestant.same_work or not result.sha256:
                continue
            if result.sha256 != done[0].sha256:
                faults.append(f"{contestant.title} ended with other weights than the floor: not the same work.")
            elif not same_matrix(result.told["cross_site"], done[0].told["cross_site"]):
                faults.append(f"{contestant.title} has another cross-site matrix than the floor: not the same work.")
    return faults


def same_matrix(mine: Mapping[str, Mapping[str, float]], theirs: Mapping[str, Mapping[str, float]]) -> bool:
    """The same models on the same sites, each accuracy equal but for its rounding."""

    def cells(matrix: Mapping[str, Mapping[str, float]]) -> dict[tuple[str, str], float]:
        return {(model, site): value for model, row in matrix.items() for site, value in row.items()}

    a, b = cells(mine), cells(theirs)
    return a.keys() == b.keys() and all(abs(a[place] - b[place]) < 1e-6 for place in a)


def report(title: str, contestants: Sequence[Contestant], results: Results) -> dict[str, Any]:
    """Print the table and what is wrong with it; return all of it for the JSON."""
    say(f"\n{title}\n\n{table(contestants, results)}")
    faults = find_differences(contestants, results)
    for fault in faults:
        say(fault)
    entries = {
        contestant.key: {
            "title": contestant.title,
            "images": contestant.images,
            "spec": {name: value for name, value in asdict(contestant.spec).items() if name not in ("data", "out")},
            "seconds": _numbers(spread(v for v in seconds_of(results, contestant.key) if v is not None)),
            "to_floor": _numbers(ratio_to(results, contestant.key, "floor")),
            "to_base": _numbers(ratio_to(results, contestant.key, contestant.base)),
            "base": contestant.base,
            "runs": [result.as_dict() for result in results[contestant.key]],
        }
        for contestant in contestants
    }
    return {"title": title, "faults": faults, "contestants": entries}


def _numbers(value: Spread | None) -> dict[str, float] | None:
    return asdict(value) if value else None
