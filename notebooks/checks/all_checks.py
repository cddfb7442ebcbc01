"""Answers to the exercises, checked: each function looks at an attempt and says right, or gives a hint.

An attempt that is still None is "not attempted yet", and passes: a notebook with open exercises runs to its end.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from checks.verdict import Verdict, failed, not_yet, open_task

if TYPE_CHECKING:
    from nvflare.app_common.abstract.fl_model import FLModel

    from tutorial_utils.learner import Drive


def harder_site(answer: str | None, cross_site: pd.DataFrame) -> Verdict:
    """00: on whose test images is the global model worse?"""
    if answer is None:
        return open_task('put the name of a site, such as "site-1", in answer.')
    if answer not in list(cross_site.index):
        return not_yet(f"{answer!r} is no site: choose one of {', '.join(cross_site.index)}.")
    column = cross_site["global"]
    if answer != column.idxmin():
        return not_yet("Look down the column named global: each row is one site's test images. Which is lower?")
    return Verdict(True, f"The global model reaches {column.min():.1%} there and {column.max():.1%} elsewhere.")


_LABELS, _PREDICTED = np.array([0, 0, 0, 0, 1, 1, 3, 3, 3, 3, 3]), np.array([0, 0, 0, 2, 1, 0, 3, 3, 3, 3, 0])
_PETS = ("cat", "dog", "frog", "ship")
_OWN = "Take the images whose label is the class: which part of them is predicted to be it?"
_TYPICAL = {  # accuracy by class, -1 for nan: what went wrong
    **dict.fromkeys([(0.6, 1, 0, 1), (0.6, 1, -1, 1)], f"You divide by how often a class is predicted. {_OWN}"),
    **dict.fromkeys([(0.73, 0.73, 0.73, 0.73), (0.73, 0.73, -1, 0.73)], f"You take all images together. {_OWN}"),
    **dict.fromkeys([(0.27, 0.09, 0, 0.36), (0.27, 0.09, -1, 0.36)], f"You divide by the number of all images. {_OWN}"),
    **dict.fromkeys(
        [(0.75, 0.5, 0, 0.8), (0.75, 0.5, 1, 0.8)],
        "All right but one: a class without an image has no accuracy, so nan.",
    ),
}


def class_accuracy(answer: Callable[..., Mapping[str, float] | Sequence[float]] | None) -> Verdict:
    """01: of the images of each class, the part that was recognised; nan for a class without an image."""
    if answer is None:
        return open_task("put the name of your function, without brackets, in answer.")
    try:
        made = answer(_LABELS, _PREDICTED, _PETS)
        got = np.array([made[name] for name in _PETS] if isinstance(made, Mapping) else made, dtype=float)
    except Exception as error:
        return failed(error, "It must return a dict by name, or a list, also where a class has no image.")
    if got.shape != (4,):
        return not_yet(f"For four classes you return an array of shape {got.shape}: one number for each class is due.")
    if np.allclose(got, (0.75, 0.5, np.nan, 0.8), equal_nan=True):
        return Verdict(True, "Each class is judged on its own images, and a class without one is not judged.")
    return not_yet(_TYPICAL.get(tuple(np.nan_to_num(got, nan=-1).round(2)), _OWN))


_TABLES = [
    pd.DataFrame(rows, index=["site-1", "site-2"])
    for rows in ([[30, 10], [60, 20]], [[5, 0], [0, 9]], [[4, 4, 2, 0], [5, 5, 20, 20]])
]


def label_difference(answer: Callable[[pd.DataFrame], float] | None, counts: pd.DataFrame) -> Verdict:
    """02: half the sum, over the classes, of how far apart the shares of a class are at two sites."""
    if answer is None:
        return open_task("put the name of your function, without brackets, in answer.")
    try:
        alike, apart, between, yours = (float(answer(table)) for table in (*_TABLES, counts))
    except Exception as error:
        return failed(error, "It gets a table like count_labels(sites), and returns one number.")
    if np.allclose((alike, apart, between), (0, 1, 0.6)):
        return Verdict(True, f"0 for sites of the same mix, 1 for sites that share no class, {yours:.2f} for yours.")
    if not np.isclose(alike, 0):
        return not_yet("The same mix, at one site twice as many images, must give 0: divide each row by its own sum.")
    if np.allclose((apart, between), 0):
        return not_yet("Plus and minus cancel out: take the absolute value of each difference before you add.")
    if np.allclose((apart, between), (2, 1.2)):
        return not_yet("Nearly: two sites that share no class come out as 2. Take half of the sum.")
    return not_yet("For each class, how far apart are the two shares? Add these up over the classes and take half.")


def model_learner(answer: type | None, shipped: type, params: Mapping[str, Any], **arguments: str | int) -> Verdict:
    """04: driven from the same weights, does the reader's learner do what the shipped one does?"""
    from nvflare.app_common.abstract.model_learner import ModelLearner  # seconds: only where it is needed

    from tutorial_utils.learner import LearnerError, test_drive

    if answer is None:
        return open_task("write your class, a subclass of ModelLearner, and put it in answer.")
    if not (isinstance(answer, type) and issubclass(answer, ModelLearner)):
        return not_yet("answer must be the class itself, a subclass of ModelLearner: answer = MyLearner.")
    try:
        mine, theirs = (test_drive(_spoilt(made)(**arguments), params, rounds=2) for made in (answer, shipped))
        fault = _fault(mine, theirs) or _fault_of_abort(test_drive(answer(**arguments), params, abort_after=0))
    except LearnerError as error:
        fault = re.split("[:;]", str(error))[0].rstrip(".") + "."  # without the weights that it may quote
    except Exception as error:
        fault = _where(error, answer)
    return not_yet(fault) if fault else Verdict(True, "The same weights, metrics and steps as the shipped learner.")


