"""What a job asks for: by this a run is judged, and by nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tutorial_utils import _flare
from tutorial_utils.errors import JobError


@dataclass(frozen=True)
class Asked:
    """What the workflows of a job are to do.

    Attributes:
        training: the position of the workflow that trains; None for an evaluation alone.
        rounds: the numbers of its rounds.
        answers: how many sites must answer in each round; None: all.
        may_stop: it may end before the last round (stop_cond).
        saves: the model is on disk after the last round.
        task: what the sites' training is called.
        evaluates: every site scores models in the end: the sites' own (local_models), the server's (global_models).
        writes_matrix: the evaluation writes its results itself; else a ValidationJsonGenerator must.
        participants: the sites that evaluate; none: all.
        statistics: the file, below the server's folder of the run, into which FLARE's federated statistics go.
    """

    training: int | None = None
    rounds: range = range(0)
    answers: int | None = None
    may_stop: bool = False
    saves: bool = False
    task: str = "train"
    evaluates: bool = False
    local_models: bool = False
    global_models: bool = False
    writes_matrix: bool = False
    participants: tuple[str, ...] = ()
    statistics: str | None = None


def read_asked(server: Mapping[str, Any]) -> Asked:
    """Read it in the server's configuration, variables resolved. JobError for one that does nothing known here."""
    found: dict[str, Any] = {}
    for position, workflow in enumerate(server["workflows"]):
        args = _flare.arguments_of(workflow)
        if "num_rounds" in args and "training" not in found:
            found |= _read_training(position, args)
        elif "cross_val_dir" in args:
            found |= _read_evaluation(args)
        elif "statistic_configs" in args:
            writers = (_flare.arguments_of(part) for part in server.get("components") or ())
            found |= {"statistics": next((one["output_path"] for one in writers if "output_path" in one), None)}
    if not found:
        raise JobError(
            "The job has no workflow with rounds, such as ScatterAndGather or FedAvg, no statistics, "
            "and no cross-site evaluation."
        )
    return Asked(**found)


def _read_training(position: int, args: Mapping[str, Any]) -> dict[str, Any]:
    """By the arguments of FLARE's controllers: ScatterAndGather and its kin, BaseFedAvg and its."""
    start, rounds = args.get("start_round", 0), args["num_rounds"]
    if not isinstance(start, int) or not isinstance(rounds, int):
        raise JobError(f"The job's num_rounds is {rounds!r}, from start_round {start!r}: these must be whole numbers.")
    return {
        "training": position,
        "rounds": range(start, start + rounds),
        "answers": 1 if args.get("ignore_result_error") is True else args.get("num_clients", args.get("min_clients")),
        "may_stop": bool(args.get("stop_cond")),
        "saves": bool(args.get("persistor_id")) and args.get("persist_every_n_rounds") != 0,
        "task": args.get("train_task_name") or args.get("task_name") or "train",
    }


def _read_evaluation(args: Mapping[str, Any]) -> dict[str, Any]:
    """By the arguments of CrossSiteModelEval and GlobalModelEval, and of CrossSiteEval, which asks for all models."""
    newer = "server_models" in args
    return {
        "evaluates": True,
        "local_models": newer or bool(args.get("submit_model_task_name")),
        "global_models": bool(args.get("server_models") if newer else args.get("model_locator_id")),
        "writes_matrix": newer,
        "participants": tuple(args.get("participating_clients") or ()),
    }
