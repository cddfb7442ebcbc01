"""The suite's defaults: fast, offline, on the CPU, to the bit the same. TUTORIAL_FAST=0 runs the full size."""

import os
import sys
from pathlib import Path

os.environ.setdefault("TUTORIAL_FAST", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
for folder in ("notebooks", "code", "tests"):  # checks, and dl and fl, as the notebooks and scripts find them
    sys.path.insert(0, str(Path(__file__).parent / folder))