def _spoilt(learner: type) -> type:
    """The same learner, whose second round begins with a dead net: its best model is that of the first."""

    class Spoilt(learner):
        def train(self, model: FLModel) -> FLModel | str:
            if self.current_round:
                model.params = {name: value * 0 for name, value in model.params.items()}
            return super().train(model)

    return Spoilt


def _fault_of_abort(stopped: Drive) -> str | None:
    advice = "train() goes on after an abort: pass stop=self.is_aborted, then return ReturnCode.TASK_ABORTED."
    return None if stopped.return_code == "TASK_ABORTED" else advice


def _where(error: Exception, answer: type) -> str:
    methods = [frame.name for frame in traceback.extract_tb(error.__traceback__) if frame.name in vars(answer)]
    return f"{[answer.__name__, *methods][-1]}() ends in {type(error).__name__}: {str(error).rstrip('.')}."


def _fault(mine: Drive, theirs: Drive) -> str | None:
    """The first thing in which the reader's drive differs from the shipped learner's."""
    if mine.return_code != theirs.return_code:
        return f"train() returned the code {mine.return_code!r}, and nobody had asked it to stop: return an FLModel."
    if not np.isclose(mine.received[0].get("accuracy", -1), theirs.received[0]["accuracy"]):
        return 'Before training, validate() must load model.params and report "accuracy" on the validation images.'
    if not all(isinstance(value, np.ndarray) for value in mine.params.values()):
        return "The params of train() must be numpy arrays, as FLARE sends them: to_numpy(net.state_dict())."
    if not any(np.any(value) for value in mine.params.values()):  # the zeros of _spoilt came back
        return "train() gives back the weights that it received: train self.net, and send its weights after that."
    if not _alike(mine.params, theirs.params):
        since = " from round 1 on" if _alike({**theirs.received[1], **mine.received[1]}, theirs.received[1]) else ""
        return f"The weights differ{since}: load model.params first, and order the batches by round_seed."
    if mine.steps != theirs.steps:
        return f"meta must hold the steps done, {theirs.steps[0]} a round, under FLMetaKey.NUM_STEPS_CURRENT_ROUND."
    if not np.isclose(mine.test.get("accuracy", -1), theirs.test["accuracy"]):
        return "In cross-site evaluation VALIDATE_TYPE is not set: validate() must score the test images then."
    if not _alike(getattr(mine.best, "params", None), theirs.best.params):
        return "get_model() must return an FLModel with the params that did best on the validation images."
    return None


