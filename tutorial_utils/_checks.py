"""What cannot work in a job, said before anything starts."""

from __future__ import annotations

import builtins
import json
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvflare.apis.executor import Executor
from nvflare.apis.filter import Filter
from nvflare.apis.fl_component import FLComponent
from nvflare.app_common.filters.convert_weights import ConvertWeights
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
from nvflare.app_common.filters.svt_privacy import SVTPrivacy
from nvflare.app_common.widgets.streaming import AnalyticsReceiver
from nvflare.fuel.utils.class_utils import get_component_init_parameters
from nvflare.job_config.script_runner import ScriptRunner
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tutorial_utils.algorithms.registry import FedAvg
from tutorial_utils.errors import JobError
from tutorial_utils.filters import ClipAndNoise
from tutorial_utils.learner import ModelLearner, PTModelLearner, metric_of, settings_of
from tutorial_utils.metric import Metric
from tutorial_utils.values import LearnerError, match_names

SITE_PARTS = (ModelLearner, Executor, ScriptRunner)
# What FLARE (2.9.0) replaces in a text of a job: "{name}" as a whole, and doubled braces.
DIFFERENCES = "algorithm=FedOpt(server_lr=1.0, server_momentum=0.0) sends differences, and averages as FedAvg does"
BRACES = re.compile(r"^\s*\{[^{}]*\}\s*$|\{\{|\}\}")


def check_count(name: str, value: object, most: int | None = None) -> int:
    """The value as an int; JobError unless it is a whole number from 1 (to `most`)."""
    fits = isinstance(value, Integral) and not isinstance(value, bool) and value >= 1
    if not fits or (most is not None and value > most):
        wanted = "1 or more" if most is None else f"from 1 to {most}"
        raise JobError(f"{name} is {value!r}: it must be a whole number, {wanted}.")
    return int(value)


def check_name(what: str, value: object) -> None:
    """JobError for a text that could be no folder at every site."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", value):
        rule = "letters (a to z), digits, '_' and '-', 64 at most, and a letter or digit first"
        raise JobError(f"{what} {value!r:.80}: a name has {rule}.")


def check_object(what: str, value: object, kind: type | tuple[type, ...], wanted: str) -> None:
    """JobError unless it is an object of this kind; a class that was not called has a sentence of its own."""
    if isinstance(value, type):
        raise JobError(f"{what} is the class {value.__name__}: give an object, {value.__name__}(...).")
    if not isinstance(value, kind):
        raise JobError(f"{what} is a {type(value).__name__}: give {wanted}.")


def check_receiver(receiver: AnalyticsReceiver) -> AnalyticsReceiver:
    """The receiver; JobError for what receives no metrics."""
    check_object("track", receiver, AnalyticsReceiver, "one of FLARE's receivers, TBAnalyticsReceiver() say")
    return receiver


def check_list(what: str, value: object) -> None:
    """JobError for one thing where several belong: a text would be taken for its letters."""
    if isinstance(value, (str, Path)) or not isinstance(value, Sequence):
        raise JobError(f"{what} is {value!r:.80}: give a list, [{value!r:.80}].")


def choose_metric(learner: object, metric: Metric | None) -> Metric:
    """The metric that decides: the given one, else the learner's."""
    check_object("learner", learner, SITE_PARTS, "an object of a ModelLearner")
    if metric is not None:
        example = f"Metric({metric!r:.60}, higher_is_better=...)"
        if not isinstance(metric, Metric):
            raise JobError(f"metric is {metric!r:.60}: give {example}.")
        return metric
    try:
        return metric_of(learner)
    except LearnerError as error:
        raise JobError(f"{str(error).rstrip('.')}, or give build_job a metric=.") from error


def check_one_metric(learner: object, metric: Metric) -> None:
    """A PTModelLearner chooses each site's best model by its own: the server must not choose by another."""
    own = learner.metric if isinstance(learner, PTModelLearner) else None
    if own not in (None, metric):
        raise JobError(
            f"{type(learner).__name__} chooses its models by {own.name}, and the job would by {metric.name}: "
            "say metric = ... in the class, and leave metric= out."
        )


