"""A run is judged by what its job asked for, whatever the simulator returned, and the cause is named that is one."""

from __future__ import annotations

import json
import math
import shutil
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from tutorial_utils._simulate.asked import Asked
from tutorial_utils._simulate.guard import PROCESS_ENDED
from tutorial_utils._simulate.verdict import explain, find_lack
from tutorial_utils.results import Run
from tutorial_utils.settings import FAST

LAST = FAST.rounds - 1
ASKED = Asked(training=0, rounds=range(FAST.rounds), saves=True, evaluates=True, local_models=True, global_models=True)
BEGAN = datetime(2026, 1, 1).timestamp()


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


def guard_file(run: Run, name: str) -> Path:
    return run.job_folder / "guard" / name


def edit_rounds(run: Run, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change what the guard noted of each round."""
    records = [json.loads(line) for line in guard_file(run, "rounds.jsonl").read_text().splitlines()]
    for record in records:
        edit(record)
    guard_file(run, "rounds.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))


def edit_matrix(run: Run, edit: Callable[[dict[str, Any]], object]) -> None:
    path = run.job_folder / "cross_site_val" / "cross_val_results.json"
    results = json.loads(path.read_text())
    edit(results)
    path.write_text(json.dumps(results))


def test_a_whole_run_lacks_nothing(run: Run) -> None:
    assert find_lack(run, ASKED) is None


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
    assert find_lack(copy, ASKED) == text
    assert text in str(explain(copy, None, text)).splitlines()[0]


def test_a_missing_matrix_matters_only_where_one_was_asked_for(copy: Run) -> None:
    (copy.job_folder / "cross_site_val" / "cross_val_results.json").unlink()
    assert find_lack(copy, replace(ASKED, evaluates=False)) is None
    assert "cross_val_results.json is missing" in find_lack(copy, ASKED)


def test_a_score_that_is_no_number_is_no_hole_and_no_score_is_one(copy: Run) -> None:
    edit_matrix(copy, lambda rows: rows["site-1"]["site-2"].update(accuracy=math.nan))
    assert find_lack(copy, ASKED) is None, "AUC without a positive"
    edit_matrix(copy, lambda rows: rows["site-1"].update({"site-2": {}}))
    assert find_lack(copy, ASKED) == "the cross-site matrix lacks site-2 on site-1"


def test_the_server_s_models_alone_are_enough_where_no_other_is_asked_for(copy: Run) -> None:
    edit_matrix(copy, lambda rows: [row.pop(site) for row in rows.values() for site in copy.sites])
    assert find_lack(copy, replace(ASKED, local_models=False)) is None
    edit_matrix(copy, lambda rows: rows["site-2"].pop("SRV_best_FL_global_model.pt"))
    lack = "the cross-site matrix lacks best global on site-2"
    assert find_lack(copy, replace(ASKED, local_models=False)) == lack
    edit_matrix(copy, lambda rows: rows.clear())
    lack = "the cross-site matrix lacks global on site-1, global on site-2"
    assert find_lack(copy, replace(ASKED, local_models=False)) == lack


def test_an_evaluation_alone_needs_every_given_model_at_every_site(copy: Run) -> None:
    alone = Asked(evaluates=True, global_models=True)
    metrics(copy).unlink()
    edit_matrix(copy, lambda rows: rows.update({site: {"SRV_a": {"auc": 0.5}, "SRV_b": {"auc": 1}} for site in rows}))
    assert find_lack(copy, alone) is None
    edit_matrix(copy, lambda rows: rows["site-1"].pop("SRV_b"))
    assert find_lack(copy, alone) == "the cross-site matrix lacks b on site-1"
    edit_matrix(copy, lambda rows: rows.clear())
    assert find_lack(copy, alone) == "the cross-site matrix is empty"


@pytest.mark.parametrize(("answers", "lack"), [(1, None), (2, "round 1 has no result of site-2")])
def test_as_many_answers_as_the_job_asks_for_are_enough(answers: int, lack: str | None, copy: Run) -> None:
    drop_a_site(copy)
    assert find_lack(copy, replace(ASKED, answers=answers)) == lack


def test_too_few_answers_are_counted(copy: Run) -> None:
    drop_a_site(copy)
    three = Run(copy.folder, (*copy.sites, "site-3"), 0.0)
    asked = replace(ASKED, answers=2, evaluates=False)
    assert find_lack(three, asked) == "round 1 has results of 1 site (site-1), and the job asks for 2"


def test_a_run_that_may_stop_early_is_whole_where_it_stopped(copy: Run) -> None:
    drop_last_round(copy)
    lines = guard_file(copy, "rounds.jsonl").read_text().splitlines(keepends=True)
    guard_file(copy, "rounds.jsonl").write_text("".join(lines[:-1]))
    forget_a_checkpoint(copy)
    assert find_lack(copy, replace(ASKED, may_stop=True)) is None
    drop_a_site(copy)
    again = Run(copy.folder, copy.sites, 0.0)
    assert find_lack(again, replace(ASKED, may_stop=True)) == "round 1 has no result of site-2"


def test_who_reports_no_number_has_taken_part(copy: Run) -> None:
    """FLARE leaves NaN out of its file, and with its only metric the site."""
    drop_a_site(copy)
    edit_rounds(copy, lambda record: record["round"] == 1 and record["sites"]["site-2"].update(metrics=False))
    assert find_lack(copy, ASKED) is None
    edit_rounds(copy, lambda record: [site.update(metrics=False) for site in record["sites"].values()])
    metrics(copy).unlink()
    assert find_lack(copy, ASKED) is None, "a job that measures nothing"


def test_what_stays_at_home_and_what_was_infinite_from_the_start_is_no_fault(copy: Run) -> None:
    path = copy.checkpoint / "checkpoint.json"
    record = json.loads(path.read_text())
    edit_model(copy, lambda model: (model.pop("fc2.bias"), model["fc1.bias"].fill_(-math.inf)))
    path.write_text(json.dumps(record | {"absent": ["fc2.bias"], "infinite": ["fc1.bias"]}))
    assert find_lack(copy, ASKED) is None
    path.write_text(json.dumps(record | {"absent": ["fc2.bias"]}))
    assert find_lack(copy, ASKED) == "the global model is wrong: fc1.bias holds numbers that are not finite"


def test_a_lost_site_is_missed_before_its_loss_alone(copy: Run) -> None:
    drop_a_site(copy)
    state = json.loads(guard_file(copy, "state.json").read_text())
    for number, lack in ((2, "round 1 has no result of site-2"), (1, None)):
        state["lost"] = {"site-2": {"round": number, "task": "train"}}
        guard_file(copy, "state.json").write_text(json.dumps(state))
        assert find_lack(copy, ASKED) == lack


# --- the cause ---


def trace_of(error: Exception) -> str:
    try:
        raise error
    except Exception as caught:
        return "".join(traceback.format_exception(caught)).strip()


def wrapped() -> str:
    try:
        try:
            raise KeyError("lr")
        except KeyError as error:
            raise ValueError("no learner\nHint: look at lr") from error
    except ValueError as error:
        return "".join(traceback.format_exception(error)).strip()


STATE_DICT = RuntimeError('Error(s) in loading state_dict for Net:\n\tMissing key(s): "a". \n\tsize mismatch for b.')


def log_error(run: Run, who: str, message: str, second: float, level: str = "ERROR") -> None:
    """A line as FLARE writes it, so many seconds after the run began."""
    stamp = datetime.fromtimestamp(BEGAN + second).strftime("%Y-%m-%d %H:%M:%S,%f")[:-3]
    with (run.workspace / who / "log.json").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"asctime": stamp, "levelname": level, "message": message}) + "\n")


def failure(reason: str, since: float, time: float, site: str | None = "site-2", task: str = "train") -> dict:
    return {"reason": reason, "site": site, "task": task, "since": BEGAN + since, "time": BEGAN + time}


def first_line(run: Run, seen: dict[str, Any] | None, lack: str | None = None) -> str:
    return str(explain(run, seen, lack)).splitlines()[0]


RAISED = "it answered EXECUTION_EXCEPTION"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (trace_of(ValueError("the disk is full")), "ValueError: the disk is full"),
        (trace_of(ValueError("the disk is full\nHint: buy another one")), "ValueError: the disk is full"),
        (trace_of(STATE_DICT), 'RuntimeError: Error(s) in loading state_dict for Net: Missing key(s): "a"'),
        (f"Exception in train: {wrapped()}", "ValueError: no learner"),
        (trace_of(ValueError("two lines\nTraceback (most recent call last): no")), "ValueError: two lines"),
    ],
)
def test_the_cause_is_the_message_s_own_line(message: str, text: str, copy: Run) -> None:
    log_error(copy, "site-2", message, 9)
    assert first_line(copy, failure(RAISED, 8, 9.1)) == f"site-2 failed in round {LAST}: {text}."


def test_an_error_that_was_handled_before_is_not_the_cause(copy: Run) -> None:
    log_error(copy, "site-2", "cache miss, reading again\n" + trace_of(OSError("stale file handle")), 1)
    assert first_line(copy, failure(PROCESS_ENDED, 70, 75)) == f"site-2 failed in round {LAST}: {PROCESS_ENDED}."
    assert "TASK_ABORTED" in first_line(copy, failure("it answered TASK_ABORTED", 70, 75))


def test_the_last_of_the_errors_of_a_task_is_the_cause(copy: Run) -> None:
    for second, error in ((70.5, OSError("handled")), (71, ValueError("the disk is full")), (90, OSError("later"))):
        log_error(copy, "site-2", trace_of(error), second)
    assert "ValueError: the disk is full" in first_line(copy, failure(RAISED, 70, 72))


def test_an_error_that_flare_hands_on_inside_another_one_is_named_by_itself(copy: Run) -> None:
    first = trace_of(TypeError("Can't load class mine.Learner: No module named 'mine'"))
    log_error(copy, "site-2", trace_of(OSError("handled")), 9.0)
    log_error(copy, "site-2", first, 9.1)
    log_error(copy, "site-2", trace_of(RuntimeError(f"Error processing config: {first.splitlines()[-1]}")), 9.2)
    assert "TypeError: Can't load class mine.Learner" in first_line(copy, failure(RAISED, 8, 9.3))


def test_the_traceback_stands_at_the_end(copy: Run) -> None:
    trace = trace_of(KeyError("lr"))
    log_error(copy, "site-2", f"Exception in train: {trace}", 9)
    text = str(explain(copy, failure(RAISED, 8, 9)))
    assert text.endswith(trace) and text.splitlines()[0].endswith("KeyError: 'lr'.")


@pytest.mark.parametrize("reason", ["it answered NOT_TODAY", "its update is wrong: it lacks fc3.bias"])
@pytest.mark.parametrize("message", ["BrokenPipeError: [Errno 32] Broken pipe", "a warning\n" + trace_of(OSError("x"))])
def test_what_follows_from_the_end_of_a_run_is_not_its_cause(copy: Run, reason: str, message: str) -> None:
    """A site that is busy when the server ends writes that its pipe is broken."""
    log_error(copy, "site-2", message, 20)
    assert reason in first_line(copy, failure(reason, 8, 9))


def test_an_update_that_is_wrong_is_the_cause_whatever_its_site_has_logged(copy: Run) -> None:
    log_error(copy, "site-2", trace_of(OSError("handled")), 8.5)
    reason = "its update is wrong: it lacks fc3.bias"
    text = str(explain(copy, failure(reason, 8, 9)))
    assert reason in text.splitlines()[0] and "OSError" not in text


def test_the_last_error_of_a_process_that_ended_is_told_with_its_end(copy: Run) -> None:
    log_error(copy, "site-2", "cache miss, reading again", 71)
    expected = f"{PROCESS_ENDED}; the last error in its log: cache miss, reading again"
    assert expected in first_line(copy, failure(PROCESS_ENDED, 70, 95))
    log_error(copy, "site-2", trace_of(MemoryError("8 GiB")), 94)
    assert f"round {LAST}: MemoryError: 8 GiB" in first_line(copy, failure(PROCESS_ENDED, 70, 95))


def test_of_a_site_whose_clock_is_another_one_the_last_traceback_counts(copy: Run) -> None:
    log_error(copy, "site-2", trace_of(ValueError("the disk is full")), -7_200)
    assert "ValueError: the disk is full" in first_line(copy, failure(RAISED, 70, 95))


def forget_the_start(run: Run, served: list[str] | None = None) -> None:
    state = json.loads(guard_file(run, "state.json").read_text())
    guard_file(run, "state.json").write_text(json.dumps(state | {"served": served or [], "round": None}))


def test_before_its_first_task_a_site_s_log_counts_from_its_beginning(copy: Run) -> None:
    forget_the_start(copy)
    log_error(copy, "site-1", trace_of(RuntimeError("this site has no licence")), 1)
    expected = "site-1 failed before its first task: RuntimeError: this site has no licence."
    assert first_line(copy, failure(PROCESS_ENDED, 30, 35, "site-1")) == expected
    assert first_line(copy, None, "round 0 has no result of site-1") == expected


USAGE = """usage: simulator_worker.py [-h] [--lr LR]
simulator_worker.py: error: unrecognized arguments: -o /runs/x/workspace/site-1 --client site-1
2026-11-26 00:36:00,100 - ERROR - Communication error with client site-1:
"""


def test_a_module_that_reads_the_command_line_is_named_as_such(copy: Run) -> None:
    """It ends its process before FLARE has a log to write into."""
    forget_the_start(copy)
    (copy.folder / "simulator.log").write_text(USAGE)
    log_error(copy, "server", "Communication error with client site-1: ", 1)
    line = first_line(copy, None, "round 0 has no result of site-1, site-2")
    assert "a module that the job brings reads the command line when it is imported" in line
    assert "(simulator_worker.py: unrecognized arguments)" in line
    assert "reads the command line" in first_line(copy, failure(PROCESS_ENDED, 30, 35, "site-1"))


def ended_with(code: int) -> dict[str, Any]:
    return {"reason": f"the simulator's process ended with code {code}, killed perhaps or out of memory", "code": code}


def test_a_simulator_that_gave_up_has_written_why(copy: Run) -> None:
    shutil.rmtree(copy.job_folder)
    message = "RuntimeError: The job does not have App to run for clients: ['site-1']"
    log_error(copy, "server", trace_of(RuntimeError(message.partition(": ")[2])), 1)
    log_error(copy, "server", "Simulator run error: RuntimeError: Could not start the Server App.", 1)
    assert first_line(copy, ended_with(1)) == f"The server failed before it began: {message}."


def test_what_a_process_printed_at_its_end_is_the_cause_where_no_log_has_one(copy: Run) -> None:
    shutil.rmtree(copy.job_folder)
    trace = trace_of(ImportError("cannot import name 'Net' from 'nets' (unknown location)"))
    (copy.folder / "simulator.log").write_text(f"2026-11-26 00:00:00,000 - INFO - starts\n{trace}\n")
    line = first_line(copy, ended_with(1))
    assert (
        line == "The run failed before it began: ImportError: cannot import name 'Net' from 'nets' (unknown location)."
    )


def test_of_a_simulator_that_was_killed_no_handled_error_is_the_cause(copy: Run) -> None:
    log_error(copy, "server", trace_of(OSError("handled")), 1)
    assert "ended with code 137, killed perhaps" in first_line(copy, ended_with(137))
    (copy.folder / "simulator.log").write_text("Fatal Python error: Segmentation fault\n\nThread 0x1:\n")
    assert "Fatal Python error: Segmentation fault" in first_line(copy, ended_with(139))


def test_a_panic_of_flare_s_gets_its_traceback(copy: Run) -> None:
    reason = "Exception in ScatterAndGather control_flow: ZeroDivisionError: division by zero"
    log_error(copy, "server", trace_of(OSError("handled")), 8)
    log_error(copy, "server", trace_of(ZeroDivisionError("division by zero")), 9)
    text = str(explain(copy, failure(reason, 8, 9, site=None)))
    assert text.splitlines()[0] == f"The run failed in round {LAST}: {reason}."
    assert text.endswith("ZeroDivisionError: division by zero")


def test_a_log_that_was_cut_is_read_as_far_as_it_goes(copy: Run) -> None:
    log_error(copy, "site-2", trace_of(KeyError("lr")), 9)
    log_error(copy, "site-2", "Traceback (most recent call last): no", 9, level="INFO")
    with (copy.workspace / "site-2" / "log.json").open("a", encoding="utf-8") as file:
        file.write('{"levelname": "ERROR", "mess')
    assert "KeyError: 'lr'" in first_line(copy, failure(RAISED, 8, 9))


def test_a_gap_is_no_lack_and_what_is_outside_of_it_is(copy: Run) -> None:
    """A site that was lost in a round and came back in a later one owes the others."""
    drop_a_site(copy)
    state = json.loads(guard_file(copy, "state.json").read_text())
    for site, since, back, lack in (
        ("site-2", 1, 2, None),
        ("site-2", None, 2, None),
        ("site-2", 0, 1, "round 1 has no result of site-2"),
        ("site-1", 1, 2, "round 1 has no result of site-2"),
    ):
        state["gaps"] = [{"site": site, "from": since, "back": back}]
        guard_file(copy, "state.json").write_text(json.dumps(state))
        assert find_lack(copy, ASKED) == lack


def test_a_site_that_sends_no_log_fails_as_another_one_that_does(copy: Run) -> None:
    """Before its first task: both could not build the learner, say."""
    state = json.loads(guard_file(copy, "state.json").read_text())
    guard_file(copy, "state.json").write_text(json.dumps(state | {"served": [], "round": None}))
    assert first_line(copy, failure(PROCESS_ENDED, 8, 9)) == f"site-2 failed before its first task: {PROCESS_ENDED}."
    log_error(copy, "site-1", trace_of(KeyError("lr")), 8)
    assert first_line(copy, failure(PROCESS_ENDED, 8, 9)) == "site-1 failed before its first task: KeyError: 'lr'."
