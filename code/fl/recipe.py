"""The Client API script in a recipe, which is what FLARE recommends to new projects.

Import this module, do not run it: nvflare.recipe takes --export out of the command line when imported.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe.utils import add_cross_site_evaluation

from dl.train import Net
from fl.clients import CODE, script_args, working_in
from fl.job import check
from tutorial_utils import learner as shipped

# add_client_file ships a file by its path below a folder of sys.path: this one makes it
# tutorial_utils/learner.py, which the script imports, however the package was installed.
sys.path.append(str(Path(shipped.__file__).parents[1]))


def build_recipe(
    data: str | Path,
    sites: int = 2,
    rounds: int = 5,
    epochs: int = 1,
    lr: float = 0.01,
    batch_size: int = 32,
    momentum: float = 0.9,
    seed: int = 0,
    name: str = "recipe",
) -> FedAvgRecipe:
    """Federated Averaging of client_api.py and cross-site evaluation. Arguments as in fl.job.build_job.

    With two sites the bits are those of build_job. With more they depend on which site was faster: a
    recipe takes none of the aggregators that ScatterAndGather does, OrderedAggregator among them.

    Returns: for recipe.run(SimEnv(...)), or for recipe.export(FOLDER) and then simulate(FOLDER / name).
    """
    check(sites=sites, rounds=rounds, epochs=epochs, lr=lr, batch_size=batch_size)
    settings = {
        "epochs": epochs,
        "lr": lr,
        "batch_size": batch_size,
        "momentum": momentum,
        "seed": seed,
    }
    recipe = FedAvgRecipe(
        name=name,
        model=Net(seed),
        min_clients=sites,
        num_rounds=rounds,
        train_script="fl/client_api.py",
        train_args=script_args(str(data), **settings),
    )
    add_cross_site_evaluation(recipe)
    recipe.add_server_config({"server": {"task_request_interval": 0.05}})  # see fl.job.add_server
    with working_in(CODE):  # see fl.clients.add_script
        recipe.add_client_file(str(CODE / "fl/client_api.py"))
    recipe.add_client_file(shipped.__file__)
    return recipe
