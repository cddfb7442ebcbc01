"""ModelLearner and its executor, for the day when FLARE has let go of its own: of our writing, over FLComponentWrapper.

FLARE 2.9 calls its ModelLearner deprecated. Where `nvflare.app_common.abstract.model_learner` cannot be imported any
more, learner.py and job.py take these two instead, and this file ships with the job; where it can, nothing here is
used. It imports nvflare alone. What they promise a learner is what FLARE's documentation of ModelLearner does: the same
calls in the same order.
"""

from __future__ import annotations

import threading

from nvflare.apis.dxo import MetaKey
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AppConstants, ValidateType
from nvflare.app_common.utils.fl_component_wrapper import FLComponentWrapper
from nvflare.app_common.utils.fl_model_utils import FLModelUtils


class ModelLearner(FLComponentWrapper):
    """What an executor calls at a site: initialize, then train, validate and get_model by task, at last finalize.

    A method returns an FLModel, or one of FLARE's return codes, which ends the task with it.
    """

    def train(self, model: FLModel) -> FLModel | str:
        raise NotImplementedError(f"{type(self).__name__} has no train().")

    def validate(self, model: FLModel) -> FLModel | str:
        raise NotImplementedError(f"{type(self).__name__} has no validate().")

    def get_model(self, model_name: str) -> FLModel | str:
        raise NotImplementedError(f"{type(self).__name__} has no get_model().")

    def configure(self, model: FLModel) -> None:
        """Nothing, unless a learner has settings that may change."""


class ModelLearnerExecutor(Executor):
    """Calls a learner for the server's tasks, one at a time; before training it has the global model scored.

    Args:
        learner_id: of the learner among the job's components.
    """

    def __init__(self, learner_id: str) -> None:
        super().__init__()
        self.learner_id = learner_id
        self._learner: ModelLearner | None = None
        self._is_ready = False
        self._one_task = threading.Lock()
        self._answers = {
            AppConstants.TASK_TRAIN: self._train,
            AppConstants.TASK_VALIDATION: self._validate,
            AppConstants.TASK_SUBMIT_MODEL: self._submit,
            AppConstants.TASK_CONFIGURE: self._configure,
        }

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type == EventType.START_RUN:
            self._learner = fl_ctx.get_engine().get_component(self.learner_id)
            if not isinstance(self._learner, ModelLearner):
                raise TypeError(f"{self.learner_id} is a {type(self._learner).__name__}, where a ModelLearner belongs")
        elif self._learner and event_type in (EventType.ABORT_TASK, EventType.END_RUN):
            self._learner.fl_ctx = fl_ctx
            try:
                (self._learner.abort if event_type == EventType.ABORT_TASK else self._learner.finalize)()
            except Exception as error:  # whatever the reader's code raises: the run ends as it would have
                self.log_exception(fl_ctx, f"{event_type} failed: {error}")

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        if task_name not in self._answers:
            return make_reply(ReturnCode.TASK_UNKNOWN)
        with self._one_task:
            self._place(shareable, fl_ctx, abort_signal)
            if not self._is_ready:
                self._is_ready = True
                self._learner.initialize()
            try:
                answer = self._answers[task_name](shareable)
            except Exception as error:  # whatever the reader's code raises: the server is told, the log says what
                name = type(self._learner).__name__
                self.log_exception(fl_ctx, f"{name} failed in {task_name}: {type(error).__name__}: {error}")
                return make_reply(ReturnCode.EXECUTION_EXCEPTION)
        if isinstance(answer, FLModel):
            return FLModelUtils.to_shareable(answer)
        return make_reply(answer if isinstance(answer, str) else ReturnCode.EMPTY_RESULT)

    def _place(self, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> None:
        """Tell the learner where it is, and in which round."""
        learner, engine = self._learner, fl_ctx.get_engine()
        learner.shareable, learner.fl_ctx, learner.abort_signal, learner.engine = (
            shareable,
            fl_ctx,
            abort_signal,
            engine,
        )
        learner.args, learner.workspace = fl_ctx.get_prop(FLContextKey.ARGS), engine.get_workspace()
        learner.site_name, learner.job_id = fl_ctx.get_identity_name(), fl_ctx.get_job_id()
        learner.workspace_root = learner.workspace.get_root_dir()
        learner.job_root = learner.workspace.get_run_dir(learner.job_id)
        learner.app_root = learner.workspace.get_app_dir(learner.job_id)
        learner.current_round = shareable.get_header(AppConstants.CURRENT_ROUND)
        learner.total_rounds = shareable.get_header(AppConstants.NUM_ROUNDS)

    def _train(self, shareable: Shareable) -> FLModel | str:
        shareable.set_header(AppConstants.VALIDATE_TYPE, ValidateType.BEFORE_TRAIN_VALIDATE)
        model = FLModelUtils.from_shareable(shareable)
        scored = self._learner.validate(model)
        answer = self._learner.train(model)
        if isinstance(answer, FLModel) and isinstance(scored, FLModel) and scored.metrics:  # it chooses the best model
            FLModelUtils.set_meta_prop(answer, MetaKey.INITIAL_METRICS, scored.metrics)
        return answer

    def _validate(self, shareable: Shareable) -> FLModel | str:
        return self._learner.validate(FLModelUtils.from_shareable(shareable))

    def _submit(self, shareable: Shareable) -> FLModel | str:
        return self._learner.get_model(shareable.get_header(AppConstants.SUBMIT_MODEL_NAME))

    def _configure(self, shareable: Shareable) -> str:
        self._learner.configure(FLModelUtils.from_shareable(shareable))
        return ReturnCode.OK
