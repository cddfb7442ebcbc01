"""What cannot work in a job, said before anything starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.fl_component import FLComponent
from nvflare.fuel.utils.class_utils import get_component_init_parameters
from torch import Tensor, nn

from tutorial_utils.errors import JobError
from tutorial_utils.learner import settings_of


def check_count(name: str, value: object, most: int | None = None) -> None:
    """JobError unless it is a whole number from 1 (to `most`)."""
    fits = isinstance(value, Integral) and not isinstance(value, bool) and value >= 1
    if not fits or (most is not None and value > most):
        wanted = "1 or more" if most is None else f"from 1 to {most}"
        raise JobError(f"{name} is {value!r}: it must be a whole number, {wanted}.")


def resolve_paths(part: object) -> None:
    """Make relative paths and ~ in a part's arguments absolute: at a site they would mean something else."""
    for name in settings_of(type(part)):
        value = getattr(part, name, None)
        if not isinstance(value, str) or not value or "$" in value:
            continue
        if name == "data" or value.startswith(("./", "../", "~")):
            setattr(part, name, str(Path(value).expanduser().resolve()))


def holds_sites(data: str, names: Sequence[str]) -> bool:
    """Is it, as far as one sees here, a folder of site folders? A learner's `data` may be anything else, a table say.

    What is not here, or named by a variable, is taken for one: a runner says what is missing.
    """
    folder = Path(data)
    if "$" in data or not folder.exists():
        return True
    cards = (card for kind in ("dataset.json", "table.json") for card in folder.glob(f"*/{kind}"))
    return any((folder / name).is_dir() for name in names) or any(cards)


def check_arguments(part: object) -> None:
    """JobError for an argument that would not reach the sites: FLARE reads each back from an attribute of its name, and
    writes what JSON can hold."""
    kind = type(part).__name__
    if not isinstance(part, FLComponent):  # a ScriptRunner, which writes itself into the job
        return
    written = set(get_component_init_parameters(part)) - {"args", "kwargs"}
    for name in settings_of(type(part)):
        if not hasattr(part, name) and not hasattr(part, f"_{name}"):
            raise JobError(
                f"{kind} does not keep its argument {name}: write self.{name} = {name}, by which a job reads it."
            )
        if name not in written:
            raise JobError(
                f"{kind} hands {name} on by **kwargs alone, where a job does not look: write (self, *args, **kwargs)."
            )
        value = getattr(part, name, getattr(part, f"_{name}", None))
        if not _is_writable(value):
            hint = f"give str({name})" if isinstance(value, Path) else "give it as texts and numbers"
            raise JobError(f"{kind}'s argument {name} is a {type(value).__name__}, which a job cannot write: {hint}.")


def _is_writable(value: Any) -> bool:  # noqa: ANN401
    if isinstance(value, (Enum, FLComponent)):
        return True
    try:
        return json.loads(json.dumps(value)) == (list(value) if isinstance(value, tuple) else value)
    except (TypeError, ValueError):
        return False


def fit_checkpoint(net: nn.Module, checkpoint: str | Path | None) -> dict[str, Tensor]:
    """The first model: the net's own weights, or a checkpoint's that has the same entries and shapes. On the CPU."""
    if not isinstance(net, nn.Module):
        raise JobError(f"net is a {type(net).__name__}: give the net itself, an object of a torch.nn.Module.")
    own = net.state_dict()
    for name, value in own.items():
        if not isinstance(value, Tensor):
            raise JobError(f"{name} in the net's state dict is a {type(value).__name__}, and only arrays travel.")
    if checkpoint is None:
        return {name: value.detach().cpu().clone() for name, value in own.items()}
    state = _read_checkpoint(Path(checkpoint).expanduser())
    if odd := sorted(own.keys() ^ state.keys()):
        whose = "the net" if odd[0] in own else "the checkpoint"
        raise JobError(f"{checkpoint} does not fit the net: {odd[0]} is in {whose} alone.")
    for name, value in own.items():
        if not isinstance(state[name], Tensor) or state[name].shape != value.shape:
            shape = tuple(getattr(state[name], "shape", ()))
            raise JobError(
                f"{checkpoint} does not fit the net: {name} is {shape} there and {tuple(value.shape)} in the net."
            )
    return {name: state[name].to(own[name].dtype).clone() for name in own}


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise JobError(f"There is no checkpoint {path}.") from error
    except Exception as error:
        raise JobError(
            f"{path} is no checkpoint that torch loads safely: save a state_dict() with torch.save."
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise JobError(f"{path} holds a {type(loaded).__name__}: save the net's state_dict().")
    return loaded
