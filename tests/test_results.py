"""What a run left behind: any metric, any site, what is missing, and the fingerprint of a model."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.widgets.validation_json_generator import ValidationJsonGenerator

from tutorial_utils import results
from tutorial_utils._simulate import guard
from tutorial_utils.errors import ResultsError
from tutorial_utils.metric import Metric
from tutorial_utils.results import Run, mean_by_round, read_cross_site, read_rounds, sha256
from tutorial_utils.round_metrics import MetricsArtifactWriter, RoundMetrics

HOSPITALS = ("north", "hospital-10", "hospital-9")
ROUNDS = "metrics/round_metrics.jsonl"
MATRIX = "cross_site_val/cross_val_results.json"


# ---- runs of files ----


def put(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def record(number: int, **sites: dict[str, Any]) -> dict[str, Any]:
    """A round as FLARE notes it; `weight` is a site's weight, all else its metrics."""
    listed = [
        {
            "name": site.replace("_", "-"),
            "metrics": [{"name": name, "value": value} for name, value in told.items() if name != "weight"],
            **{key: told[key] for key in ("weight",) if key in told},
        }
        for site, told in sites.items()
    ]
    return {"round": number, "aggregated_metrics": [], "sites": listed, "skipped_metrics": []}


def lines(*records: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(one)}\n" for one in records)


def make_run(
    folder: Path,
    *,
    rounds: str | None = None,
    matrix: dict | None = None,
    meta: object = None,
    server: object = None,
    sites: tuple[str, ...] = HOSPITALS,
) -> Run:
    run = Run(folder, sites, 1.0)
    for path, content in ((ROUNDS, rounds), (MATRIX, matrix)):
        if content is not None:
            put(run.job_folder / path, content)
    put(folder / "job" / "mine" / "meta.json", {"name": "mine"} if meta is None else meta)
    put(folder / "job" / "mine" / "app" / "config" / "config_fed_server.json", server or TRAINING)
    return run


TRAINING = {"workflows": [{"id": "train", "path": "nvflare.app_common.workflows.scatter_and_gather.ScatterAndGather"}]}
EVALUATION = {"workflows": [{"path": "nvflare.app_common.workflows.cross_site_model_eval.CrossSiteModelEval"}]}
TWO = lines(
    record(0, north={"auc": 0.5, "brier": 0.3, "weight": 30}, hospital_9={"auc": 0.7, "brier": 0.2, "weight": 10}),
    record(1, hospital_9={"auc": 0.9, "brier": 0.1, "weight": 10}, hospital_10={"brier": 0.4, "weight": 2}),
)
SCORES = {
    "hospital-9": {"SRV_FL_global_model.pt": {"auc": 0.9, "brier": 0.1}, "north": {"auc": 0.8, "brier": 0.2}},
    "hospital-10": {"SRV_FL_global_model.pt": {"auc": math.nan, "brier": 0.4}, "north": {"brier": 0.3}},
    "north": {
        "hospital-10": {"auc": 0.6, "brier": 0.5},
        "SRV_FL_global_model.pt": {"auc": 0.7, "brier": 0.2},
        "SRV_start.pt": {"auc": 0.5, "brier": 0.9},
        "SRV_best_FL_global_model.pt": {"auc": 0.75, "brier": 0.15},
    },
}
BRIER = {"custom_props": {"metric": {"name": "brier", "higher_is_better": False, "fraction": None}}}


def selector(**args: object) -> dict[str, Any]:
    path = "nvflare.app_common.widgets.intime_model_selector.IntimeModelSelector"
    return TRAINING | {"components": [{"id": "persistor", "path": "a.B"}, {"path": path, "args": args}]}


# ---- which metric decides ----


def test_the_job_says_which_metric_decides(tmp_path: Path) -> None:
    run = make_run(tmp_path, rounds=TWO, matrix=SCORES, meta=BRIER, server=selector(key_metric="auc"))
    assert run.metric == Metric("brier", higher_is_better=False)
    assert run.metrics == ("auc", "brier")
    short = make_run(tmp_path / "short", rounds=TWO, meta={"custom_props": {"metric": {"name": "auc"}}})
    assert short.metric == Metric("auc")


