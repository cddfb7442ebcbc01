"""The same federation in Flower's simulation, run by the Python of an environment that holds flwr[simulation].

    ENV/bin/python tests/benchmarks/flower_app.py SPEC.json

Same net, first weights, images, order of batches and steps; Flower's FedAvg, weighted by the steps. Less is asked of it
than of the others: one validation a round instead of two, and no cross-site evaluation.
"""

from __future__ import annotations

import os
import sys
import tempfile
from functools import cache
from pathlib import Path

# Before Flower and Ray are imported: nothing is reported to anyone, nothing is left in the home folder.
os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "FLWR_HOME": tempfile.gettempdir()}

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from spec import Spec, find_code, round_seed

find_code()
from dl.train import Data, Net, evaluate, load_data, make_loader, train

SPEC = "BENCH_SPEC"  # an environment variable: the file that says what to run, for Ray's workers
client_app = ClientApp()
server_app = ServerApp()


@cache
def current_spec() -> Spec:
    return Spec.read(os.environ[SPEC])


@cache
def images_of(site: str) -> Data:
    """Read once in each of Ray's processes, not once a round."""
    return load_data(Path(current_spec().data) / site)


def prepare(message: Message, context: Context) -> tuple[str, Data, Net]:
    torch.set_num_threads(1)
    site = f"site-{int(context.node_config['partition-id']) + 1}"
    net = Net(current_spec().seed)
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return site, images_of(site), net


@client_app.train()
def train_site(message: Message, context: Context) -> Message:
    spec = current_spec()
    site, images, net = prepare(message, context)
    number = int(message.content["config"]["server-round"]) - 1
    loader = make_loader(images.train, spec.batch_size, round_seed(spec.seed, site, number))
    steps = train(net, loader, spec.epochs, spec.lr, spec.momentum)
    answer = {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord({"steps": steps})}
    return Message(content=RecordDict(answer), reply_to=message)


@client_app.evaluate()
def validate_site(message: Message, context: Context) -> Message:
    _, images, net = prepare(message, context)
    metrics = evaluate(net, images.valid) | {"steps": len(images.valid)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    spec = current_spec()
    everyone = dict.fromkeys(("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"), spec.sites)
    strategy = FedAvg(weighted_by_key="steps", **everyone)
    result = strategy.start(grid, ArrayRecord(Net(spec.seed).state_dict()), num_rounds=spec.rounds)
    weights = {name: value.numpy() for name, value in result.arrays.to_torch_state_dict().items()}
    spec.leave(weights, rounds=len(result.train_metrics_clientapp))


def main() -> None:
    os.environ[SPEC] = str(Path(sys.argv[1]).resolve())
    sites_at_once = current_spec().threads or min(current_spec().sites, os.cpu_count() or 1)
    backend = {
        "init_args": {"num_cpus": sites_at_once, "include_dashboard": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    # Flower calls this function deprecated for `flwr run`, which starts more processes to do the same.
    run_simulation(server_app, client_app, current_spec().sites, backend_config=backend)


if __name__ == "__main__":
    # By its own name: Ray's workers then import it, and what they cache lives longer than one call.
    from flower_app import main as run

    run()
