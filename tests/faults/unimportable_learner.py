"""A learner that imports what this environment has, let us say, and a site's lacks."""

import os

from tutorial_utils.learner import PTModelLearner
from tutorial_utils.metric import Metric

if "TUTORIAL_UTILS_RUN" in os.environ:  # in a process of a run alone
    import a_package_that_this_site_lacks  # noqa: F401


class UnimportableLearner(PTModelLearner):
    metric = Metric("accuracy")
