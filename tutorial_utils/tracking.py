"""The sites' metrics as they come, for TensorBoard, MLflow or Weights & Biases: FLARE's own parts, and one of ours.

build_job(..., track=TBAnalyticsReceiver())     # nvflare.app_opt.tracking.tb.tb_receiver
run.job_folder / "tb_events"                    # at a real server: tb_events in the job's own folder there

`tensorboard --logdir` on that folder shows them; FLARE's receiver writes to disk every two minutes, and at the end.

Any other receiver of FLARE's goes in its place: MLflowReceiver(tracking_uri=...), WandBReceiver(...). This file ships
with such a job: it imports nvflare alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from numbers import Real

from nvflare.apis.analytix import ANALYTIC_EVENT_TYPE
from nvflare.apis.dxo import MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.widgets.convert_to_fed_event import ConvertToFedEvent
from nvflare.app_common.widgets.streaming import AnalyticsReceiver
from nvflare.app_opt.tracking.tb.tb_writer import TBWriter
from nvflare.job_config.api import FedJob

WRITER = "metrics_stream"  # the id of the site's part


class MetricsStream(TBWriter):
    """At a site: each task's metrics go to the server when the task is done, `received/NAME` by the round.

    They are those of the model that the site received: what it tells with its update. A learner has it as
    `self.get_component("metrics_stream")`, None in a test drive, and may write more, per epoch or per step:
    `add_scalar("loss", value, step)`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._round: int | None = None  # of the task in hand: FLARE drops the task before it shows the result

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.BEFORE_TASK_EXECUTION:
            self._round = fl_ctx.get_prop(FLContextKey.TASK_DATA).get_header(AppConstants.CURRENT_ROUND)
        elif event_type == EventType.AFTER_TASK_EXECUTION and self._round is not None:
            for name, value in metrics_of(fl_ctx.get_prop(FLContextKey.TASK_RESULT)):
                self.add_scalar(f"received/{name}", value, int(self._round))


def metrics_of(result: Shareable) -> Iterator[tuple[str, float]]:
    """The finite numbers among the metrics that go with an update."""
    if result.get_return_code(ReturnCode.OK) != ReturnCode.OK:
        return
    told = from_shareable(result).get_meta_prop(MetaKey.INITIAL_METRICS)
    for name, value in told.items() if isinstance(told, dict) else ():
        if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
            yield str(name), float(value)


def track(job: FedJob, receiver: AnalyticsReceiver) -> None:
    """Add to a job what brings the sites' metrics to `receiver` at the server while it runs."""
    job.to_server(receiver, id="receiver")
    job.to_clients(MetricsStream(), id=WRITER)
    job.to_clients(ConvertToFedEvent(events_to_convert=[ANALYTIC_EVENT_TYPE]), id="events_to_server")
    job.add_file_to_clients(__file__, dest_dir="tutorial_utils")
