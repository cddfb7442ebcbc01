"""FedAvg as in NIID-Bench, at a smaller budget: 10 sites, IID and Dirichlet 0.5, beside its published figures.

    CIFAR10_SOURCE=FOLDER python tests/benchmarks/niid.py

Both splits train at once, a process each: 3 to 5 minutes on two cores. The federation is the hand-made one, whose bits
the job's equal. `--rounds 50 --epochs 10` is NIID-Bench's own budget, about an hour.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from measure import markdown, say

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "code"))

from fl.by_hand import federate
from tutorial_utils.data import prepare, read_dataset
from tutorial_utils.partition import split_dataset
from tutorial_utils.study import run_tasks

SITES, BATCH_SIZE, LR, MOMENTUM = 10, 64, 0.01, 0.9  # as theirs
THEIR_ROUNDS, THEIR_EPOCHS = 50, 10
SPLITS = {"IID": None, "Dirichlet 0.5": 0.5}
# FedAvg, % of 10,000 test images
THEIRS = {"IID": "none; Flower's re-run 71.3", "Dirichlet 0.5": "68.2; Flower's re-run 62.5"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, help="a dataset folder (default: prepare CIFAR-10)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=3, help="local epochs in each round")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the first weights and the batches")
    args = parser.parse_args()
    dataset = read_dataset(args.data) if args.data else prepare("cifar10", root=ROOT / "data")
    how = {"seed": args.seed, "batch_size": BATCH_SIZE, "epochs": args.epochs, "lr": LR, "momentum": MOMENTUM}
    splits = [split_dataset(dataset.folder, SITES, alpha=alpha, seed=args.seed) for alpha in SPLITS.values()]
    start = time.monotonic()
    done = run_tasks([(federate, (sites, args.rounds), how) for sites in splits])
    seconds = time.monotonic() - start
    ours, theirs = args.rounds * args.epochs, THEIR_ROUNDS * THEIR_EPOCHS
    rows = [
        (split, f"{100 * rounds[-1]['accuracy']:.1f}", f"{100 * max(r['accuracy'] for r in rounds):.1f}", THEIRS[split])
        for split, rounds in zip(SPLITS, done, strict=True)
    ]
    of = f"{dataset.title}, {dataset.counts['train']:,} training and {dataset.counts['test']:,} test images"
    say(f"{of}, seed {args.seed}; {seconds:.0f} s for both\n")
    head = ("FedAvg, 10 sites", "ours, last round, %", "ours, best round, %", "theirs, %")
    say(markdown([*head], rows))
    say(f"\nEpochs over the data: ours {ours} ({args.rounds} rounds of {args.epochs}), theirs {theirs}.")


if __name__ == "__main__":
    main()
