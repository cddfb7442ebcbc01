"""The README's comparison: centralised, federated and local-only over three seeds, all training images.

    python tests/benchmarks/story.py data/cifar10

About 15 minutes on one core. Writes story.json beside this file, and the README's two figures. With --draw it only
draws, from story.json.

Two sites, Dirichlet alpha 0.3, each seed with a split of its own. At every step of the x axis all of them have made the
same number of passes over the images. The federation is the hand-written one, whose bits the simulator's equal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.data import ConcatDataset

sys.path.insert(0, str(Path(__file__).parents[2] / "code"))

from dl.train import Net, load_data, make_loader, train
from fl.by_hand import federated_averaging, score
from fl.job import build_job
from tutorial_utils import plots
from tutorial_utils.data import read_dataset
from tutorial_utils.partition import split_dataset
from tutorial_utils.simulate import simulate

SEEDS, ROUNDS, SITES, ALPHA = (0, 1, 2), 10, 2, 0.3
HERE = Path(__file__).parent


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


def draw(story: dict[str, Any]) -> None:
    """The curve and the matrix, a figure each: side by side no phone could show them. "One site alone" is the mean."""
    frame = pd.DataFrame(story["rows"])
    frame["model"] = frame["model"].replace(r"site-\d+ alone", "one site alone", regex=True)
    mean = frame.groupby(["model", "seed", "epochs"], as_index=False)["accuracy"].mean()
    cross_site = pd.DataFrame(story["cross_site"]).T
    cross_site.attrs["metric"] = {"name": "accuracy", "higher_is_better": True, "fraction": None}
    drawn = {
        "story": plots.compare(mean, story["data"], story["images"]),
        "story_matrix": plots.cross_site_heatmap(cross_site, story["data"], story["images"]),
    }
    for name, figure in drawn.items():
        (HERE.parents[1] / f"notebooks/figures/{name}.png").write_bytes(figure.png())
        sys.stdout.write(f"{name}: {figure.alt}\n")


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    dataset = read_dataset(sys.argv[1])
    rows = [row for seed in SEEDS for row in compare(dataset.folder, seed)]
    about = {"data": dataset.title, "images": dataset.counts["test"], "rows": rows}
    return about | {"cross_site": run_once(dataset.folder).to_dict("index")}


def run_once(folder: Path) -> pd.DataFrame:
    """The cross-site matrix of the first seed, from FLARE's simulator."""
    sites = split_dataset(folder, SITES, alpha=ALPHA, seed=SEEDS[0])
    job = build_job(sites[0].parent.resolve(), rounds=ROUNDS)
    return simulate(job, runs=HERE.parents[1] / "runs", name="story").cross_site


def main() -> None:
    kept = HERE / "story.json"
    if "--draw" not in sys.argv:
        kept.write_text(json.dumps(measure(), indent=1) + "\n")
    draw(json.loads(kept.read_text()))


if __name__ == "__main__":
    main()
