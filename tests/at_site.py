"""A learner at a site, and what it is sent: what FLARE does, in this process."""

from __future__ import annotations

from pathlib import Path

from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from torch import nn

from tiny import make_net
from tutorial_utils.drive import place
from tutorial_utils.learner import PTModelLearner
from tutorial_utils.values import to_numpy


def start(learner: PTModelLearner, folder: Path, site: str = "site-1", number: int | None = 0) -> PTModelLearner:
    """The learner at a site, initialized, in this round: as in a process that FLARE has just started."""
    place(learner, site, folder, Signal())
    learner.initialize()
    learner.current_round = number
    return learner


def sent(net: nn.Module | None = None) -> FLModel:
    """A model as a server sends it."""
    return FLModel(params_type=ParamsType.FULL, params=to_numpy((net or make_net()).state_dict()), meta={})
