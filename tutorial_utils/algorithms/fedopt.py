"""FedOpt: the sites' mean difference is a gradient, and an optimizer on the server takes the step.

Reddi et al., Adaptive Federated Optimization, 2021 (arXiv:2003.00295). With SGD and momentum it is the
FedAvgM of Hsu et al., 2019 (arXiv:1909.06335).
"""

import torch
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.abstract.learnable import Learnable
from nvflare.app_common.abstract.model import ModelLearnableKey
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_opt.pt.fedopt import PTFedOptModelShareableGenerator
from torch import nn

from fl.model_learner import CIFAR10ModelLearner


class DifferenceLearner(CIFAR10ModelLearner):
    """CIFAR10ModelLearner that sends what its training changed: its weights minus those that came in."""

    def train(self, model: FLModel) -> FLModel | str:
        result = super().train(model)
        if isinstance(result, FLModel):  # else it is a return code
            result.params = {name: value - model.params[name] for name, value in result.params.items()}
            result.params_type = ParamsType.DIFF
        return result


class ServerOptimizer(PTFedOptModelShareableGenerator):
    """FLARE's FedOpt with SGD: on the server, the mean difference with its sign turned is the gradient.

    FLARE's class steps from a model of its own, which starts from the first weights even where the job
    starts from a checkpoint. This one steps from the global model.

    Args:
        net: the same net as the job's first model.
        server_lr: with 1, and without momentum, the bits are those of FedAvg on differences.
        server_momentum: how much of the last step goes into the next one.
    """

    def __init__(self, net: nn.Module, server_lr: float = 1.0, server_momentum: float = 0.0) -> None:
        sgd = {"lr": server_lr, "momentum": server_momentum}
        optimizer = {"path": "torch.optim.SGD", "args": sgd}
        super().__init__(optimizer_args=optimizer, source_model=net, device="cpu")
        self.net = net
        self.server_lr = server_lr
        self.server_momentum = server_momentum

    def shareable_to_learnable(self, shareable: Shareable, fl_ctx: FLContext) -> Learnable:
        """Called by the workflow with the aggregator's mean: the new global model."""
        weights = fl_ctx.get_prop(AppConstants.GLOBAL_MODEL)[ModelLearnableKey.WEIGHTS]
        self.model.load_state_dict({name: torch.as_tensor(value) for name, value in weights.items()})
        return super().shareable_to_learnable(shareable, fl_ctx)
