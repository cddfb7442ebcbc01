"""Helpers of the ModelLearner series. This file imports nothing: a site's process must not pay for plots or tables."""
