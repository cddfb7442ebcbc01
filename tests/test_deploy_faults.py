"""Each fault in a deployed run: what the reader sees, how soon, and what is left. tests/README.md has the table."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml
from nvflare.job_config.api import FedJob

from faults.decay_learner import DecayLearner
from fl.job import PROJECT
from tiny import make_net
from tutorial_utils import deploy
from tutorial_utils import job as general
from tutorial_utils._simulate import keeper
from tutorial_utils.deploy import Heartbeat, LocalFederation
from tutorial_utils.errors import DeployedRunError
from tutorial_utils.results import Run, sha256
from tutorial_utils.simulate import simulate

pytestmark = pytest.mark.slow

SITES = ["hospital-a", "hospital-b"]
HEARTBEAT = Heartbeat(interval=2, timeout=10)
ROUNDS, LONG = 6, 500  # of a job, and of one that shall not end by itself
PARENT, WORKER = "client_train", "worker_process"  # FLARE's modules: of a site's machine, of its job
SERVER, SERVER_WORKER = "server_train", "runner_process"
Note = Callable[[str, object], None]


def wait_for(what: Callable[[], object], seconds: float = 180.0) -> object:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "It did not happen in time."
        time.sleep(0.05)
    return found


def make_job(rounds: int = ROUNDS, pause: float = 1.0) -> FedJob:
    return general.build_job(DecayLearner(pause=pause), make_net(), sites=SITES, rounds=rounds, name="decay")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def federation(folder: Path) -> Iterator[LocalFederation]:
    """Another program has taken the server's port since it was provisioned."""
    for site in SITES:  # no data: a learner of points of its own
        (folder / "data" / site).mkdir(parents=True)
    data = sorted((folder / "data").iterdir())
    federation = deploy.provision(PROJECT, data, sites=SITES, runs=folder, name="faults", heartbeat=HEARTBEAT)
    with socket.socket() as other:
        other.bind(("localhost", federation.admin.address[1]))
        other.listen()
        with federation:
            yield federation


@pytest.fixture(autouse=True)
def all_run(federation: LocalFederation) -> Iterator[None]:
    """Each test finds all machines running, and leaves no process of a job."""
    if not federation.is_running("server"):
        federation.start_server()
    for site in SITES:
        if not federation.is_running(site):
            federation.start_site(site)
    yield
    for name in ("server", *SITES):
        wait_for(lambda name=name: not processes(federation, name).keys() & {WORKER, SERVER_WORKER})


@pytest.fixture(scope="module")
def uncut(folder: Path) -> Run:
    return simulate(make_job(pause=0.0), runs=folder, name="uncut", progress=False)


def same(run: Run, uncut: Run) -> bool:
    return run.sha256 == uncut.sha256 and sha256(run.best_model) == sha256(uncut.best_model)


def processes(federation: LocalFederation, name: str) -> dict[str, psutil.Process]:
    """A machine's processes, by the module of FLARE that they run."""
    found = {}
    for process in keeper.family(federation._running[name].token) if name in federation._running else ():
        try:
            words = " ".join(process.cmdline())
        except psutil.Error:
            continue
        found |= {module: process for module in (PARENT, WORKER, SERVER, SERVER_WORKER) if f".{module} " in words}
    return found


def state(federation: LocalFederation, job_id: str) -> dict[str, Any]:
    """What the server's guard knows, from its file."""
    return json.loads((federation.kits.folder / "server" / job_id / "guard/state.json").read_text())


def in_training(federation: LocalFederation, job_id: str, site: str = "hospital-b") -> int:
    """Return the number of a round, not the first, in which the site has just begun to train."""
    federation.wait_for_round(job_id, 1)
    before = state(federation, job_id)["round"]
    now = wait_for(lambda: (s := state(federation, job_id))["round"] > before and site in s["open"] and s)
    return now["round"]


def stand_still(found: dict[str, psutil.Process], seconds: float) -> threading.Timer:
    """Stop processes, and have them go on later."""
    for process in found.values():
        process.suspend()
    timer = threading.Timer(seconds, lambda: [process.resume() for process in found.values()])
    timer.start()
    return timer


def watch_fail(federation: LocalFederation, job_id: str, first_line: str, note: Note) -> DeployedRunError:
    start = time.monotonic()
    with pytest.raises(DeployedRunError, match=first_line) as caught:
        federation.watch(job_id, progress=False)
    note("seconds", round(time.monotonic() - start, 1))
    assert caught.value.run.rounds_kept and "resume_from= goes on after that" in str(caught.value)
    return caught.value


