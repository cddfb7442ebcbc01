"""The README's comparison: centralised, federated and local-only over three seeds, all training images.

    python tests/benchmarks/story.py data/cifar10 story.json

Two sites, Dirichlet alpha 0.3, each seed with a split of its own. At every step of the x axis all of them have made the
same number of passes over the images. The federation is the hand-written one, whose bits the simulator's equal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import ConcatDataset

sys.path.insert(0, str(Path(__file__).parents[2] / "code"))

from dl.train import Net, load_data, make_loader, train
from fl.fedavg import federated_averaging
from fl.report import score
from tutorial_utils.partition import split_dataset

SEEDS, ROUNDS, SITES, ALPHA = (0, 1, 2), 10, 2, 0.3


def compare(folder: Path, seed: int) -> list[dict[str, object]]:
    """Accuracy on the global test set after every pass, for each way of training."""
    sites = split_dataset(folder, SITES, alpha=ALPHA, seed=seed)
    rows: list[dict[str, object]] = []

    def note(model: str) -> Callable[[int, dict], None]:
        def after(passes: int, state: dict) -> None:
            accuracy, images = score(state, sites)
            rows.append({"model": model, "seed": seed, "epochs": passes, "accuracy": accuracy, "images": images})
            sys.stderr.write(f"{rows[-1]}\n")

        return after

    federated_averaging(sites, ROUNDS, seed=seed, after_round=note("federated"))
    ways = {f"{site.name} alone": load_data(site).train for site in sites}
    ways["centralised"] = ConcatDataset(list(ways.values()))
    for model, data in ways.items():
        net, after = Net(seed), note(model)
        loader = make_loader(data, seed=seed)
        train(net, loader, ROUNDS, after_epoch=lambda epoch, _, net=net, after=after: after(epoch, net.state_dict()))
    return rows


def main() -> None:
    torch.set_num_threads(1)
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.write_text(json.dumps([row for seed in SEEDS for row in compare(folder, seed)], indent=1) + "\n")


if __name__ == "__main__":
    main()
