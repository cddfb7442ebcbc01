"""Metrics that reach the server while a job runs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import make_reply
from nvflare.app_opt.tracking.tb.tb_receiver import TBAnalyticsReceiver
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tiny import TinyLearner, make_net
from tutorial_utils.errors import JobError
from tutorial_utils.job import build_job
from tutorial_utils.simulate import simulate
from tutorial_utils.tracking import metrics_of


def test_the_metrics_of_an_update_are_its_finite_numbers() -> None:
    told = {"auc": 0.75, "n": np.int64(3), "nan": math.nan, "infinite": math.inf, "yes": True, "text": "0.5"}
    update = DXO(DataKind.WEIGHTS, {"w": np.zeros(2)}, {MetaKey.INITIAL_METRICS: told}).to_shareable()
    assert dict(metrics_of(update)) == {"auc": 0.75, "n": 3.0}
    assert not list(metrics_of(DXO(DataKind.WEIGHTS, {"w": np.zeros(2)}).to_shareable()))
    assert not list(metrics_of(make_reply(ReturnCode.TASK_ABORTED)))


@pytest.mark.parametrize("track", ["tensorboard", TBAnalyticsReceiver])
def test_what_receives_no_metrics_is_refused(track: object) -> None:
    with pytest.raises(JobError, match=r"track is .*: give"):
        build_job(TinyLearner(), make_net(), track=track)


@pytest.mark.slow
def test_tensorboard_has_each_site_s_metrics_by_round(runs: Path) -> None:
    """The numbers are those of the run's own table."""
    job = build_job(TinyLearner(), make_net(), sites=["ward-a", "ward-b"], rounds=3, track=TBAnalyticsReceiver())
    run = simulate(job, runs=runs, name="tracked", progress=False)
    for site in run.sites:
        events = EventAccumulator(str(run.job_folder / "tb_events" / site)).Reload()
        table = run.rounds.query("site == @site").set_index("round")["loss"]
        seen = {event.step: event.value for event in events.Scalars("received/loss")}
        assert seen == pytest.approx(dict(table), rel=1e-6) and len(seen) == 3
