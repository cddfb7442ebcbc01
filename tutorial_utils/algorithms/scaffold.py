"""SCAFFOLD: each site corrects every step by how its own gradients differ from everyone's.

Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, 2020
(arXiv:1910.06378), with the second way of the paper to renew the controls. On the server it is FLARE's
ScatterAndGatherScaffold; it weighs the sites' controls by their steps, where the paper counts all alike.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AlgorithmConstants, AppConstants
from nvflare.app_opt.pt.scaffold import PTScaffoldHelper

from fl.model_learner import CIFAR10ModelLearner
from tutorial_utils.algorithms.steps import at_each_step
from tutorial_utils.learner import LearnerError, save_safely

WEIGHTS = AppConstants.MODEL_WEIGHTS
CONTROLS = AlgorithmConstants.SCAFFOLD_CTRL_GLOBAL
CHANGE = AlgorithmConstants.SCAFFOLD_CTRL_DIFF


class ScaffoldLearner(CIFAR10ModelLearner):
    """CIFAR10ModelLearner with the control variates of FLARE's PTScaffoldHelper.

    A message holds two parts, each as large as the model: weights and controls in, weights and the
    change of this site's controls out. The helper corrects the weights after each step of the script's
    optimizer (so its momentum leaves the correction alone). A site's controls lie on its disk: a
    process that FLARE starts anew goes on with them.
    """

    def initialize(self) -> None:
        super().initialize()
        self.helper = PTScaffoldHelper()
        self.helper.init(self.net)
        if self.controls_path().is_file():
            self.helper.c_local.load_state_dict(torch.load(self.controls_path(), weights_only=True))

    def controls_path(self) -> Path:
        return Path(self.app_root) / "scaffold_controls.pt"

    def load_params(self, params: Mapping[str, Any]) -> None:
        """In training, the two parts; in cross-site evaluation, weights alone."""
        if WEIGHTS in params:
            self.helper.load_global_controls(params[CONTROLS].data)
            params = params[WEIGHTS].data
        super().load_params(params)

    def train(self, model: FLModel) -> FLModel | str:
        if CONTROLS not in model.params:
            raise LearnerError("The server sent no controls: SCAFFOLD needs ScatterAndGatherScaffold.")
        result = super().train(model)
        if isinstance(result, FLModel):  # else it is a return code
            change = self.helper.get_delta_controls()
            result.params = {
                WEIGHTS: DXO(DataKind.WEIGHTS, data=result.params, meta=dict(result.meta)),
                CHANGE: DXO(DataKind.WEIGHT_DIFF, data=change, meta=dict(result.meta)),
            }
        return result

    def local_train(self) -> int:
        controls = self.helper.get_params()  # everyone's, and this site's own
        received = copy.deepcopy(self.net)

        def correct() -> None:
            self.helper.model_update(self.net, self.lr, *controls)

        with at_each_step(self.net, after=correct):
            steps = super().local_train()
        if not self.is_aborted():
            self.helper.terms_update(self.net, self.lr, *controls, received)
            save_safely(self.helper.c_local.state_dict(), self.controls_path())
        return steps
