"""Out of the simulator: kits, processes and jobs of a federation on this machine, and what is left of it: nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
from nvflare.job_config.api import FedJob

from faults.faulty_learner import FaultyLearner
from fl.environments import PROJECT, describe, run_here, run_there
from fl.job import build_job
from tutorial_utils import deploy, plots
from tutorial_utils._deploy.admin import PlacedJob
from tutorial_utils._deploy.federation import place
from tutorial_utils._deploy.kits import free_port, read_project
from tutorial_utils._deploy.services import Kept
from tutorial_utils._simulate import keeper
from tutorial_utils.deploy import LocalFederation
from tutorial_utils.errors import DeployedRunError, DeploymentError
from tutorial_utils.results import Run, sha256
from tutorial_utils.simulate import simulate

SLEEP = [sys.executable, "-c", "import time; time.sleep(1e9)"]


def wait_for(what: Callable[[], object], seconds: float = 60.0) -> object:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "It did not happen in time."
        time.sleep(0.2)
    return found


def running_job(**settings: object) -> FedJob:
    return build_job("$SITE_DATA", **{"rounds": 2, "batch_size": 8, **settings})


def listens(port: int) -> bool:
    with socket.socket() as place:
        return place.connect_ex(("localhost", port)) == 0


# Without a federation


def test_a_free_port_is_free_and_another_each_time() -> None:
    ports = {free_port() for _ in range(5)}
    assert len(ports) > 1 and not any(listens(port) for port in ports)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is no project file"),
        ("participants: [", "is no project file"),
        ("name: x", "is no project file"),
        ("participants: [{name: s, type: server}, {name: c, type: client}]", "at least one client and one admin"),
        ("participants: [{name: c, type: client}, {name: a, type: admin}]", "needs one server"),
        (
            "participants: [{name: s, type: server}, {name: t, type: server}, {name: c, type: client}, "
            "{name: a, type: admin}]",
            "needs one server",
        ),
    ],
)
def test_a_wrong_project_file_is_refused_in_a_sentence(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "project.yml").write_text(text)
    with pytest.raises(DeploymentError, match=words):
        read_project(tmp_path / "project.yml")


def test_kits_are_made_inside_the_folder_and_a_site_gets_its_own_data_alone(sites: list[Path], tmp_path: Path) -> None:
    federation = deploy.provision(PROJECT, sites, runs=tmp_path, name="kits")
    machines = tmp_path / "kits/machines"
    assert {place.name for place in machines.iterdir()} == {"server", "admin@coordinator.org", "site-1", "site-2"}
    for site in ("site-1", "site-2"):
        assert [place.name for place in (machines / site / "data").iterdir()] == [site]
    resources = (machines / "server/local/resources.json").read_text()
    assert "/tmp/nvflare" not in resources and resources.count(str(machines / "server/storage")) == 2
    port = json.loads((machines / "site-1/startup/fed_client.json").read_text())["servers"][0]["service"]["target"]
    assert port == f"localhost:{federation.admin.address[1]}" and not port.endswith(":8002")
    assert {place.name for place in tmp_path.iterdir()} == {"kits"}


def test_a_site_without_data_is_refused_and_nothing_is_left(sites: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="no dataset folder for site-2"):
        deploy.provision(PROJECT, sites[:1], runs=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_flare_would_split_is_refused(sites: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="name another folder with runs="):
        deploy.provision(PROJECT, sites, runs=tmp_path / "my runs")
    with pytest.raises(DeploymentError, match="name another folder with runs="):
        deploy.run_in_poc(running_job(), PROJECT, sites, runs=tmp_path / "my runs")
    assert not list(tmp_path.iterdir())


def test_what_nvflare_provision_refuses_is_said(sites: list[Path], tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(PROJECT.read_text().replace("hospital_a", "hospital-a"))
    with pytest.raises(DeploymentError, match="hospital-a"):
        deploy.provision(wrong, sites, runs=tmp_path / "runs")


def test_a_folder_that_is_no_admins_kit(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match=r"holds startup/fed_admin\.json"):
        deploy.connect(tmp_path)


def test_a_server_that_is_not_there_is_given_up(sites: list[Path], tmp_path: Path) -> None:
    federation = deploy.provision(PROJECT, sites, runs=tmp_path)
    with pytest.raises(DeploymentError, match="has not answered"):
        federation.connect(limit=0.5)
    with pytest.raises(DeploymentError, match="There is no site 'site-9'"):
        federation.stop_site("site-9")


def test_a_server_that_cannot_start_says_why_and_leaves_no_process(sites: list[Path], tmp_path: Path) -> None:
    federation = deploy.provision(PROJECT, sites, runs=tmp_path)
    (tmp_path / "project/machines/server/startup/fed_server.json").write_text("{")
    with pytest.raises(DeploymentError, match="server ended while it started"):
        federation.start()
    assert not listens(federation.admin.address[1])


def test_a_job_is_sent_with_its_guard_and_the_callers_is_left_alone(tmp_path: Path) -> None:
    job = running_job()
    copy = place(job, tmp_path / "ours", min_sites=1)
    PlacedJob(copy).export_job(str(tmp_path / "sent"))
    sent = tmp_path / "sent" / job.name
    assert json.loads((sent / "meta.json").read_text())["min_clients"] == 1
    for config, kind in (("server", "ServerPulse"), ("client", "SitePulse")):
        parts = json.loads((sent / f"app/config/config_fed_{config}.json").read_text())["components"]
        assert parts[-1]["path"] == f"tutorial_utils._deploy.pulse.{kind}"
    shipped = sent / "app/custom/tutorial_utils"
    assert (shipped / "deployment/pulse.py").is_file() and (shipped / "runner/guard.py").is_file()
    job.export_job(str(tmp_path / "again"))
    assert "Pulse" not in (tmp_path / "again" / job.name / "app/config/config_fed_server.json").read_text()


def test_a_family_ends_with_stop(tmp_path: Path) -> None:
    family = Kept([*SLEEP], tmp_path / "log.txt", {"SITE_DATA": "here"})
    wait_for(lambda: len(list(keeper.family(family.token))) == 1)
    assert family.alive and next(keeper.family(family.token)).environ()["SITE_DATA"] == "here"
    family.stop()
    assert not family.alive and not list(keeper.family(family.token))


def test_a_family_ends_with_a_kernel_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tutorial_utils._deploy.services import Kept;"
        f"print(Kept({SLEEP!r}, Path({str(tmp_path / 'log.txt')!r})).token, flush=True); time.sleep(1e9)"
    )
    kernel = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    token = kernel.stdout.readline().strip()
    wait_for(lambda: list(keeper.family(token)))
    kernel.send_signal(signal.SIGKILL)
    kernel.wait()
    wait_for(lambda: not list(keeper.family(token)), seconds=10)


def test_production_wants_a_startup_kit(tmp_path: Path) -> None:
    command = [sys.executable, PROJECT.with_name("job.py"), "--env", "prod"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.strip().startswith("--env prod needs --startup-kit")


# With one


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home and a temporary folder of our own, to see whether anything is written there."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("TMPDIR", str(home))
        patch.setattr(tempfile, "tempdir", None)
        patch.setenv("NVFLARE_POC_WORKSPACE", str(home / "the-users-own-poc"))
        yield home


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deployed")


@pytest.fixture(scope="module")
def federation(sites: list[Path], folder: Path, home: Path) -> Iterator[LocalFederation]:
    federation = deploy.provision(PROJECT, sites, runs=folder, name="federation")
    with federation:
        yield federation


@pytest.fixture(scope="module")
def simulated(sites: list[Path], folder: Path) -> Run:
    return simulate(build_job(sites[0].parent, rounds=2, batch_size=8), runs=folder, name="simulated", progress=False)


def same(run: Run, simulated: Run) -> bool:
    """The same bits in every model and number."""
    pd.testing.assert_frame_equal(run.rounds, simulated.rounds)
    pd.testing.assert_frame_equal(run.cross_site, simulated.cross_site)
    return run.sha256 == simulated.sha256 and sha256(run.best_model) == sha256(simulated.best_model)


@pytest.mark.slow
def test_a_provisioned_run_is_the_simulators_to_the_bit(federation: LocalFederation, simulated: Run) -> None:
    assert federation.sites() == ("site-1", "site-2")
    run = federation.run(running_job(), progress=False)
    assert run.sites == simulated.sites and same(run, simulated)
    assert abs(run.bytes / simulated.bytes - 1) < 0.05 and 1 < run.seconds < 120
    assert "ScatterAndGather" in run.log() and "site-1" in run.log("site-1")
    figure = plots.cross_site_heatmap(run.cross_site, "scikit-learn digits", 399)
    assert figure.axes
    jobs = federation.jobs()
    assert jobs["name"].iloc[-1] == "modellearner" and jobs["status"].iloc[-1] == "FINISHED:COMPLETED"


@pytest.mark.slow
def test_an_admin_elsewhere_gets_the_same_bits(federation: LocalFederation, simulated: Run, folder: Path) -> None:
    """`job.py --env prod`: nothing but an admin's startup kit is known of the federation."""
    run = run_there(running_job(), federation.admin.kit, folder)
    assert same(run, simulated)
    assert run.sha256 in describe(run)