@pytest.mark.parametrize(
    ("server", "metric"),
    [
        (selector(key_metric="auc"), Metric("auc")),
        (selector(key_metric="brier", negate_key_metric=True), Metric("brier", higher_is_better=False)),
    ],
)
def test_else_its_selector_does(server: dict, metric: Metric, tmp_path: Path) -> None:
    run = make_run(tmp_path, rounds=TWO, matrix=SCORES, server=server)
    assert run.metric == metric
    assert run.rounds.attrs["metric"]["name"] == run.cross_site.attrs["metric"]["name"] == metric.name
    json.dumps(run.rounds.attrs)  # pandas writes them so into a parquet file


def test_a_selector_in_hocon(tmp_path: Path) -> None:
    run = make_run(tmp_path, rounds=TWO)
    config = tmp_path / "job" / "mine" / "app" / "config" / "config_fed_server.json"
    config.unlink()
    text = """
    workflows = [{path = "nvflare.app_common.workflows.scatter_and_gather.ScatterAndGather"}]
    components = [
      {path = "nvflare.app_common.widgets.intime_model_selector.IntimeModelSelector"
       args {key_metric = "brier", negate_key_metric = true}}
    ]
    """
    put(config.with_suffix(".conf"), text)
    assert run.metric == Metric("brier", higher_is_better=False)


def test_else_the_only_number_that_was_measured_does(tmp_path: Path) -> None:
    only = lines(record(0, north={"mae": 31.5, "note": "slow", "fast": True}))
    assert make_run(tmp_path / "1", rounds=only).metric == Metric("mae")
    unused = selector()  # FLARE's default, val_accuracy, which nobody reports
    assert make_run(tmp_path / "2", rounds=only, server=unused).metric == Metric("mae")
    evaluated = make_run(tmp_path / "3", matrix={"north": {"SRV_a": {"f1": 0.5, "why": "-"}}}, server=EVALUATION)
    assert evaluated.metric == Metric("f1")


def test_where_several_were_measured_and_nobody_said_it_asks(tmp_path: Path) -> None:
    run = make_run(tmp_path, rounds=TWO, matrix=SCORES)
    for name in ("metric", "cross_site"):
        with pytest.raises(ResultsError, match="does not say which metric decides, and it measured auc, brier"):
            getattr(run, name)
    assert "metric" not in run.rounds.attrs and run.matrix("auc").shape == (3, 5)


@pytest.mark.parametrize(
    "said", ["accuracy", {}, {"name": 1}, {"name": "a\n"}, {"name": "a", "higher_is_better": "no"}, ["a"], 0]
)
def test_a_job_that_says_nonsense_is_refused(said: object, tmp_path: Path) -> None:
    run = make_run(tmp_path, rounds=TWO, matrix=SCORES, meta={"custom_props": {"metric": said}})
    with pytest.raises(ResultsError, match=r"meta.json does not hold what a job is"):
        assert run.metric
    assert len(run.rounds) == 4, "the rest can be read"


# ---- the matrix ----


def test_the_matrix_of_any_metric(tmp_path: Path) -> None:
    run = make_run(tmp_path, rounds=TWO, matrix=SCORES, meta=BRIER)
    brier = run.cross_site
    assert list(brier.index) == list(HOSPITALS), "in the order of the run"
    assert list(brier.columns) == ["global", "best global", "start", "north", "hospital-10"]
    assert brier.loc["hospital-9", "north"] == 0.2 and brier.loc["north", "start"] == 0.9
    assert brier.isna().sum().sum() == 7, "the cells that the file has not"
    auc = run.matrix("auc")
    assert np.isnan(auc.loc["hospital-10", "global"]) and np.isnan(auc.loc["hospital-10", "north"])
    assert auc.loc["north", "hospital-10"] == 0.6
    with pytest.raises(ResultsError, match="no scores called 'f1': choose from auc, brier"):
        run.matrix("f1")


def test_without_a_runs_order_numbers_count_as_numbers(tmp_path: Path) -> None:
    names = ["site-10", "site-9", "b", "a10b2", "a10b10", "a9"]
    cells = {site: {name: {"f1": 0.5} for name in (*names, "SRV_z", "SRV_init.pt")} for site in names}
    matrix = read_cross_site(put(tmp_path / "matrix", cells), "f1")
    assert list(matrix.index) == ["a9", "a10b2", "a10b10", "b", "site-9", "site-10"]
    assert list(matrix.columns) == ["init", "z", *matrix.index]
    rounds = read_rounds(put(tmp_path / "rounds", lines(record(0, site_10={"f1": 1}, site_9={"f1": 1}))))
    assert rounds["site"].tolist() == ["site-9", "site-10"]


