"""SCAFFOLD: each site corrects every step by how its own gradients differ from everyone's.

Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, 2020
(arXiv:1910.06378), with the second way of the paper to renew the controls. On the server it is FLARE's
ScatterAndGatherScaffold; it weighs the sites' controls by their steps, where the paper counts all alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AlgorithmConstants, AppConstants
from nvflare.app_opt.pt.scaffold import PTScaffoldHelper
from torch.optim import LBFGS, Optimizer

from tutorial_utils.algorithms.steps import Received, at_each_step
from tutorial_utils.learner import LearnerError, PTModelLearner, SiteAlgorithm
from tutorial_utils.values import to_numpy

WEIGHTS = AppConstants.MODEL_WEIGHTS
CONTROLS = AlgorithmConstants.SCAFFOLD_CTRL_GLOBAL
CHANGE = AlgorithmConstants.SCAFFOLD_CTRL_DIFF
STATE = "scaffold"  # where a learner's state holds its own controls


class ScaffoldSite(SiteAlgorithm):
    """Any learner whose optimizer is SGD, with the control variates of FLARE's PTScaffoldHelper.

    A message holds two parts, each as large as the model: weights and controls in, weights and the
    change of this site's controls out. The helper corrects the weights after each step of the script's
    optimizer (so its momentum leaves the correction alone). A site's own controls are part of the learner's state:
    a process that FLARE starts anew goes on with them. In a resumed run server and sites begin anew.
    """

    def __init__(self) -> None:
        super().__init__()
        self.helper: PTScaffoldHelper | None = None
        self.change: dict[str, np.ndarray] = {}

    def receive(self, learner: PTModelLearner, params: dict[str, Any]) -> dict[str, Any]:
        """In training, the two parts; in cross-site evaluation, weights alone."""
        if WEIGHTS not in params:
            return params
        if self.helper is None:
            self.helper = PTScaffoldHelper()
            self.helper.init(learner.net)
        kept = learner.local_names()
        shared = {name: torch.as_tensor(value) for name, value in params[CONTROLS].data.items() if name not in kept}
        self.helper.load_global_controls(shared)
        return params[WEIGHTS].data

    def train(self, learner: PTModelLearner) -> object:
        if self.helper is None:
            raise LearnerError("The server sent no controls: SCAFFOLD needs ScatterAndGatherScaffold.")
        if not any(value.any() for value in self.helper.c_global.state_dict().values()):
            learner.state.pop(STATE, None)  # the server begins anew (a run that is resumed), and with it the sites
            self.helper.init(learner.net)
        if STATE in learner.state:
            self.helper.c_local.load_state_dict(learner.state[STATE])
        controls = self.helper.get_params()  # everyone's, and this site's own
        received = Received(learner.net)
        rates: set[float] = set()
        optimizers: set[frozenset[int]] = set()

        def correct(optimizer: Optimizer) -> None:
            _check(optimizer, optimizers)
            rates.update(float(group["lr"]) for group in optimizer.param_groups)
            self.helper.model_update(learner.net, optimizer.param_groups[0]["lr"], *controls)

        with at_each_step(learner.net, after=correct):
            trained = super().train(learner)
        if not learner.is_aborted():
            self._renew(learner, trained, rates, controls, received)
        return trained

    def _renew(
        self, learner: PTModelLearner, trained: object, rates: set[float], controls: tuple, received: Received
    ) -> None:
        """This site's new controls, and their change. A site that made no step keeps its old ones."""
        own, kept = self.helper.c_local, learner.local_names()
        before = {name: value.clone() for name, value in own.state_dict().items()}  # 2.8 writes into these
        if len(rates) == 1:
            self.helper.terms_update(learner.net, *rates, *controls, received)
        elif rates or learner.count(trained)[0]:
            found = f"learning rates from {min(rates)} to {max(rates)}" if rates else "no step of an optimizer"
            raise LearnerError(f"SCAFFOLD needs one learning rate in a round, and local_train made {found}.")
        # what stays at home has nobody to differ from
        made = {name: torch.zeros_like(value) if name in kept else value for name, value in own.state_dict().items()}
        own.load_state_dict(made)
        learner.state[STATE] = made
        self.change = to_numpy({name: value - before[name] for name, value in made.items() if name not in kept})

    def answer(self, learner: PTModelLearner, received: FLModel, result: FLModel) -> FLModel:
        result.params = {
            WEIGHTS: DXO(DataKind.WEIGHTS, data=result.params, meta=dict(result.meta)),
            CHANGE: DXO(DataKind.WEIGHT_DIFF, data=self.change, meta=dict(result.meta)),
        }
        return result


def _check(optimizer: Optimizer, seen: set[frozenset[int]]) -> None:
    """LearnerError where a correction of the whole net after each step is none; `seen` is what was stepped before."""
    if isinstance(optimizer, LBFGS):
        raise LearnerError("SCAFFOLD corrects the steps of SGD, and LBFGS makes several in one: use SGD.")
    seen.add(frozenset(id(param) for group in optimizer.param_groups for param in group["params"]))
    if len(seen) > 1:
        raise LearnerError("SCAFFOLD needs one optimizer for all of the net, and local_train has several.")
