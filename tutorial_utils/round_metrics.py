"""Each round's metrics, a line a round: FLARE's MetricsArtifactWriter, and one of ours where FLARE 2.8 has none.

This file ships with a job that needs it, to the server alone: it imports numpy and nvflare.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.widgets.widget import Widget

FLARES = "nvflare.app_common.widgets.metrics_artifact_writer.MetricsArtifactWriter"
OURS = "tutorial_utils.round_metrics.RoundMetrics"
AGGREGATION = (AppEventType.BEFORE_AGGREGATION, AppEventType.AFTER_AGGREGATION)  # 2.8's FedAvg tells of the first alone
FILE = "metrics/round_metrics.jsonl"  # below the job's folder at the server, as FLARE's own has it


class RoundMetrics(Widget):
    """Writes what each site reports in a round, as FLARE 2.9's MetricsArtifactWriter does, as far as a Run reads it.

    A line has the round, `sites` (name, metrics as name and value, weight by the steps where it is above 0) and
    `skipped_metrics` (name, reason and site of what is no finite number). It has no summary and no average.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sites: list[dict[str, Any]] = []
        self._skipped: list[dict[str, str]] = []

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        if event_type in (EventType.START_RUN, AppEventType.ROUND_STARTED):
            self._sites, self._skipped = [], []
        elif event_type == AppEventType.AFTER_CONTRIBUTION_ACCEPT:
            if fl_ctx.get_prop(AppConstants.AGGREGATION_ACCEPTED, True):
                self._note(fl_ctx)
        elif event_type in AGGREGATION and (self._sites or self._skipped):
            number = fl_ctx.get_prop(AppConstants.CURRENT_ROUND)
            self._write(fl_ctx, {"round": number, "sites": self._sites, "skipped_metrics": self._skipped})
            self._sites, self._skipped = [], []

    def _note(self, fl_ctx: FLContext) -> None:
        answer = fl_ctx.get_prop(AppConstants.TRAINING_RESULT)
        model = FLModelUtils.from_shareable(answer) if answer is not None else None
        if model is None or not model.metrics:
            return
        peer = fl_ctx.get_peer_context()
        name = (model.meta or {}).get(FLMetaKey.SITE_NAME) or (peer.get_identity_name() if peer else "?")
        metrics = []
        for key, value in model.metrics.items():
            value = value.item() if isinstance(value, np.generic) else value
            why = _reason(value)
            if why:
                self._skipped.append({"name": key, "reason": why, "site": name})
            else:
                metrics.append({"name": key, "value": value})
        if not metrics:
            return
        weight = (model.meta or {}).get(FLMetaKey.NUM_STEPS_CURRENT_ROUND)
        weight = weight.item() if isinstance(weight, np.generic) else weight
        counts = isinstance(weight, (int, float)) and math.isfinite(weight) and weight > 0
        weighed = {"weight": weight, "weight_key": FLMetaKey.NUM_STEPS_CURRENT_ROUND} if counts else {}
        self._sites.append({"name": name, "metrics": metrics, **weighed})

    def _write(self, fl_ctx: FLContext, record: dict[str, Any]) -> None:
        path = Path(fl_ctx.get_engine().get_workspace().get_run_dir(fl_ctx.get_job_id()), FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")


def class_path() -> str:
    """Of the one that a job gets here."""
    return OURS if MetricsArtifactWriter is RoundMetrics else FLARES


def _reason(value: object) -> str | None:
    """Why a value is left out; None for what stays."""
    if isinstance(value, float) and not math.isfinite(value):
        return "non_finite_number"
    return None if isinstance(value, (bool, int, float, str)) else "unsupported_type"


try:
    from nvflare.app_common.widgets.metrics_artifact_writer import MetricsArtifactWriter
except ModuleNotFoundError:  # FLARE 2.8
    MetricsArtifactWriter = RoundMetrics