def test_a_servers_model_of_a_sites_name_keeps_its_own(tmp_path: Path) -> None:
    cells = {"a": {"SRV_a.pt": {"f1": 0.1}, "a": {"f1": 0.2}, "SRV_b.pt": {"f1": 0.3}, "SRV_b": {"f1": 0.4}}}
    matrix = read_cross_site(put(tmp_path / "matrix", cells), "f1")
    assert matrix.loc["a"].to_dict() == {"SRV_a.pt": 0.1, "a": 0.2, "SRV_b.pt": 0.3, "SRV_b": 0.4}


# ---- the rounds ----


def test_rounds_are_in_the_runs_order_and_end_with_the_weight(tmp_path: Path) -> None:
    run = make_run(tmp_path, rounds=TWO, meta=BRIER)
    assert list(run.rounds.columns) == ["round", "site", "auc", "brier", "weight"]
    assert run.rounds["site"].tolist() == ["north", "hospital-9", "hospital-10", "hospital-9"]
    assert run.rounds["auc"].isna().tolist() == [False, False, True, False]


def test_who_sat_out(tmp_path: Path) -> None:
    assert make_run(tmp_path, rounds=TWO).missing == {0: ("hospital-10",), 1: ("north",)}


def test_a_run_that_goes_on_has_the_earlier_rounds_too(tmp_path: Path) -> None:
    first, second = TWO.splitlines(keepends=True)
    run = make_run(tmp_path, rounds=second, meta=BRIER)
    put(run.earlier_rounds_path, first)
    assert run.rounds.equals(make_run(tmp_path / "whole", rounds=TWO).rounds)
    (run.job_folder / ROUNDS).unlink()
    fresh = Run(run.folder, run.sites, 0.0)
    assert fresh.rounds["round"].tolist() == [0, 0], "only the evaluation was left to do"


def test_a_job_that_only_evaluates_has_a_matrix_and_no_rounds(tmp_path: Path) -> None:
    run = make_run(tmp_path, matrix=SCORES, meta=BRIER, server=EVALUATION)
    assert list(run.rounds.columns) == ["round", "site", "weight"] and run.rounds.empty
    assert run.missing == {} and run.checkpoint is None and run.best_model is None
    assert run.cross_site.loc["north", "global"] == 0.2
    for ask in ("global_model", "sha256"):
        with pytest.raises(ResultsError, match="only evaluates, so it has no global model"):
            getattr(run, ask)


def test_a_job_that_trains_and_left_no_rounds_is_an_error(tmp_path: Path) -> None:
    run = make_run(tmp_path, matrix=SCORES, meta=BRIER)
    with pytest.raises(ResultsError, match=r"round_metrics.jsonl is missing: the job ended before"):
        assert run.rounds
    with pytest.raises(ResultsError, match=r"FL_global_model.pt is missing: the job ended before"):
        assert run.global_model


# ---- as FLARE writes them ----


