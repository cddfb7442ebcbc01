"""The exercise of notebook 04: driven from the same weights, does the reader's learner do what the shipped one does?"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from checks.reply import Reply, exercise, not_yet, right

if TYPE_CHECKING:
    from nvflare.app_common.abstract.fl_model import FLModel
    from torch.optim import Optimizer

    from tutorial_utils.drive import Drive

STEPS_BEFORE_STOP = 3


@exercise("write your class, a subclass of ModelLearner, and put it in answer.", "answer is the class itself.")
def model_learner(answer: type, shipped: type, params: Mapping[str, Any], **arguments: str | int) -> Reply:
    from nvflare.app_common.abstract.model_learner import ModelLearner  # seconds: only where it is needed

    from tutorial_utils.drive import test_drive
    from tutorial_utils.learner import LearnerError

    if not (isinstance(answer, type) and issubclass(answer, ModelLearner)):
        return not_yet("answer must be the class itself, a subclass of ModelLearner: answer = MyLearner.")
    try:
        learners = [_spoilt(made)(**arguments) for made in (answer, shipped)]
        mine, theirs = (test_drive(learner, params, rounds=2) for learner in learners)
        fault = _fault(mine, theirs, learners[0].sent) or _fault_of_abort(answer, params, arguments)
    except LearnerError as error:
        fault = re.split("[:;]", str(error))[0].rstrip(".") + "."  # without the weights that it may quote
    except Exception as error:
        fault = _where(error, answer)
    return not_yet(fault) if fault else right("The same weights, metrics and steps as the shipped learner.")


def _spoilt(learner: type) -> type:
    """The same learner, whose second round begins with a dead net: its best model is that of the first."""

    class Spoilt(learner):
        sent: Mapping[str, Any] = {}

        def train(self, model: FLModel) -> FLModel | str:
            if self.current_round:
                model.params = {name: value * 0 for name, value in model.params.items()}
            result = super().train(model)
            self.sent = getattr(result, "params", None) or {}
            return result

    return Spoilt


def _fault_of_abort(answer: type, params: Mapping[str, Any], arguments: Mapping[str, Any]) -> str | None:
    """Ask it to stop in the middle of its training, as FLARE does, and count the steps that it makes after that."""
    from nvflare.apis.fl_constant import ReturnCode
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from tutorial_utils.drive import test_drive

    class Stopped(answer):
        steps_seen = 0
        answered: object = None

        def train(self, model: FLModel) -> str:
            watch = register_optimizer_step_post_hook(self.count_step)  # of any optimizer in this process
            try:
                self.answered = super().train(model)
            finally:
                watch.remove()
            return ReturnCode.TASK_ABORTED  # whatever it was: the drive ends here

        def count_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
            self.steps_seen += 1
            if self.steps_seen == STEPS_BEFORE_STOP:
                self.abort_signal.trigger("the check")
                self.abort()

    learner = Stopped(**arguments)
    test_drive(learner, params)
    if learner.steps_seen > STEPS_BEFORE_STOP + 1:
        return (
            f"train() goes on after an abort, here for {learner.steps_seen - STEPS_BEFORE_STOP} steps: "
            "pass stop=self.is_aborted, and training asks before each batch."
        )
    if learner.answered != ReturnCode.TASK_ABORTED:
        return "After an abort, half a training must not enter the average: return ReturnCode.TASK_ABORTED."
    return None


def _where(error: Exception, answer: type) -> str:
    methods = [frame.name for frame in traceback.extract_tb(error.__traceback__) if frame.name in vars(answer)]
    return f"{[answer.__name__, *methods][-1]}() ends in {type(error).__name__}: {str(error).rstrip('.')}."


def _fault(mine: Drive, theirs: Drive, sent: Mapping[str, Any]) -> str | None:
    """The first thing in which the reader's drive differs from the shipped learner's."""
    if mine.return_code != theirs.return_code:
        return f"train() returned the code {mine.return_code!r}, and nobody had asked it to stop: return an FLModel."
    if not np.isclose(mine.received[0].get("accuracy", -1), theirs.received[0]["accuracy"]):
        return 'Before training, validate() must load model.params and report "accuracy" on the validation images.'
    if not all(isinstance(value, np.ndarray) for value in sent.values()):
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
        return (
            "get_model() must return an FLModel with the params that did best on the validation images: a copy of "
            "them, since training goes on in the same tensors."
        )
    return None


def _alike(params: Mapping[str, Any] | None, others: Mapping[str, Any]) -> bool:
    same_names = isinstance(params, Mapping) and params.keys() == others.keys()
    return same_names and all(np.allclose(params[name], others[name], atol=1e-6) for name in others)
