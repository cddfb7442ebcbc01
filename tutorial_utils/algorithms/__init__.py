"""Ways to train together, over any PTModelLearner; registry.py lists them. This file imports nothing."""
