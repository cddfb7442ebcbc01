from __future__ import annotations

from kinds import norm
from tutorial_utils.learner import PTModelLearner
from tutorial_utils.metric import Metric


class NormLearner(PTModelLearner):
    metric = Metric("accuracy %")

    def __init__(self, data: str) -> None:
        super().__init__()
        self.data = data

    def initialize(self) -> None:
        super().initialize()
        self.images = norm.load(self.site_folder(self.data))
        self.net = norm.make_net()

    def local_train(self) -> int:
        return norm.train(self.net, *self.images["train"])

    def local_validate(self, split: str) -> dict[str, float]:
        return norm.score(self.net, *self.images[split])


class NormAtHomeLearner(NormLearner):
    """FedBN (Li et al. 2021, arXiv:2102.07623): all is shared but BatchNorm."""

    keep_local = ("norm*",)
