"""Out of the simulator: kits, processes and jobs of a federation on this machine, and what is left of it: nothing."""

from __future__ import annotations

import gc
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import torch
import yaml
from nvflare.apis.client import Client
from nvflare.apis.fl_constant import RunProcessKey
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.job_scheduler_spec import DispatchInfo
from nvflare.job_config.api import FedJob

from dl.train import Net
from faults.decay_learner import DecayLearner
from faults.faulty_learner import FaultyLearner
from fl.job import PROJECT, build_job
from tiny import make_net
from tutorial_utils import deploy, plots
from tutorial_utils import job as general
from tutorial_utils._deploy.admin import NoServerError
from tutorial_utils._deploy.apps import address, choose_sites, look_through
from tutorial_utils._deploy.federation import place
from tutorial_utils._deploy.kits import copy_project, read_project
from tutorial_utils._deploy.logs import parse_log
from tutorial_utils._deploy.names import safe_name
from tutorial_utils._deploy.orphans import OrphanError, is_orphan
from tutorial_utils._deploy.ports import free_port, is_free, move
from tutorial_utils._deploy.reach import answers
from tutorial_utils._deploy.rejoin import Rejoin
from tutorial_utils._deploy.result import judge, seconds_of, sites_of, unpack
from tutorial_utils._deploy.services import Kept
from tutorial_utils._deploy.waiting import Lookout
from tutorial_utils._flare import ASKED_TOO_EARLY, KNOWN_CLASSES
from tutorial_utils._simulate import keeper
from tutorial_utils.data import Dataset
from tutorial_utils.deploy import Heartbeat, LocalFederation
from tutorial_utils.errors import DeployedRunError, DeploymentError, JobError, TutorialError
from tutorial_utils.partition import split_dataset
from tutorial_utils.results import Run, sha256
from tutorial_utils.settings import FAST, Training
from tutorial_utils.simulate import simulate

RESEARCHER = "researcher@hospital-b.org"
HOSPITALS = ["hospital-a", "hospital-b"]
TRAINING = Training(batch_size=8)
SLEEP = [sys.executable, "-c", "import time; time.sleep(1e9)"]


def wait_for(what: Callable[[], object], seconds: float = 60.0) -> object:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "It did not happen in time."
        time.sleep(0.2)
    return found


def running_job(**settings: object) -> FedJob:
    return build_job("$SITE_DATA", **{"sites": HOSPITALS, "rounds": 2, "training": TRAINING, **settings})


def failing_job(fault: str, at_round: int) -> FedJob:
    learner = FaultyLearner("$SITE_DATA", **asdict(TRAINING), fault=fault, site="hospital-b", at_round=at_round)
    return general.build_job(learner, Net(0), sites=HOSPITALS, rounds=2, name="fails")


def listens(port: int) -> bool:
    with socket.socket() as place:
        return place.connect_ex(("localhost", port)) == 0


@pytest.fixture(scope="module")
def hospitals(digits: Dataset) -> list[Path]:
    """The running example under other names."""
    return split_dataset(digits.folder, HOSPITALS, alpha=FAST.alpha, seed=FAST.seed)


# Without a federation


def test_a_free_port_is_free_and_another_each_time() -> None:
    ports = {free_port() for _ in range(5)}
    assert len(ports) > 1 and not any(listens(port) for port in ports)


def test_a_port_that_is_taken_by_the_start_is_left_and_every_kit_says_so(sites: list[Path], tmp_path: Path) -> None:
    federation = deploy.provision(PROJECT, sites, runs=tmp_path, name="moved")
    before, kits = federation.admin.address[1], tmp_path / "moved/machines"
    assert is_free(before)
    with socket.socket() as other:
        other.bind(("localhost", before))
        other.listen()
        assert not is_free(before)
        after = move(tmp_path / "moved/project.yml", kits.iterdir(), before)
    assert after != before
    named = [path for path in kits.glob("*/startup/fed_*.json") if str(after) in path.read_text()]
    assert len(named) == 4 and not [path for path in kits.glob("*/*/*.json") if str(before) in path.read_text()]
    assert deploy.Federation(federation.admin.kit).admin.address == ("localhost", after)
    project = yaml.safe_load((tmp_path / "moved/project.yml").read_text())
    assert [one["fed_learn_port"] for one in project["participants"] if one["type"] == "server"] == [after]
    (kits / "site-1/startup/signature.json").write_text("{}")
    with pytest.raises(DeploymentError, match=f"has taken port {after} since .* end that program, or provision again"):
        move(tmp_path / "moved/project.yml", kits.iterdir(), after)


