"""The script's half of a learner: own/script.py, called by FLARE."""

from own.script import load, make_loader, make_net, score, train
from tutorial_utils.learner import PTModelLearner
from tutorial_utils.metric import Metric


class CancerLearner(PTModelLearner):
    metric = Metric("auc", higher_is_better=True)

    def __init__(
        self, data: str, mean: list[float], scale: list[float], epochs: int = 2, seed: int = 0
    ) -> None:
        super().__init__(seed=seed)
        self.data = data
        self.mean = mean
        self.scale = scale
        self.epochs = epochs

    def initialize(self) -> None:
        super().initialize()
        self.patients = load(self.site_folder(self.data), self.mean, self.scale)
        self.net = make_net(self.seed)

    def local_train(self) -> tuple[int, int]:
        patients = self.patients["train"]
        loader = self.watched(make_loader(patients))
        steps = train(self.net, loader, self.patients["valid"], self.state, self.epochs)
        return steps, len(patients)

    def local_validate(self, split: str) -> dict[str, float]:
        return score(self.net, self.patients[split])
