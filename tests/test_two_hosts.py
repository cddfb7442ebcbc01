"""Two hosts and a line between them: what becomes of a run when the line is slow, lossy, cut.

The server and one site have a network namespace each, and see each other over a line alone (line.py).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator

import pytest
import yaml
from line import Line, namespace, run_ip, why_not
from nvflare.job_config.api import FedJob

from faults.wide_learner import WideLearner, make_wide_net
from fl.job import PROJECT
from tutorial_utils import deploy
from tutorial_utils import job as general
from tutorial_utils._simulate import keeper
from tutorial_utils.deploy import Heartbeat, LocalFederation
from tutorial_utils.errors import DeployedRunError, DeploymentError
from tutorial_utils.results import Run, sha256
from tutorial_utils.simulate import simulate

REASON = why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

SITES = ["near", "far"]  # one beside the server, one at the other end of the line
SERVER, HERE = "198.18.0.1", "198.18.0.2"  # the network that RFC 2544 sets apart for tests
ENDS = ("198.18.1.1", "198.18.1.2")
MBIT_2 = 2e6 / 8
FAR = 1  # the end of the line
PART = 300_000  # bytes, of an update of 1 MB
CUT_SECONDS = 15.0
HEARTBEAT = Heartbeat(4, 40)  # after a cut of 15 s TCP may be silent for 26: it doubles its waits


def wait_for(what: Callable[[], object], seconds: float = 120.0) -> object:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "It did not happen in time."
        time.sleep(0.02)
    return found


def make_job(rounds: int = 2) -> FedJob:
    return general.build_job(WideLearner(), make_wide_net(), sites=SITES, rounds=rounds, name="wide")


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[str, str]]:
    """Two namespaces, and a way from here to the server's, for the admin."""
    names = (f"server-{os.getpid()}", f"far-{os.getpid()}")
    with namespace(names[0]), namespace(names[1]):
        ours, theirs = f"adm{os.getpid() % 100000}", f"srv{os.getpid() % 100000}"
        run_ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", names[0])
        try:
            run_ip("addr", "add", f"{HERE}/30", "dev", ours)
            run_ip("link", "set", ours, "up")
            run_ip("addr", "add", f"{SERVER}/30", "dev", theirs, inside=names[0])
            run_ip("link", "set", theirs, "up", inside=names[0])
            yield names
        finally:
            run_ip("link", "del", ours)


@pytest.fixture(scope="module")
def line(hosts: tuple[str, str]) -> Iterator[Line]:
    line = Line(hosts, ENDS, f"line{os.getpid() % 100000}")
    run_ip("route", "add", SERVER, "dev", line.device, inside=hosts[1])
    yield line
    line.close()


@pytest.fixture(scope="module")
def federation(
    hosts: tuple[str, str], line: Line, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalFederation]:
    folder = tmp_path_factory.mktemp("two-hosts")
    project = yaml.safe_load(PROJECT.read_text())
    next(one for one in project["participants"] if one["type"] == "server")["default_host"] = SERVER
    (folder / "project.yml").write_text(yaml.safe_dump(project))
    for site in SITES:  # no data: a learner of points of its own
        (folder / "data" / site).mkdir(parents=True)
    data = sorted((folder / "data").iterdir())
    federation = deploy.provision(folder / "project.yml", data, sites=SITES, runs=folder, heartbeat=HEARTBEAT)
    inside = {name: ["ip", "netns", "exec", host] for name, host in zip(("server", "far"), hosts, strict=True)}
    federation.inside = inside | {"near": inside["server"]}
    with federation:
        yield federation


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return simulate(make_job(), runs=tmp_path_factory.mktemp("uncut"), progress=False)


@pytest.fixture(autouse=True)
def as_found(line: Line) -> Iterator[None]:
    yield
    line.delay = line.loss = line.rate = 0.0
    line.join()


def same(run: Run, uncut: Run) -> bool:
    return run.sha256 == uncut.sha256 and sha256(run.best_model) == sha256(uncut.best_model)


def in_an_update(federation: LocalFederation, line: Line, job_id: str) -> None:
    """Return in the middle of the far site's second update."""
    federation.wait_for_round(job_id, 1)
    before = line.carried[FAR]
    wait_for(lambda: line.carried[FAR] > before + PART)


def everybody_is_there(federation: LocalFederation) -> bool:
    """The server strikes a site off that it has not heard of, and learns of it again by its next heartbeat."""
    return federation.sites() == tuple(sorted(SITES))


