"""dl/train.py as an Executor: no half of the work is done for you, and nothing of FLARE is out of reach.

The same work as CIFAR10ModelLearner, to the bit. What ModelLearnerExecutor does for a learner stands
here: the tasks by their names, the DXO (weights or metrics, and what is said of them) in and out of a
Shareable, the site's name and folder from the FLContext, the abort signal, the return codes.
"""

import os
from pathlib import Path

import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.app_constant import AppConstants, ModelName

from dl.train import Net, evaluate, load_data, make_loader, pick_device, train
from tutorial_utils.keep import BestModel
from tutorial_utils.learner import round_seed, seed_everything, to_numpy
from tutorial_utils.metric import Metric


class CIFAR10Executor(Executor):
    """dl/train.py as the component that FLARE hands its tasks to. Arguments: see CIFAR10ModelLearner."""

    metric = Metric("accuracy", higher_is_better=True)

    def __init__(
        self,
        data: str,
        epochs: int = 1,
        lr: float = 0.01,
        batch_size: int = 32,
        momentum: float = 0.9,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.data = data
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.momentum = momentum
        self.seed = seed

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """FLARE fires START_RUN in each process of the site, before the first task."""
        if event_type == EventType.START_RUN:
            self.start(fl_ctx)

    def start(self, fl_ctx: FLContext) -> None:
        torch.set_num_threads(1)  # the same bits on every machine, and several sites can share one
        site = fl_ctx.get_identity_name()
        self.images = load_data(Path(os.path.expandvars(self.data)) / site)
        self.net = Net(self.seed).to(pick_device())
        folder = fl_ctx.get_engine().get_workspace().get_app_dir(fl_ctx.get_job_id())
        self.best = BestModel(folder, self.metric)

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """Called by FLARE for every task. What it raises reaches the server as EXECUTION_EXCEPTION."""
        if task_name == AppConstants.TASK_TRAIN:
            return self.train(shareable, fl_ctx, abort_signal)
        if task_name == AppConstants.TASK_VALIDATION:
            return self.validate(shareable)
        if task_name == AppConstants.TASK_SUBMIT_MODEL:
            return self.submit_model(shareable, fl_ctx)
        return make_reply(ReturnCode.TASK_UNKNOWN)

    def train(self, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Score the global model on "valid", train it on the site's own images, return all weights."""
        self.load_params(shareable)
        received = evaluate(self.net, self.images.valid)
        number = shareable.get_header(AppConstants.CURRENT_ROUND)
        seed = round_seed(self.seed, fl_ctx.get_identity_name(), number)
        seed_everything(seed)
        loader = make_loader(self.images.train, self.batch_size, seed)
        steps = train(
            self.net, loader, self.epochs, self.lr, self.momentum, stop=lambda: abort_signal.triggered
        )
        if abort_signal.triggered:
            self.log_warning(fl_ctx, f"stopped after {steps} steps")
            return make_reply(ReturnCode.TASK_ABORTED)
        params = to_numpy(self.net.state_dict())
        self.best.offer(evaluate(self.net, self.images.valid)["accuracy"], number, params)
        self.log_info(fl_ctx, f"round {number}: {steps} steps")
        # The server weighs the update by its steps. INITIAL_METRICS are those of the model that came in:
        # IntimeModelSelector selects the best by them, MetricsArtifactWriter writes them down.
        meta = {MetaKey.NUM_STEPS_CURRENT_ROUND: steps, MetaKey.INITIAL_METRICS: received}
        return DXO(DataKind.WEIGHTS, data=params, meta=meta).to_shareable()

    def validate(self, shareable: Shareable) -> Shareable:
        """Score the model of a cross-site evaluation on "test"."""
        self.load_params(shareable)
        return DXO(DataKind.METRICS, data=evaluate(self.net, self.images.test)).to_shareable()

    def submit_model(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The best model that this site has trained, for the other sites to score."""
        name = shareable.get_header(AppConstants.SUBMIT_MODEL_NAME)
        if name != ModelName.BEST_MODEL:
            self.log_error(fl_ctx, f"there is no model named {name!r}: ask for {ModelName.BEST_MODEL!r}")
            return make_reply(ReturnCode.BAD_REQUEST_DATA)
        return DXO(DataKind.WEIGHTS, data=to_numpy(self.best.load()["params"])).to_shareable()

    def load_params(self, shareable: Shareable) -> None:
        params = from_shareable(shareable).data
        self.net.load_state_dict({name: torch.as_tensor(value) for name, value in params.items()})
