from __future__ import annotations

import torch

from kinds import lbfgs
from tutorial_utils.learner import PTModelLearner
from tutorial_utils.metric import Metric


class LBFGSLearner(PTModelLearner):
    """Each round goes on with the curvature that LBFGS has learnt, and with a smaller step."""

    metric = Metric("loss", higher_is_better=False)
    valid_split, test_split = "development", "holdout"

    def __init__(self, data: str, decay: float = 0.7) -> None:
        super().__init__()
        self.data = data
        self.decay = decay

    def initialize(self) -> None:
        super().initialize()
        self.rows = lbfgs.load(self.site_folder(self.data))
        self.net = lbfgs.make_net()

    def local_train(self) -> int:
        lr = self.state.get("lr", 0.1)
        optimizer = torch.optim.LBFGS(self.net.parameters(), lr=lr, max_iter=5)
        if "optimizer" in self.state:
            optimizer.load_state_dict(self.state["optimizer"])
            optimizer.param_groups[0]["lr"] = lr
        steps = lbfgs.train(self.net, optimizer, *self.rows["train"])
        self.state |= {"lr": lr * self.decay, "optimizer": optimizer.state_dict()}
        return steps

    def local_validate(self, split: str) -> dict[str, float]:
        return lbfgs.score(self.net, *self.rows[split])
