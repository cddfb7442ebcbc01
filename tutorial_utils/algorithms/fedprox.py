"""FedProx: a site that strays from the global model is pulled back to it.

Li et al., Federated Optimization in Heterogeneous Networks, 2020 (arXiv:1812.06127).
"""

from __future__ import annotations

import torch
from nvflare.app_opt.pt.fedproxloss import PTFedProxLoss
from torch.optim import Optimizer

from tutorial_utils.algorithms.steps import Received, at_each_step
from tutorial_utils.learner import PTModelLearner, SiteAlgorithm


class FedProxSite(SiteAlgorithm):
    """Any learner, with mu / 2 times the squared distance of what it shares to the global model in its loss.

    The term is FLARE's PTFedProxLoss. Its gradient joins that of the data just before each step of the
    script's optimizer, so that the script's loop stays as it is. The server averages as in FedAvg.

    Args:
        mu: strength of the pull, 0 or more; with 0 the bits are those of FedAvg.
    """

    def __init__(self, mu: float = 0.01) -> None:
        super().__init__()
        self.mu = mu

    def train(self, learner: PTModelLearner) -> object:
        received, distance = Received(learner.net), PTFedProxLoss(self.mu)
        kept = set(learner.local_names())
        own = {id(param) for name, param in learner.net.named_parameters() if name in kept}

        def pull(optimizer: Optimizer) -> None:
            """Adds to the gradients that are there, of the shared weights that this optimizer steps."""
            params = [param for group in optimizer.param_groups for param in group["params"]]
            params = [param for param in params if param.grad is not None and id(param) not in own]
            pulls = torch.autograd.grad(distance(learner.net, received), params, allow_unused=True)
            for param, one in zip(params, pulls, strict=True):
                if one is not None:
                    param.grad = one.add_(param.grad)  # in this order: the gradient of an embedding may be sparse

        with at_each_step(learner.net, before=pull):
            return super().train(learner)