def _alike(params: Mapping[str, Any] | None, others: Mapping[str, Any]) -> bool:
    same_names = isinstance(params, Mapping) and params.keys() == others.keys()
    return same_names and all(np.allclose(params[name], others[name], atol=1e-6) for name in others)


def weighted_average(answer: Callable[..., Mapping[str, np.ndarray]] | None) -> Verdict:
    """03: the mean of the sites' weights, each site counted as often as it made steps."""
    if answer is None:
        return open_task("write average(updates) and put its name, without brackets, in answer.")
    weights, steps = np.random.default_rng(0).normal(size=(3, 2, 4)), (10, 30, 60)  # three sites, two names
    updates = [({"conv": conv, "bias": bias}, n) for (conv, bias), n in zip(weights.copy(), steps, strict=True)]
    try:
        made = answer(updates)
        if not isinstance(made, Mapping) or set(made) != {"conv", "bias"}:
            return not_yet(f"It returns a {type(made).__name__}: return a dict, one array for each name in params.")
        got = np.array([made["conv"], made["bias"]], dtype=float)
    except Exception as error:
        return failed(error, "It gets a list of (params, steps), here of three sites.")
    for hint, counts, total in _AVERAGE_HINTS:
        if got.shape == (2, 4) and np.allclose(got, np.tensordot(counts, weights, 1) / total):
            return not_yet(hint) if hint else Verdict(True, "Sites of 10, 30 and 60 steps count as 1 to 3 to 6.")
    return not_yet("For each name: multiply each site's array by its steps, add, divide by the sum of the steps.")


_AVERAGE_HINTS = [  # the hint, how often each site counts, what the sum is divided by
    (None, (10, 30, 60), 100),
    ("You count every site alike: one that made 60 steps must count six times as often as one of 10.", (1, 1, 1), 3),
    ("The counts add up to 100 and not to 1: divide by the sum of the steps.", (10, 30, 60), 1),
    ("You divide by the number of sites: divide by the sum of the steps.", (10, 30, 60), 3),
    ("You add up the sites and do not divide: a mean has counts that add up to 1.", (1, 1, 1), 1),
]


def diagonal_gap(answer: Callable[[pd.DataFrame], float] | None) -> Verdict:
    """06: accuracy of the sites' own models at home, minus the same models away, both as means."""
    if answer is None:
        return open_task("write diagonal_gap(cross_site) and put its name, without brackets, in answer.")
    try:
        plain, mixed, whole = (float(answer(frame)) for frame in _cross_sites())
    except Exception as error:
        return failed(error, "It gets a matrix, here of three sites, and returns one number.")
    if np.allclose((plain, mixed, whole), 0.5):
        return Verdict(True, "It finds each site's own model by name, with global columns or without.")
    if np.isclose(plain, -0.5):
        return not_yet("The sign: at home minus away, so that a model that is better at home gives a positive gap.")
    if not np.isclose(plain, 0.5):
        return not_yet(
            _GAP_HINTS.get(round(plain, 2), "Mean of the three cells at home, minus mean of the six others.")
        )
    if not np.isclose(mixed, 0.5):
        return not_yet("The columns may stand in another order than the rows (site-10!): find each model by name.")
    return not_yet("The columns global and best global are no site's model: keep to cross_site[cross_site.index].")


def _cross_sites() -> list[pd.DataFrame]:
    """One matrix three times: in order, the columns in another order, and with the global models' columns."""
    sites = ["site-1", "site-2", "site-10"]
    own = pd.DataFrame([[0.8, 0.5, 0.1], [0.4, 0.9, 0.3], [0.2, 0.3, 0.7]], index=sites, columns=sites)
    by_text = own[sorted(sites)]
    both = pd.DataFrame({"global": 0.6, "best global": 0.7}, index=sites)
    return [own, by_text, both.join(by_text)]


_GAP_HINTS = {
    0.8: "You have the mean at home: now subtract the mean away, of the same models on the other sites' images.",
    0.6: "You subtract sums: take the mean of the cells at home and the mean of the cells away.",
    0.33: "You subtract the mean of all nine cells: leave those at home out of the cells away.",
}


