from __future__ import annotations

from kinds.cancer import Net, load, score, train
from tutorial_utils.learner import PTModelLearner
from tutorial_utils.metric import Metric


class CancerLearner(PTModelLearner):
    metric = Metric("auc")
    valid_split, test_split = "development", "holdout"

    def __init__(self, data: str, width: int = 8) -> None:
        super().__init__()
        self.data = data
        self.width = width

    def initialize(self) -> None:
        super().initialize()
        self.rows = load(self.site_folder(self.data))
        self.net = Net(self.width)

    def local_train(self) -> tuple[int, int]:
        rows, malignant = self.rows["train"]
        return train(self.net, rows, malignant, epochs=1), len(rows)  # an update counts by its patients

    def local_validate(self, split: str) -> dict[str, float]:
        return score(self.net, *self.rows[split])
