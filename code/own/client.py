"""One site's part of a federation by FLARE's Client API: a loop that receives, trains and sends.

FLARE starts this file at every site, with its arguments; recipe.py says which.
"""

import argparse
import copy
import json
import os
from pathlib import Path

import nvflare.client as flare
import torch
from nvflare.apis.fl_constant import FLMetaKey

from own.script import load, make_loader, make_net, score, train
from tutorial_utils.learner import round_seed, seed_everything


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="One site's part; FLARE starts it.")
    parser.add_argument("--data", required=True, help="the folder of the site folders, or $VARIABLE")
    parser.add_argument("--epochs", type=int, default=2, help="local epochs in each round")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(1)  # several sites share this machine
    flare.init()
    site = flare.get_site_name()
    data = Path(os.path.expandvars(args.data))
    scaling = json.loads((data / "scaling.json").read_text())
    patients = load(data / site, **scaling)
    net, progress = make_net(args.seed), {}  # what stays from round to round is a variable out here
    best = {"auc": -1.0, "params": copy.deepcopy(net.state_dict())}

    while flare.is_running():
        model = flare.receive()
        if model.params:
            net.load_state_dict(model.params)

        if flare.is_train():
            received = score(net, patients["valid"])  # by this the server finds the best average
            seed_everything(round_seed(args.seed, site, model.current_round))
            train(net, make_loader(patients["train"]), patients["valid"], progress, args.epochs)
            auc = score(net, patients["valid"])["auc"]
            if auc > best["auc"]:
                best = {"auc": auc, "params": copy.deepcopy(net.state_dict())}
            weight = {FLMetaKey.NUM_STEPS_CURRENT_ROUND: len(patients["train"])}
            flare.send(flare.FLModel(params=net.state_dict(), metrics=received, meta=weight))
        elif flare.is_evaluate():  # an average, or another site's model
            flare.send(flare.FLModel(metrics=score(net, patients["test"])))
        elif flare.is_submit_model():
            flare.send(flare.FLModel(params=best["params"]))


if __name__ == "__main__":
    main()
