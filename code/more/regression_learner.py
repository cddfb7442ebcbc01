from __future__ import annotations

from more.regression import Net, load, make_loader, score, train
from tutorial_utils.learner import PTModelLearner
from tutorial_utils.metric import Metric


class RegressionLearner(PTModelLearner):
    """Lower is better: the metric says so once, and best models, tables and figures follow it."""

    metric = Metric("mae", higher_is_better=False)

    def __init__(self, data: str, epochs: int = 2, lr: float = 0.01, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.data = data
        self.epochs = epochs
        self.lr = lr

    def initialize(self) -> None:
        super().initialize()
        self.rows = load(self.site_folder(self.data))
        self.net = Net()

    def local_train(self) -> None:
        train(self.net, self.watched(make_loader(self.rows["train"])), self.epochs, self.lr)

    def local_validate(self, split: str) -> dict[str, float]:
        return score(self.net, self.rows[split])
