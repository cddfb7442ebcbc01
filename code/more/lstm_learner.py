from __future__ import annotations

from more.lstm import Net, load, make_loader, make_schedule, score, train
from tutorial_utils.learner import PTModelLearner
from tutorial_utils.metric import Metric


class LSTMLearner(PTModelLearner):
    """The learning rate goes on falling from round to round: `self.state` keeps the schedule's state.

    Adam begins anew in each round: what it remembers belongs to weights that were averaged away.
    """

    metric = Metric("accuracy")

    def __init__(self, data: str, epochs: int = 1, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.data = data
        self.epochs = epochs

    def initialize(self) -> None:
        super().initialize()
        self.rows = load(self.site_folder(self.data))
        self.net = Net()

    def local_train(self) -> None:
        schedule = make_schedule(self.net)
        if "schedule" in self.state:
            schedule.load_state_dict(self.state["schedule"])
            schedule.optimizer.param_groups[0]["lr"] = schedule.get_last_lr()[
                0
            ]  # torch leaves that to us
        train(self.net, self.watched(make_loader(self.rows["train"])), schedule, self.epochs)
        self.state["schedule"] = schedule.state_dict()

    def local_validate(self, split: str) -> dict[str, float]:
        return score(self.net, self.rows[split])
