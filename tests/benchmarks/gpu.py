"""What a GPU gives: who trains on it, how long, in how much memory, to which bits; and FLARE's CIFAR-10 example.

    CIFAR10_SOURCE=FOLDER python tests/benchmarks/gpu.py                  # all but the whole example
    CIFAR10_SOURCE=FOLDER python tests/benchmarks/gpu.py --full 0.1       # that, at one alpha; stopped, it goes on
    python tests/benchmarks/gpu.py data/digits --device cpu --images 400  # the same on the processor, to try it

README.md beside this file says what each table answers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_runs import Bench, Case, hold, look, run_example, try_places
from measure import MB, machine, markdown, say

from tutorial_utils.data import prepare, read_dataset
from tutorial_utils.errors import TutorialError

ROOT = Path(__file__).resolve().parents[2]
KEPT = Path(__file__).with_name("gpu.json")
ROUNDS = 50
PUBLISHED = {1.0: 88.5, 0.5: 86.3, 0.3: 83.5, 0.1: 77.3}  # % of FLARE's example after its last round, by alpha
FEWEST, FEW = 160, 400  # training images: that eight sites need; on the processor by default


def tell_places(cases: Sequence[Case]) -> str:
    """Who trains where, how long, with how much memory; and in a sentence whether it was where it should be."""
    rows, strayed = [], []
    for case in cases:
        for site, seen in look(case.run).items():
            train, card = [f"{seconds:.2f}" for seconds in seen["train"]], seen["card"]
            memory = (f"{seen['peak'] / MB:.0f}", f"{card / MB:.0f}" if card else "-")
            rows.append((f"{case.title}: {site}", seen["device"], str(seen["visible"]), *train, *memory))
            strayed += [rows[-1][0]] * ((seen["device"] == "cpu") != (case.device == "cpu"))
    head = ("", "trained on", "sees card", "round 0, s", "round 1, s", "MB at its peak", "MB in use on the card")
    said = f"Not where it should: {', '.join(strayed)}." if strayed else "Every site trained where it should."
    return f"{markdown(head, rows)}\n\n{said}"


def tell_bits(pairs: Sequence[dict[str, Any]]) -> str:
    rows = []
    for one in pairs:
        equal = "equal" if one["equal"] else "not equal"
        rows.append((f"{one['one']} / {one['other']}", equal, f"{one['apart']:.1e}", f"{one['points']:+.1f}"))
    return markdown(("the same job twice", "SHA-256", "largest difference of a weight", "accuracy, points"), rows)


def tell_rounds(done: Sequence[dict[str, Any]]) -> str:
    rows = []
    for one in done:
        hours = (one["start"] + ROUNDS * one["round"]) / 3600
        peak = max(seen["peak"] for seen in one["sites"].values()) / MB
        numbers = (f"{max(one['sizes']):,}", f"{one['round']:.1f}", f"{hours:.2f}", f"{peak:.0f}")
        rows.append((f"alpha {one['alpha']:g}", *numbers, str(PUBLISHED.get(one["alpha"], "none"))))
    head = ("FLARE's example, 8 sites", "largest site's images", "seconds a round", f"hours for {ROUNDS} rounds")
    return markdown((*head, "MB of a site at its peak", "published, %"), rows)


def tell_whole(done: Sequence[dict[str, Any]]) -> str:
    rows = []
    for one in done:
        last, best = (f"{100 * value:.1f}" for value in (one["accuracy"][-1], max(one["accuracy"])))
        published = str(PUBLISHED.get(one["alpha"], "none"))
        rows.append((f"alpha {one['alpha']:g}", str(one["rounds"]), f"{one['images']:,}", last, best, published))
    head = ("FLARE's example, 8 sites", "rounds", "test images", "last round, %", "best round, %", "published, %")
    return markdown(head, rows)


def measure(bench: Bench, args: argparse.Namespace, kept: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All that was asked for, said and handed out part by part as it is done; `kept` is what stood in the file."""
    facts = machine() | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    about = {"machine": facts, "data": bench.dataset.title, "images": bench.images, "device": bench.device}
    say(", ".join(f"{name} {value}" for name, value in (facts | {"data": bench.dataset.title}).items()) + "\n")
    if args.full is not None:
        whole, key = dict(kept.get("whole", {})), f"{args.full:g}"
        if whole.get(key, {}).get("rounds") != args.rounds:
            whole[key] = run_example(bench, args.full, args.rounds, whole=True) | {"on": about}
        say(tell_whole(list(whole.values())))
        yield {"whole": whole}
        return
    cases = try_places(bench)
    pairs = [hold(cases[1], other) for other in cases[2:]]
    say(f"{tell_places(cases)}\n\n{tell_bits(pairs)}\n")
    yield about | {"places": [case.summary() for case in cases], "bits": pairs}
    example: list[dict[str, Any]] = []
    for alpha in args.alpha:
        example.append(run_example(bench, alpha, 1))
        yield {"example": example}
    say(tell_rounds(example))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, help="a dataset folder (default: prepare CIFAR-10)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--images", type=int, help=f"training images at most (default: all; on the processor {FEW})")
    parser.add_argument("--alpha", type=float, nargs="+", default=list(PUBLISHED), help="of a round of FLARE's example")
    parser.add_argument("--full", type=float, metavar="ALPHA", help="the whole of FLARE's example, and nothing else")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of --full")
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "gpu", help="where they lie, and --full goes on from"
    )
    parser.add_argument(
        "--json", type=Path, help="all numbers (default: gpu.json here; on the processor cpu.json in --runs)"
    )
    args = parser.parse_args()
    if args.device == "cpu" and args.images is None:
        args.images = FEW
    if args.images is not None and args.images < FEWEST:
        parser.error(f"--images is {args.images}: FLARE's example has eight sites, which need {FEWEST} or more.")
    return args


def main() -> None:
    args = parse()
    if args.device == "cuda" and not torch.cuda.is_available():
        say(
            f"torch {torch.__version__} sees no NVIDIA card here, so nothing was measured: `--device cpu` measures the "
            "same on the processor, on few images."
        )
        return
    path = args.json or (KEPT if args.device == "cuda" else args.runs / "cpu.json")
    done = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    try:
        dataset = read_dataset(args.data) if args.data else prepare("cifar10", root=ROOT / "data")
        bench = Bench(dataset, args.device, args.images, args.runs.resolve())
        for part in measure(bench, args, done):
            done |= part
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    except TutorialError as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit(f"Stopped. What was done by then is in {path}; --full goes on where it was.") from None


if __name__ == "__main__":
    main()
