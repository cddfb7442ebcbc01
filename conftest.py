"""The suite's defaults: fast, offline, on the CPU, to the bit the same. TUTORIAL_FAST=0 runs the full size."""

import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

os.environ.setdefault("TUTORIAL_FAST", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
for folder in ("notebooks", "code", "tests"):  # checks, and dl and fl, as the notebooks and scripts find them
    sys.path.insert(0, str(Path(__file__).parent / folder))

OF_2_9 = "it shows what FLARE 2.9 says of its clients, and tells a reader with 2.8 so"
FEDOPT = "FLARE 2.8's FedOpt takes nets alone whose entries are all float32 and shared"
SCAFFOLD = "FLARE 2.8's SCAFFOLD, since rewritten, corrects buffers too, and takes no local or integer entry"
COPIES = "FLARE 2.8's SCAFFOLD, since rewritten, copies the net"
SELECTOR = "FLARE 2.8's selector takes a score that is no number for one, and finds no best model"
RECIPE = "a recipe of FLARE 2.8 is exported where its script is, alone"
KEEPS, ALONE = "keeps_each_entry_what_it_is", "alone_every_algorithm_is_federated_averaging"
NOT_WITH_2_8 = {  # by the end of a test's id, or a part of it
    "07_choose_how_to_write_the_client.ipynb::": OF_2_9,
    "passes[07_choose_how_to_write_the_client": OF_2_9,
    "is_right[07_choose_how_to_write_the_client": OF_2_9,
    "solution_is[07_choose_how_to_write_the_client": OF_2_9,
    "hint_that_helps[07_choose_how_to_write_the_client": OF_2_9,
    "never_raises[07_choose_how_to_write_the_client": OF_2_9,
    "it_was_given[07_choose_how_to_write_the_client": OF_2_9,
    **{f"{KEEPS}[fedopt-{net}Learner]": FEDOPT for net in ("Buffer", "Brain", "HomeNorm", "HomeLine")},
    f"{ALONE}[HomeLineLearner-fedopt]": FEDOPT,
    **{f"{KEEPS}[scaffold-{net}Learner]": SCAFFOLD for net in ("Buffer", "Double", "Brain", "HomeNorm", "HomeLine")},
    **{f"{ALONE}[{net}Learner-scaffold]": SCAFFOLD for net in ("Double", "HomeLine")},
    "makes_no_step_counts_for_nothing[scaffold]": SCAFFOLD,
    "cannot_be_copied_is_trained_too[scaffold]": COPIES,
    "best_model_is_chosen_by_those_that_measure": SELECTOR,
    "test_what_a_recipe_ships": RECIPE,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What cannot be with FLARE 2.8 is skipped there, each with its reason."""
    if version("nvflare").startswith("2.8."):
        for item in items:
            for part in filter(item.nodeid.__contains__, NOT_WITH_2_8):
                item.add_marker(pytest.mark.skip(reason=NOT_WITH_2_8[part]))
