"""The faults of FaultyLearner at a site that keeps a part of its net at home."""

from faults.faulty_learner import FaultyLearner
from fl.parts_at_home import PartsAtHomeLearner


class FaultyPartsLearner(FaultyLearner, PartsAtHomeLearner):
    pass