class Server:
    """FLARE's own writers, fed as a workflow feeds them."""

    def __init__(self, folder: Path, *parts: Any) -> None:
        workspace = SimpleNamespace(get_run_dir=lambda job_id: str(folder))
        engine = SimpleNamespace(fire_event=lambda *_: None, get_workspace=lambda: workspace)
        self.fl_ctx: FLContext = FLContextManager(engine, "server", "test", {}, {}).new_context()
        self.parts = parts
        self.fire(EventType.START_RUN)

    def fire(self, event: str, **props: object) -> None:
        for name, value in props.items():
            self.fl_ctx.set_prop(name, value, private=True, sticky=False)
        for part in self.parts:
            part.handle_event(event, self.fl_ctx)

    def play_round(self, number: int, done: bool = True, **sites: tuple[dict[str, object], float | None]) -> None:
        self.fl_ctx.set_prop(AppConstants.CURRENT_ROUND, number, private=True, sticky=True)
        for site, (metrics, steps) in sites.items():
            meta = {MetaKey.INITIAL_METRICS: metrics}
            meta |= {} if steps is None else {MetaKey.NUM_STEPS_CURRENT_ROUND: steps}
            update = DXO(DataKind.WEIGHTS, data={"w": np.zeros(1)}, meta=meta).to_shareable()
            peer = FLContext()
            peer.set_prop(ReservedKey.IDENTITY_NAME, site, private=False, sticky=True)
            peer.set_prop(FLContextKey.SHAREABLE, update, private=True)
            self.fl_ctx.set_peer_context(peer)
            self.fire(AppEventType.AFTER_CONTRIBUTION_ACCEPT, **{AppConstants.TRAINING_RESULT: update})
        self.fire(AppEventType.BEFORE_AGGREGATION)
        mean = DXO(DataKind.WEIGHTS, data={"w": np.zeros(1)}).to_shareable()
        if done:
            self.fire(AppEventType.AFTER_AGGREGATION, **{AppConstants.AGGREGATION_RESULT: mean})

    def score(self, site: str, model: str, metrics: dict[str, object]) -> None:
        result: Shareable = DXO(DataKind.METRICS, data=metrics).to_shareable()
        told = {AppConstants.MODEL_OWNER: model, AppConstants.DATA_CLIENT: site}
        self.fire(AppEventType.VALIDATION_RESULT_RECEIVED, **told, **{AppConstants.VALIDATION_RESULT: result})


WRITERS = list(dict.fromkeys([MetricsArtifactWriter, RoundMetrics]))  # FLARE 2.8 has none: there ours stands alone


@pytest.fixture(params=WRITERS, ids=lambda kind: kind.__name__)
def told(request: pytest.FixtureRequest, tmp_path: Path) -> pd.DataFrame:
    """Round 0: a site that counted, one that made no step, one that cannot measure its only metric; round 1: nobody
    counted."""
    server = Server(tmp_path, request.param())
    server.play_round(
        0, a=({"auc": 0.164, "loss": 2}, 31), b=({"auc": 0.1, "loss": math.inf}, 0), c=({"auc": math.nan}, 7)
    )
    server.play_round(1, a=({"auc": np.float32(0.5)}, None), b=({"auc": 0.7}, None))
    return read_rounds(tmp_path / ROUNDS)


@pytest.mark.skipif(len(WRITERS) == 1, reason="FLARE 2.8 has no MetricsArtifactWriter to compare with")
def test_what_is_written_where_flare_has_no_writer_is_what_its_own_writes(tmp_path: Path) -> None:
    written = []
    for kind in WRITERS:
        server = Server(tmp_path / kind.__name__, kind())
        server.play_round(0, a=({"auc": 0.5, "loss": 2, "ok": True, "word": "yes"}, 31), b=({"auc": math.inf}, 3))
        server.play_round(1, a=({"auc": np.float32(0.25), "list": [1]}, np.int64(4)), b=({"auc": 0.1}, 0), c=({}, 5))
        written.append([json.loads(line) for line in (tmp_path / kind.__name__ / ROUNDS).read_text().splitlines()])
    wanted = [{name: record[name] for name in ("round", "sites", "skipped_metrics")} for record in written[0]]
    assert written[1] == wanted and len(wanted) == 2


def test_a_round_is_written_where_a_workflow_tells_only_of_its_beginning(tmp_path: Path) -> None:
    """As FLARE 2.8's FedAvg, which never says that an average is made."""
    server = Server(tmp_path, RoundMetrics())
    for number in range(2):
        server.play_round(number, done=False, a=({"auc": number}, 3))
    assert read_rounds(tmp_path / ROUNDS)["auc"].tolist() == [0, 1]


def test_a_site_without_steps_weighs_nothing_as_in_flares_average(told: pd.DataFrame) -> None:
    first = told[told["round"] == 0].set_index("site")
    assert first["weight"].iloc[:2].tolist() == [31, 0]
    assert mean_by_round(told, "auc").iloc[0] == pytest.approx(0.164)


def test_where_nobody_counted_each_site_counts_once_as_in_flares_average(told: pd.DataFrame) -> None:
    assert told.loc[told["round"] == 1, "weight"].isna().all()
    assert mean_by_round(told, "auc").iloc[1] == pytest.approx(0.6)


