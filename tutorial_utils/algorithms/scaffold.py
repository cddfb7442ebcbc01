"""SCAFFOLD: each site corrects every step by how its own gradients differ from everyone's.

Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, 2020
(arXiv:1910.06378), with the second way of the paper to renew the controls. On the server it is FLARE's
ScatterAndGatherScaffold; it weighs the sites' controls by their steps, where the paper counts all alike.
"""

from __future__ import annotations

import copy
from typing import Any

from nvflare.apis.dxo import DXO, DataKind
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AlgorithmConstants, AppConstants
from nvflare.app_opt.pt.scaffold import PTScaffoldHelper
from torch.optim import Optimizer

from tutorial_utils.algorithms.steps import at_each_step
from tutorial_utils.learner import LearnerError, PTModelLearner, SiteAlgorithm

WEIGHTS = AppConstants.MODEL_WEIGHTS
CONTROLS = AlgorithmConstants.SCAFFOLD_CTRL_GLOBAL
CHANGE = AlgorithmConstants.SCAFFOLD_CTRL_DIFF
STATE = "scaffold"  # where a learner's state holds its own controls


class ScaffoldSite(SiteAlgorithm):
    """Any learner whose optimizer is SGD, with the control variates of FLARE's PTScaffoldHelper.

    A message holds two parts, each as large as the model: weights and controls in, weights and the
    change of this site's controls out. The helper corrects the weights after each step of the script's
    optimizer (so its momentum leaves the correction alone). A site's own controls are part of the learner's state:
    a process that FLARE starts anew, and a resumed run, go on with them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.helper: PTScaffoldHelper | None = None

    def receive(self, learner: PTModelLearner, params: dict[str, Any]) -> dict[str, Any]:
        """In training, the two parts; in cross-site evaluation, weights alone."""
        if WEIGHTS not in params:
            return params
        if self.helper is None:
            self.helper = PTScaffoldHelper()
            self.helper.init(learner.net)
        self.helper.load_global_controls(params[CONTROLS].data)
        return params[WEIGHTS].data

    def train(self, learner: PTModelLearner) -> object:
        if self.helper is None:
            raise LearnerError("The server sent no controls: SCAFFOLD needs ScatterAndGatherScaffold.")
        if STATE in learner.state:
            self.helper.c_local.load_state_dict(learner.state[STATE])
        controls = self.helper.get_params()  # everyone's, and this site's own
        received = copy.deepcopy(learner.net)
        rates: set[float] = set()

        def correct(optimizer: Optimizer) -> None:
            rates.add(optimizer.param_groups[0]["lr"])
            self.helper.model_update(learner.net, optimizer.param_groups[0]["lr"], *controls)

        with at_each_step(learner.net, after=correct):
            trained = super().train(learner)
        if learner.is_aborted():
            return trained
        if len(rates) != 1:
            found = "no step of an optimizer" if not rates else f"learning rates from {min(rates)} to {max(rates)}"
            raise LearnerError(f"SCAFFOLD needs one learning rate in a round, and local_train made {found}.")
        self.helper.terms_update(learner.net, *rates, *controls, received)
        learner.state[STATE] = self.helper.c_local.state_dict()
        return trained

    def answer(self, learner: PTModelLearner, received: FLModel, result: FLModel) -> FLModel:
        kept = set(learner.local_names())
        change = {name: value for name, value in self.helper.get_delta_controls().items() if name not in kept}
        result.params = {
            WEIGHTS: DXO(DataKind.WEIGHTS, data=result.params, meta=dict(result.meta)),
            CHANGE: DXO(DataKind.WEIGHT_DIFF, data=change, meta=dict(result.meta)),
        }
        return result
