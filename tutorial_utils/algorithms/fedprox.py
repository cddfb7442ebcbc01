"""FedProx: a site that strays from the global model is pulled back to it.

Li et al., Federated Optimization in Heterogeneous Networks, 2020 (arXiv:1812.06127).
"""

from __future__ import annotations

import copy

from nvflare.app_opt.pt.fedproxloss import PTFedProxLoss
from torch.optim import LBFGS, Optimizer

from tutorial_utils.algorithms.steps import at_each_step
from tutorial_utils.learner import LearnerError, PTModelLearner, SiteAlgorithm


class FedProxSite(SiteAlgorithm):
    """Any learner, with mu / 2 times the squared distance to the global model in its loss.

    The term is FLARE's PTFedProxLoss. Its gradient joins that of the data just before each step of the
    script's optimizer, so that the script's loop stays as it is. The server averages as in FedAvg.

    Args:
        mu: strength of the pull, 0 or more; with 0 the bits are those of FedAvg.
    """

    def __init__(self, mu: float = 0.01) -> None:
        super().__init__()
        self.mu = mu

    def train(self, learner: PTModelLearner) -> object:
        received = copy.deepcopy(learner.net).requires_grad_(False)
        distance = PTFedProxLoss(self.mu)

        def pull(optimizer: Optimizer) -> None:
            if isinstance(optimizer, LBFGS):  # it asks for the gradients itself, many times a step
                raise LearnerError(
                    "FedProx adds to the gradients before a step, and LBFGS makes its own: use SGD or Adam."
                )
            distance(learner.net, received).backward()  # adds to the gradient that is there

        with at_each_step(learner.net, before=pull):
            return super().train(learner)