def workers(federation: LocalFederation, site: str) -> list[object]:
    """The site's processes of jobs."""
    family = list(keeper.family(federation._running[site].token))
    found = []
    for process in family:
        with contextlib.suppress(Exception):
            found += [process] * ("worker_process" in " ".join(process.cmdline()))
    return found


@pytest.mark.parametrize(
    "fault", [{"delay": 0.1}, {"loss": 0.01}, {"rate": MBIT_2}], ids=["latency 200 ms", "loss 1 %", "2 Mbit/s"]
)
def test_a_poor_line_costs_time_and_nothing_else(
    fault: dict[str, float], federation: LocalFederation, line: Line, uncut: Run
) -> None:
    """Latency counts both ways."""
    before = sum(line.carried)
    for name, value in fault.items():
        setattr(line, name, value)
    run = federation.run(make_job(), progress=False)
    assert same(run, uncut) and not run.state["lost"]
    assert sum(line.carried) - before > 2e6, "or the run went another way"


def test_a_cut_of_15_s_in_the_middle_of_an_update_is_borne(
    federation: LocalFederation, line: Line, uncut: Run, record_property: Callable[[str, object], None]
) -> None:
    line.rate = MBIT_2
    job_id = federation.submit(make_job())
    in_an_update(federation, line, job_id)
    lost = line.lost
    line.cut()
    time.sleep(CUT_SECONDS)  # what is tested, not what is waited for
    line.join()
    run = federation.watch(job_id, progress=False)
    assert line.lost > lost and same(run, uncut) and not run.state["lost"] and not run.state["gaps"]
    record_property("seconds", 0.0)


def test_a_cut_for_good_ends_the_run_with_its_sentence(
    federation: LocalFederation, line: Line, record_property: Callable[[str, object], None]
) -> None:
    line.rate = MBIT_2
    job_id = federation.submit(make_job(rounds=50))
    in_an_update(federation, line, job_id)
    line.cut()
    start = time.monotonic()
    with pytest.raises(DeployedRunError, match=r"far failed in round \d+: it does not answer any more .* network is"):
        federation.watch(job_id, progress=False)
    record_property("seconds", round(time.monotonic() - start, 1))
    line.join()
    wait_for(lambda: not workers(federation, "far"))  # its machine hears from the server that the job has ended
    wait_for(lambda: everybody_is_there(federation))


def test_with_min_sites_it_takes_part_again_when_the_line_is_back(
    federation: LocalFederation, line: Line, record_property: Callable[[str, object], None]
) -> None:
    wait_for(lambda: everybody_is_there(federation))
    job_id = federation.submit(make_job(rounds=500), min_sites=1)
    federation.wait_for_round(job_id, 1)
    line.cut()
    start = time.monotonic()
    wait_for(lambda: federation.progress(job_id).get("lost") == ["far"])
    record_property("seconds", round(time.monotonic() - start, 1))
    federation.wait_for_round(job_id, federation.progress(job_id)["done"] + 2)  # two without it
    line.join()
    wait_for(lambda: federation.progress(job_id).get("lost") == [])
    federation.wait_for_round(job_id, federation.progress(job_id)["done"] + 3)
    federation.abort(job_id)
    with pytest.raises(DeployedRunError, match="aborted") as caught:
        federation.watch(job_id, progress=False)
    run = caught.value.run
    (gap,) = run.state["gaps"]
    assert gap["site"] == "far" and set(run.missing[gap["from"] + 1]) == {"far"}
    took_part = run.rounds[run.rounds["round"] == gap["back"] + 1]["site"]
    assert set(took_part) == set(SITES)


def test_a_blocked_port_is_named(
    federation: LocalFederation, line: Line, record_property: Callable[[str, object], None]
) -> None:
    port = federation.admin.address[1]
    federation.stop_site("far")
    line.block(port)
    start = time.monotonic()
    with pytest.raises(DeploymentError, match=rf"not heard of far for 15 s: is port {port} of 198\.18\.0\.1 open"):
        federation.start_site("far", limit=15)
    record_property("seconds", round(time.monotonic() - start, 1))
    line.unblock(port)
    wait_for(lambda: everybody_is_there(federation))  # it has gone on trying


def test_nothing_is_left(federation: LocalFederation) -> None:
    tokens = [service.token for service in federation._running.values()]
    assert all(list(keeper.family(token)) for token in tokens) and len(tokens) == 3
    federation.stop()
    assert not any(list(keeper.family(token)) for token in tokens)
