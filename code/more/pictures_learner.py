from __future__ import annotations

from more.pictures import Net, load, make_loader, score, train
from tutorial_utils.learner import PTModelLearner
from tutorial_utils.metric import Metric


class PicturesLearner(PTModelLearner):
    """The job starts from `build_job(checkpoint=...)`; the frozen backbone stays as it came."""

    metric = Metric("accuracy")

    def __init__(self, data: str, epochs: int = 1, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.data = data
        self.epochs = epochs

    def initialize(self) -> None:
        super().initialize()
        self.pictures = load(self.site_folder(self.data))
        self.net = Net()

    def local_train(self) -> None:
        train(self.net, self.watched(make_loader(self.pictures["train"])), self.epochs)

    def local_validate(self, split: str) -> dict[str, float]:
        return score(self.net, self.pictures[split])