def choose_algorithm(learner: object, algorithm: FedAvg | None) -> FedAvg:
    """The given one, else FedAvg. JobError where its part at the sites and the learner's kind do not go together."""
    example = "an object, FedProx() or another of tutorial_utils.algorithms.registry"
    if algorithm is None:
        return FedAvg()
    if isinstance(algorithm, str):
        raise JobError(f"algorithm is {algorithm!r:.40}: give {example}.")
    check_object("algorithm", algorithm, FedAvg, example)
    if algorithm.site() and not isinstance(learner, PTModelLearner):
        kind = type(learner).__name__
        raise JobError(f"{algorithm.name} has a part at the sites for a PTModelLearner, and {kind} is none.")
    return algorithm


def settle_arguments(part: object) -> None:
    """Make a part's arguments what they will be at a site: relative paths and ~ absolute, numbers of numpy plain."""
    for name in settings_of(type(part)):
        value = getattr(part, name, None)
        if isinstance(value, np.generic):
            setattr(part, name, value.item())
        elif isinstance(value, str) and _is_path_from_here(name, value):
            setattr(part, name, str(Path(value).expanduser().resolve()))


def _is_path_from_here(name: str, value: str) -> bool:
    is_path = value.startswith(("./", "../", "~")) or (name == "data" and value != "")
    return is_path and "$" not in value and "://" not in value


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
    """JobError for an argument that would not reach the sites as it is: FLARE reads each back from an attribute of its
    name, and writes what JSON can hold."""
    kind = type(part).__name__
    if not isinstance(part, FLComponent):  # a ScriptRunner, which writes itself into the job
        return
    if isinstance(part, ModelLearner) and "abort_signal" not in vars(part):
        raise JobError(f"call super().__init__() in the constructor of {kind}.")
    if isinstance(part, PTModelLearner):
        check_count("threads", part.threads)
        if isinstance(part.seed, bool) or not isinstance(part.seed, Integral):
            raise JobError(f"seed is {part.seed!r}: it must be a whole number.")
    written = {name: one for name, one in get_component_init_parameters(part).items() if name not in ("args", "kwargs")}
    for name, parameter in settings_of(type(part)).items():
        found = [kept for kept in (name, f"_{name}") if kept in vars(part)]
        if not found:
            raise JobError(
                f"{kind} does not keep its argument {name}: write self.{name} = {name}, by which a job reads it."
            )
        if name not in written:
            raise JobError(
                f"{kind} hands {name} on by **kwargs alone, where a job does not look: write (self, *args, **kwargs)."
            )
        if odd := _find_odd(vars(part)[found[0]], name):
            raise JobError(f"{kind}'s argument {name} {odd}.")
        if written[name].default != parameter.default:  # FLARE (2.9.0) leaves out what is the default of a parent
            part._always_serialize_args = (*getattr(part, "_always_serialize_args", ()), name)


def check_written(part: object) -> None:
    """JobError for an argument of one of FLARE's parts, or of a reader's, that FLARE would write as something else."""
    for name, parameter in get_component_init_parameters(part).items():
        kept = vars(part).get(name, vars(part).get(f"_{name}", parameter.default))
        is_default = kept is parameter.default or (isinstance(kept, (str, int, float)) and kept == parameter.default)
        if not is_default and (odd := _find_odd(kept, name)):
            raise JobError(f"{type(part).__name__}'s argument {name} {odd}.")