def test_a_heartbeat_stands_in_the_kits_where_flare_reads_it(sites: list[Path], tmp_path: Path) -> None:
    deploy.provision(PROJECT, sites, runs=tmp_path, name="kits", heartbeat=Heartbeat(interval=6, timeout=20))
    kits = tmp_path / "kits/machines"
    server = json.loads((kits / "server/local/resources.json").read_text())["servers"][0]
    assert server["heart_beat_timeout"] == 20
    for name in ("server", "site-1", "site-2"):
        script = (kits / name / "startup/sub_start.sh").read_text()
        assert script.startswith("#!/usr/bin/env bash\nexport ")
        assert "export NVFLARE_DEAD_CLIENT_GRACE_PERIOD=14\n" in script and " heart_beat_interval=6 " in script
    assert not (kits / "site-1/local/resources.json").exists()


@pytest.mark.parametrize(("interval", "timeout"), [(1, 30), (0, 30), (20, 30), (-4, -2), (4, 7)])
def test_a_heartbeat_that_cannot_work_is_refused(interval: float, timeout: float) -> None:
    with pytest.raises(DeploymentError, match=r"cannot work: .* Take Heartbeat\(4, 30\), or 2 and 6"):
        Heartbeat(interval, timeout)


def test_a_job_that_began_before_its_server_is_gone() -> None:
    began = {"start_time": "2026-11-26T11:06:42.397781+00:00"}
    at = 1795691202.397781
    assert is_orphan(began, at + 1) and not is_orphan(began, at - 1)
    assert not is_orphan(began, None) and not is_orphan({"start_time": ""}, at) and not is_orphan({}, at)


def test_a_machine_that_takes_connections_for_a_process_that_stands_still(sites: list[Path], tmp_path: Path) -> None:
    """It listens, and nobody is there to shake hands; whoever speaks another language is there."""
    federation = deploy.provision(PROJECT, sites, runs=tmp_path)
    settings, startup = federation.admin._settings, federation.admin.kit / "startup"
    assert not answers(settings, startup, 0.3)
    with socket.socket() as place:
        place.bind(("localhost", settings["port"]))
        place.listen()
        assert not answers(settings, startup, 0.3)
        assert answers(settings | {"connection_security": "clear"}, startup, 0.3)

        def speak() -> None:
            for _ in range(3):
                place.accept()[0].sendall(b"another language")

        threading.Thread(target=speak, daemon=True).start()
        wait_for(lambda: answers(settings, startup, 5.0))