def test_a_port_that_was_taken_meanwhile_is_no_hindrance(federation: LocalFederation, folder: Path) -> None:
    """The fixture took it; the kits and the project file name another one, and all are connected."""
    assert federation.sites() == tuple(SITES)
    port = yaml.safe_load((folder / "faults/project.yml").read_text())["participants"][0]["fed_learn_port"]
    assert port == federation.admin.address[1]


def test_a_sites_process_of_the_job_is_killed(federation: LocalFederation, record_property: Note) -> None:
    job_id = federation.submit(make_job(LONG))
    in_training(federation, job_id)
    processes(federation, "hospital-b")[WORKER].kill()
    told = r"^hospital-b failed in round \d+: its process ended \(killed, out of memory, or it left by itself\)\.\n"
    watch_fail(federation, job_id, told, record_property)


def test_with_min_sites_the_run_goes_on_without_it(federation: LocalFederation, record_property: Note) -> None:
    """FLARE by itself ends the whole job, whatever min_sites says; and the site takes part in the next job."""
    job_id = federation.submit(make_job(6), min_sites=1)
    at = in_training(federation, job_id)
    processes(federation, "hospital-b")[WORKER].kill()
    start = time.monotonic()
    run = federation.watch(job_id, progress=False)
    record_property("seconds", round(time.monotonic() - start, 1))
    assert run.state["lost"]["hospital-b"]["round"] == at and set(run.missing[at]) == {"hospital-b"}
    assert run.cross_site.index.tolist() == ["hospital-a"]
    again = federation.run(make_job(1), progress=False)
    assert set(again.rounds["site"]) == set(SITES)


def test_a_sites_machine_goes_down(federation: LocalFederation, record_property: Note) -> None:
    """SIGKILL to FLARE's process at the site; its machine here ends with it."""
    job_id = federation.submit(make_job(LONG))
    in_training(federation, job_id)
    processes(federation, "hospital-b")[PARENT].kill()
    told = r"^hospital-b failed in round \d+: it does not answer any more \(its process ended, its machine or its net"
    watch_fail(federation, job_id, told, record_property)
    assert not federation.is_running("hospital-b")


@contextlib.contextmanager
def patience(federation: LocalFederation, seconds: float) -> Iterator[None]:
    """For the jobs that begin meanwhile: their guard reads it at its start, and a loaded machine is slow."""
    path = federation.kits.folder / "server/local/resources.json"
    before = path.read_text()
    settings = json.loads(before)
    settings["servers"][0]["heart_beat_timeout"] = seconds
    path.write_text(json.dumps(settings))
    try:
        yield
    finally:
        path.write_text(before)


def test_a_site_that_is_started_again_in_time_goes_on(federation: LocalFederation, uncut: Run) -> None:
    """FLARE by itself would wait for ever. Its round is done again, from what its learner has kept."""
    with patience(federation, 200):
        job_id = federation.submit(make_job())
        in_training(federation, job_id)
    federation.stop_site("hospital-b")
    federation.start_site("hospital-b")
    run = federation.watch(job_id, progress=False)
    assert same(run, uncut) and not run.state["lost"] and not run.state["gaps"]


def test_one_that_is_started_again_later_takes_part_again(federation: LocalFederation, record_property: Note) -> None:
    job_id = federation.submit(make_job(LONG), min_sites=1)
    at = in_training(federation, job_id)
    start = time.monotonic()
    federation.stop_site("hospital-b")
    wait_for(lambda: federation.progress(job_id).get("lost") == ["hospital-b"])
    record_property("seconds", round(time.monotonic() - start, 1))
    federation.wait_for_round(job_id, at + 2)
    federation.start_site("hospital-b")
    check_gap(federation, job_id, at)


def check_gap(federation: LocalFederation, job_id: str, at: int) -> Run:
    """Wait until a site is back that was lost in the round `at` and left out of two rounds; end the job."""
    gap = wait_for(lambda: state(federation, job_id)["gaps"])[0]
    federation.wait_for_round(job_id, gap["back"] + 2)
    federation.abort(job_id)
    with pytest.raises(DeployedRunError, match="aborted") as caught:
        federation.watch(job_id, progress=False)
    run = caught.value.run
    assert gap == {"site": "hospital-b", "from": at, "back": gap["back"]} and gap["back"] > at + 1
    assert set(run.missing[at]) == set(run.missing[at + 1]) == {"hospital-b"}
    assert set(run.rounds[run.rounds["round"] == gap["back"]]["site"]) == set(SITES)
    return run


def test_the_servers_process_of_the_job_is_killed(
    federation: LocalFederation, uncut: Run, record_property: Note
) -> None:
    job_id = federation.submit(make_job())
    in_training(federation, job_id)
    processes(federation, "server")[SERVER_WORKER].kill()
    told = r"^The run failed in round \d+: the server's process of the job ended \(killed, out of memory"
    error = watch_fail(federation, job_id, told, record_property)
    assert same(federation.run(make_job(), resume_from=error, progress=False), uncut)