def check_filters(filters: Sequence[Filter], sends: object, cross_site: str) -> None:
    """JobError for filters of an update in a job where they would cut something else, without a word."""
    for one in filters:
        kind = type(one).__name__
        if isinstance(one, ConvertWeights):  # nvflare 2.9.0: client_runner drops them before it filters the result
            raise JobError(
                f"{kind} has nothing to convert by: FLARE drops what a site received too soon. {DIFFERENCES}."
            )
        if isinstance(one, (PercentilePrivacy, SVTPrivacy)) and sends == "WEIGHTS":
            raise JobError(
                f"{kind} is for differences, and would cut down whole weights, which are sent: {DIFFERENCES}."
            )
        if isinstance(one, (ClipAndNoise, PercentilePrivacy, SVTPrivacy)) and cross_site == "all":
            raise JobError(
                f"{kind} cuts updates, and cross_site='all' hands each site's own whole model to every other site: say "
                "cross_site='global' or 'none'."
            )


def _find_odd(value: Any, name: str) -> str | None:  # noqa: ANN401
    """Why a job cannot write this value so that a site reads the same, None if it can."""
    kind = type(value).__name__
    if isinstance(value, float) and value != value:
        return "is nan, which is no number"
    if isinstance(value, str) and BRACES.search(value):
        return f"is {value!r:.60}, and text in braces is a variable to FLARE: leave them out"
    if isinstance(value, dict) and (taken := sorted({"path", "class_path"} & value.keys())):
        return f"has the key {taken[0]!r}, by which FLARE takes it for a class: choose another"
    if value is None or isinstance(value, FLComponent) or (isinstance(value, Enum) and value == value.value):
        return None
    try:
        plain = list(value) if isinstance(value, tuple) else value
        if hasattr(builtins, kind) and json.loads(json.dumps(value)) == plain:
            return None
    except (TypeError, ValueError):
        pass
    hint = f"give str({name})" if isinstance(value, Path) else "give it as texts and numbers"
    return f"is a {kind}, which a job cannot write: {hint}"


def check_keep_local(learner: object, state: Mapping[str, Tensor]) -> None:
    """JobError where a learner's `keep_local` names nothing that the net has, or all of it."""
    if not isinstance(learner, PTModelLearner):
        return
    try:
        kept = match_names(state, learner.keep_local)
    except LearnerError as error:
        raise JobError(str(error)) from error
    if len(kept) == len(state):
        raise JobError("keep_local names all of the net: leave something to share.")


def state_of(what: str, model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a model's state dict on the CPU. JobError for what cannot travel."""
    check_object(what, model, (nn.Module, Mapping), "a net or its state dict")
    state = model.state_dict() if isinstance(model, nn.Module) else model
    if not state:
        raise JobError(f"The {what} has no weights: there is nothing to share.")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise JobError(f"{name} in the {what} is a {type(value).__name__}, and only arrays travel.")
        if is_lazy(value) or value.is_meta:
            raise JobError(f"{name} in the {what} has no numbers yet: call it with one batch, or load its weights.")
    return {name: value.detach().cpu().clone() for name, value in state.items()}


def fit_checkpoint(net: nn.Module, checkpoint: str | Path | None) -> dict[str, Tensor]:
    """The first model: the net's own weights, or a checkpoint's that has the same entries and shapes. On the CPU."""
    check_object("net", net, nn.Module, "the net itself, an object of a torch.nn.Module")
    own = state_of("net", net)
    if checkpoint is None:
        return own
    if not isinstance(checkpoint, (str, Path)):
        raise JobError(f"checkpoint is {checkpoint!r:.60}: give the path of a file.")
    state = _read_checkpoint(Path(checkpoint).expanduser())
    if odd := sorted(own.keys() ^ state.keys(), key=str):
        whose = "the net" if odd[0] in own else "the checkpoint"
        raise JobError(f"{checkpoint} does not fit the net: {odd[0]} is in {whose} alone.")
    for name, value in own.items():
        shape = tuple(getattr(state[name], "shape", ()))
        if not isinstance(state[name], Tensor) or shape != value.shape:
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
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise JobError(f"{path} holds a {type(loaded).__name__}: save the net's state_dict().")
    return loaded
