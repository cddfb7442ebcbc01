"""How `tutorial_utils.deploy` runs a job on real processes with real certificates. To learn FLARE, skip it."""
