"""What noise is worth: its epsilon, by Opacus; and what a filter makes of an update, seen in this
process."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContextManager
from nvflare.app_common.app_constant import AppConstants

from tutorial_utils.errors import TutorialError

Params = Mapping[str, np.ndarray]


def epsilon(noise: float, rounds: int, delta: float = 1e-5) -> float:
    """The epsilon of (epsilon, delta) differential privacy that ClipAndNoise gives a site after so many
    rounds.

    It protects the whole part of one site in the job, against everyone, the server included: neighbours
    are a run with this site's update in a round and one with a zero in its place. All sites take part in
    every round, so nothing is gained by sampling. By the Renyi accountant of Opacus (Mironov 2017,
    arXiv:1702.07476), an upper bound. Metrics and steps that the site sends beside its weights are not
    covered.

    Args:
        noise: the noise multiplier; for what is known of the mean of K equal sites alone, noise *
            sqrt(K).
        delta: the probability with which the bound may fail: well below 1 / (number of those protected).

    Raises: TutorialError for numbers that make no sense, and where Opacus is missing.
    """
    if not noise >= 0 or rounds < 1 or not 0 < delta < 1:
        raise TutorialError(
            f"noise {noise!r}, rounds {rounds!r}, delta {delta!r}: give a noise from 0, a round or more, and "
            "a delta between 0 and 1."
        )
    try:
        from opacus.accountants import RDPAccountant
    except ImportError as error:
        raise TutorialError('The accountant needs Opacus: pip install "opacus>=1.5".') from error
    if noise == 0:
        return math.inf
    accountant = RDPAccountant()
    accountant.history = [(float(noise), 1.0, int(rounds))]  # multiplier, share of the sites in a round, rounds
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Optimal order is the (smallest|largest) alpha"
        )  # the bound holds all the same
        return float(accountant.get_epsilon(delta))


def pass_through(
    filters: Sequence[Filter],
    received: Params,
    sent: Params,
    *,
    steps: float = 1,
    site: str = "site-1",
    round_number: int = 0,
    differences: bool = False,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What leaves a site when its weights `sent` go through these filters, as FLARE 2.9.0 calls them.

    Args:
        received: the weights that came in.
        steps: as the learner counts them; some filters divide by them.
        differences: the site sends what training changed, as FedOpt's does, and not whole weights.

    Returns: the weights (of differences: those received and the difference), and what the filters noted
        beside them.
    """
    engine = SimpleNamespace(fire_event=lambda event_type, fl_ctx: None)
    fl_ctx = FLContextManager(engine, site, "filters", public_stickers={}, private_stickers={}).new_context()
    task = DXO(DataKind.WEIGHTS, data=_copy(received)).to_shareable()
    task.set_header(AppConstants.CURRENT_ROUND, round_number)
    fl_ctx.set_prop(FLContextKey.TASK_DATA, task, private=True, sticky=False)
    for one in filters:
        one.handle_event(EventType.BEFORE_TASK_EXECUTION, fl_ctx)
    fl_ctx.set_prop(FLContextKey.TASK_DATA, None, private=True, sticky=False)  # FLARE drops it before it filters
    data = {name: sent[name] - received[name] for name in sent} if differences else _copy(sent)
    kind = DataKind.WEIGHT_DIFF if differences else DataKind.WEIGHTS
    result = DXO(kind, data=data, meta={MetaKey.NUM_STEPS_CURRENT_ROUND: steps}).to_shareable()
    for one in filters:
        result = one.process(result, fl_ctx)
    left = from_shareable(result)
    if left.data_kind != kind:
        raise TutorialError(f"These filters make {left.data_kind} of {kind}: give some that keep the kind.")
    add = {name: received[name] + value for name, value in left.data.items()} if differences else left.data
    return add, left.meta


def difference(after: Params, before: Params) -> np.ndarray:
    """An update as one long vector, in float64, in the order of the names: those that both have."""
    names = sorted(set(after) & set(before))
    return np.concatenate([(np.asarray(after[name], float) - before[name]).ravel() for name in names])


def compare_updates(true: np.ndarray, left: np.ndarray) -> dict[str, float]:
    """How much of an update is left: its cosine to the true one, its length beside that, the share of
    weights moved."""
    lengths = np.linalg.norm(true), np.linalg.norm(left)
    cosine = float(true @ left / (lengths[0] * lengths[1])) if all(lengths) else 0.0
    return {
        "cosine": cosine,
        "length": float(lengths[1] / lengths[0]),
        "moved": float(np.mean(left != 0)),
    }


def _copy(params: Params) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in params.items()}
