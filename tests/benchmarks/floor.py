"""The floor: the job's work in plain PyTorch, one process a site, no framework.

    python tests/benchmarks/floor.py SPEC.json

The same steps, the same two validations a round, the same averaging, and at the end every model on the test images
of every site. What a framework adds can be read as the difference. tests/test_bench.py holds it to FedAvg by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spec import Spec, find_code, round_seed, stamp

find_code()
from dl.train import Data, Net, evaluate, load_data, make_loader, train

Params = dict[str, np.ndarray]


def to_numpy(net: Net) -> Params:
    return {name: value.detach().numpy().copy() for name, value in net.state_dict().items()}


def average(updates: Sequence[tuple[Params, int]]) -> Params:
    """fl.by_hand.average, in FLARE's order of arithmetic, without its imports."""
    total = sum(steps for _, steps in updates)
    return {
        name: sum(params[name] * float(steps) for params, steps in updates) * (1.0 / total) for name in updates[0][0]
    }


class Site:
    """One site in a process of its own: it does what the learner does, when it is told over a pipe."""

    def __init__(self, name: str, spec: Spec) -> None:
        self.name = name
        self.spec = spec
        self.data: Data = load_data(Path(spec.data) / name)
        self.net = Net(spec.seed)
        self.best: tuple[float, Params] = (-1.0, {})
        self.stamps: list[dict[str, Any]] = []

    def load(self, params: Params) -> None:
        self.net.load_state_dict({key: torch.from_numpy(value) for key, value in params.items()})

    def validate(self) -> float:
        with stamp(self.stamps, "validate"):
            return evaluate(self.net, self.data.valid)["accuracy"]

    def do_round(self, number: int, params: Params) -> tuple[Params, int, float]:
        """Validate what came, train, validate what was made: the weights, the steps, the accuracy of what came."""
        spec = self.spec
        self.load(params)
        received = self.validate()
        loader = make_loader(self.data.train, spec.batch_size, round_seed(spec.seed, self.name, number))
        with stamp(self.stamps, "train"):
            steps = train(self.net, loader, spec.epochs, spec.lr, spec.momentum)
        mine, score = to_numpy(self.net), self.validate()
        if score > self.best[0]:
            self.best = score, mine
        return mine, steps, received

    def give_best(self) -> Params:
        with stamp(self.stamps, "cross-site"):
            return self.best[1]

    def test(self, params: Params) -> float:
        with stamp(self.stamps, "cross-site"):
            self.load(params)
            return evaluate(self.net, self.data.test)["accuracy"]

    def give_stamps(self) -> list[dict[str, Any]]:
        return self.stamps


def work(name: str, spec: Spec, pipe: Connection) -> None:
    """What a site's process runs: (method, arguments) in, its answer out, until None comes."""
    torch.set_num_threads(1)
    site = Site(name, spec)
    while (order := pipe.recv()) is not None:
        method, *arguments = order
        pipe.send(getattr(site, method)(*arguments))


def ask(pipes: Sequence[Connection], *order: Any) -> list[Any]:
    """All sites at once; their answers in the order of their names."""
    for pipe in pipes:
        pipe.send(order)
    return [pipe.recv() for pipe in pipes]


def federate(pipes: Sequence[Connection], spec: Spec) -> tuple[Params, Params | None]:
    """The global weights after the last round, and those that validated best when they were handed out."""
    params, best, best_score = to_numpy(Net(spec.seed)), None, -1.0
    for number in range(spec.rounds):
        answers = ask(pipes, "do_round", number, params)
        score = sum(received for *_, received in answers) / len(answers)
        if number > 0 and score > best_score:  # as FLARE: the first weights are no candidate
            best, best_score = params, score
        params = average([(mine, steps) for mine, steps, _ in answers])
    return params, best


def cross_evaluate(pipes: Sequence[Connection], names: Sequence[str], models: dict[str, Params]) -> dict[str, Any]:
    """{model: {site: accuracy}}: every model on the test images of every site."""
    models = models | dict(zip(names, ask(pipes, "give_best"), strict=True))
    return {
        model: dict(zip(names, ask(pipes, "test", params), strict=True)) for model, params in models.items() if params
    }


def main() -> None:
    spec = Spec.read(sys.argv[1])
    torch.set_num_threads(1)
    spawn = get_context("spawn")
    names = sorted(spec.names)  # the aggregator adds in the order of the names
    ends = [spawn.Pipe() for _ in names]
    workers = [
        spawn.Process(target=work, args=(name, spec, end), daemon=True)
        for name, (_, end) in zip(names, ends, strict=True)
    ]
    for worker, (_, theirs) in zip(workers, ends, strict=True):
        worker.start()
        theirs.close()  # so that a site that dies is an error here, and not a wait for ever
    pipes = [mine for mine, _ in ends]
    params, best = federate(pipes, spec)
    matrix = cross_evaluate(pipes, names, {"global": params, "best global": best or {}})
    stamps = dict(zip(names, ask(pipes, "give_stamps"), strict=True))
    for pipe in pipes:
        pipe.send(None)
    for worker in workers:
        worker.join()
    spec.leave(params, cross_site=matrix, stamps=stamps)


if __name__ == "__main__":
    main()
