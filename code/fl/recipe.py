"""The Client API script in a recipe, which is what FLARE recommends to new projects.

Import this module, do not run it: nvflare.recipe takes --export out of the command line when imported.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nvflare.app_common.aggregators.model_aggregator import ModelAggregator
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe.utils import add_cross_site_evaluation

import tutorial_utils
from dl.train import Net
from fl.job import CODE, script_args, working_in
from tutorial_utils._checks import check_count
from tutorial_utils._ship import find_files
from tutorial_utils.learner import PTModelLearner
from tutorial_utils.settings import Training

# add_client_file ships a file by its path below a folder of sys.path: this one makes it
# tutorial_utils/learner.py, which the script imports, however the package was installed.
sys.path.append(str(Path(tutorial_utils.__file__).parents[1]))


def build_recipe(
    data: str | Path,
    sites: int = 2,
    rounds: int = 5,
    training: Training | None = None,
    name: str = "recipe",
    aggregator: ModelAggregator | None = None,
) -> FedAvgRecipe:
    """Federated Averaging of client_api.py and cross-site evaluation. Arguments as in fl.job.build_job.

    With two sites the bits are those of build_job. With more they depend on which site was faster,
    unless you give an aggregator of your own: a recipe takes a ModelAggregator, which is of another kind
    than those of ScatterAndGather, OrderedAggregator among them.

    Returns: for recipe.run(SimEnv(...)), or for recipe.export(FOLDER) and then simulate(FOLDER / name).
    """
    check_count("sites", sites)
    check_count("rounds", rounds)
    training = training or Training()
    recipe = FedAvgRecipe(
        name=name,
        model=Net(training.seed),
        min_clients=sites,
        num_rounds=rounds,
        train_script="fl/client_api.py",
        train_args=script_args(str(data), training),
        aggregator=aggregator,
    )
    add_cross_site_evaluation(recipe)
    # By default a site sleeps 2 s after every task: half of a short run.
    recipe.add_server_config({"server": {"task_request_interval": 0.05}})
    with working_in(CODE):  # FLARE wants to see the script, by a path that is right at the site too
        recipe.add_client_file(str(CODE / "fl/client_api.py"))
    for path in find_files(PTModelLearner):
        recipe.add_client_file(str(path))
    return recipe