@pytest.mark.slow
def test_the_proof_of_concept_gives_the_same_bits(sites: list[Path], simulated: Run, folder: Path, home: Path) -> None:
    """`job.py --env poc`, and a user's own POC workspace is left alone."""
    before = set(psutil.pids())
    run = run_here("poc", running_job(), 2, sites[0].parent, None, folder, "poc")
    assert same(run, simulated)
    assert os.environ["NVFLARE_POC_WORKSPACE"] == str(home / "the-users-own-poc")
    started = [process for process in psutil.process_iter() if process.pid not in before]
    assert not [process for process in started if "poc-poc" in " ".join(_command(process))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.slow
def test_an_aborted_job_says_so(federation: LocalFederation) -> None:
    job_id = federation.submit(running_job(rounds=500, name="long"))
    federation.wait_for_round(job_id, 1)
    assert federation.abort(job_id) == "FINISHED:ABORTED"
    with pytest.raises(DeployedRunError, match="The job was aborted in round") as caught:
        federation.watch(job_id, progress=False)
    assert caught.value.status == "FINISHED:ABORTED" and len(caught.value.run.rounds)
    with pytest.raises(DeploymentError, match="knows no job 'nonsense'"):
        federation.abort("nonsense")
    with pytest.raises(DeploymentError, match=r"needs 3 sites, and connected are 2 \(site-1, site-2\)"):
        federation.submit(build_job("$SITE_DATA", sites=3))
    with pytest.raises(DeploymentError, match="min_sites is 3"):
        federation.submit(running_job(), min_sites=3)


@pytest.mark.slow
@pytest.mark.parametrize("min_sites", [None, 1])
def test_a_site_that_is_killed_and_started_again(federation: LocalFederation, min_sites: int | None) -> None:
    """FLARE would wait for ever; here the job ends as its policy says, and the site takes part in the next one."""
    job_id = federation.submit(running_job(rounds=6, epochs=2), min_sites=min_sites)
    federation.wait_for_round(job_id, 1)
    federation.stop_site("site-2")
    federation.start_site("site-2")
    assert federation.sites() == ("site-1", "site-2")
    if min_sites is None:
        with pytest.raises(DeployedRunError, match=r"site-2 failed in round .: it does not answer any more") as caught:
            federation.watch(job_id, progress=False)
        assert set(caught.value.run.rounds["site"]) == {"site-1", "site-2"}
    else:
        run = federation.watch(job_id, progress=False)
        assert run.rounds["round"].max() == 5 and set(run.missing[5]) == {"site-2"}
        assert run.cross_site.index.tolist() == ["site-1"] and run.state["lost"].keys() == {"site-2"}


@pytest.mark.slow
def test_a_sites_own_error_is_told(federation: LocalFederation) -> None:
    job = running_job(learner=FaultyLearner, fault="raise in train", at_round=1)
    with pytest.raises(DeployedRunError) as caught:
        federation.run(job, progress=False)
    assert "site-2 failed in round 1: ValueError: the disk of this site is full." in str(caught.value)
    assert "Traceback" in str(caught.value)


@pytest.mark.slow
def test_a_stranger_is_refused(federation: LocalFederation, sites: list[Path], folder: Path) -> None:
    """A site of the same name and project, with a certificate from another authority."""
    strangers = deploy.provision(PROJECT, sites, runs=folder, name="strangers")
    machine = strangers.kits.folder / "site-1"
    settings = machine / "startup/fed_client.json"
    theirs, ours = (one.admin.address[1] for one in (strangers, federation))
    settings.write_text(settings.read_text().replace(f"localhost:{theirs}", f"localhost:{ours}"))
    federation.stop_site("site-1")
    stranger = Kept([str(machine / "startup/sub_start.sh"), "--once"], machine / "console.txt")
    try:
        wait_for(lambda: "CERTIFICATE_VERIFY_FAILED" in (machine / "console.txt").read_text())
        log = federation.kits.folder / "server/log.txt"
        assert log.read_text().count("client site-1 registered") == 1
    finally:
        stranger.stop()
    federation.start_site("site-1")
    assert log.read_text().count("client site-1 registered") == 2


@pytest.mark.slow
def test_nothing_is_left(federation: LocalFederation, home: Path, folder: Path) -> None:
    """No process, no port, no file outside the runs' folder; a second stop does nothing."""
    tokens = [service.token for service in federation._running.values()]
    assert all(list(keeper.family(token)) for token in tokens) and len(tokens) == 3
    federation.stop()
    federation.stop()
    assert not any(list(keeper.family(token)) for token in tokens)
    assert not listens(federation.admin.address[1])
    assert not [path for path in home.rglob("*") if path.is_file()]
    assert not Path("/tmp/nvflare").exists() or not [
        path for path in Path("/tmp/nvflare").rglob("*") if str(folder) in str(path)
    ]
