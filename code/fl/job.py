"""This example's federated job: a few lines over tutorial_utils.job, and its command line.

python code/fl/job.py --sites 2 --rounds 5          # prepares the data, splits it, runs, reports
python code/fl/job.py --sites hospital-a,hospital-b # the same, with names
python code/fl/job.py --client executor             # the same work, the site's part written otherwise
python code/fl/job.py --algorithm scaffold          # another way to train together
python code/fl/job.py --env poc                     # the same job out of the simulator
python code/fl/job.py --data SITES --export jobs    # only writes the job, for FLARE's commands
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CODE = ROOT / "code"
HERE = Path(__file__).resolve().parent
# The folder of dl/ and fl/: the job ships them by these names. By itself Python looks into fl/.
sys.path[:] = [str(CODE), *(entry for entry in sys.path if Path(entry or ".").resolve() != HERE)]

if __name__ == "__main__":
    try:
        import tutorial_utils.versions  # noqa: F401
    except ImportError as error:  # FLARE does not fit, say: one sentence
        sys.exit(str(error))

from nvflare.job_config.script_runner import ScriptRunner

from dl.train import Net
from fl.by_hand import score
from fl.executor import CIFAR10Executor
from fl.model_learner import CIFAR10ModelLearner
from tutorial_utils import job as general
from tutorial_utils import round_metrics
from tutorial_utils.algorithms.registry import ALGORITHMS, FedAvg
from tutorial_utils.data import prepare, read_dataset
from tutorial_utils.errors import TutorialError
from tutorial_utils.partition import ALPHA, parse_alpha, split_dataset
from tutorial_utils.report import Report
from tutorial_utils.results import Run
from tutorial_utils.settings import FULL, Training, suited_to
from tutorial_utils.simulate import simulate
from tutorial_utils.sites import check_site_names, parse_sites

PROJECT = Path(__file__).with_name("project.yml")
CLIENTS = ("learner", "client-api", "executor")
ENVIRONMENTS = {  # by the names that nvflare.recipe has for them: SimEnv, PocEnv, ProdEnv
    "sim": "the simulator: every site a process of this machine",
    "poc": "FLARE's proof of concept: a server and sites with certificates, on this machine",
    "prod": "a server that runs already, by an admin's --startup-kit; its sites read $SITE_DATA",
}


def build_job(
    data: str | Path,
    sites: int | Sequence[str] = 2,
    rounds: int = 5,
    training: Training | None = None,
    *,
    client: str = "learner",
    algorithm: FedAvg | None = None,
    name: str | None = None,
    **more: Any,
) -> general.LearnerJob:
    """Federated training of dl/train.py, then cross-site evaluation, as a FedJob.

    Args:
        data: the folder of the site folders; each site reads data/its-own-name. An environment variable
            in it ("$SITE_DATA") is expanded at the site.
        training: as in dl/train.py; its epochs are local, in each round.
        client: how the site's part is written, one of CLIENTS: the same work to the bit.
        name: of the job (default: "modellearner", or the choice of client or algorithm).
        sites, rounds, algorithm, **more: as in tutorial_utils.job.build_job.
    """
    training, algorithm = training or Training(), algorithm or FedAvg()
    if client not in CLIENTS:
        raise TutorialError(f"There is no client {client!r}: choose one of {', '.join(CLIENTS)}.")
    if client != "learner" and algorithm.name != "fedavg":
        raise TutorialError(f"{algorithm.name} is written for client='learner', not for {client!r}.")
    chosen = [one for one in (client, algorithm.name) if one not in ("learner", "fedavg")]
    name, more = name or (chosen or ["modellearner"])[0], {"algorithm": algorithm, **more}
    net = Net(training.seed)
    if client == "client-api":
        script = ScriptRunner("fl/client_api.py", script_args(str(data), training))
        more |= {"metric": CIFAR10ModelLearner.metric, "files": [CODE / "fl" / "client_api.py"]}
        with working_in(CODE):  # FLARE wants to see the script, by a path that is right at the site too
            return general.build_job(script, net, sites=sites, rounds=rounds, name=name, **more)
    with warnings.catch_warnings(record=True):
        # FLARE 2.9 warns once a process, past every filter, that ModelLearner is deprecated. The README
        # and notebook 04 say so in plain words, and what follows from it.
        kind = CIFAR10Executor if client == "executor" else CIFAR10ModelLearner
        part = kind(str(data), **asdict(training))
    return general.build_job(part, net, sites=sites, rounds=rounds, name=name, **more)


def job_template(folder: str | Path) -> Path:
    """Copy the template for `nvflare job create`, with the writer of metrics that this FLARE has."""
    copy = Path(shutil.copytree(PROJECT.with_name("job_template"), folder, dirs_exist_ok=True)).resolve()
    server = copy / "config_fed_server.conf"
    text = server.read_text(encoding="utf-8")
    server.write_text(text.replace(round_metrics.FLARES, round_metrics.class_path()), encoding="utf-8")
    return copy


def script_args(data: str, training: Training) -> str:
    """The arguments of client_api.py in one line: FLARE wants them so, and splits it at every space."""
    if "$" not in data:
        data = str(Path(data).expanduser().resolve())
    if len(data.split()) != 1:
        raise TutorialError(
            f"The path {data!r} has a space, where FLARE splits the arguments of a script: take another "
            'folder, or put the path into an environment variable and name that, as "$SITE_DATA".'
        )
    settings = {"data": data, **asdict(training)}
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Make it the working directory for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_job(job: general.LearnerJob, folder: Path, args: argparse.Namespace) -> Run:
    """Run the job where --env says; `folder` holds the site folders, where they are on this machine."""
    name = f"{folder.name}-{job.rounds}-rounds" + f"-{args.algorithm}" * (args.algorithm != "fedavg")
    if args.env == "sim":
        return simulate(job, threads=args.threads, runs=ROOT / "runs", name=name)
    from tutorial_utils import deploy  # a second that the simulator need not wait for

    if args.env == "poc":
        data = [folder / site for site in job.sites]
        return deploy.run_in_poc(job, PROJECT, data, runs=ROOT / "runs", name=f"{name}-poc")
    if args.startup_kit is None:
        raise TutorialError("--env prod needs --startup-kit: the folder of an admin's startup kit.")
    federation = deploy.connect(args.startup_kit, runs=ROOT / "runs")
    try:
        return federation.run(job)
    finally:
        federation.close()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the federated job and report.")
    parser.add_argument("--data", help="a folder of site folders (default: prepare and split)")
    parser.add_argument("--dataset", choices=["auto", "cifar10", "digits"], default="auto")
    parser.add_argument("--source", type=Path, help="your copy of CIFAR-10 (or set CIFAR10_SOURCE)")
    parser.add_argument("--sites", type=parse_sites, default=2, help="how many, or names: a,b,c")
    partition = parser.add_mutually_exclusive_group()
    help_alpha = "of the Dirichlet split, small: sites differ; or iid (0.3)"
    partition.add_argument("--alpha", type=parse_alpha, default=ALPHA, help=help_alpha)
    partition.add_argument("--labels-per-site", type=int, help="each site holds so many labels")
    partition.add_argument("--quantity-alpha", type=float, help="sizes differ, small: more")
    parser.add_argument("--rounds", type=int, default=5)
    for field in fields(Training):  # epochs, lr, batch_size, momentum, seed
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(
            option, type=type(field.default), help=f"as in dl/train.py ({field.default})"
        )
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


def chosen_algorithm(args: argparse.Namespace) -> FedAvg:
    """The algorithm with its settings; TutorialError for a setting that is another's."""
    kind = ALGORITHMS[args.algorithm]
    given = {name: getattr(args, name) for name in ("mu", "server_lr", "server_momentum")}
    given = {name: value for name, value in given.items() if value is not None}
    for name in set(given) - {field.name for field in fields(kind)}:
        (owner,) = (one.name for one in ALGORITHMS.values() if name in one.__dataclass_fields__)
        raise TutorialError(f"{name} is a setting of {owner}, and the algorithm is {kind.name}.")
    return kind(**given)


