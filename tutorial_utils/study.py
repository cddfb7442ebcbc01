"""Studies: the training of fl/by_hand.py on several splits and seeds, a core for each training.

Every number is the one that the job would give: the same arithmetic, one thread, the same seeds.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from dl.train import Net
from fl.by_hand import Params, average, federated_averaging, train_locally
from tutorial_utils.learner import round_seed, to_numpy
from tutorial_utils.report import score
from tutorial_utils.results import sha256

Task = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def distance(one: Params, other: Params) -> float:
    """How far apart two models are, each seen as one point with as many coordinates as weights."""
    return float(np.sqrt(sum(np.square(one[name].astype(float) - other[name]).sum() for name in one)))


def drift(updates: Sequence[tuple[Params, int]]) -> float:
    """How far the sites' models lie from their average: root mean square, weighted by steps."""
    mean, weights = average(updates), [steps for _, steps in updates]
    squares = [distance(params, mean) ** 2 for params, _ in updates]
    return float(np.sqrt(np.average(squares, weights=weights)))


def drift_of(name: str, updates: Sequence[tuple[Params, int]]) -> float:
    """The drift of one array of the net, such as "fc3.bias", alone."""
    return drift([({name: params[name]}, steps) for params, steps in updates])


def federate(folders: Sequence[Path], rounds: int, *, seed: int, **how: float) -> list[dict[str, Any]]:
    """`federated_averaging`, to the bit, with a look at the sites' models before they are averaged.

    Returns: a row for each round. round: averagings so far, from 1; accuracy: of the average, 0..1, on
        the test images of all folders; sha256: of the average; drift, and drift_of_biases, of the last
        layer's ten, which say how readily each class is answered: in the weights' own unit.
    """
    net, rows = Net(seed), []
    params = to_numpy(net.state_dict())
    for number in range(rounds):
        updates = []
        for folder in sorted(folders, key=lambda folder: folder.name):
            steps = train_locally(net, folder, params, round_seed(seed, folder.name, number), **how)
            updates.append((to_numpy(net.state_dict()), steps))
        params = average(updates)
        made = {"round": number + 1, "accuracy": score(params, folders)[0], "sha256": sha256(params)}
        rows.append(made | {"drift": drift(updates), "drift_of_biases": drift_of("fc3.bias", updates)})
    return rows


def train_alone(folder: Path, rounds: int, tests: Sequence[Path], *, epochs: int = 1, **how: float) -> float:
    """Train on one folder for as many epochs as in so many rounds; the accuracy on all test images.

    It is a federation of one site and one round: the optimizer keeps its momentum throughout.
    """
    params = federated_averaging([folder], 1, epochs=rounds * epochs, **how)
    return score(params, tests)[0]


def compare_splits(
    splits: Mapping[str, Sequence[Path]],
    pooled: Path,
    seeds: Sequence[int],
    rounds: int,
    processes: int | None = None,
    **how: float,
) -> pd.DataFrame:
    """Federated, alone and centralised, at equal epochs, for each split and seed.

    Args:
        splits: by name, the site folders of each way to deal out the images of the folder `pooled`.
        seeds: of the first weights and of the order of the batches; the splits stay.
        processes: that train at once, see `run_tasks`; the numbers do not depend on it.
        **how: batch_size, epochs (in each round), lr, momentum.

    Returns: columns split, seed, model, round, accuracy. "federated" has a row for each round, with what
        else `federate` returns; "one site alone" (the mean of the sites) and "centralised" (the same for
        every split, trained once a seed) have one, at the last round.
    """
    kinds = [(name, seed) for name in splits for seed in seeds]
    tasks: list[Task] = [(federate, (splits[name], rounds), how | {"seed": seed}) for name, seed in kinds]
    tasks += [(train_alone, (pooled, rounds, [pooled]), how | {"seed": seed}) for seed in seeds]
    for name, seed in kinds:
        sites = splits[name]
        tasks += [(train_alone, (site, rounds, sites), how | {"seed": seed}) for site in sites]
    done = iter(run_tasks(tasks, processes))  # in their order
    federated = {kind: next(done) for kind in kinds}
    centralised = {seed: next(done) for seed in seeds}
    rows = []
    for name, seed in kinds:
        alone = [next(done) for _ in splits[name]]
        ends = {"one site alone": sum(alone) / len(alone), "centralised": centralised[seed]}
        of_each = [{"model": "federated", **row} for row in federated[name, seed]]
        of_each += [{"model": model, "round": rounds, "accuracy": end} for model, end in ends.items()]
        rows += [{"split": name, "seed": seed, **row} for row in of_each]
    return pd.DataFrame(rows)


def run_tasks(tasks: Sequence[Task], processes: int | None = None) -> list[Any]:
    """Call each (function, arguments, keywords) in a process of several; the results, in order.

    Args:
        processes: that work at once, by default as many as the machine has cores.

    Raises: what a task raised, as soon as it does. However it ends, no process is left.
    """
    workers = min(processes or os.cpu_count() or 1, len(tasks))
    fresh = multiprocessing.get_context("spawn")  # no threads are copied; the same on Linux and macOS
    pool = ProcessPoolExecutor(workers, fresh, begin_worker)
    try:
        futures = [pool.submit(function, *args, **named) for function, args, named in tasks]
        for future in tqdm(as_completed(futures), "trainings", len(futures), leave=False):
            future.result()
        return [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)


def begin_worker() -> None:
    """One thread, as at the sites, and an end of its own should the parent be killed."""
    torch.set_num_threads(1)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
