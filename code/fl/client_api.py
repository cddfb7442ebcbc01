"""dl/train.py with FLARE's Client API: a script with a loop that receives a model and sends an answer.

The same work as CIFAR10ModelLearner, to the bit. FLARE runs this file at every site, with its arguments,
and `nvflare.client` is the one door between them. fl/job.py and fl/recipe.py build jobs of it.
"""

import argparse
import os
from pathlib import Path

import nvflare.client as flare
import torch
from nvflare.apis.fl_constant import FLMetaKey

from dl.train import Data, Net, evaluate, load_data, make_loader, pick_device, train
from tutorial_utils.keep import BestModel
from tutorial_utils.learner import round_seed, seed_everything
from tutorial_utils.metric import Metric


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="One site's part of a federation; FLARE starts it.")
    parser.add_argument("--data", required=True, help="the folder of the site folders, or $VARIABLE")
    parser.add_argument("--epochs", type=int, default=1, help="local epochs in each round")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def app_folder() -> Path:
    """Where the site keeps the job: the Client API does not say, but this file lies in custom/ there."""
    return next(folder.parent for folder in Path(__file__).parents if folder.name == "custom")


def stopped() -> bool:
    """Asked between batches. When the whole job is aborted, is_running raises, and the script ends."""
    return not flare.is_running()


def train_round(
    model: flare.FLModel, net: Net, images: Data, best: BestModel, args: argparse.Namespace
) -> flare.FLModel | None:
    """Score the global model on "valid", train it on the site's images: the answer, None if stopped."""
    received = evaluate(net, images.valid)
    seed = round_seed(args.seed, flare.get_site_name(), model.current_round)
    seed_everything(seed)
    loader = make_loader(images.train, args.batch_size, seed)
    steps = train(net, loader, args.epochs, args.lr, args.momentum, stop=stopped)
    if stopped():
        return None
    best.offer(evaluate(net, images.valid)["accuracy"], model.current_round, net.state_dict())
    # FLARE turns what is printed into lines of the site's log.
    print(f"round {model.current_round} of {model.total_rounds}: {steps} steps")
    # Metrics beside weights are those of the model that came in: by them the server selects the best.
    meta = {FLMetaKey.NUM_STEPS_CURRENT_ROUND: steps}
    return flare.FLModel(params=net.state_dict(), metrics=received, meta=meta)


def main() -> None:
    args = parse()
    torch.set_num_threads(1)  # the same bits on every machine, and several sites can share one
    flare.init()
    images = load_data(Path(os.path.expandvars(args.data)) / flare.get_site_name())
    net, best = Net(args.seed).to(pick_device()), BestModel(app_folder(), Metric("accuracy"))
    while flare.is_running():
        model = flare.receive()
        if model.params:
            net.load_state_dict(model.params)
        if flare.is_train():
            answer = train_round(model, net, images, best, args)
        elif flare.is_evaluate():
            answer = flare.FLModel(metrics=evaluate(net, images.test))
        elif flare.is_submit_model():
            answer = flare.FLModel(params=best.load()["params"])
        else:  # FLARE would wait for an answer for ever
            raise ValueError(f"there is no task {flare.get_task_name()!r} here")
        if answer is not None:
            flare.send(answer)


if __name__ == "__main__":
    main()