def find_sites(args: argparse.Namespace) -> str:
    """The folder of site folders: the one that was named, or one made now."""
    if args.data and "$" in args.data:
        return args.data  # expanded at the site, where it means something
    if args.data:
        for site in check_site_names(args.sites):
            read_dataset(Path(args.data) / site)
        return str(Path(args.data).expanduser().resolve())
    dataset = prepare(args.dataset, source=args.source, root=ROOT / "data")
    partition = {kind: getattr(args, kind) for kind in ("alpha", "labels_per_site", "quantity_alpha")}
    folders = split_dataset(dataset.folder, args.sites, **partition, seed=args.seed or 0)
    return str(folders[0].parent.resolve())


def chosen_training(args: argparse.Namespace, folder: str | None) -> Training:
    """What the command line says; a batch of 8 on the digits, which are few, and of 32 on all else."""
    given = {field.name: getattr(args, field.name) for field in fields(Training)}
    given = {name: value for name, value in given.items() if value is not None}
    if folder and "$" not in folder and "batch_size" not in given:
        dataset = read_dataset(Path(folder) / check_site_names(args.sites)[0])
        given["batch_size"] = suited_to(FULL, dataset.name).batch_size
    return Training(**given)


def report(run: Run, folder: Path, settings: dict[str, Any]) -> str:
    """Score the global model on the sites' test images, write the report, return its text."""
    dataset = read_dataset(folder / run.sites[0])
    accuracy, images = score(run.global_model, [folder / site for site in run.sites])
    made = Report(run, dataset.title, accuracy, images, settings)
    made.write()
    return made.text()


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("tutorial_utils").setLevel(logging.INFO)
    args = parse()
    try:
        algorithm = chosen_algorithm(args)
        general.check_count("rounds", args.rounds)
        chosen_training(args, None)
        folder = find_sites(args)  # after the checks: it may fetch 170 MB
        training = chosen_training(args, folder)
        job = build_job(
            folder, args.sites, args.rounds, training, client=args.client, algorithm=algorithm
        )
        if args.export:
            job.export_job(str(args.export))
            print(f"The job is in {args.export / job.name}")
            return
        here = Path(os.path.expandvars(folder))
        run = run_job(job, here, args)
        settings = {"client": args.client, "algorithm": algorithm.name, "rounds": args.rounds}
        settings |= {"sites": list(job.sites), **asdict(training), **asdict(algorithm)}
        print(Report(run).text() if args.env == "prod" else report(run, here, settings))
    except TutorialError as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit("Stopped, and every process with it. What was done lies in runs/.") from None


if __name__ == "__main__":
    main()
