"""How `tutorial_utils.simulate` runs a job: it never hangs and never lies. To learn FLARE, skip it."""
