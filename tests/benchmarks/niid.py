"""NIID-Bench at its own budget: its net, ten sites, 50 rounds of ten local epochs, as jobs in FLARE's simulator.

    CIFAR10_SOURCE=FOLDER python tests/benchmarks/niid.py               # all that niid.json lacks
    CIFAR10_SOURCE=FOLDER python tests/benchmarks/niid.py --only iid-fedavg-0
    python tests/benchmarks/niid.py --draw                              # the tables and the curves, from niid.json

A run takes half an hour to an hour on two cores, all eight half a day. One that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from measure import machine, markdown, say
from torch.utils.data import TensorDataset

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "code"))

from niid_data import SITES, draw_as_flower, draw_as_niid_bench, draw_dirichlet, held_out, make_sites, skew
from niid_learner import NIIDLearner, see_from_zero

from dl.train import Net, evaluate
from tutorial_utils import plots
from tutorial_utils.algorithms.registry import FedAvg, FedProx, Scaffold
from tutorial_utils.data import Dataset, prepare, read_dataset
from tutorial_utils.job import build_job
from tutorial_utils.results import Run
from tutorial_utils.simulate import simulate

ROUNDS, EPOCHS = 50, 10
X, METRIC = "averages made", NIIDLearner.metric
KEPT = Path(__file__).with_name("niid.json")
ALGORITHMS = {"FedAvg": FedAvg(), "FedProx": FedProx(mu=0.001), "SCAFFOLD": Scaffold()}  # mu as their table has it


@dataclass(frozen=True)
class Plan:
    """One run; its key names it on the command line, and in niid.json."""

    split: str
    algorithm: str
    seed: int = 0  # of the draw, the first weights and the batches
    from_zero: bool = False  # the pixels go from 0 to 1, as theirs; the script's from -1 to 1

    @property
    def title(self) -> str:
        return f"{self.split}{', pixels from 0' * self.from_zero}"

    @property
    def key(self) -> str:
        return re.sub(r"\W+", "-", f"{self.title}-{self.algorithm}-{self.seed}".replace(" a site", "")).lower()


PLANS = (
    Plan("IID", "FedAvg"),
    Plan("Dirichlet 0.5", "FedAvg"),
    Plan("two labels a site", "FedAvg"),
    Plan("Dirichlet 0.5", "SCAFFOLD"),
    Plan("Dirichlet 0.5", "FedProx"),
    Plan("Dirichlet 0.5", "FedAvg", 1),
    Plan("Dirichlet 0.5", "FedAvg", 2),
    Plan("Dirichlet 0.5", "SCAFFOLD", from_zero=True),
)


def run(plan: Plan, dataset: Dataset, runs: Path, rounds: int, epochs: int) -> dict[str, Any]:
    """The whole run, from where an earlier one was stopped; accuracy is each average's, on all held-out images."""
    sites = make_sites(dataset, plan.split, plan.seed, runs / f"{plan.key}-sites")
    learner = NIIDLearner(str(sites[0].parent), epochs=epochs, seed=plan.seed, pixels_from_zero=plan.from_zero)
    kind = ALGORITHMS[plan.algorithm]
    job = build_job(
        learner, Net(plan.seed), sites=SITES, rounds=rounds, name=plan.key, algorithm=kind, cross_site="none"
    )
    earlier = find_earlier(runs, plan.key)
    done = simulate(job, runs=runs, name=plan.key, resume_from=earlier, progress=sys.stderr.isatty())
    sizes = [read_dataset(site).counts for site in sites]
    return asdict(plan) | {
        "rounds": rounds,
        "epochs": epochs,
        "accuracy": [*accuracies(done, [counts["valid"] for counts in sizes]), score(done, dataset, plan.from_zero)],
        "sizes": [counts["train"] for counts in sizes],
        "data": dataset.title,
        "images": sum(counts["valid"] for counts in sizes),
        "seconds": None if earlier else round(done.seconds),
        "sha256": done.sha256,
        "machine": machine(),
    }


def find_earlier(runs: Path, key: str) -> Run | None:
    """The run of this name that got furthest, if one was stopped after a round."""
    found = [Run(folder, (), 0.0) for folder in runs.glob(f"{key}*") if (folder / "workspace").is_dir()]
    return max((one for one in found if one.checkpoint), key=lambda one: one.rounds_kept, default=None)


def accuracies(done: Run, images: Sequence[int]) -> list[float]:
    """Of the model that the sites received in each round, counted over all their images: of 0, 1, 2 ... averages."""
    weights = dict(zip(done.sites, images, strict=True))
    right = done.rounds["accuracy"] * done.rounds["site"].map(weights)
    return [float(total) for total in right.groupby(done.rounds["round"]).sum() / sum(images)]


def score(done: Run, dataset: Dataset, from_zero: bool) -> float:
    """The accuracy of the last average, which no site receives any more."""
    net = see_from_zero(Net()) if from_zero else Net()
    net.load_state_dict(done.global_model)
    images, labels = (torch.from_numpy(np.concatenate(part)) for part in zip(*held_out(dataset), strict=True))
    return evaluate(net, TensorDataset(images, labels))["accuracy"]


