"""FedOpt: the sites' mean difference is a gradient, and an optimizer on the server takes the step.

Reddi et al., Adaptive Federated Optimization, 2021 (arXiv:2003.00295). With SGD and momentum it is the
FedAvgM of Hsu et al., 2019 (arXiv:1909.06335).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.abstract.learnable import Learnable
from nvflare.app_common.abstract.model import ModelLearnableKey
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_opt.pt.fedopt import PTFedOptModelShareableGenerator
from torch import nn

from tutorial_utils.learner import PTModelLearner, SiteAlgorithm
from tutorial_utils.values import to_numpy


class DifferenceSite(SiteAlgorithm):
    """Any learner, sending what its training changed: its weights minus those that came in."""

    def answer(self, learner: PTModelLearner, received: FLModel, result: FLModel) -> FLModel:
        result.params = {name: subtract(value, received.params[name]) for name, value in result.params.items()}
        result.params_type = ParamsType.DIFF
        return result


def subtract(value: np.ndarray, received: np.ndarray) -> np.ndarray:
    """The difference, 0 where the two are equal: of infinite values (a mask) too, whose difference is none.

    That of truth values, and of whole numbers without a sign, has one.
    """
    kind = np.dtype(np.int64) if value.dtype.kind in "bu" else value.dtype
    value, received = np.asarray(value, kind), np.asarray(received, kind)
    with np.errstate(invalid="ignore"):
        return np.where(value == received, np.zeros_like(value), np.subtract(value, received, dtype=kind))


class ServerOptimizer(PTFedOptModelShareableGenerator):
    """FLARE's FedOpt with SGD: on the server, the mean difference with its sign turned is the gradient.

    FLARE's class steps from a module that the server must be able to build, and from its first weights even where the
    job starts from a checkpoint. This one needs the names and shapes of what is trained, whatever the net's class,
    and steps from the global model. Everything else (BatchNorm's statistics) is averaged as in FedAvg.

    Args:
        shapes: of each trained parameter, by its name in the state dict: the shape, and torch's name of the type last,
            as [84, 120, "float32"].
        server_lr: with 1, and without momentum, the bits are those of FedAvg on differences.
        server_momentum: how much of the last step goes into the next one.
    """

    def __init__(
        self, shapes: Mapping[str, Sequence[int | str]], server_lr: float = 1.0, server_momentum: float = 0.0
    ) -> None:
        sgd = {"lr": server_lr, "momentum": server_momentum}
        optimizer = {"path": "torch.optim.SGD", "args": sgd}
        super().__init__(optimizer_args=optimizer, source_model=build_tree(shapes), device="cpu")
        self.shapes = shapes
        self.server_lr = server_lr
        self.server_momentum = server_momentum

    def shareable_to_learnable(self, shareable: Shareable, fl_ctx: FLContext) -> Learnable:
        """Called by the workflow with the aggregator's mean: the new global model."""
        weights = dict(fl_ctx.get_prop(AppConstants.GLOBAL_MODEL)[ModelLearnableKey.WEIGHTS])
        known = {name: torch.as_tensor(weights[name]) for name in self.model.state_dict()}
        self.model.load_state_dict(known)
        learnable = super().shareable_to_learnable(shareable, fl_ctx)
        # what no site sent (a part that is kept at home) is not trained here, and stays as it was
        made = weights | learnable[ModelLearnableKey.WEIGHTS]
        kinds = {name: np.asarray(value).dtype for name, value in weights.items()}
        learnable[ModelLearnableKey.WEIGHTS] = {name: np.asarray(value, kinds[name]) for name, value in made.items()}
        return learnable


def shapes_of(net: nn.Module) -> dict[str, list[int | str]]:
    """The trained parameters of a net, as ServerOptimizer wants them: each by all of its names, in the type it travels.

    A weight that two layers share has two names in the state dict, and both travel.
    """
    named = net.named_parameters(remove_duplicate=False)
    arrays = to_numpy({name: param for name, param in named if param.requires_grad})
    return {name: [*array.shape, str(array.dtype)] for name, array in arrays.items()}


def build_tree(shapes: Mapping[str, Sequence[int | str]]) -> nn.Module:
    """A module without a forward whose state dict has just these entries: "fc.weight" is `weight` of a child `fc`."""
    root = nn.Module()
    for name, (*shape, kind) in shapes.items():
        *parents, last = name.split(".")
        module = root
        for parent in parents:
            if parent not in dict(module.named_children()):
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        module.register_parameter(last, nn.Parameter(torch.zeros(shape, dtype=getattr(torch, kind))))
    return root
