"""The job as it ships, and the same job by the commands of old."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from pyhocon import ConfigFactory

from dl.train import Net
from fl.by_hand import federated_averaging
from fl.job import CLIENTS, build_job, job_template, main
from tutorial_utils import round_metrics
from tutorial_utils.data import Dataset
from tutorial_utils.partition import split_dataset
from tutorial_utils.results import read_cross_site, read_model, sha256
from tutorial_utils.settings import Training

ROOT = Path(__file__).parents[1]
NVFLARE = Path(sys.executable).with_name("nvflare")


@pytest.fixture
def exported(sites: list[Path], tmp_path: Path) -> Path:
    build_job(sites[0].parent).export_job(str(tmp_path / "exported"))
    return tmp_path / "exported" / "modellearner"


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a site that has torch and nvflare, and has never heard of tutorial_utils.

    Python runs sitecustomize at its start, in every process that FLARE starts too: it takes away the way by
    which an installed tutorial_utils is found.
    """
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(
        "import sys\n"
        f"sys.path[:] = [path for path in sys.path if path not in ({str(ROOT)!r}, {str(ROOT / 'code')!r})]\n"
        "sys.meta_path[:] = [finder for finder in sys.meta_path if '__editable__' not in str(finder)]\n"
    )
    return os.environ | {"PYTHONPATH": str(tmp_path / "bare")}


def read_config(job: Path, name: str) -> dict[str, Any]:
    """A configuration in either of FLARE's forms, JSON or HOCON, as a plain dict."""
    (path,) = (path for path in (job / "app/config").glob(f"config_fed_{name}.*"))
    return json.loads(json.dumps(ConfigFactory.parse_file(str(path)).as_plain_ordered_dict()))


def test_what_ships(exported: Path) -> None:
    custom = exported / "app/custom"
    shipped = {str(path.relative_to(custom)) for path in custom.rglob("*.py")}
    assert shipped == {
        "dl/train.py",
        "fl/model_learner.py",
        "tutorial_utils/algorithms/aggregator.py",
        *(f"tutorial_utils/{name}.py" for name in ("learner", "keep", "metric", "values")),
        *(["tutorial_utils/round_metrics.py"] if round_metrics.class_path() == round_metrics.OURS else []),
    }
    assert sha256(torch.load(custom / "first_model.pt", weights_only=True)) == sha256(Net().state_dict())
    assert (custom / "dl/train.py").read_text() == (ROOT / "code/dl/train.py").read_text()


def test_settings_reach_the_configuration(tmp_path: Path) -> None:
    training = Training(epochs=2, lr=0.1, batch_size=4, momentum=0.5, seed=9)
    job = build_job("$SITE_DATA", sites=3, rounds=7, training=training)
    job.export_job(str(tmp_path))
    job_folder = tmp_path / "modellearner"
    learner = read_config(job_folder, "client")["components"][0]
    expected = {"data": "$SITE_DATA", "epochs": 2, "lr": 0.1, "batch_size": 4, "momentum": 0.5, "seed": 9}
    assert learner["args"] == expected
    server = read_config(job_folder, "server")
    assert server["workflows"][0]["args"]["num_rounds"] == 7
    assert server["components"][0]["args"] == {"source_ckpt_file_full_name": "first_model.pt"}
    first = torch.load(job_folder / "app/custom/first_model.pt", weights_only=True)
    assert sha256(first) == sha256(Net(9).state_dict()) != sha256(Net(0).state_dict())
    meta = json.loads((job_folder / "meta.json").read_text())
    assert meta["min_clients"] == 3
    assert meta["custom_props"] == {
        "sites": ["site-1", "site-2", "site-3"],
        "data": "$SITE_DATA",
        "metric": {"name": "accuracy", "higher_is_better": True, "fraction": None},
    }


@pytest.fixture
def created(exported: Path, bare: dict[str, str], sites: list[Path], tmp_path: Path) -> Path:
    """The job as `nvflare job create` makes it of the project's template, where tutorial_utils is not known."""
    absent = subprocess.run(
        [sys.executable, "-c", "import tutorial_utils"], env=bare, cwd=tmp_path, capture_output=True
    )
    assert b"No module named 'tutorial_utils'" in absent.stderr

    job = tmp_path / "job"
    create = [NVFLARE, "job", "create", "-j", job, "-w", job_template(tmp_path / "template"), "-force"]
    create += ["-sd", exported / "app/custom"]
    create += ["-f", "config_fed_client.conf", f"data={sites[0].parent}"]
    subprocess.run(create, check=True, capture_output=True, cwd=tmp_path, env=bare)
    return job


def test_a_historical_command_gives_the_same_job(created: Path, exported: Path) -> None:
    for name in ("client", "server"):
        assert read_config(created, name) == read_config(exported, name)
    files = [{path.name: path.read_bytes() for path in job.rglob("*.py")} for job in (created, exported)]
    assert files[0] == files[1]


@pytest.mark.slow  # fast: it is the same job, as the test above holds, and test_simulate runs that one
def test_historical_commands_give_the_same_bits(
    created: Path, bare: dict[str, str], sites: list[Path], tmp_path: Path
) -> None:
    run = [NVFLARE, "simulator", created, "-w", tmp_path / "ws", "-n", "2", "-t", "2"]
    subprocess.run(run, check=True, capture_output=True, cwd=tmp_path, env=bare)
    server = tmp_path / "ws/server/simulate_job"
    made = read_model(server / "app_server/FL_global_model.pt")
    assert set(made) == set(Net().state_dict())
    assert sha256(made) == sha256(federated_averaging(sites, 5))
    assert read_cross_site(server / "cross_site_val/cross_val_results.json", "accuracy").notna().all(axis=None)


