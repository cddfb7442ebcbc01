"""What a learner answers, held against what a job can take. LearnerError, where FLARE would choke on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.app_constant import ModelName
from torch import nn

from tutorial_utils.learner import ModelLearner
from tutorial_utils.values import LearnerError, as_number, to_numpy

Params = Mapping[str, Any]


def as_arrays(net: nn.Module | Params) -> dict[str, np.ndarray]:
    """A net's weights as they travel; a state dict may hold arrays already."""
    state = net.state_dict() if isinstance(net, nn.Module) else net
    if not isinstance(state, Mapping):
        what = f"the class {net.__name__}" if isinstance(net, type) else f"a {type(net).__name__}"
        raise LearnerError(f"net is {what}: give a net or its state dict.")
    arrays = (np.ndarray, np.generic)
    return to_numpy(
        {name: torch.as_tensor(value) if isinstance(value, arrays) else value for name, value in state.items()}
    )


def read_metrics(learner: ModelLearner, result: object) -> dict[str, float]:
    """What `validate` reports, the metric that decides among it."""
    if not isinstance(result, FLModel) or not result.metrics:
        raise LearnerError(f"validate() must return an FLModel with metrics; it returned {type(result).__name__}.")
    decides = getattr(getattr(learner, "metric", None), "name", None)
    if decides is not None and decides not in result.metrics:
        names = ", ".join(map(str, result.metrics))
        raise LearnerError(f"validate() must report {decides!r}, the metric that decides: it gave {names}.")
    return {name: as_number(name, value) for name, value in result.metrics.items()}


def read_model(result: object) -> FLModel:
    """What `get_model` hands out."""
    if not isinstance(result, FLModel) or not result.params:
        kind = type(result).__name__
        raise LearnerError(f"get_model({ModelName.BEST_MODEL!r}) must return an FLModel with params, not {kind}.")
    return result


def read_weight(result: FLModel) -> float:
    """What an update counts in the average."""
    weight = as_number("the weight", (result.meta or {}).get(FLMetaKey.NUM_STEPS_CURRENT_ROUND, 0))
    if not 0 < weight < math.inf:
        raise LearnerError(
            f"train() reports {weight:g} steps: the average weighs an update by them, so it would count for nothing."
        )
    return weight


def read_update(sent: dict[str, np.ndarray], result: object) -> dict[str, np.ndarray]:
    """What a server of one site would make of an update: a difference is added, what stays at the site is as it was."""
    if not isinstance(result, FLModel) or not result.params:
        kind = type(result).__name__
        raise LearnerError(f"train() must return an FLModel with params or a return code, not {kind}.")
    if strange := sorted(set(result.params) - set(sent)):
        raise LearnerError(
            f"train() sends {', '.join(strange)}, which the net has not: send entries of its state dict."
        )
    declared = set((result.meta or {}).get("kept_local", ()))
    if lack := sorted(set(sent) - set(result.params) - declared):
        raise LearnerError(f"train() does not send {', '.join(lack)}: name in keep_local what shall stay at the site.")
    made = {name: _array(name, value, sent[name]) for name, value in result.params.items()}
    if result.params_type == ParamsType.DIFF:
        made = {name: np.asarray(sent[name] + value) for name, value in made.items()}
    for name, value in made.items():
        odd = ~np.isfinite(value)
        if not np.array_equal(value[odd], sent[name][odd], equal_nan=True):  # a mask may be infinite, and stay so
            raise LearnerError(
                f"train() sends {name} with numbers that are not finite: is the learning rate too large?"
            )
    return sent | made


def _array(name: str, value: object, sent: np.ndarray) -> np.ndarray:
    if not isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        raise LearnerError(f"train() sends {name} as a {type(value).__name__}, and only arrays travel.")
    (array,) = as_arrays({name: value}).values()
    if array.shape != sent.shape:
        raise LearnerError(f"train() sends {name} in the shape {array.shape}, and the net's is {sent.shape}.")
    return array