def smallest_loss(answer: object) -> Verdict:
    """05: a model selector that keeps the global model with the smallest loss?"""
    if answer is None:
        return open_task("put a model selector, made with its arguments, in answer.")
    metric = getattr(answer, "key_metric", None)
    if not isinstance(metric, str) or not hasattr(answer, "negate_key_metric"):
        return not_yet("That is no model selector: make one, IntimeModelSelector(...) with its arguments.")
    if metric in ("accuracy", "val_accuracy"):
        default = ", FLARE's default, which our learner does not report," if metric == "val_accuracy" else ""
        return not_yet(f"It looks at {metric!r}{default} and not at the loss: which argument names the metric?")
    if metric != "loss":
        return not_yet(f"The learner reports no {metric!r}: no best model would be kept, and no error would say so.")
    if answer.negate_key_metric is not True:
        return not_yet("It keeps the highest loss, the WORST model. Which argument turns the metric around?")
    return Verdict(True, "The smallest loss wins: negated, it is the highest.")


def requests(answer: Mapping[str, Sequence[str]] | None) -> Verdict:
    """07: the calls of a learner that answer each question of the Client API, in their order."""
    if answer is None:
        return open_task("fill in the three lists, and put the dict in answer.")
    if not (isinstance(answer, Mapping) and all(isinstance(answer.get(name), list | tuple) for name in _CALLS)):
        return not_yet(f"answer must be a dict that has a list of calls for each of {', '.join(_CALLS)}.")
    for name, (wanted, hint) in _CALLS.items():
        if (calls := ", ".join(map(str, answer[name]))) != wanted:
            return not_yet(f"{name}: {_CALL_HINTS.get(calls, hint)}")
    return Verdict(True, "The model that came in is scored before it is trained, and test images only report.")


_CALLS = {  # the calls, and the hint to most other lists
    "is_train": ("load_params, local_validate valid, train", "the server wants metrics too: of its model, on valid."),
    "is_evaluate": ("load_params, local_validate test", "it only reports: the received model, on the test images."),
    "is_submit_model": ("get_model", "it asks for the best model that this site has kept: one call finds it."),
}
_CALL_HINTS = {
    "local_validate valid, train": "that scores whatever the net still holds from before. What must come first?",
    "load_params, train, local_validate valid": "that scores the trained model, and not the one that came in.",
}


def too_far(answer: Callable[..., Sequence[str]] | None) -> Verdict:
    """09: the names of the arrays in which a number changed by more than a limit, or is none any more."""
    if answer is None:
        return open_task("write too_far(update, before, limit) and put its name, without brackets, in answer.")
    before = {"conv": np.array([5.0, -5.0, 5.0, -5.0]), "bias": np.zeros(2)}
    try:
        for conv, bias, names, hint in _MOVES:
            update = {"conv": before["conv"] + conv, "bias": before["bias"] + bias}
            made = answer(update, before, 1.0)
            if not isinstance(made, list | tuple | set):
                return not_yet(f"It returns {made!r:.40}: return a list of names, an empty one where all is well.")
            if sorted(made) != names:
                return not_yet(hint)
    except Exception as error:
        return failed(error, "It gets two dicts of arrays, by the same names, and a number.")
    return Verdict(True, "NaN is not above a limit, and not below it either: you ask the right way round.")


_MOVES = [  # how far conv and bias move, with a limit of 1; which names are due; the hint if others come
    (0.0, 0.0, [], "Nothing has changed, and you complain: look at update[name] - before[name], not at the weights."),
    (0.6, 0.6, [], "No single number moved by more than the limit: take each for itself, no sum and no norm."),
    ([0.0, 2.0, 0.0, 0.0], 0.0, ["conv"], "One number of conv moved by 2: one is enough, so take no mean."),
    (0.0, [0.0, -2.0], ["bias"], "A number of bias fell by 2: down counts as much as up, so take the absolute value."),
    (0.0, [np.nan, 0.0], ["bias"], "NaN slips through: NaN > limit is False. Ask instead whether all are <= limit."),
    ([np.inf] * 4, [np.nan, 0.0], ["bias", "conv"], "Both are wrong now: name each of them, not the first alone."),
]
