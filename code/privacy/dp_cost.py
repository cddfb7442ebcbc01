"""What DP-SGD costs a site: accuracy and seconds beside plain training, for some noise.

cd code && python -m privacy.dp_cost --data ../data/DATASET-SITES/site-1 --rounds 5 --batch-size 8
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from dl.train import Net, load_data
from fl.model_learner import CIFAR10ModelLearner
from privacy.dp_learner import PrivateLearner
from tutorial_utils.drive import test_drive
from tutorial_utils.settings import Training


def cost_of_noise(
    folder: Path, training: Training, noises: Sequence[float], rounds: int, clip: float = 1.0
) -> pd.DataFrame:
    """Train a site alone from the same first weights: as ever, then with each noise.

    Args:
        folder: the site's dataset folder, named as the site.
        noises: noise multipliers; 0 clips only, and protects nothing.
        rounds: how often training.epochs are done, with the account going on.

    Returns: a row each; accuracy on the site's test images, epsilon at delta 1e-5, seconds of training
        in the fastest round (the first one of a process imports what it needs).
    """
    data, settings = str(folder.parent), asdict(training)
    learners = {"plain": CIFAR10ModelLearner(data, **settings)}
    learners |= {
        f"noise {noise}": PrivateLearner(data, **settings, noise=noise, clip=clip) for noise in noises
    }
    rows = {}
    for name, learner in learners.items():
        seconds: list[float] = []
        learner.local_train = timed(learner.local_train, seconds)
        test = test_drive(learner, Net(training.seed), site=folder.name, rounds=rounds).test
        rows[name] = {column: test.get(column) for column in ("epsilon", "accuracy")}
        rows[name]["seconds a round"] = min(seconds)
    table = pd.DataFrame(rows).T.astype(float)
    return table.rename_axis(f"{len(load_data(folder).test)} test images")


def timed(train: Callable[[], int], seconds: list[float]) -> Callable[[], int]:
    """The same training, whose seconds are noted."""

    def train_and_note() -> int:
        start = time.perf_counter()
        steps = train()
        seconds.append(time.perf_counter() - start)
        return steps

    return train_and_note


def main() -> None:
    parser = argparse.ArgumentParser(description="What DP-SGD costs a site, for some noise.")
    parser.add_argument("--data", type=Path, required=True, help="a site's dataset folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32, help="8 suits the digits, which are few")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.5, 1.0, 2.0])
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    tables = []
    for seed in range(args.seeds):
        training = Training(batch_size=args.batch_size, seed=seed)
        tables.append(cost_of_noise(args.data, training, args.noise, args.rounds, args.clip))
    seeds = pd.concat(tables, keys=range(args.seeds)).groupby(level=1, sort=False)
    print(seeds.agg(["mean", "min", "max"]).round(3).to_string())


if __name__ == "__main__":
    main()