def test_a_site_that_could_not_measure_its_only_metric_took_part(told: pd.DataFrame, tmp_path: Path) -> None:
    assert told.loc[told["round"] == 0, "site"].tolist() == ["a", "b", "c"]
    row = told.set_index(["round", "site"]).loc[(0, "c")]
    assert row[["auc", "loss", "weight"]].isna().all(), "FLARE skips it, and its weight with it"
    assert np.isnan(told.set_index(["round", "site"]).loc[(0, "b"), "loss"])
    run = make_run(tmp_path / "run", rounds=(tmp_path / ROUNDS).read_text(), sites=("a", "b", "c"))
    assert run.missing == {1: ("c",)}


def test_the_matrix_as_flare_writes_it(tmp_path: Path) -> None:
    server = Server(tmp_path, ValidationJsonGenerator())
    server.score("a", "SRV_FL_global_model.pt", {"auc": np.float32(0.5), "n": 3, "loss": 1e-3})
    server.score("a", "b", {"auc": math.nan, "n": 3, "loss": math.inf})
    server.score("b", "b", {"auc": None, "n": 2, "loss": 12345.6})
    server.fire(EventType.END_RUN)
    auc = read_cross_site(tmp_path / MATRIX, "auc", ("b", "a"))
    assert auc.loc["a", "global"] == 0.5 and auc.isna().sum().sum() == 3
    assert list(auc.index) == ["b", "a"]
    assert read_cross_site(tmp_path / MATRIX, "loss").loc["a"].tolist() == [1e-3, math.inf]
    assert read_cross_site(tmp_path / MATRIX, "n").loc["b", "b"] == 2


# ---- the mean ----


def rounds_of(weights: list[float], values: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"round": 0, "site": [*"abc"], "f1": values, "weight": weights})


@pytest.mark.parametrize(
    ("weights", "values", "mean"),
    [
        ([1, 1, 2], [0.1, 0.3, 0.6], 0.4),
        ([3, 0, 1], [0.1, 9, 0.5], 0.2),
        ([3, math.nan, 1], [0.1, 9, 0.5], 0.2),
        ([0, 0, 0], [1, 2, 6], 3),
        ([math.nan] * 3, [1, 2, 6], 3),
        ([5, 0, 0], [math.nan, 2, 6], 4),
        ([5, 1, 3], [math.nan, 2, 6], 5),
        ([5, 1, 0], [2, 2, math.inf], 2),
        ([1e15, 1e15, 1e15], [1e308, 1e308, 1e308], 1e308),
        ([1, 1, 1], [math.nan] * 3, math.nan),
        ([2, 1, 1], [61.0, 65.0, -3.0], 46),
    ],
)
def test_the_mean_is_weighted_as_the_average_is(weights: list[float], values: list[float], mean: float) -> None:
    assert mean_by_round(rounds_of(weights, values), "f1").tolist() == pytest.approx([mean], nan_ok=True)


def test_a_round_without_a_number_stays_in_the_mean_as_empty() -> None:
    table = pd.concat([rounds_of([1] * 3, [math.nan] * 3), rounds_of([1] * 3, [1] * 3).assign(round=1)])
    assert mean_by_round(table, "f1").to_dict() == pytest.approx({0: math.nan, 1: 1}, nan_ok=True)


# ---- checkpoints, state, logs ----


def checkpoint(run: Run, name: str, *, model: bool = True, note: str | None = '{"rounds": 1}') -> None:
    folder = run.job_folder / "guard" / name
    folder.mkdir(parents=True)
    if model:
        (folder / "FL_global_model.pt").touch()
    if note is not None:
        put(folder / "checkpoint.json", note)


@pytest.mark.parametrize("older", range(1, 25))
def test_of_two_checkpoints_the_later_is_taken(older: int, tmp_path: Path) -> None:
    """A crash between two steps leaves both; in what order a folder lists them is its own affair."""
    run = Run(tmp_path, ("a",), 0.0)
    checkpoint(run, f"checkpoint-{older}")
    checkpoint(run, f"checkpoint-{older + 1}")
    assert (run.rounds_kept, run.checkpoint.name) == (older + 1, f"checkpoint-{older + 1}")


