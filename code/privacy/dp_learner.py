"""The learner of dl/train.py with DP-SGD: what a site sends says little about any one of its images.

It needs Opacus: pip install opacus
"""

from __future__ import annotations

from dl.train import make_loader, train
from fl.model_learner import CIFAR10ModelLearner
from tutorial_utils.dpsgd import epsilon_spent, private_steps


class PrivateLearner(CIFAR10ModelLearner):
    """CIFAR10ModelLearner with private steps, which tells what they have cost as a metric, `epsilon`.

    Args:
        data, epochs, lr, batch_size, momentum, seed: as in CIFAR10ModelLearner.
        noise, clip, secret: of DP-SGD, as in tutorial_utils.dpsgd.private_steps.
        delta: the chance that epsilon does not hold; well below one in the number of the site's images.
    """

    def __init__(
        self,
        data: str,
        epochs: int = 1,
        lr: float = 0.01,
        batch_size: int = 32,
        momentum: float = 0.9,
        seed: int = 0,
        noise: float = 1.0,
        clip: float = 1.0,
        delta: float = 1e-5,
        secret: bool = True,
    ) -> None:
        super().__init__(data, epochs, lr, batch_size, momentum, seed)
        self.noise = noise
        self.clip = clip
        self.delta = delta
        self.secret = secret

    def local_train(self) -> int:
        loader = make_loader(self.images.train, self.batch_size, self.seed_of_round())
        with private_steps(self, loader, self.noise, self.clip, self.secret) as loader:
            return train(self.net, loader, self.epochs, self.lr, self.momentum, stop=self.is_aborted)

    def local_validate(self, split: str) -> dict[str, float]:
        return super().local_validate(split) | {"epsilon": epsilon_spent(self, self.delta)}
