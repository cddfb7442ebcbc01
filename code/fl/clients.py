"""The three ways to write a site's part: each adds it to a job. For job.py; it does not ship."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nvflare.app_common.abstract.model_learner import ModelLearner
from nvflare.app_common.executors.model_learner_executor import ModelLearnerExecutor
from nvflare.job_config.api import FedJob
from nvflare.job_config.script_runner import ScriptRunner

from fl.executor import CIFAR10Executor
from fl.model_learner import CIFAR10ModelLearner
from tutorial_utils.errors import TutorialError

CODE = Path(__file__).resolve().parents[1]
TASKS = ["train", "validate", "submit_model"]  # what the server asks of a site


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
    with working_in(CODE):
        # ScriptRunner wants to see the script, and writes its path into the job as it stands here: only
        # a relative one is right at the site too.
        runner = ScriptRunner("fl/client_api.py", script_args(data, **settings))
        job.to_clients(runner, tasks=TASKS)
    # When the job is written, FedJob looks from wherever we are then: name what must be in it.
    job.add_file_to_clients(str(CODE / "fl/client_api.py"), dest_dir="fl")
    job.add_file_to_clients(str(CODE / "dl/train.py"), dest_dir="dl")


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