def run_command_line(*options: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "code/fl/job.py", *options]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def test_command_line_exports(sites: list[Path], tmp_path: Path) -> None:
    done = run_command_line("--data", str(sites[0].parent), "--export", str(tmp_path))
    assert done.returncode == 0, done.stderr
    learner = read_config(tmp_path / "modellearner", "client")["components"][0]
    assert learner["args"] == {"data": str(sites[0].parent), "batch_size": 8}, "8 suits the digits"


def test_command_line_takes_names_for_the_sites(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = split_dataset(digits.folder, ["hospital-a", "hospital-b"], out=tmp_path / "sites")
    options = ["--data", os.path.relpath(folders[0].parent), "--sites", "hospital-a,hospital-b"]
    options += ["--rounds", "3", "--lr", "0.1", "--export", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["job.py", *options])
    main()
    job = tmp_path / "modellearner"
    meta = json.loads((job / "meta.json").read_text())
    assert meta["deploy_map"] == {"app_server": ["server"], "app_sites": ["hospital-a", "hospital-b"]}
    assert meta["custom_props"]["sites"] == ["hospital-a", "hospital-b"]
    assert meta["custom_props"]["data"] == str(folders[0].parent)
    config = json.loads((job / "app_sites/config/config_fed_client.json").read_text())
    assert config["components"][0]["args"] == {"data": str(folders[0].parent), "lr": 0.1, "batch_size": 8}


def test_run_by_its_path_it_looks_for_modules_where_the_job_will(tmp_path: Path) -> None:
    """Else a module called like one of code/fl (executor, job) would be another here than at a site."""
    code = f"import runpy, sys; sys.path.insert(0, {str(ROOT / 'code/fl')!r}); "
    code += f"runpy.run_path({str(ROOT / 'code/fl/job.py')!r}, run_name='job'); print(*sys.path, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    paths = done.stdout.splitlines()
    assert str(ROOT / "code/fl") not in paths and paths[0] == str(ROOT / "code")


def test_more_of_a_job_can_be_chosen_here_too(tmp_path: Path) -> None:
    job = build_job("$SITE_DATA", sites=3, min_sites=2, cross_site="none", name="mine")
    job.export_job(str(tmp_path))
    (workflow,) = read_config(tmp_path / "mine", "server")["workflows"]
    assert workflow["args"]["min_clients"] == 2


def test_client_s_part_is_the_example_s_with_every_setting() -> None:
    """What build_job hands on is what the classes take: a setting cannot be lost between the two."""
    training = Training(epochs=3, lr=0.3, batch_size=3, momentum=0.3, seed=3)
    for client in ("learner", "executor"):
        part = build_job("/data", training=training, client=client).learner
        assert {name: getattr(part, name) for name in asdict(training)} == asdict(training)


@pytest.mark.parametrize("data", ["sites", "./sites", "~/sites", "$SITE_DATA"])
@pytest.mark.parametrize("client", CLIENTS)
def test_data_are_where_they_are_from_here(client: str, data: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    build_job(data, client=client, name="job").export_job(str(tmp_path / "jobs"))
    config = (tmp_path / "jobs/job/app/config/config_fed_client.json").read_text()
    expected = data if "$" in data else str(tmp_path / "sites")
    assert f'"{expected}"' in config or f"--data {expected} " in config


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--data", "nowhere"], "nowhere/site-1"),
        (["--dataset", "digits", "--sites", "900"], "sites"),
        (["--dataset", "digits", "--sites", "server,a"], "is taken"),
        (["--dataset", "digits", "--batch-size", "2.5"], "batch-size"),
        (["--dataset", "digits", "--rounds", "0"], "rounds is 0"),
        (["--dataset", "digits", "--lr", "-1"], "lr is -1"),
        (["--dataset", "digits", "--threads", "5"], "threads is 5"),
        (["--source", "nowhere"], "nowhere"),
    ],
)
def test_command_line_says_in_one_sentence_what_is_wrong(
    options: list[str], hint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["job.py", *options])
    with pytest.raises(SystemExit) as caught:
        main()
    said = str(caught.value.code) if isinstance(caught.value.code, str) else capsys.readouterr().err.splitlines()[-1]
    assert hint in said and len(said.splitlines()) == 1
    assert caught.value.code not in (0, None)


def test_readme_shows_the_learner_as_it_is() -> None:
    shown = re.search(r"```python\n(class CIFAR10ModelLearner.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    shipped = (ROOT / "code/fl/model_learner.py").read_text()
    assert shown, "the README shows the learner"
    for method in shown[1].split("\n\n"):
        first, *lines = method.strip("\n").splitlines()
        body = "\n".join(lines if first.startswith("class ") else [first, *lines])
        assert body in shipped, "the README shows an older learner"


@pytest.mark.slow
def test_command_line_runs_on_data_that_a_variable_names(sites: list[Path], tmp_path: Path) -> None:
    options = ["--data", "$SITE_DATA", "--rounds", "1", "--batch-size", "8"]
    done = run_command_line(*options, SITE_DATA=str(sites[0].parent))
    assert done.returncode == 0, done.stderr
    assert "scikit-learn digits, 2 sites" in done.stdout
    model = Path(re.search(r"^Model +(.*)$", done.stdout, re.MULTILINE)[1])
    assert sha256(read_model(model)) == sha256(federated_averaging(sites, 1, batch_size=8))
    shutil.rmtree(model.parents[4])
