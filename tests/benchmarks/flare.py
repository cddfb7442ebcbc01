"""The contestants that run on FLARE.

python tests/benchmarks/flare.py WHO SPEC.json      # WHO: a key of main()'s table
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spec import Spec, find_code

find_code()
sys.path.insert(0, str(Path(__file__).parent / "ancestor"))
from nvflare.app_common.abstract.model_learner import ModelLearner
from nvflare.job_config.api import FedJob

from dl.train import Net
from fl import job as example
from tutorial_utils import job as general
from tutorial_utils._simulate import watch
from tutorial_utils._simulate.job_folder import JobFolder
from tutorial_utils.results import Run
from tutorial_utils.settings import Training
from tutorial_utils.simulate import simulate


def ours(spec: Spec) -> Run:
    """What `make run` and the notebooks do."""
    return run_ours(spec, build_job(spec))


def defaults(spec: Spec) -> Run:
    """The same job with FLARE's own periods, in FLARE's own simulator."""
    return run_plainly(spec, build_job(spec))


def waits(spec: Spec) -> Run:
    """Our job, periods and all, in FLARE's own simulator: what ending early gives."""
    return run_plainly(spec, build_job(spec), our_periods=True)


def long_naps(spec: Spec) -> Run:
    """Ours, but FLARE's simulator starts as it does by itself."""
    plain = Path(spec.out) / "start.py"
    plain.write_text(
        "import runpy\nrunpy.run_module('nvflare.private.fed.app.simulator.simulator', run_name='__main__')\n"
    )
    watch.START = plain
    return ours(spec)


def unpaced(spec: Spec) -> Run:
    """Ours, but sites and server look for what is next by themselves."""
    JobFolder.add_pace = lambda self: None
    return ours(spec)


def two_seconds(spec: Spec) -> Run:
    """Ours, but a site sleeps 2 s after every task, as FLARE has it."""
    job = build_job(spec)
    job.to_server({"server": {"task_request_interval": 2.0}})
    return run_ours(spec, job)


def timed(spec: Spec) -> Run:
    return run_ours(spec, build_with(spec, timed_learner(spec)))


def timed_defaults(spec: Spec) -> Run:
    return run_plainly(spec, build_with(spec, timed_learner(spec)))


def ancestor(spec: Spec) -> Run:
    """As the tutorials had it: FLARE's defaults and a learner of that kind."""
    from ancestor_learner import AncestorLearner  # torchvision: the others need not wait for it

    return run_plainly(
        spec, build_with(spec, quietly(AncestorLearner, spec.data, spec.epochs, spec.lr, spec.momentum, spec.seed))
    )


def timed_learner(spec: Spec) -> ModelLearner:
    from timed_learner import TimedLearner

    return quietly(TimedLearner, spec.data, **spec.training)


def quietly(learner: Callable[..., ModelLearner], *args: Any, **kwargs: Any) -> ModelLearner:
    with warnings.catch_warnings(record=True):  # FLARE's word on ModelLearner, which the README repeats
        return learner(*args, **kwargs)


def build_job(spec: Spec) -> FedJob:
    """The series' own job."""
    return example.build_job(spec.data, spec.sites, spec.rounds, Training(**spec.training))


def build_with(spec: Spec, learner: ModelLearner) -> FedJob:
    """The same with another learner."""
    return general.build_job(learner, Net(spec.seed), sites=spec.sites, rounds=spec.rounds, name="benchmark")


def run_ours(spec: Spec, job: FedJob) -> Run:
    return simulate(job, threads=spec.threads, runs=spec.out, name="run", progress=False)


def run_plainly(spec: Spec, job: FedJob, our_periods: bool = False) -> Run:
    """FedJob.simulator_run's command on the exported job, without the periods that this project sets."""
    folder = Path(spec.out) / "run"
    job.export_job(str(folder / "job"))
    for config in () if our_periods else folder.glob("job/*/*/config/config_fed_*.json"):
        use_default_periods(config)
    command = [sys.executable, "-m", "nvflare.private.fed.app.simulator.simulator", f"job/{job.name}"]
    command += ["-w", "workspace", "-c", ",".join(spec.names), "-t", str(spec.threads or spec.sites)]
    subprocess.run(command, cwd=folder, check=True)
    return Run(folder, tuple(spec.names), 0.0)


def use_default_periods(config: Path) -> None:
    """Drop what a job says of waiting: FLARE then takes 2 s between tasks, 0.5 s between checks."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("server", None)
    settings.pop("client", None)
    for workflow in settings.get("workflows", []):
        workflow["args"].pop("task_check_period", None)
    config.write_text(json.dumps(settings, indent=1), encoding="utf-8")


def read_stamps(run: Run) -> dict[str, list[dict[str, Any]]]:
    """{site: stamps} that TimedLearner wrote, nothing from other learners."""
    return {
        path.relative_to(run.workspace).parts[0]: [json.loads(line) for line in path.read_text().splitlines()]
        for path in run.workspace.glob("site-*/**/stamps.jsonl")
    }


def main() -> None:
    contestants = {
        "ours": ours,
        "waits": waits,
        "long-naps": long_naps,
        "unpaced": unpaced,
        "two-seconds": two_seconds,
        "defaults": defaults,
        "timed": timed,
        "timed-defaults": timed_defaults,
        "ancestor": ancestor,
    }
    spec = Spec.read(sys.argv[2])
    run = contestants[sys.argv[1]](spec)
    weights = {name: value.numpy() for name, value in run.global_model.items()}
    matrix = json.loads(run.cross_site.to_json(double_precision=15))
    spec.leave(weights, inside=run.seconds, cross_site=matrix, stamps=read_stamps(run))


if __name__ == "__main__":
    main()
