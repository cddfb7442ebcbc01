"""Build the federated job, and from the command line run it and report.

python code/fl/job.py --sites 2 --rounds 5          # prepares the data, splits it, runs, reports
python code/fl/job.py --client executor             # the same work, the site's part written otherwise
python code/fl/job.py --data SITES --export jobs    # only writes the job, for FLARE's commands
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "code"))  # the folder of dl/ and fl/: the job ships them by these names

from nvflare.app_common.abstract.model_learner import ModelLearner
from nvflare.app_common.executors.model_learner_executor import ModelLearnerExecutor
from nvflare.app_common.shareablegenerators.full_model_shareable_generator import (
    FullModelShareableGenerator,
)
from nvflare.app_common.widgets.intime_model_selector import IntimeModelSelector
from nvflare.app_common.widgets.metrics_artifact_writer import MetricsArtifactWriter
from nvflare.app_common.widgets.validation_json_generator import ValidationJsonGenerator
from nvflare.app_common.workflows.cross_site_model_eval import CrossSiteModelEval
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather
from nvflare.app_opt.pt.job_config.model import PTModel
from nvflare.job_config.api import FedJob
from nvflare.job_config.script_runner import ScriptRunner

from dl.train import Net
from fl.aggregator import OrderedAggregator
from fl.executor import CIFAR10Executor
from fl.model_learner import CIFAR10ModelLearner
from fl.report import Report, score
from tutorial_utils import learner as shipped
from tutorial_utils.data import prepare, read_dataset
from tutorial_utils.partition import parse_alpha, split_dataset
from tutorial_utils.settings import FULL, TutorialError, suited_to
from tutorial_utils.simulate import simulate

TASKS = ["train", "validate", "submit_model"]  # what the server asks of a site


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
    **more: Any,
) -> FedJob:
    """Federated Averaging of dl/train.py, then cross-site evaluation, as a FedJob.

    Args:
        data: the folder of the site folders; each site reads data/its-own-name. An environment variable
            in it ("$SITE_DATA") is expanded at the site.
        sites: how many must take part in every round.
        rounds: how often the models are averaged.
        epochs, lr, batch_size, momentum, seed: as in dl/train.py; epochs are local, in each round.
        name: of the job, letters, digits, "_" and "-" (default: "modellearner", or the client's name).
        client: how the site's part is written, one of CLIENTS: the same work to the bit.
        **more: for the client: `learner=`, another class than CIFAR10ModelLearner, and its own settings.

    Raises: TutorialError for a number that makes no sense, or a client that there is not.
    """
    check(sites=sites, rounds=rounds, epochs=epochs, lr=lr, batch_size=batch_size)
    if client not in CLIENTS:
        raise TutorialError(f"There is no client {client!r}: choose one of {', '.join(CLIENTS)}.")
    name = name or ("modellearner" if client == "learner" else client)
    props = {"custom_props": {"sites": sites, "data": str(data)}}  # tutorial_utils.simulate reads them
    job = FedJob(name=name, min_clients=sites, meta_props=props)
    add_server(job, sites, rounds, seed)
    how = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "momentum": momentum, "seed": seed}
    add_sites(job, data, client, **how, **more)
    return job


def check(**positive: float | None) -> None:
    """TutorialError for the first of these settings that is not above 0; None stands for a default."""
    for setting, value in positive.items():
        if value is not None and value <= 0:
            raise TutorialError(f"{setting} is {value}: it must be more than 0.")


def add_server(job: FedJob, sites: int, rounds: int, seed: int) -> None:
    """What runs on the server: the first model, two workflows in a row, and who helps them."""
    ids = job.to_server(PTModel(Net(seed)))  # adds a persistor and a locator of its own
    job.to_server(FullModelShareableGenerator(), id="shareable_generator")
    job.to_server(OrderedAggregator(), id="aggregator")
    job.to_server(IntimeModelSelector(key_metric="accuracy"), id="model_selector")
    job.to_server(MetricsArtifactWriter(), id="metrics_writer")
    job.to_server(ValidationJsonGenerator(), id="json_generator")
    averaging = ScatterAndGather(
        min_clients=sites,
        num_rounds=rounds,
        wait_time_after_min_received=0,
        aggregator_id="aggregator",
        persistor_id=ids["persistor_id"],
        shareable_generator_id="shareable_generator",
        task_check_period=0.1,
    )
    job.to_server(averaging, id="scatter_and_gather")
    evaluation = CrossSiteModelEval(model_locator_id=ids["locator_id"], task_check_period=0.1)
    job.to_server(evaluation, id="cross_site_eval")
    # By default a site sleeps 2 s after every task: half of a short run.
    job.to_server({"server": {"task_request_interval": 0.05}})


def add_sites(job: FedJob, data: str | Path, client: str = "learner", **settings: Any) -> None:
    """What runs at every site: one of the three clients, and the module that all of them use."""
    CLIENTS[client](job, str(data), **settings)
    # FedJob ships the files beside the client's own, but not those of an installed package: name it.
    job.add_file_to_clients(shipped.__file__, dest_dir="tutorial_utils")


def add_learner(
    job: FedJob, data: str, learner: type[ModelLearner] = CIFAR10ModelLearner, **settings: Any
) -> None:
    """A ModelLearner, and the executor that hands FLARE's tasks to it."""
    with warnings.catch_warnings(record=True):
        # FLARE 2.9 warns once a process, past every filter, that ModelLearner is deprecated. The README
        # and notebook 04 say so in plain words, and what follows from it.
        component = learner(data, **settings)
    job.to_clients(component, id="learner")
    job.to_clients(ModelLearnerExecutor(learner_id="learner"), tasks=TASKS)


def add_script(job: FedJob, data: str, **settings: Any) -> None:
    """A script with the Client API, and the executor that runs it as a thread of the site's process."""
    with working_in(ROOT / "code"):
        # ScriptRunner wants to see the script, and writes its path into the job as it stands here: only
        # a relative one is right at the site too.
        runner = ScriptRunner("fl/client_api.py", script_args(data, **settings))
        job.to_clients(runner, tasks=TASKS)
    # When the job is written, FedJob looks from wherever we are then: name what must be in it.
    job.add_file_to_clients(str(ROOT / "code/fl/client_api.py"), dest_dir="fl")
    job.add_file_to_clients(str(ROOT / "code/dl/train.py"), dest_dir="dl")


def add_executor(job: FedJob, data: str, **settings: Any) -> None:
    """An executor of our own."""
    job.to_clients(CIFAR10Executor(data, **settings), tasks=TASKS)


CLIENTS = {"learner": add_learner, "client-api": add_script, "executor": add_executor}


def script_args(data: str, **settings: Any) -> str:
    """The arguments of client_api.py in one line: FLARE wants them so, and splits it at every space."""
    if len(data.split()) != 1:
        raise TutorialError(
            f"The path {data!r} has a space, where FLARE splits the arguments of a script: take another "
            'folder, or put the path into an environment variable and name that, as "$SITE_DATA".'
        )
    return " ".join(
        f"--{name.replace('_', '-')} {value}" for name, value in {"data": data, **settings}.items()
    )


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Make it the working directory for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_and_report(job: FedJob, folder: Path, threads: int | None, settings: dict[str, Any]) -> Report:
    """Run the job over the site folders of `folder`, score the global model, write the report."""
    run = simulate(
        job, threads=threads, runs=ROOT / "runs", name=f"{folder.name}-{settings['rounds']}-rounds"
    )
    dataset = read_dataset(folder / run.sites[0])
    accuracy, images = score(run.global_model, [folder / site for site in run.sites])
    report = Report(run, dataset.title, accuracy, images, settings)
    report.write()
    return report


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the federated job in the simulator and report.")
    parser.add_argument("--data", help="a folder of site folders (default: prepare and split)")
    parser.add_argument("--dataset", choices=["auto", "cifar10", "digits"], default="auto")
    parser.add_argument("--source", type=Path, help="your copy of CIFAR-10 (or set CIFAR10_SOURCE)")
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument(
        "--alpha",
        type=parse_alpha,
        default=0.3,
        help="of the Dirichlet split, small: sites differ; or iid",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1, help="local epochs in each round")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--batch-size", type=int, help="32, and 8 on the digits, which are few")
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="sites that run at once (default: all)")
    parser.add_argument("--client", choices=CLIENTS, default="learner", help="how a site's part is made")
    parser.add_argument("--export", type=Path, metavar="DIR", help="only write the job into DIR")
    return parser.parse_args()


def find_sites(args: argparse.Namespace) -> str:
    """The folder of site folders: the one that was named, or one made now."""
    if args.data and "$" in args.data:
        return args.data  # expanded at the site, where it means something
    if args.data:
        for number in range(1, args.sites + 1):
            read_dataset(Path(args.data) / f"site-{number}")
        return str(Path(args.data).resolve())
    dataset = prepare(args.dataset, source=args.source, root=ROOT / "data")
    folders = split_dataset(dataset.folder, args.sites, alpha=args.alpha, seed=args.seed)
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
        folder = find_sites(args)  # after the check: it may fetch 170 MB
        settings = {
            key: getattr(args, key)
            for key in ("client", "sites", "rounds", "epochs", "lr", "momentum", "seed")
        }
        settings["batch_size"] = args.batch_size or default_batch_size(folder)
        job = build_job(folder, **settings)
        if args.export:
            job.export_job(str(args.export))
            print(f"The job is in {args.export / job.name}")
        else:
            print(run_and_report(job, Path(os.path.expandvars(folder)), args.threads, settings).text())
    except TutorialError as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit("Stopped, and every process with it. What was done lies in runs/.") from None


if __name__ == "__main__":
    main()