def test_a_silent_server_is_borne_for_a_while(
    sites: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was never started."""
    monkeypatch.setattr("tutorial_utils._deploy.admin.LOGIN_SECONDS", 0.1)
    monkeypatch.setattr("tutorial_utils._deploy.waiting.SILENT_SECONDS", 1.0)
    federation, start = deploy.provision(PROJECT, sites, runs=tmp_path), time.monotonic()
    with pytest.raises(NoServerError, match=r"silent for 1 s .*, and the job may go on without you: watch\('a-job'\)"):
        Lookout(federation.admin, "a-job").look()
    assert time.monotonic() - start > 1
    with pytest.raises(OrphanError, match="The server's processes have ended"):
        Lookout(federation.admin, "a-job", lambda: True).look()
    with pytest.raises(DeploymentError, match=r"have ended, and the job is gone: watch\('a-job'\) says what is left"):
        federation.abort("a-job")


def test_a_site_that_logs_in_again_gets_the_jobs_that_it_takes_part_in() -> None:
    """And no other: not one that it is not in, nor one that knows its token."""
    new, other = Client("site-1", "new"), Client("site-2", "theirs")
    jobs = {"old": {"old": new}, "known": {"new": new}, "elsewhere": {}}
    processes = {name: {RunProcessKey.PARTICIPANTS: found | {"theirs": other}} for name, found in jobs.items()}
    started: list[tuple[str, str, str]] = []
    answers = iter([{}, {"site-1": (False, "it is busy")}, {"site-1": (True, "reserved")}])

    def start(job: SimpleNamespace, sites: dict[str, DispatchInfo], fl_ctx: FLContext) -> None:
        started.extend((job.name, site, info.token) for site, info in sites.items())

    engine = SimpleNamespace(
        run_processes=processes,
        get_client_from_name=lambda name: new,
        job_runner=SimpleNamespace(running_jobs={name: SimpleNamespace(name=name, meta={}) for name in jobs}),
        check_client_resources=lambda job, needs, fl_ctx: next(answers),
        start_client_job=start,
        new_context=lambda: FLContextManager(None, "server").new_context(),
    )
    Rejoin()._look(engine, "site-1")
    assert started == [("old", "site-1", "reserved")]
    tokens = {name: set(process[RunProcessKey.PARTICIPANTS]) for name, process in processes.items()}
    assert tokens == {"old": {"new", "theirs"}, "known": {"new", "theirs"}, "elsewhere": {"theirs"}}


def test_a_servers_kit_brings_what_starts_a_job_again(sites: list[Path], tmp_path: Path) -> None:
    """FLARE finds it in local/custom, where nothing of ours is installed."""
    deploy.provision(PROJECT, sites, runs=tmp_path, name="kits")
    local = tmp_path / "kits/machines/server/local"
    parts = {one["id"]: one["path"] for one in json.loads((local / "resources.json").read_text())["components"]}
    module, _, name = parts["tutorial_rejoin"].partition(".")
    code = f"import sys; sys.path.insert(0, {str(local / 'custom')!r}); import {module} as m; print(m.{name}.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "Rejoin", done.stderr
    assert "tutorial_utils" not in (local / f"custom/{module}.py").read_text()


def test_a_killed_process_of_the_server_is_named_and_what_we_asked_it_is_no_cause(tmp_path: Path) -> None:
    running_job().export_job(str(tmp_path / "job"))
    run = Run(tmp_path, ("hospital-a", "hospital-b"), 1.0)
    (run.job_folder / "guard").mkdir(parents=True)
    state = {"phase": "training", "round": 3, "served": list(run.sites), "open": {}, "lost": {}, "failure": None}
    (run.job_folder / "guard/state.json").write_text(json.dumps(state))
    trace = f"Traceback (most recent call last):\n  File x\nAttributeError: {ASKED_TOO_EARLY}"
    record = {"asctime": "2026-11-26 11:05:51,501", "levelname": "ERROR", "message": trace}
    (run.workspace / "server/log.json").write_text(json.dumps(record))
    with pytest.raises(DeployedRunError) as caught:
        judge(run, "FINISHED:EXECUTION_EXCEPTION")
    assert str(caught.value).startswith("The run failed in round 3: the server's process of the job ended (killed, out")
    with pytest.raises(DeployedRunError, match=r"The run failed in round 3: .*FLARE's status is FINISHED:COMPLETED"):
        judge(run, "FINISHED:COMPLETED")
    (run.job_folder / "guard/state.json").write_text(json.dumps(state | {"served": ["hospital-a"]}))
    (run.workspace / "hospital-b").mkdir()
    record["message"] = "Traceback (most recent call last):\n  File x\nKeyError: 'lr'"
    (run.workspace / "hospital-b/log.json").write_text(json.dumps(record))
    with pytest.raises(DeployedRunError, match="hospital-b failed before its first task: KeyError: 'lr'"):
        judge(run, "FINISHED:ABNORMAL")  # FLARE has ended the server's process for that


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
    assert "/tmp/nvflare" not in resources and resources.count(str(machines / "server/storage")) == 3
    port = json.loads((machines / "site-1/startup/fed_client.json").read_text())["servers"][0]["service"]["target"]
    assert port == f"localhost:{federation.admin.address[1]}" and not port.endswith(":8002")
    assert {place.name for place in tmp_path.iterdir()} == {"kits"}


def test_a_site_without_data_is_refused_and_nothing_is_left(sites: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="no dataset folder for site-2"):
        deploy.provision(PROJECT, sites[:1], runs=tmp_path)
    assert not list(tmp_path.iterdir())


def test_sites_can_be_others_than_the_project_files(hospitals: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match=r"no dataset folder for site-1, site-2: .* as sites="):
        deploy.provision(PROJECT, hospitals, runs=tmp_path / "none")
    federation = deploy.provision(PROJECT, hospitals, sites=HOSPITALS, runs=tmp_path / "runs")
    assert federation.kits.sites == ("hospital-a", "hospital-b")
    assert (federation.kits.folder / "hospital-b/startup/client.crt").is_file()
    assert federation.data["hospital-b"] == federation.kits.folder / "hospital-b/data"
    with pytest.raises(TutorialError, match="cannot be called"):
        deploy.provision(PROJECT, hospitals, sites=["hospital a", "../b"], runs=tmp_path / "none")
    assert not list((tmp_path / "none").glob("*"))


def test_a_site_that_the_project_file_has_keeps_its_org(tmp_path: Path) -> None:
    found, _ = copy_project(PROJECT, tmp_path, ["site-2", "site-9"])
    orgs = {one["name"]: one["org"] for one in found["participants"] if one["type"] == "client"}
    assert orgs == {"site-2": "hospital_b", "site-9": "hospital_a"}


def test_the_proof_of_concept_wants_one_folder_of_folders(sites: list[Path], tmp_path: Path) -> None:
    shutil.copytree(sites[1], tmp_path / "elsewhere/site-2")
    with pytest.raises(DeploymentError, match="side by side"):
        deploy.run_in_poc(running_job(), PROJECT, [sites[0], tmp_path / "elsewhere/site-2"], runs=tmp_path / "runs")
    with pytest.raises(DeploymentError, match="needs 2 sites of hospital-a, hospital-b, and connected are 2"):
        deploy.run_in_poc(running_job(), PROJECT, sites, runs=tmp_path / "runs")
    assert not list((tmp_path / "runs").iterdir())


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
    sent = place(job, tmp_path / "ours").path
    for config, kind in (("server", "ServerPulse"), ("client", "SitePulse")):
        (file,) = sent.glob(f"*/config/config_fed_{config}.json")
        assert json.loads(file.read_text())["components"][-1]["path"] == f"tutorial_utils._deploy.pulse.{kind}"
        shipped = file.parents[1] / "custom/tutorial_utils"
        assert (shipped / "_deploy/pulse.py").is_file() and (shipped / "_simulate/guard.py").is_file()
    job.export_job(str(tmp_path / "again"))
    assert not [file for file in (tmp_path / "again").rglob("*.json") if "Pulse" in file.read_text()]


def test_a_job_goes_to_the_sites_that_it_names(tmp_path: Path) -> None:
    folder = place(running_job(), tmp_path / "named").path
    assert choose_sites(folder, ["hospital-a", "hospital-b", "hospital-c"]) == ("hospital-a", "hospital-b")
    with pytest.raises(DeploymentError, match=r"needs 2 sites of hospital-a, hospital-b, .* 2 \(hospital-a, site-2\)"):
        choose_sites(folder, ["hospital-a", "site-2"])
    address(folder, HOSPITALS[:1], with_code=True)
    assert json.loads((folder / "meta.json").read_text())["deploy_map"]["app_sites"] == ["hospital-a"]
    assert (folder / "app_sites/custom").is_dir()


def test_a_job_without_names_goes_to_whoever_is_connected(tmp_path: Path) -> None:
    folder = place(running_job(sites=2), tmp_path / "number").path
    assert choose_sites(folder, ["a", "b", "c"]) == ("a", "b", "c") and choose_sites(folder, None) is None
    with pytest.raises(DeploymentError, match="needs 2 sites, and connected are none"):
        choose_sites(folder, [])
    address(folder, ["a", "b"], with_code=True)
    assert json.loads((folder / "meta.json").read_text())["deploy_map"] == {"app": ["server", "a", "b"]}


def test_every_form_of_a_deploy_map_is_understood(tmp_path: Path) -> None:
    folder = place(running_job(), tmp_path / "named").path
    meta = json.loads((folder / "meta.json").read_text())
    assert choose_sites(folder, None) == ("hospital-a", "hospital-b")
    meta["deploy_map"]["app_sites"] = [{"sites": ["hospital-a"]}, {"targets": ["hospital-c"]}, "hospital-d"]
    (folder / "meta.json").unlink()
    (folder / "meta.conf").write_text(json.dumps(meta))  # HOCON, which FLARE reads too
    assert choose_sites(folder, None) == ("hospital-a", "hospital-c", "hospital-d")
    address(folder, ["hospital-c"], with_code=True)
    assert not (folder / "meta.conf").exists()
    assert json.loads((folder / "meta.json").read_text())["deploy_map"]["app_sites"] == ["hospital-c"]


@pytest.mark.parametrize("sites", [2, HOSPITALS])
def test_what_an_institute_reviews_is_what_is_sent(tmp_path: Path, sites: int | list[str]) -> None:
    """Of a job with one app for all, and of one that has an app for the server and one for its sites."""
    found = deploy.review(running_job(sites=sites), runs=tmp_path)
    flares = {"nvflare.app_common.executors.model_learner_executor.ModelLearnerExecutor"} - set(KNOWN_CLASSES)  # of 2.8
    ours = {"fl.model_learner.CIFAR10ModelLearner", "tutorial_utils._deploy.pulse.SitePulse"}
    assert found.classes == tuple(sorted(ours | flares))
    assert {"dl/train.py", "fl/model_learner.py", "tutorial_utils/_deploy/pulse.py"} <= {
        str(file.relative_to(found.code)) for file in found.code.rglob("*.py")
    }
    address(found.job, HOSPITALS, with_code=False)
    apps = {
        name: app
        for app, who in json.loads((found.job / "meta.json").read_text())["deploy_map"].items()
        for name in who
    }
    assert apps.keys() == {"server", *HOSPITALS} and apps["server"] != apps["hospital-a"] == apps["hospital-b"]
    assert (found.job / apps["server"] / "custom").is_dir() and not (found.job / apps["hospital-a"] / "custom").exists()
    assert not (found.job / apps["hospital-a"] / "config/config_fed_server.json").exists()
    with pytest.raises(JobError, match="brings no code"):
        look_through(found.job)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("hospital-a", "hospital-a"),
        ("admin@coordinator.org", "admin@coordinator.org"),
        ("../../escaped", "escaped"),
        ("/etc/passwd", "etc_passwd"),
        ("..", "unnamed"),
        ("", "unnamed"),
        (None, "None"),
        ("a\\b\0c\nd", "a_b_c_d"),
        ("x" * 300, "x" * 100),
    ],
)
def test_a_name_from_elsewhere_is_one_folder(name: object, safe: str) -> None:
    assert safe_name(name) == safe and safe_name(safe) == safe


def test_the_sites_of_a_job_are_those_that_took_it() -> None:
    taken = ["server: OK", "hospital-b: OK", "hospital-a: OK"]
    assert sites_of({"job_deploy_detail": taken}) == (("hospital-a", "hospital-b"), {})
    partly = ["server: OK", "hospital-b: NVFLARE_ERROR: BYOC not permitted", "hospital-a: OK"]
    assert sites_of({"job_deploy_detail": partly}) == (
        ("hospital-a",),
        {"hospital-b": "BYOC not permitted"},
    )
    none = ["server: OK", "site-1: NVFLARE_ERROR: x", "num_ok_sites 0 < required_min_sites 2"]
    assert sites_of({"job_deploy_detail": none})[0] == ("site-1",) and sites_of({}) == ((), {})
    with pytest.raises(DeploymentError, match="which no site is called"):
        sites_of({"job_deploy_detail": ["server: OK", "../../../home: OK"]})


@pytest.mark.parametrize(
    ("duration", "seconds"), [("0:01:15.5", 75.5), ("N/A", 0), (None, 0), ("", 0), ("1 day, 0:00:01", 86401)]
)
def test_how_long_a_job_ran(duration: str | None, seconds: float) -> None:
    assert seconds_of({"duration": duration}) == seconds


def test_a_job_that_no_site_takes_says_why(tmp_path: Path) -> None:
    meta = {
        "status": "FINISHED:FAILED_TO_RUN",
        "duration": "N/A",
        "job_deploy_detail": ["server: OK", "hospital-a: NVFLARE_ERROR: BYOC not permitted"],
    }
    with pytest.raises(DeployedRunError) as caught:
        unpack(tmp_path, tmp_path / "run", meta)
    assert "before it ran at the server (hospital-a says: BYOC not permitted)" in str(caught.value)
    assert "installed=True" in str(caught.value) and caught.value.status == "FINISHED:FAILED_TO_RUN"


def test_a_simulated_run_is_not_resumed_at_real_sites(tmp_path: Path) -> None:
    """Its sites have kept nothing of it."""
    earlier = Run(tmp_path, ("site-1",), 0.0)
    checkpoint = earlier.job_folder / "guard/checkpoint-1"
    checkpoint.mkdir(parents=True)
    torch.save({"model": {}}, checkpoint / "FL_global_model.pt")
    (checkpoint / "checkpoint.json").write_text('{"rounds": 1}')
    with pytest.raises(DeploymentError, match=r"is no run of a federation, .* begin with its weights, build_job"):
        place(running_job(), tmp_path / "copy", earlier=earlier)


def test_where_a_site_lets_no_log_out_one_has_to_ask_there(tmp_path: Path) -> None:
    running_job().export_job(str(tmp_path / "job"))
    run = Run(tmp_path, ("hospital-a", "hospital-b"), 1.0)
    (run.job_folder / "guard").mkdir(parents=True)
    failure = {"reason": "it answered EXECUTION_EXCEPTION", "site": "hospital-b", "task": "train"}
    state = {"phase": "ended", "round": 3, "served": list(run.sites), "open": {}, "lost": {}, "failure": failure}
    (run.job_folder / "guard/state.json").write_text(json.dumps(state))
    with pytest.raises(DeployedRunError) as caught:
        judge(run, "FINISHED:EXECUTION_EXCEPTION")
    first, *others = str(caught.value).splitlines()
    assert first == "hospital-b failed in round 3: it answered EXECUTION_EXCEPTION."
    assert any(line.startswith("hospital-b has sent no log") for line in others)
    assert "resume_from" not in str(caught.value)


LOG = """2026-11-26 00:30:49,646 - ModelLearnerExecutor - ERROR - [identity=site-2] - Learner failed: ValueError: full
2026-11-26 00:30:49,647 - root - ERROR -  - Traceback (most recent call last):
  File "learner.py", line 92, in _raise
    raise ValueError("full")
ValueError: full

"""


def test_a_sites_error_log_becomes_records() -> None:
    first, second = parse_log(LOG)
    assert first == {
        "asctime": "2026-11-26 00:30:49,646",
        "name": "ModelLearnerExecutor",
        "levelname": "ERROR",
        "message": "Learner failed: ValueError: full",
    }
    assert second["message"].startswith("Traceback") and second["message"].endswith("\nValueError: full")
    assert parse_log("a format of the site's own\n") == [
        {"asctime": "", "levelname": "ERROR", "message": "a format of the site's own"}
    ]
    assert parse_log("") == []


def test_an_error_of_a_deployed_run_can_be_pickled(tmp_path: Path) -> None:
    error = DeployedRunError("It failed.", Run(tmp_path, ("a", "b"), 1.5), "FINISHED:ABORTED")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.run, again.status) == (str(error), error.run, error.status)


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
def federation(hospitals: list[Path], folder: Path, home: Path) -> Iterator[LocalFederation]:
    project = yaml.safe_load(PROJECT.read_text())
    researcher = {"name": RESEARCHER, "type": "admin", "org": "hospital_b", "role": "lead"}
    project["participants"].insert(0, researcher)
    (folder / "project.yml").write_text(yaml.safe_dump(project))
    settings = {"runs": folder, "name": "federation", "heartbeat": Heartbeat(interval=2, timeout=10)}
    federation = deploy.provision(folder / "project.yml", hospitals, sites=HOSPITALS, **settings)
    with federation:
        yield federation


@pytest.fixture(scope="module")
def elsewhere(federation: LocalFederation, folder: Path) -> Iterator[deploy.Federation]:
    """The same one as an admin sees it who has a startup kit and nothing else."""
    elsewhere = deploy.connect(federation.admin.kit, runs=folder / "elsewhere")
    yield elsewhere
    elsewhere.close()


@pytest.fixture(scope="module")
def simulated(hospitals: list[Path], folder: Path) -> Run:
    job = build_job(hospitals[0].parent, HOSPITALS, rounds=2, training=TRAINING)
    return simulate(job, runs=folder, name="simulated", progress=False)


def same(run: Run, simulated: Run) -> bool:
    """The same bits in every model and number."""
    pd.testing.assert_frame_equal(run.rounds, simulated.rounds)
    pd.testing.assert_frame_equal(run.cross_site, simulated.cross_site)
    return run.sha256 == simulated.sha256 and sha256(run.best_model) == sha256(simulated.best_model)


@pytest.mark.slow
def test_a_provisioned_run_is_the_simulators_to_the_bit(federation: LocalFederation, simulated: Run) -> None:
    assert federation.sites() == ("hospital-a", "hospital-b")
    run = federation.run(running_job(), progress=False)
    assert run.sites == simulated.sites == ("hospital-a", "hospital-b") and same(run, simulated)
    assert abs(run.bytes / simulated.bytes - 1) < 0.05 and 1 < run.seconds < 120
    assert "ScatterAndGather" in run.log() and "hospital-a" in run.log("hospital-a")
    figure = plots.cross_site_heatmap(run.cross_site, "scikit-learn digits", 399)
    assert figure.axes
    jobs = federation.jobs()
    assert jobs["name"].iloc[-1] == "modellearner" and jobs["status"].iloc[-1] == "FINISHED:COMPLETED"
    job_id = jobs["job_id"].iloc[-1]
    federation.wait_for_round(job_id, 2)  # that it has ended since is no reason to deny what it did
    with pytest.raises(DeploymentError, match="finished 2 of 3 rounds, it is FINISHED:COMPLETED"):
        federation.wait_for_round(job_id, 3)
    assert federation.admin.error_logs(job_id) == {}


@pytest.mark.slow
def test_a_researcher_with_a_kit_gets_the_same_bits(federation: LocalFederation, simulated: Run) -> None:
    """On the command line, as a lead of another org, whom FLARE's rules do not tell which sites are there."""
    kit = federation.kits.folder / RESEARCHER
    command = [sys.executable, PROJECT.with_name("job.py"), "--env", "prod", "--startup-kit", kit]
    command += ["--sites", ",".join(HOSPITALS), "--rounds", "2", "--batch-size", "8"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert simulated.sha256 in done.stdout and "Connecting" not in done.stdout


@pytest.mark.slow
def test_the_proof_of_concept_gives_the_same_bits(
    hospitals: list[Path], simulated: Run, folder: Path, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It runs in a process of its own: our environment and output, and a user's POC workspace, are left alone."""
    before, environment = set(psutil.pids()), dict(os.environ)
    run = deploy.run_in_poc(running_job(), PROJECT, hospitals, runs=folder, name="poc", progress=False)
    assert run.sites == ("hospital-a", "hospital-b") and same(run, simulated)
    assert dict(os.environ) == environment and capfd.readouterr() == ("", "")
    assert not (home / "the-users-own-poc").exists()
    started = [process for process in psutil.process_iter() if process.pid not in before]
    assert not [process for process in started if str(folder / "poc") in " ".join(_command(process))]


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
    with pytest.raises(DeploymentError, match=r"needs 3 sites of .*, and connected are 2 \(hospital-a, hospital-b\)"):
        federation.submit(running_job(sites=[*HOSPITALS, "hospital-c"]))
    with pytest.raises(DeploymentError, match="min_sites is 3"):
        federation.submit(running_job(), min_sites=3)


@pytest.mark.slow
def test_a_job_that_was_cut_goes_on_to_the_same_bits(federation: LocalFederation, folder: Path) -> None:
    """Two cuts: a site's machine that dies, an abort. The learner needs the state that its site has kept."""
    job = general.build_job(DecayLearner(pause=1.0), make_net(), sites=HOSPITALS, rounds=6, name="decay")
    uncut = simulate(general.build_job(DecayLearner(), make_net(), sites=HOSPITALS, rounds=6), runs=folder)
    job_id = federation.submit(job)
    federation.wait_for_round(job_id, 2)
    federation.stop_site("hospital-b")
    with pytest.raises(
        DeployedRunError, match=r"hospital-b failed in round .*\n.*\n\d finished rounds are safe"
    ) as lost:
        federation.watch(job_id, progress=False)
    federation.start_site("hospital-b")
    job_id = federation.submit(job, resume_from=lost.value)
    federation.wait_for_round(job_id, 1)
    federation.abort(job_id)
    with pytest.raises(DeployedRunError, match=r"aborted in round .* resume_from= goes on after that") as stopped:
        federation.watch(job_id, progress=False)
    run = federation.run(job, resume_from=stopped.value.run.folder, progress=False)
    assert 0 < lost.value.run.rounds_kept < stopped.value.run.rounds_kept < 6
    assert same(run, uncut)


@pytest.mark.slow
def test_a_third_hospital_joins(federation: LocalFederation, digits: Dataset, folder: Path) -> None:
    names = [*HOSPITALS, "hospital-c"]
    data = split_dataset(digits.folder, names, alpha=FAST.alpha, seed=FAST.seed, out=folder / "three")
    keys = (federation.kits.folder / "hospital-a/startup/client.key").read_bytes()
    newcomer = {"name": "hospital-c", "type": "client", "org": "hospital_c"}
    with pytest.raises(DeploymentError, match="hospital-a cannot join: its name is taken"):
        federation.join([newcomer | {"name": "hospital-a"}], data)
    with pytest.raises(DeploymentError, match="no dataset folder for hospital-c"):
        federation.join([newcomer])
    with pytest.raises(DeploymentError, match="nvflare provision refuses the newcomers"):
        federation.join([newcomer | {"org": "hospital c!"}], data)
    federation.join([newcomer], data)
    assert (federation.kits.folder / "hospital-a/startup/client.key").read_bytes() == keys
    federation.start_site("hospital-c")
    assert federation.sites() == tuple(names)
    job = general.build_job(DecayLearner(), make_net(), sites=names, rounds=2, name="decay")
    run, alike = federation.run(job, progress=False), simulate(job, runs=folder, progress=False)
    federation.stop_site("hospital-c")
    assert same(run, alike) and run.sites == tuple(names)


@pytest.mark.slow
def test_a_site_that_has_kept_nothing_says_so(federation: LocalFederation) -> None:
    job = general.build_job(DecayLearner(), make_net(), sites=HOSPITALS, rounds=1, name="decay")
    earlier = federation.run(job, progress=False)
    job_id = federation.jobs()["job_id"].iloc[-1]
    shutil.rmtree(federation.kits.folder / "hospital-a" / job_id)
    longer = general.build_job(DecayLearner(pause=1.0), make_net(), sites=HOSPITALS, rounds=500, name="decay")
    with pytest.raises(DeployedRunError, match=r"hospital-a failed in round .: it has nothing left of the job that"):
        federation.run(longer, resume_from=earlier, progress=False)


@pytest.mark.slow
def test_a_sites_own_error_is_told(federation: LocalFederation, elsewhere: deploy.Federation) -> None:
    """On this machine from the site's log; to an admin elsewhere from the one that the kits stream to the server."""
    job_id = federation.submit(failing_job("raise in train", at_round=0))
    for admin in (federation, elsewhere):
        with pytest.raises(DeployedRunError) as caught:
            admin.watch(job_id, progress=False, name="fails")
        told = str(caught.value)
        assert told.startswith("hospital-b failed in round 0: ValueError: the disk of this site is full.")
        assert "fl/faulty_learner.py" in told or "faults/faulty_learner.py" in told
        assert told.endswith("ValueError: the disk of this site is full")
    assert (caught.value.run.workspace / "hospital-b/error_log.txt").is_file()
    assert not (caught.value.run.workspace / "hospital-b/log.txt").exists()
    assert (federation.kits.folder / f"server/storage/jobs-storage/{job_id}/ERRORLOG_hospital-b").is_file()


@pytest.mark.slow
def test_a_stranger_is_refused(federation: LocalFederation, hospitals: list[Path], folder: Path) -> None:
    """A site of the same name and project, with a certificate from another authority."""
    strangers = deploy.provision(PROJECT, hospitals, sites=HOSPITALS, runs=folder, name="strangers")
    machine = strangers.kits.folder / "hospital-a"
    settings = machine / "startup/fed_client.json"
    theirs, ours = (one.admin.address[1] for one in (strangers, federation))
    settings.write_text(settings.read_text().replace(f"localhost:{theirs}", f"localhost:{ours}"))
    federation.stop_site("hospital-a")
    log = federation.kits.folder / "server/log.txt"
    registered = log.read_text().count("client hospital-a registered")
    stranger = Kept([str(machine / "startup/sub_start.sh"), "--once"], machine / "console.txt")
    try:
        wait_for(lambda: "CERTIFICATE_VERIFY_FAILED" in (machine / "console.txt").read_text())
        assert log.read_text().count("client hospital-a registered") == registered
    finally:
        stranger.stop()
    federation.start_site("hospital-a")
    assert log.read_text().count("client hospital-a registered") == registered + 1


# With sites that have rules of their own, in local/ of their kits


@pytest.fixture(scope="module")
def careful(federation: LocalFederation, folder: Path) -> deploy.Review:
    """Both hospitals run no code but what they have installed, and the second one lets no log out."""
    review = deploy.review(running_job(), runs=folder)
    for site in HOSPITALS:
        federation.stop_site(site)
        local = federation.kits.folder / site / "local"
        rules = json.loads((local / "authorization.json.default").read_text())
        for role in ("project_admin", "lead"):
            rights = rules["permissions"][role]
            named = rights if isinstance(rights, dict) else dict.fromkeys(rules["permissions"]["lead"], rights)
            rules["permissions"][role] = named | {"byoc": "none"}
        (local / "authorization.json").write_text(json.dumps(rules))
        shutil.copytree(review.code, local / "custom")
    _change_resources(federation, "hospital-b", allow_log_streaming=False)
    for site in HOSPITALS:
        federation.start_site(site)
    return review


def _change_resources(federation: LocalFederation, site: str, **changes: object) -> None:
    local = federation.kits.folder / site / "local"
    own = local / "resources.json"
    before = own if own.is_file() else local / "resources.json.default"
    own.write_text(json.dumps(json.loads(before.read_text()) | changes))


@pytest.mark.slow
def test_a_site_without_byoc_refuses_a_job_with_code(federation: LocalFederation, careful: deploy.Review) -> None:
    with pytest.raises(DeployedRunError) as caught:
        federation.run(running_job(), progress=False)
    assert "hospital-a says: BYOC not permitted; hospital-b says:" in str(caught.value)
    assert "installed=True" in str(caught.value)


@pytest.mark.slow
def test_without_code_it_holds_each_class_against_its_list(
    federation: LocalFederation, elsewhere: deploy.Federation, careful: deploy.Review
) -> None:
    """And the hospital that lets no log out has sent none, where the other has."""
    job_id = federation.submit(running_job(), installed=True)
    with pytest.raises(DeployedRunError) as caught:
        elsewhere.watch(job_id, progress=False, name="not-allowed")
    assert re.search(r"Component '(fl|tutorial_utils)\.\S+' .* is not in allow_list", str(caught.value))
    assert elsewhere.admin.error_logs(job_id).keys() == {"hospital-a"}


@pytest.mark.slow
def test_with_its_classes_listed_the_job_runs_to_the_same_bits(
    federation: LocalFederation, careful: deploy.Review, simulated: Run
) -> None:
    for site in HOSPITALS:
        local = federation.kits.folder / site / "local"
        allowed = json.loads((local / "resources.json.default").read_text())["class_allow_list"]
        _change_resources(federation, site, class_allow_list=[*allowed, *careful.classes])
    run = federation.run(running_job(), installed=True, progress=False)
    assert same(run, simulated)
    for site in HOSPITALS:  # nothing but the configuration came
        apps = [app for app in (federation.kits.folder / site).glob("*/app_*") if app.parent.name in _last(federation)]
        assert apps and not [app for app in apps if (app / "custom").exists()]


def _last(federation: LocalFederation) -> str:
    return federation.jobs()["job_id"].iloc[-1]


@pytest.mark.slow
def test_nothing_is_left(federation: LocalFederation, elsewhere: deploy.Federation, home: Path, folder: Path) -> None:
    """No process, no port, no file outside the runs' folder; a second stop does nothing."""
    tokens = [service.token for service in federation._running.values()]
    assert all(list(keeper.family(token)) for token in tokens) and len(tokens) == 3
    jobs = set(federation.jobs()["job_id"])
    elsewhere.close()
    federation.stop()
    federation.stop()
    assert not any(list(keeper.family(token)) for token in tokens)
    assert not listens(federation.admin.address[1])
    gc.collect()  # a job keeps its first model in a temporary folder until nobody has it any more
    assert not [path for path in home.rglob("*") if path.is_file()]
    assert jobs and not jobs & {path.name for path in home.rglob("*")}  # where the server takes in the sites' logs
    assert not Path("/tmp/nvflare").exists() or not [
        path for path in Path("/tmp/nvflare").rglob("*") if str(folder) in str(path)
    ]
