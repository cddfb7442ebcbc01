"""The processes of a run: started, watched, ended. tutorial_utils/_simulate/watch.py, keeper.py, alive.py, start.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tqdm import tqdm

from tutorial_utils._simulate import keeper, watch
from tutorial_utils._simulate.guard_processes import site_of, sites_alive
from tutorial_utils._simulate.watch import STEP_SECONDS, Quiet, _describe_stall, _plain_paths, _wait
from tutorial_utils.results import Run

SECONDS = 30.0  # that a loaded machine may take
SLEEP = "import time; time.sleep(600)"


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def token() -> Iterator[str]:
    name = f"test-{time.time_ns()}"
    yield name
    keeper.end_family(name)


def start(code: str, *words: str, token: str) -> subprocess.Popen:
    """A process of a run's family, which looks like a site's where the words say so."""
    return subprocess.Popen([sys.executable, "-c", code, *words], env=os.environ | {keeper.MARK: token})


# --- the keeper ---


def keep(code: str, token: str) -> int:
    """The keeper's own code, after it has run this one; its standard input stays open, as the runner leaves it."""
    command = [sys.executable, keeper.__file__, token, sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        return process.wait(SECONDS)


def test_what_a_command_leaves_behind_ends_with_it(token: str) -> None:
    """FLARE's processes start sessions of their own. Mutation that must not live: the family goes on."""
    sleeper = f"subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)"
    assert keep(f"import subprocess, sys; {sleeper}; sys.exit(3)", token) == 3
    assert list(keeper.family(token)) == []


def test_the_keeper_says_which_signal_ended_its_command(token: str) -> None:
    assert keep("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", token) == 128 + signal.SIGKILL


def test_ending_a_family_ends_itself_where_a_process_does_not(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that waits for a broken disk cannot be killed; here it is left alive."""
    process = start(SLEEP, token=token)
    with monkeypatch.context() as patch:
        patch.setattr(psutil.Process, "kill", lambda self: None)
        assert [left.pid for left in keeper.end_family(token, limit=0.2)] == [process.pid]
    assert keeper.end_family(token) == []


@pytest.mark.parametrize("module", ["keeper", "start"])
def test_a_file_that_is_run_by_its_path_shadows_no_module_of_the_reader(module: str, tmp_path: Path) -> None:
    """Python puts the file's folder first on sys.path, and FLARE hands sys.path on to every site."""
    head = Path(keeper.__file__).with_name(f"{module}.py").read_text(encoding="utf-8").partition("\nimport sys\n")
    clean = head[2].partition("\nimport ")[0]
    assert "__main__" in clean
    probe = tmp_path / "runner" / "probe.py"
    probe.parent.mkdir()
    probe.write_text(f"import sys\n{clean}\nimport watch\nprint(watch.WHOSE)\n")
    (probe.parent / "watch.py").write_text("WHOSE = 'the runner'")
    (tmp_path / "watch.py").write_text("WHOSE = 'the reader'")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, str(probe)], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "the reader\n"


# --- who lives ---


def test_a_site_is_known_by_its_process(token: str) -> None:
    process = start(SLEEP, "--client", "site-2", token=token)
    wait_for(lambda: "site-2" in (sites_alive() or ()))
    assert site_of(psutil.Process()) is None
    process.kill()
    wait_for(lambda: "site-2" not in (sites_alive() or ()))  # a zombie until we wait for it
    process.wait(SECONDS)
    assert site_of(psutil.Process(os.getpid())) is None


def test_where_processes_cannot_be_listed_nobody_is_taken_for_dead() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    process = psutil.Process(gone.pid)
    gone.wait(SECONDS)
    assert sites_alive(process) is None


# --- how long nothing happened ---


def test_quiet_is_the_time_since_the_last_change() -> None:
    quiet = Quiet()
    looks = [(0.0, "a"), (0.5, "a"), (1.0, "a"), (1.5, "b"), (2.0, "b")]
    assert [quiet.look(now, seen) for now, seen in looks] == [0, 0.5, 1.0, 0, 0.5]


def test_a_machine_that_slept_is_no_site_that_hangs() -> None:
    """The lid was closed for two hours: the clock jumps, and nobody could have answered."""
    quiet = Quiet()
    quiet.look(0.0, "a")
    assert quiet.look(8000.0, "a") <= STEP_SECONDS


def test_what_hangs_is_noticed_however_slow_the_watch() -> None:
    quiet = Quiet()
    assert max(quiet.look(5.0 * number, "a") for number in range(20)) > 10


# --- the watch ---


def write_state(run: Run, **state: object) -> None:
    folder = run.job_folder / "guard"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_text(json.dumps({"phase": "training", "time": 1.0, **state}))


@pytest.fixture
def fresh(tmp_path: Path) -> Run:
    return Run(tmp_path, ("site-1", "site-2"), 0.0)


def test_the_runner_waits_until_every_site_is_finalized(fresh: Run, token: str) -> None:
    """A learner may still write in finalize(). Mutation that must not live: it does not wait."""
    process = start(SLEEP, token=token)
    write_state(fresh, phase="ended")
    returned = threading.Event()

    def watch_it() -> None:
        _wait(fresh, process, token, None, tqdm(disable=True))
        returned.set()

    threading.Thread(target=watch_it, daemon=True).start()
    for site in fresh.sites:
        assert not returned.wait(0.5), f"{site} is not finalized"
        (fresh.site_folder(site) / "guard").mkdir(parents=True)
        (fresh.site_folder(site) / "guard" / "state.json").write_text("{}")
    assert returned.wait(SECONDS)
    process.kill()


def test_a_lost_site_is_not_waited_for(fresh: Run, token: str) -> None:
    process = start(SLEEP, token=token)
    write_state(fresh, phase="ended", lost={site: {"round": 0} for site in fresh.sites})
    assert _wait(fresh, process, token, None, tqdm(disable=True)) is None
    process.kill()


@pytest.mark.parametrize(
    ("code", "state", "reason"),
    [
        (0, {}, None),
        (2, {}, None),
        (1, {}, "the simulator's process ended with code 1, killed perhaps or out of memory"),
        (0, {"failure": {"reason": "it answered NO"}}, "it answered NO"),
        (0, {"open": {"site-2": {"task": "train", "since": 1.0}}}, "its process ended"),
    ],
)
def test_a_simulator_that_ended_by_itself(code: int, state: dict, reason: str | None, fresh: Run, token: str) -> None:
    process = start(f"import sys; sys.exit({code})", token=token)
    process.wait(SECONDS)
    write_state(fresh, **state)
    failure = _wait(fresh, process, token, None, tqdm(disable=True))
    assert (failure is None) == (reason is None)
    assert failure is None or failure["reason"].startswith(reason)


# --- a stall ---

ANSWERS = """
import faulthandler, pathlib, signal, sys, time
file = open(sys.argv[-1], "w")
faulthandler.register(signal.SIGUSR1, file)
pathlib.Path(sys.argv[-1] + ".up").touch()
time.sleep(600)
"""


def start_site(run: Run, site: str, token: str) -> subprocess.Popen:
    stack = run.site_folder(site) / "guard" / "stack.txt"
    stack.parent.mkdir(parents=True)
    process = start(ANSWERS, "--client", site, str(stack), token=token)
    wait_for(Path(f"{stack}.up").exists)
    return process


def test_a_site_that_has_not_answered_shows_where_it_is(
    fresh: Run, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOG_SECONDS", 0.5)
    for site in fresh.sites:
        start_site(fresh, site, token)
    write_state(fresh, open={"site-2": {"task": "train", "since": 0}}, asked=["site-1", "site-2"])
    stall = _describe_stall(fresh, token, 8.4)
    assert stall["reason"] == "it has not answered for 8 s (stall_timeout), though its process is alive"
    assert (stall["site"], stall["task"]) == ("site-2", "train")
    assert stall["details"].startswith("site-2 is here:\n") and "site-1" not in stall["details"]
    assert 'File "<string>", line 6 in <module>' in stall["details"]


@pytest.mark.parametrize("asked", [["site-1"], ["site-1", "site-2"]])
def test_a_site_that_is_frozen_between_two_tasks_is_named(
    asked: list[str], fresh: Run, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOG_SECONDS", 0.1)
    processes = {site: start_site(fresh, site, token) for site in fresh.sites}
    processes["site-2"].send_signal(signal.SIGSTOP)
    wait_for(lambda: psutil.Process(processes["site-2"].pid).status() == psutil.STATUS_STOPPED)
    write_state(fresh, open={}, asked=asked)
    stall = _describe_stall(fresh, token, 8.4)
    reason = (
        "it has not come for its task for 8 s (stall_timeout), though its process is stopped (SIGSTOP, or a debugger)"
    )
    assert (stall["site"], stall["reason"]) == ("site-2", reason)
    assert stall["details"] == "", "it cannot say where it is"


def test_sites_that_have_not_come_for_a_task_are_named(fresh: Run, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their processes may be gone meanwhile: no error of psutil's escapes."""
    monkeypatch.setattr(watch, "LOG_SECONDS", 0.1)
    write_state(fresh, open={}, asked=[])
    stall = _describe_stall(fresh, token, 8.4)
    reason = "nothing has happened for 8 s (stall_timeout): each of site-1, site-2 has not come for its task"
    assert stall == {"reason": reason, "details": ""}


def test_a_signal_meant_for_a_site_reaches_no_other_process(
    fresh: Run, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one site, the simulator's own command line names it too: -c site-1. SIGUSR1 would end it."""
    one = Run(fresh.folder, ("site-1",), 0.0)
    simulator = start(SLEEP, "-c", "site-1", token=token)
    wait_for(lambda: list(keeper.family(token)))
    write_state(one, open={"site-1": {"task": "train", "since": 0}}, asked=["site-1"])
    monkeypatch.setattr(watch, "LOG_SECONDS", 0.1)
    _describe_stall(one, token, 8.4)
    assert simulator.poll() is None
    simulator.kill()


# --- paths that FLARE would split ---


def test_plain_paths_stay_as_they_are(tmp_path: Path) -> None:
    with _plain_paths(tmp_path) as (folder, python):
        assert folder == tmp_path and Path(python).samefile(sys.executable)


@pytest.mark.parametrize("how", ["{}/bin/python", "{}/bin/../bin/python", "../{}/bin/python"])
def test_an_interpreter_by_any_path_is_the_same_environment(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A virtual environment is known by the folder that its python is called in."""
    environment = tmp_path / "my environment"
    environment.symlink_to(sys.prefix, target_is_directory=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    name = how.format("my environment" if how.startswith("..") else environment)
    monkeypatch.setattr(sys, "executable", str(Path.cwd() / name) if how.startswith("..") else name)
    with _plain_paths(tmp_path / "Läufe (A & B)") as (folder, python):
        assert watch.PLAIN_PATH.fullmatch(f"{folder}{python}")
        code = "import sys, nvflare; print(sys.prefix)"
        prefix = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        assert Path(prefix).samefile(sys.prefix)
    assert not folder.exists(), "the links are gone"
