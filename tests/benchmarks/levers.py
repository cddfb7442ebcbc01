"""What each choice inside a site's process gives: two variants a row, turn about, each in a process of its own.

    python tests/benchmarks/levers.py SITE_FOLDER --repeats 3

The choices outside it (periods of waiting, an early end) are measured by `bench.py fixed`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from measure import MB, markdown, peak_memory, say, spread
from spec import find_code

LEVERS = {
    "images: floats kept | bytes, made floats by the batch": ("floats", "bytes"),
    "batch of the evaluation: 32 | 500": ("evaluate-32", "evaluate-500"),
    "torch threads of two sites at once: 2 each | 1 each": ("threads-2", "threads-1"),
    "a site imports torchvision, pandas, matplotlib: yes | no": ("import-all", "import-few"),
    "batch of the training, one epoch: 4 | 32": ("batch-4", "bytes"),
}


def train_epoch(site: Path, batch_size: int = 32, floats: bool = False) -> float:
    """Seconds of one epoch, the first optimizer's imports left out."""
    find_code()
    import torch
    from torch.utils.data import TensorDataset

    from dl import train as script

    torch.set_num_threads(1)
    data = script.load_data(site).train
    if floats:
        images, labels = data.tensors
        data, script.normalize = TensorDataset(script.normalize(images), labels), lambda images: images
    net = script.Net()
    script.train(net, script.make_loader(TensorDataset(*data[:32]), 32, seed=0))
    loader = script.make_loader(data, batch_size, seed=0)
    start = time.perf_counter()
    script.train(net, loader)
    return time.perf_counter() - start


def evaluate(site: Path, batch_size: int) -> float:
    find_code()
    import torch

    from dl.train import Net, load_data, predict

    torch.set_num_threads(1)
    data, net = load_data(site).valid, Net()
    predict(net, data, batch_size)
    start = time.perf_counter()
    predict(net, data, batch_size)
    return time.perf_counter() - start


def train_on_threads(site: Path, threads: int) -> float:
    """Two processes at once, as two sites are; seconds of the slower one."""
    code = f"import sys; sys.argv[1:] = {[str(site)]!r}; import levers; levers.one_of_two({threads}, {str(site)!r})"
    start = time.perf_counter()
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent) for _ in range(2)]
    if any(process.wait() for process in both):
        raise SystemExit("a process of two failed")
    return time.perf_counter() - start


def one_of_two(threads: int, site: str) -> None:
    find_code()
    import torch

    from dl.train import Net, load_data, make_loader, train

    torch.set_num_threads(threads)
    train(Net(), make_loader(load_data(site).train, 32, seed=0))


def import_modules(*more: str) -> float:
    start = time.perf_counter()
    for module in ("torch", "nvflare.app_common.abstract.model_learner", *more):
        __import__(module)
    return time.perf_counter() - start


PIECES: dict[str, Callable[[Path], float]] = {
    "floats": lambda site: train_epoch(site, floats=True),
    "bytes": lambda site: train_epoch(site),
    "batch-4": lambda site: train_epoch(site, batch_size=4),
    "evaluate-32": lambda site: evaluate(site, 32),
    "evaluate-500": lambda site: evaluate(site, 500),
    "threads-2": lambda site: train_on_threads(site, 2),
    "threads-1": lambda site: train_on_threads(site, 1),
    "import-all": lambda site: import_modules("torchvision", "pandas", "matplotlib.figure"),
    "import-few": lambda site: import_modules(),
}


def measure(piece: str, site: Path) -> tuple[float, float]:
    command = [sys.executable, __file__, str(site), "--piece", piece]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(told[-2]), float(told[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=lambda text: Path(text).resolve(), help="a dataset folder, such as a site's")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--piece", choices=PIECES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.piece:
        seconds = PIECES[args.piece](args.site)
        sys.stdout.write(f"{seconds} {peak_memory()}\n")
        return
    rows = []
    for lever, pair in LEVERS.items():
        turns = [[measure(piece, args.site) for piece in pair] for _ in range(args.repeats)]
        seconds = [spread(turn[side][0] for turn in turns).text(2) for side in (0, 1)]
        memory = [f"{spread(turn[side][1] / MB for turn in turns).median:.0f}" for side in (0, 1)]
        rows.append((lever, *seconds, *memory))
    say(markdown(("choice: before, now", "seconds before", "seconds now", "peak MB before", "now"), rows))


if __name__ == "__main__":
    main()
