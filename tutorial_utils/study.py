"""Studies: federated, alone and centralised training on several splits and seeds, a core for each training.

The trainings are functions of the caller: this module deals them out, one thread each, and lays out what they return.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from tutorial_utils.metric import Metric

Params = Mapping[str, np.ndarray]
Task = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def distance(one: Params, other: Params) -> float:
    """How far apart two models are, each seen as one point with as many coordinates as weights.

    Whole numbers, such as BatchNorm's counter of batches, are no weights and have no part in it.
    """
    weights = {name: array.astype(float) for name, array in one.items() if np.asarray(array).dtype.kind == "f"}
    return float(np.sqrt(sum(np.square(array - other[name]).sum() for name, array in weights.items())))


def drift(updates: Sequence[tuple[Params, float]]) -> float:
    """How far the sites' models lie from their average: root mean square, weighted by steps."""
    sent, steps = zip(*updates, strict=True)
    mean = {name: np.average([params[name] for params in sent], axis=0, weights=steps) for name in sent[0]}
    squares = [distance(params, mean) ** 2 for params in sent]
    return float(np.sqrt(np.average(squares, weights=steps)))


def drift_of(name: str, updates: Sequence[tuple[Params, float]]) -> float:
    """The drift of one array of the net, such as "fc3.bias", alone."""
    return drift([({name: params[name]}, steps) for params, steps in updates])


def compare_splits(
    splits: Mapping[str, Sequence[Path]],
    pooled: Path,
    seeds: Sequence[int],
    rounds: int,
    *,
    federate: Callable[..., Sequence[Mapping[str, Any]]],
    train_alone: Callable[..., float],
    metric: Metric,
    processes: int | None = None,
    **how: object,
) -> pd.DataFrame:
    """Federated, alone and centralised, at equal epochs, for each split and seed.

    Args:
        splits: by name, the site folders of each way to deal out the data of the folder `pooled`.
        seeds: of the first weights and of the order of the batches; the splits stay.
        federate: called as federate(folders, rounds, seed=..., **how); a row for each round: `round`, from 1, the
            metric by its name, and what else there is to look at (`fl.by_hand.federate` is one).
        train_alone: called as train_alone(folder, rounds, test_folders, seed=..., **how); the metric on the test data
            of all `test_folders`, after as many epochs as in so many rounds (`fl.by_hand.train_alone` is one). Both
            are functions of a module's top level: a process imports them by name.
        metric: what they measure.
        processes: that train at once, see `run_tasks`; the numbers do not depend on it.
        **how: for the trainings: batch_size, epochs (in each round), lr.

    Returns: columns split, seed, model, round, and the metric. "federated" has a row for each round, with what
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
        of_each += [{"model": model, "round": rounds, metric.name: end} for model, end in ends.items()]
        rows += [{"split": name, "seed": seed, **row} for row in of_each]
    table = pd.DataFrame(rows)
    table.attrs["metric"] = asdict(metric)  # the plots ask for it
    return table


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
