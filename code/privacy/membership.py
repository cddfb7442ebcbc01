"""Membership inference: was this image among those that a model was trained on?

Yeom et al., Privacy Risk in Machine Learning, 2018 (arXiv:1709.01604): an image with a small loss is
taken for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional
from torch.utils.data import Dataset

from dl.train import Net, load_data, predict


class Membership(NamedTuple):
    """The area under the ROC curve, 0.5 for guessing, with its 95 % interval, and how many images it
    rests on."""

    auc: float
    low: float
    high: float
    members: int
    others: int


def losses(state: Mapping[str, Any], data: Dataset) -> np.ndarray:
    """The cross-entropy (nats) of a model on each image."""
    net = Net()
    net.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})
    scores, labels = predict(net, data)
    return functional.cross_entropy(scores, labels, reduction="none").numpy()


def tell_members(members: np.ndarray, others: np.ndarray) -> Membership:
    """How well a threshold on the loss tells members from others: the chance that a member's loss is the
    smaller one.

    The interval is that of Hanley and McNeil, 1982.
    """
    m, n = len(members), len(others)
    auc = float(roc_auc_score(np.r_[np.ones(m), np.zeros(n)], -np.r_[members, others]))
    both = (m - 1) * (auc / (2 - auc) - auc**2) + (n - 1) * (2 * auc**2 / (1 + auc) - auc**2)
    reach = 1.96 * float(np.sqrt((auc * (1 - auc) + both) / (m * n)))
    return Membership(auc, auc - reach, auc + reach, m, n)


def tell_members_of(folder: Path, state: Mapping[str, Any]) -> Membership:
    """The same for a site: its training images are the members, its test images the others."""
    data = load_data(folder)
    return tell_members(losses(state, data.train), losses(state, data.test))
