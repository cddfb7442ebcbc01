"""FedProx: a site that strays from the global model is pulled back to it.

Li et al., Federated Optimization in Heterogeneous Networks, 2020 (arXiv:1812.06127).
"""

import copy

from nvflare.app_opt.pt.fedproxloss import PTFedProxLoss

from fl.model_learner import CIFAR10ModelLearner
from tutorial_utils.algorithms.steps import at_each_step


class FedProxLearner(CIFAR10ModelLearner):
    """CIFAR10ModelLearner with mu / 2 times the squared distance to the global model in its loss.

    The term is FLARE's PTFedProxLoss. Its gradient joins that of the images just before each step of the
    script's optimizer, so that the script's loop stays as it is. The server averages as in FedAvg.

    Args:
        mu: strength of the pull, 0 or more; with 0 the bits are those of FedAvg.
        data, epochs, lr, batch_size, momentum, seed: as in CIFAR10ModelLearner.
    """

    def __init__(
        self,
        data: str,
        mu: float = 0.01,
        epochs: int = 1,
        lr: float = 0.01,
        batch_size: int = 32,
        momentum: float = 0.9,
        seed: int = 0,
    ) -> None:
        super().__init__(data, epochs, lr, batch_size, momentum, seed)
        self.mu = mu

    def local_train(self) -> int:
        received = copy.deepcopy(self.net).requires_grad_(False)
        distance = PTFedProxLoss(self.mu)

        def pull() -> None:
            distance(self.net, received).backward()  # adds to the gradient that is there

        with at_each_step(self.net, before=pull):
            return super().local_train()
