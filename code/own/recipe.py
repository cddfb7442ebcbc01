"""The federation of client.py as a recipe: Federated Averaging, then every site scores every model.

cd code
python -m own.recipe ../data/hospitals      # FLARE finds "own/client.py" from this folder
"""

import json
import sys
from pathlib import Path

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv
from nvflare.recipe.utils import add_cross_site_evaluation

SITES = ["university", "st-anna"]


def build_recipe(data: str, rounds: int = 5) -> FedAvgRecipe:
    recipe = FedAvgRecipe(
        name="hospitals",
        model={"class_path": "own.script.make_net", "args": {"seed": 0}},
        min_clients=len(SITES),
        num_rounds=rounds,
        train_script="own/client.py",
        train_args=f"--data {data}",
        key_metric="auc",
    )
    add_cross_site_evaluation(recipe)
    recipe.add_server_config({"server": {"task_request_interval": 0.05}})  # by default two seconds
    return recipe


if __name__ == "__main__":
    recipe = build_recipe(str(Path(sys.argv[1]).resolve()))
    run = recipe.execute(SimEnv(clients=SITES, workspace_root="../runs/recipe"))
    matrix = next(Path(run.get_result()).rglob("cross_val_results.json"))
    print(json.dumps(json.loads(matrix.read_text()), indent=2))
