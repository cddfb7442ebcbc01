"""A run of which something is missing is no success, whatever the simulator returned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tutorial_utils._simulate.guard import PROCESS_ENDED
from tutorial_utils._simulate.verdict import explain, find_lack, first_error
from tutorial_utils.errors import ResultsError
from tutorial_utils.results import Run
from tutorial_utils.settings import FAST

ROUNDS = range(FAST.rounds)
LAST = FAST.rounds - 1


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Run:
    shutil.copytree(run.folder, tmp_path / "copy")
    return Run(tmp_path / "copy", run.sites, run.seconds)


def metrics(run: Run) -> Path:
    return run.job_folder / "metrics" / "round_metrics.jsonl"


def edit_model(run: Run, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    saved = torch.load(run.global_model_path, weights_only=True)
    edit(saved["model"])
    torch.save(saved, run.global_model_path)


def drop_last_round(run: Run) -> None:
    lines = metrics(run).read_text().splitlines(keepends=True)
    metrics(run).write_text("".join(lines[:-1]))


def drop_a_site(run: Run) -> None:
    records = [json.loads(line) for line in metrics(run).read_text().splitlines()]
    records[1]["sites"] = [site for site in records[1]["sites"] if site["name"] != "site-2"]
    metrics(run).write_text("".join(f"{json.dumps(record)}\n" for record in records))


def poison_model(run: Run) -> None:
    edit_model(run, lambda model: model["fc1.bias"].fill_(float("nan")))


def cut_model(run: Run) -> None:
    edit_model(run, lambda model: model.pop("conv2.weight"))


def squeeze_model(run: Run) -> None:
    edit_model(run, lambda model: model.update({"fc3.bias": model["fc3.bias"][:9].clone()}))


def forget_a_checkpoint(run: Run) -> None:
    run.checkpoint.rename(run.checkpoint.with_name(f"checkpoint-{LAST}"))


def drop_a_score(run: Run) -> None:
    path = run.job_folder / "cross_site_val" / "cross_val_results.json"
    results = json.loads(path.read_text())
    del results["site-1"]["site-2"]
    path.write_text(json.dumps(results))


def test_a_whole_run_lacks_nothing(run: Run) -> None:
    assert find_lack(run, ROUNDS, evaluates=True) is None


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (drop_last_round, f"round {LAST} has no result of site-1, site-2"),
        (drop_a_site, "round 1 has no result of site-2"),
        (poison_model, "the global model is wrong: fc1.bias holds numbers that are not finite"),
        (cut_model, "the global model is wrong: it lacks conv2.weight"),
        (squeeze_model, "the global model is wrong: fc3.bias has the shape (9,) instead of (10,)"),
        (forget_a_checkpoint, f"the model of round {LAST} was not saved"),
        (drop_a_score, "the cross-site matrix lacks site-2 on site-1"),
    ],
)
def test_what_a_run_lacks_is_named(damage: Callable[[Run], None], text: str, copy: Run) -> None:
    damage(copy)
    assert find_lack(copy, ROUNDS, evaluates=True) == text
    assert text in str(explain(copy, None, text)).splitlines()[0]


def test_a_missing_matrix_matters_only_where_one_was_asked_for(copy: Run) -> None:
    (copy.job_folder / "cross_site_val" / "cross_val_results.json").unlink()
    assert find_lack(copy, ROUNDS, evaluates=False) is None
    with pytest.raises(ResultsError):
        find_lack(copy, ROUNDS, evaluates=True)


def test_a_lost_site_is_missed_before_its_loss_alone(copy: Run) -> None:
    drop_a_site(copy)
    state = json.loads((copy.job_folder / "guard" / "state.json").read_text())
    for number, lack in ((2, "round 1 has no result of site-2"), (1, None)):
        state["lost"] = {"site-2": {"round": number, "task": "train"}}
        (copy.job_folder / "guard" / "state.json").write_text(json.dumps(state))
        assert find_lack(copy, ROUNDS, evaluates=True) == lack


def test_the_first_traceback_of_a_log_is_the_cause(copy: Run) -> None:
    trace = "Traceback (most recent call last):\n  File ...\nKeyError: 'lr'"
    records = [
        {"levelname": "INFO", "message": "Traceback (most recent call last): no"},
        {"levelname": "ERROR", "message": "something went wrong", "asctime": "1"},
        {"levelname": "ERROR", "message": f"Exception in train: {trace}", "asctime": "2"},
        {"levelname": "ERROR", "message": "Traceback (most recent call last):\nOSError: later", "asctime": "3"},
    ]
    text = "".join(f"{json.dumps(record)}\n" for record in records) + '{"levelname": "ERROR", "mess'
    (copy.workspace / "site-1" / "log.json").write_text(text)
    found = first_error(copy, "site-1")
    assert found == {"who": "site-1", "time": "2", "cause": "KeyError: 'lr'", "traceback": trace}


def log_error(run: Run, site: str, message: str) -> None:
    with (run.workspace / site / "log.json").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"asctime": "2026-01-01 00:00:00,000", "levelname": "ERROR", "message": message}) + "\n")


@pytest.mark.parametrize("reason", ["it answered NOT_TODAY", "its update is wrong: it lacks fc3.bias"])
def test_what_follows_from_the_end_of_a_run_is_not_its_cause(copy: Run, reason: str) -> None:
    """A site that is busy when the server ends writes that its pipe is broken."""
    log_error(copy, "site-2", "ClientTaskWorker run error: BrokenPipeError: [Errno 32] Broken pipe")
    error = explain(copy, {"reason": reason, "site": "site-2", "task": "train"})
    assert reason in str(error).splitlines()[0]


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (PROCESS_ENDED, "ConfigError: there is no such learner"),
        ("it answered EXECUTION_EXCEPTION", "Traceback (most recent call last):\n  here\nValueError: the disk is full"),
    ],
)
def test_the_sites_own_log_knows_more_than_the_server(copy: Run, reason: str, message: str) -> None:
    log_error(copy, "site-2", message)
    error = explain(copy, {"reason": reason, "site": "site-2", "task": "train"})
    assert message.splitlines()[-1] in str(error).splitlines()[0]
