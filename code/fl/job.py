"""Build the federated job, and from the command line run it and report.

python code/fl/job.py --sites 2 --rounds 5          # prepares the data, splits it, runs, reports
python code/fl/job.py --client executor             # the same work, the site's part written otherwise
python code/fl/job.py --algorithm scaffold          # another way to train together
python code/fl/job.py --env poc                     # the same job out of the simulator
python code/fl/job.py --data SITES --export jobs    # only writes the job, for FLARE's commands
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "code"))  # the folder of dl/ and fl/: the job ships them by these names

from nvflare.app_common.shareablegenerators.full_model_shareable_generator import (
    FullModelShareableGenerator,
)
from nvflare.app_common.widgets.intime_model_selector import IntimeModelSelector
from nvflare.app_common.widgets.metrics_artifact_writer import MetricsArtifactWriter
from nvflare.app_common.widgets.validation_json_generator import ValidationJsonGenerator
from nvflare.app_common.workflows.cross_site_model_eval import CrossSiteModelEval
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather
from nvflare.app_common.workflows.scatter_and_gather_scaffold import ScatterAndGatherScaffold
from nvflare.app_opt.pt.job_config.model import PTModel
from nvflare.job_config.api import FedJob

from dl.train import Net
from fl.clients import CLIENTS
from fl.environments import ENVIRONMENTS, describe, run_here, run_there
from tutorial_utils import learner as shipped
from tutorial_utils.algorithms.aggregator import OrderedAggregator
from tutorial_utils.algorithms.fedopt import ServerOptimizer
from tutorial_utils.algorithms.registry import ALGORITHMS, RANGES, choose
from tutorial_utils.data import prepare, read_dataset
from tutorial_utils.errors import TutorialError
from tutorial_utils.partition import ALPHA, parse_alpha, split_dataset
from tutorial_utils.report import Report, score
from tutorial_utils.settings import FULL, suited_to


def build_job(
    data: str | Path,
    sites: int = 2,
    rounds: int = 5,
    epochs: int = 1,
    lr: float = 0.01,
    batch_size: int = 32,
    momentum: float = 0.9,
    seed: int = 0,
    name: str | None = None,
    client: str = "learner",
    algorithm: str = "fedavg",
    **more: Any,
) -> FedJob:
    """Federated training of dl/train.py, then cross-site evaluation, as a FedJob.

    Args:
        data: the folder of the site folders; each site reads data/its-own-name. An environment variable
            in it ("$SITE_DATA") is expanded at the site.
        sites: how many must take part in every round.
        rounds: how often the models are averaged.
        epochs, lr, batch_size, momentum, seed: as in dl/train.py; epochs are local, in each round.
        name: of the job, letters, digits, "_" and "-" (default: "modellearner", or the choice below).
        client: how the site's part is written, one of CLIENTS: the same work to the bit.
        algorithm: one of ALGORITHMS; all but "fedavg" need client="learner".
        **more: the algorithm's settings: mu (fedprox), server_lr and server_momentum (fedopt). For the
            client: `learner=`, another class than the algorithm's, and its own settings.

    Raises: TutorialError for a number that makes no sense, or a client or algorithm that there is not.
    """
    check(sites=sites, rounds=rounds, epochs=epochs, lr=lr, batch_size=batch_size)
    if client not in CLIENTS:
        raise TutorialError(f"There is no client {client!r}: choose one of {', '.join(CLIENTS)}.")
    own = choose(algorithm, client, more)
    server = {setting: own.pop(setting) for setting in list(own) if setting.startswith("server_")}
    if client == "learner":
        more.setdefault("learner", ALGORITHMS[algorithm].learner)
    chosen = [choice for choice in (client, algorithm) if choice not in ("learner", "fedavg")]
    props = {"custom_props": {"sites": sites, "data": str(data)}}  # tutorial_utils.simulate reads them
    job = FedJob(name=name or (chosen or ["modellearner"])[0], min_clients=sites, meta_props=props)
    add_server(job, sites, rounds, seed, algorithm, **server)
    how = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "momentum": momentum, "seed": seed}
    add_sites(job, data, client, **how, **own, **more)
    return job


def check(**positive: float | None) -> None:
    """TutorialError for the first of these settings that is not above 0; None stands for a default."""
    for setting, value in positive.items():
        if value is not None and value <= 0:
            raise TutorialError(f"{setting} is {value}: it must be more than 0.")


def add_server(
    job: FedJob, sites: int, rounds: int, seed: int, algorithm: str = "fedavg", **settings: float
) -> None:
    """What runs on the server: the first model, two workflows in a row, and who helps them."""
    ids = job.to_server(PTModel(Net(seed)))  # adds a persistor and a locator of its own
    if algorithm == "fedopt":
        job.to_server(ServerOptimizer(Net(seed), **settings), id="shareable_generator")
    else:
        job.to_server(FullModelShareableGenerator(), id="shareable_generator")
    job.to_server(OrderedAggregator(ALGORITHMS[algorithm].sends), id="aggregator")
    job.to_server(IntimeModelSelector(key_metric="accuracy"), id="model_selector")
    job.to_server(MetricsArtifactWriter(), id="metrics_writer")
    job.to_server(ValidationJsonGenerator(), id="json_generator")
    averaging = {
        "min_clients": sites,
        "num_rounds": rounds,
        "wait_time_after_min_received": 0,
        "aggregator_id": "aggregator",
        "persistor_id": ids["persistor_id"],
        "shareable_generator_id": "shareable_generator",
        "task_check_period": 0.02,
    }
    if algorithm == "scaffold":
        job.to_server(ScatterAndGatherScaffold(**averaging), id="scatter_and_gather")
    else:
        job.to_server(ScatterAndGather(**averaging), id="scatter_and_gather")
    evaluation = CrossSiteModelEval(model_locator_id=ids["locator_id"], task_check_period=0.02)
    job.to_server(evaluation, id="cross_site_eval")
    # By default a site sleeps 2 s after every task: half of a short run.
    job.to_server({"server": {"task_request_interval": 0.05}})


def add_sites(job: FedJob, data: str | Path, client: str = "learner", **settings: Any) -> None:
    """What runs at every site: one of the three clients, and the module that all of them use."""
    CLIENTS[client](job, str(data), **settings)
    # FedJob ships the files beside the client's own, but not those of an installed package: name it.
    job.add_file_to_clients(shipped.__file__, dest_dir="tutorial_utils")


def run_and_report(
    job: FedJob, folder: Path, threads: int | None, settings: dict[str, Any], env: str = "sim"
) -> Report:
    """Run the job over the site folders of `folder`, score the global model, write the report."""
    kind = "" if settings["algorithm"] == "fedavg" else f"-{settings['algorithm']}"
    name = f"{folder.name}-{settings['rounds']}-rounds{kind}"
    run = run_here(env, job, settings["sites"], folder, threads, ROOT / "runs", name)
    dataset = read_dataset(folder / run.sites[0])
    accuracy, images = score(run.global_model, [folder / site for site in run.sites])
    report = Report(run, dataset.title, accuracy, images, settings)
    report.write()
    return report


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the federated job and report.")
    parser.add_argument("--data", help="a folder of site folders (default: prepare and split)")
    parser.add_argument("--dataset", choices=["auto", "cifar10", "digits"], default="auto")
    parser.add_argument("--source", type=Path, help="your copy of CIFAR-10 (or set CIFAR10_SOURCE)")
    parser.add_argument("--sites", type=int, default=2)
    partition = parser.add_mutually_exclusive_group()
    help_alpha = "of the Dirichlet split, small: sites differ; or iid (0.3)"
    partition.add_argument("--alpha", type=parse_alpha, default=ALPHA, help=help_alpha)
    partition.add_argument("--labels-per-site", type=int, help="each site holds so many labels")
    partition.add_argument("--quantity-alpha", type=float, help="sizes differ, small: more")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1, help="local epochs in each round")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--batch-size", type=int, help="32, and 8 on the digits, which are few")
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="sites that run at once (default: all)")
    parser.add_argument("--client", choices=CLIENTS, default="learner", help="how a site's part is made")
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="fedavg", help="how to average")
    parser.add_argument("--mu", type=float, help="of fedprox (0.01)")
    parser.add_argument("--server-lr", type=float, help="of fedopt (1.0)")
    parser.add_argument("--server-momentum", type=float, help="of fedopt (0.6)")
    help_env = "; ".join(f"{name}: {what}" for name, what in ENVIRONMENTS.items())
    parser.add_argument("--env", choices=ENVIRONMENTS, default="sim", help=help_env)
    parser.add_argument("--startup-kit", type=Path, metavar="DIR", help="an admin's, for --env prod")
    parser.add_argument("--export", type=Path, metavar="DIR", help="only write the job into DIR")
    args = parser.parse_args()
    if args.env == "prod":
        args.data = args.data or "$SITE_DATA"
    return args


def find_sites(args: argparse.Namespace) -> str:
    """The folder of site folders: the one that was named, or one made now."""
    if args.data and "$" in args.data:
        return args.data  # expanded at the site, where it means something
    if args.data:
        for number in range(1, args.sites + 1):
            read_dataset(Path(args.data) / f"site-{number}")
        return str(Path(args.data).resolve())
    dataset = prepare(args.dataset, source=args.source, root=ROOT / "data")
    partition = {kind: getattr(args, kind) for kind in ("alpha", "labels_per_site", "quantity_alpha")}
    folders = split_dataset(dataset.folder, args.sites, **partition, seed=args.seed)
    return str(folders[0].parent.resolve())


def default_batch_size(folder: str) -> int:
    if "$" in folder:
        return FULL.batch_size
    return suited_to(FULL, read_dataset(Path(folder) / "site-1").name).batch_size


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("tutorial_utils").setLevel(logging.INFO)
    args = parse()
    try:
        check(
            sites=args.sites,
            rounds=args.rounds,
            epochs=args.epochs,
            lr=args.lr,
            batch_size=args.batch_size,
        )
        own = {key: getattr(args, key) for key in RANGES if getattr(args, key) is not None}
        choose(args.algorithm, args.client, dict(own))
        folder = find_sites(args)  # after the checks: it may fetch 170 MB
        settings = {
            key: getattr(args, key)
            for key in ("client", "algorithm", "sites", "rounds", "epochs", "lr", "momentum", "seed")
        }
        settings |= {"batch_size": args.batch_size or default_batch_size(folder), **own}
        job = build_job(folder, **settings)
        if args.export:
            job.export_job(str(args.export))
            print(f"The job is in {args.export / job.name}")
        elif args.env == "prod":
            print(describe(run_there(job, args.startup_kit, ROOT / "runs")))
        else:
            here = Path(os.path.expandvars(folder))
            print(run_and_report(job, here, args.threads, settings, args.env).text())
    except TutorialError as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit("Stopped, and every process with it. What was done lies in runs/.") from None


if __name__ == "__main__":
    main()