THEIRS = {  # %, the paper's repository; Flower's re-run, its best round
    ("IID", "FedAvg"): ("none", "71.3 ± 0.3"),
    ("Dirichlet 0.5", "FedAvg"): ("68.2", "62.5 ± 0.4"),
    ("Dirichlet 0.5", "FedProx"): ("67.9", "65.6 ± 0.1"),
    ("Dirichlet 0.5", "SCAFFOLD"): ("69.8", "68.1 ± 1.0"),
    ("Dirichlet 0.5, pixels from 0", "SCAFFOLD"): ("69.8", "68.1 ± 1.0"),
    ("two labels a site", "FedAvg"): ("49.8", "51.2 ± 1.1"),
}


def draw(done: dict[str, dict[str, Any]], path: Path) -> str:
    """The table, as Markdown; the curves go to `path` (the splits) and, of the algorithms, to a file beside it."""
    rows = []
    for (title, algorithm), theirs in THEIRS.items():
        plans = {plan.key for plan in PLANS if (plan.title, plan.algorithm) == (title, algorithm)}
        ours = [done[key]["accuracy"] for key in done if key in plans]
        if ours:
            last, best = (tell([100 * pick(one) for one in ours]) for pick in (lambda one: one[-1], max))
            rows.append((title, algorithm, str(len(ours)), last, best, *theirs))
    draw_splits([one for one in done.values() if not one["from_zero"]], path)
    draw_algorithms(list(done.values()), path.with_stem(f"{path.stem}_algorithms"))
    head = ("split", "algorithm", "seeds", "ours, last round", "ours, best round", "paper", "Flower, best round")
    return markdown(head, rows)


def tell_draws() -> str:
    """How far the sites of each draw at Dirichlet 0.5 are from everyone's mix, theirs too, as Markdown."""
    counts = np.full(10, 4500)
    hundred = [skew(draw_dirichlet(counts, SITES, np.random.default_rng(seed))) for seed in range(100)]
    seeds = [plan.seed for plan in PLANS if (plan.split, plan.algorithm) == ("Dirichlet 0.5", "FedAvg")]
    found = {f"ours, seed {seed}": hundred[seed] for seed in seeds}
    for name, draw_theirs in {"NIID-Bench's program": draw_as_niid_bench, "Flower's re-run": draw_as_flower}.items():
        found[name] = skew(draw_theirs(counts, SITES, np.random.default_rng()))
    rows = [(name, f"{value:.2f}", str(sum(one > value for one in hundred))) for name, value in found.items()]
    return markdown(("draw at Dirichlet 0.5", "skew", "more skewed, of 100 draws"), rows)


def draw_splits(done: Sequence[dict[str, Any]], path: Path) -> None:
    """FedAvg at seed 0, a line for each way of dealing the images."""
    if first := [one for one in done if one["algorithm"] == "FedAvg" and one["seed"] == 0]:
        path.write_bytes(draw_curves(first, [one["split"].replace(" a site", "") for one in first]).png())


def draw_algorithms(done: Sequence[dict[str, Any]], path: Path) -> None:
    """The algorithms at Dirichlet 0.5; each line tells its own seeds, for compare() counts those of all together."""
    if apart := [one for one in done if one["split"] == "Dirichlet 0.5"]:
        names = [f"{one['algorithm']}{', pixels from 0' * one['from_zero']}" for one in apart]
        seeds = Counter(names)
        lines = {name: f"{name}{f', {count} seeds' if count > 1 else ''}" for name, count in seeds.items()}
        figure = draw_curves(apart, [lines[name] for name in names])
        title = f"{apart[0]['data']}, Dirichlet 0.5: accuracy, mean and range of the seeds"
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        figure.axes[0].set_ylim(bottom=0.6 * max(max(one["accuracy"]) for one in apart))  # where they differ
        path.write_bytes(figure.png())


def draw_curves(done: Sequence[dict[str, Any]], lines: Sequence[str]) -> plots.TutorialFigure:
    """Accuracy on the held-out images by averages made; the runs of one name make one line, and its band."""
    rows = [
        {"model": line, "seed": one["seed"], X: made, METRIC.name: accuracy}
        for one, line in zip(done, lines, strict=True)
        for made, accuracy in enumerate(one["accuracy"])
    ]
    return plots.compare(pd.DataFrame(rows), done[0]["data"], done[0]["images"], X, "held-out images", METRIC)


def tell(values: Sequence[float]) -> str:
    """One value, or the mean with the smallest and the largest."""
    mean = f"{np.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, help="a dataset folder (default: prepare CIFAR-10)")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="local epochs in each round")
    parser.add_argument("--only", nargs="+", choices=[plan.key for plan in PLANS], help="these runs, in their order")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "niid", help="where they lie, and go on from")
    parser.add_argument("--json", type=Path, default=KEPT, help="what was measured; what stands there is not run again")
    parser.add_argument("--draw", action="store_true", help="run nothing")
    args = parser.parse_args()
    done = json.loads(args.json.read_text()) if args.json.is_file() else {}
    wanted = [
        plan for plan in PLANS if not args.draw and plan.key not in done and plan.key in (args.only or [plan.key])
    ]
    if wanted:
        dataset = read_dataset(args.data) if args.data else prepare("cifar10", root=ROOT / "data")
    for plan in wanted:
        done[plan.key] = run(plan, dataset, args.runs.resolve(), args.rounds, args.epochs)
        args.json.write_text(json.dumps(done, indent=1) + "\n")
        say(f"{plan.key}: {100 * done[plan.key]['accuracy'][-1]:.1f} %")
    say(draw(done, args.json.with_suffix(".png")))
    say(f"\n{tell_draws()}")


if __name__ == "__main__":
    main()
