"""A learner with which a job can be built, and which no site can make."""

import os

from tutorial_utils.learner import PTModelLearner
from tutorial_utils.metric import Metric


class UnbuildableLearner(PTModelLearner):
    metric = Metric("accuracy")

    def __init__(self) -> None:
        super().__init__()
        if "TUTORIAL_UTILS_RUN" in os.environ:  # in a process of a run alone
            raise RuntimeError("this site has no licence for its scanner")