def test_the_server_is_killed(federation: LocalFederation, uncut: Run, record_property: Note) -> None:
    """Its machine here ends with it. It is started again with what it has stored, and the run goes on; twice."""
    job_id = federation.submit(make_job())
    in_training(federation, job_id)
    processes(federation, "server")[SERVER].kill()
    told = r"^The server's processes have ended in round \d+, and the job is gone\.\n"
    error = watch_fail(federation, job_id, told, record_property)
    federation.start_server()
    assert federation.sites() == tuple(SITES)
    again = federation.submit(make_job(), resume_from=error)
    in_training(federation, again)
    federation.stop_server()
    with pytest.raises(DeployedRunError, match=told) as caught:
        federation.watch(again, progress=False)
    federation.start_server()
    run = federation.run(make_job(), resume_from=caught.value, progress=False)
    assert same(run, uncut)
    pd.testing.assert_frame_equal(run.rounds, uncut.rounds)


def test_the_server_is_started_again_under_a_job(
    federation: LocalFederation, uncut: Run, folder: Path, record_property: Note
) -> None:
    """Here, and as an admin elsewhere sees it, who may not read the server's files."""
    job_id = federation.submit(make_job())
    in_training(federation, job_id)
    federation.stop_server()
    federation.start_server()
    error = watch_fail(federation, job_id, r"^The server was started again while the job ran", record_property)
    assert error.status == "RUNNING"
    elsewhere = deploy.connect(federation.admin.kit, runs=folder / "elsewhere")
    with pytest.raises(DeployedRunError, match=f"the folder {job_id} of the server's kit: ask for a copy") as caught:
        elsewhere.watch(job_id, progress=False)
    asked_for = caught.value.run
    shutil.copytree(federation.kits.folder / "server" / job_id, asked_for.job_folder)
    run = elsewhere.run(make_job(), resume_from=asked_for.folder, progress=False)
    elsewhere.close()
    assert same(run, uncut)


@pytest.mark.parametrize("name", ["hospital-b", "server"])
def test_5_s_of_standing_still_are_borne(name: str, federation: LocalFederation, uncut: Run) -> None:
    job_id = federation.submit(make_job())
    in_training(federation, job_id)
    stand_still(processes(federation, name), 5).join()
    run = federation.watch(job_id, progress=False)
    assert same(run, uncut) and not run.state["lost"] and not run.state["gaps"]


def test_60_s_of_a_site_end_the_run(federation: LocalFederation, record_property: Note) -> None:
    job_id = federation.submit(make_job(LONG))
    in_training(federation, job_id)
    timer = stand_still(processes(federation, "hospital-b"), 60)
    watch_fail(federation, job_id, r"^hospital-b failed in round \d+: it does not answer any more", record_property)
    timer.join()
    wait_for(lambda: federation.sites() == tuple(SITES))


def test_60_s_of_a_site_are_a_gap_with_min_sites(federation: LocalFederation, record_property: Note) -> None:
    """Its late update is left out with a line, and it takes part again from the next round on."""
    job_id = federation.submit(make_job(LONG, pause=2.0), min_sites=1)
    at = in_training(federation, job_id)
    start = time.monotonic()
    timer = stand_still(processes(federation, "hospital-b"), 60)
    wait_for(lambda: federation.progress(job_id).get("lost") == ["hospital-b"])
    record_property("seconds", round(time.monotonic() - start, 1))
    federation.wait_for_round(job_id, at + 2)
    timer.join()
    run = check_gap(federation, job_id, at)
    assert re.search(r"peer=hospital-b.* - task \S+ is not found", run.log()), "FLARE's line for what comes too late"


def test_60_s_of_the_server_are_borne(federation: LocalFederation, uncut: Run) -> None:
    """Nobody was silent but the server, whose clock went on."""
    job_id = federation.submit(make_job())
    in_training(federation, job_id)
    timer = stand_still(processes(federation, "server"), 60)
    run = federation.watch(job_id, progress=False)
    timer.join()
    assert same(run, uncut) and not run.state["lost"] and not run.state["gaps"]


def test_nothing_is_left(federation: LocalFederation) -> None:
    tokens = [service.token for service in federation._running.values()]
    port = federation.admin.address[1]
    assert len(tokens) == 3
    federation.stop()
    assert not any(list(keeper.family(token)) for token in tokens)
    assert not [one for one in psutil.net_connections("tcp") if one.laddr.port == port and one.status == "LISTEN"]
