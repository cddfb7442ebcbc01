"""The README's comparison: centralised, federated and local-only over three seeds, all training images.

    python tests/benchmarks/story.py data/cifar10

About 15 minutes on one core. Writes story.json beside this file and the README's figure.

Two sites, Dirichlet alpha 0.3, each seed with a split of its own. At every step of the x axis all of them have made the
same number of passes over the images. The federation is the hand-written one, whose bits the simulator's equal.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
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


def draw(rows: list[dict[str, object]], cross_site: pd.DataFrame, title: str, images: int, out: Path) -> None:
    """The two panels side by side. "One site alone" is the mean of the two, seed by seed."""
    frame = pd.DataFrame(rows)
    frame["model"] = frame["model"].replace(r"site-\d+ alone", "one site alone", regex=True)
    mean = frame.groupby(["model", "seed", "epochs"], as_index=False)["accuracy"].mean()
    left = plots.compare(mean, title, images)
    right = plots.cross_site_heatmap(cross_site, title, images)
    panels = [
        Image.open(io.BytesIO(figure._repr_mimebundle_()[0]["image/png"])).convert("RGB") for figure in (left, right)
    ]
    page = Image.new("RGB", (sum(panel.width for panel in panels), max(panel.height for panel in panels)), "white")
    page.paste(panels[0], (0, 0))
    page.paste(panels[1], (panels[0].width, (page.height - panels[1].height) // 2))
    page.quantize(64).save(out, optimize=True)


def main() -> None:
    torch.set_num_threads(1)
    dataset = read_dataset(sys.argv[1])
    rows = [row for seed in SEEDS for row in compare(dataset.folder, seed)]
    (HERE / "story.json").write_text(json.dumps(rows, indent=1) + "\n")
    sites = split_dataset(dataset.folder, SITES, alpha=ALPHA, seed=SEEDS[0])
    run = simulate(build_job(sites[0].parent.resolve(), rounds=ROUNDS), runs=HERE.parents[1] / "runs", name="story")
    out = HERE.parents[1] / "notebooks/figures/story.png"
    draw(rows, run.cross_site, dataset.title, dataset.counts["test"], out)


if __name__ == "__main__":
    main()
