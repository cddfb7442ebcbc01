"""A module of a learner's own, called as one of the runner's is."""

WHOSE = "the learner's"