def test_only_a_whole_checkpoint_counts(tmp_path: Path) -> None:
    run = Run(tmp_path, ("a",), 0.0)
    assert run.checkpoint is None and run.rounds_kept == 0
    checkpoint(run, "checkpoint-9")
    checkpoint(run, "checkpoint-10", model=False)
    checkpoint(run, "checkpoint-11", note=None)
    checkpoint(run, "checkpoint-12", note='{"rounds": 1')
    checkpoint(run, "checkpoint-13", note="[" * 100_000)
    for odd in ("", "x", "99999999999", "-1", "٣", "09", "9 "):
        checkpoint(run, f"checkpoint-{odd}")
    (run.job_folder / "guard" / "checkpoint-99").touch()
    assert (run.rounds_kept, run.checkpoint.name) == (9, "checkpoint-9")


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "[" * 100_000])
def test_a_guards_half_written_note_is_none(content: str, tmp_path: Path) -> None:
    run = Run(tmp_path, ("a",), 0.0)
    put(run.job_folder / "guard" / "state.json", content)
    assert run.state == {}


@pytest.mark.parametrize("who", ["../secret", "", ".", "b", "/etc", "server/../a"])
def test_a_log_is_a_sites_or_the_servers(who: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", ("a",), 0.0)
    for folder in ("a", "server", ".", "b"):
        put(run.workspace / folder / "log.txt", folder)
    put(run.folder / "secret" / "log.txt", "secret")
    assert (run.log("a"), run.log()) == ("a", "server")
    with pytest.raises(ResultsError, match="ask for 'server' or one of a"):
        run.log(who)


def test_guards_and_results_name_one_folder() -> None:
    assert results.GUARD_FOLDER == guard.FOLDER


def test_reading_results_needs_no_runner() -> None:
    code = "import sys, tutorial_utils.results; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in loaded if name.startswith("tutorial_utils._")] == ["tutorial_utils._read"]
    assert not {"matplotlib", "nvflare"} & set(loaded)


# ---- the fingerprint ----

WEIGHTS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array([1, 2], dtype=np.int64)}


def test_the_fingerprint_is_of_the_names_types_shapes_and_bytes_in_the_order_of_the_names() -> None:
    text = b"a int64 (2,)" + WEIGHTS["a"].tobytes() + b"b float32 (2, 3)" + WEIGHTS["b"].tobytes()
    assert sha256(WEIGHTS) == hashlib.sha256(text).hexdigest()
    assert sha256(WEIGHTS) == "b8ff094b51811fdf7ebfdbde6d74c59a86608ddb3382cf0d3bb74cea994d3da3"
    assert sha256(dict(reversed(WEIGHTS.items()))) == sha256(WEIGHTS)
    tensors = {name: torch.from_numpy(array) for name, array in WEIGHTS.items()}
    assert sha256(tensors) == sha256(WEIGHTS)
    assert sha256({"b": tensors["b"].T.contiguous().T, "a": tensors["a"].requires_grad_(False)}) == sha256(WEIGHTS)


@pytest.mark.parametrize(
    "other",
    [
        {"c": WEIGHTS["b"], "a": WEIGHTS["a"]},
        {"b": WEIGHTS["b"].reshape(3, 2), "a": WEIGHTS["a"]},
        {"b": WEIGHTS["b"].view(np.int32), "a": WEIGHTS["a"]},
        {"b": WEIGHTS["b"], "a": WEIGHTS["a"].view(np.float64)},
        {"b": np.nextafter(WEIGHTS["b"], np.float32(9)), "a": WEIGHTS["a"]},
        {"b": WEIGHTS["b"]},
    ],
)
def test_no_other_model_has_it(other: dict[str, np.ndarray]) -> None:
    assert sha256(other) != sha256(WEIGHTS)


def test_a_single_number_and_a_list_of_one_differ() -> None:
    assert sha256({"n": np.array(3)}) != sha256({"n": np.array([3])})
    assert sha256({"n": torch.tensor(3)}) == sha256({"n": np.array(3)})


def test_bfloat16_which_numpy_does_not_know_has_one_too() -> None:
    weights = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert sha256({"w": weights}) == sha256({"w": weights.clone()}) != sha256({"w": -weights})
    assert sha256({"w": weights}) != sha256({"w": weights.view(torch.int16)})
    assert sha256({"w": weights[0, 0]}) != sha256({"w": weights[:1, 0]})
