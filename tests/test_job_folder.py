"""The runner's own copy of a job: read in every format of FLARE's, judged by what it asks for, added to at its end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from nvflare.app_common.filters.exclude_vars import ExcludeVars
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
from nvflare.app_common.widgets.validation_json_generator import ValidationJsonGenerator
from nvflare.app_common.workflows.cross_site_eval import CrossSiteEval
from nvflare.app_common.workflows.cross_site_model_eval import CrossSiteModelEval
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.app_common.workflows.global_model_eval import GlobalModelEval
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather
from nvflare.job_config.api import FedJob
from nvflare.job_config.defs import FilterType

from fl.job import build_job
from tutorial_utils._flare import find_config, read_config
from tutorial_utils._simulate.asked import Asked
from tutorial_utils._simulate.job_folder import JobFolder, name_of, place_job
from tutorial_utils.errors import JobError, TutorialError
from tutorial_utils.round_metrics import MetricsArtifactWriter
from tutorial_utils.simulate import fresh_folder

CODE = Path(build_job.__code__.co_filename).parents[1]
SAG = {"path": "nvflare.app_common.workflows.scatter_and_gather.ScatterAndGather"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's job as FLARE exports it; nobody may write into it."""
    folder = tmp_path_factory.mktemp("exported")
    build_job("$SITE_DATA", rounds=4, name="example").export_job(str(folder))
    return folder / "example"


@pytest.fixture
def place(exported: Path, tmp_path: Path) -> Callable[..., JobFolder]:
    """A copy of the example's job, its meta and its server's configuration changed."""

    def change(meta: dict | None = None, server: Callable[[dict], object] = lambda config: None) -> JobFolder:
        copy = place_job(exported, tmp_path / f"copy-{len(list(tmp_path.iterdir()))}")
        path = copy.path / "meta.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | (meta or {})))
        path = copy.path / "app/config/config_fed_server.json"
        config = json.loads(path.read_text())
        server(config)
        path.write_text(json.dumps(config))
        return copy

    return change


def config_of(copy: JobFolder, who: str) -> dict[str, Any]:
    return json.loads((copy.path / f"app/config/config_fed_{who}.json").read_text())


def export(folder: Path, *workflows: object) -> JobFolder:
    """A job with these workflows and what FLARE's export wants beside them."""
    job = FedJob(name="job", min_clients=2)
    for workflow in workflows:
        job.to_server(workflow)
    return place_job(job, folder)


# --- what a job asks for ---

TRAINED = {"training": 0, "saves": True, "rounds": range(3), "answers": 2}
EVALUATED = {"evaluates": True, "local_models": True, "global_models": True}


@pytest.mark.parametrize(
    ("workflows", "expected"),
    [
        ([ScatterAndGather(min_clients=2, num_rounds=3, persistor_id="persistor")], TRAINED),
        ([ScatterAndGather(min_clients=2, num_rounds=3)], TRAINED | {"saves": False}),
        (
            [ScatterAndGather(min_clients=2, start_round=4, persistor_id="p", train_task_name="fit")],
            TRAINED | {"rounds": range(4, 9), "task": "fit"},
        ),
        (
            [ScatterAndGather(min_clients=2, num_rounds=3, persistor_id="p", ignore_result_error=True)],
            TRAINED | {"answers": 1},
        ),
        ([FedAvg(num_clients=2, num_rounds=3)], TRAINED),
        ([FedAvg(num_clients=2, num_rounds=3, stop_cond="auc >= 0.9")], TRAINED | {"may_stop": True}),
        ([FedAvg(num_clients=2, num_rounds=3), CrossSiteModelEval(model_locator_id="l")], TRAINED | EVALUATED),
        (
            [CrossSiteModelEval(model_locator_id="l", submit_model_task_name="", participating_clients=["a", "b"])],
            EVALUATED | {"local_models": False, "participants": ("a", "b")},
        ),
        ([GlobalModelEval(model_locator_id="l")], EVALUATED | {"local_models": False}),
        ([CrossSiteModelEval()], EVALUATED | {"global_models": False}),
        ([CrossSiteEval()], EVALUATED | {"writes_matrix": True}),
    ],
)
def test_what_a_workflow_asks_for_is_read_in_its_arguments_and_defaults(
    workflows: list, expected: dict, tmp_path: Path
) -> None:
    assert export(tmp_path, *workflows).asked == Asked(**expected)


def test_the_example_s_job(place: Callable[..., JobFolder]) -> None:
    copy = place()
    assert copy.asked == Asked(**TRAINED | EVALUATED | {"rounds": range(4)})
    assert copy.rounds == range(4) and copy.evaluates and copy.choose_sites(None) == ("site-1", "site-2")


def test_a_job_that_neither_trains_nor_evaluates_is_refused(place: Callable[..., JobFolder]) -> None:
    path = "nvflare.app_common.workflows.statistics_controller.StatisticsController"
    copy = place(server=lambda config: config.update(workflows=[{"path": path}]))
    with pytest.raises(JobError, match=r"no workflow with rounds.* and no cross-site evaluation"):
        _ = copy.asked


# --- every way in which FLARE lets a job be written ---


def by_variables(config: dict) -> None:
    config |= {"rounds": 7, "clients": 2}
    config["workflows"][0]["args"] |= {"num_rounds": "{rounds}", "min_clients": "{clients}"}


def by_name(config: dict) -> None:
    for workflow in config["workflows"]:
        workflow["name"] = workflow.pop("path").rpartition(".")[2]


def by_class_path(config: dict) -> None:
    for part in [*config["workflows"], *config["components"]]:
        part["class_path"] = part.pop("path")


def of_another_package(config: dict) -> None:
    """A workflow that ships with the job: its class cannot be looked at here."""
    config["workflows"][0]["path"] = "mine.Controller"


@pytest.mark.parametrize(("write", "rounds"), [(by_variables, 7), (by_name, 4), (by_class_path, 4)])
def test_variables_and_names_mean_what_they_mean_to_flare(
    write: Callable, rounds: int, place: Callable[..., JobFolder]
) -> None:
    copy = place(server=write)
    assert copy.asked == Asked(**TRAINED | EVALUATED | {"rounds": range(rounds)})
    copy.add_writers()
    copy.add_guard()
    assert [part["id"] for part in config_of(copy, "server")["components"]][-2:] == ["json_generator", "guard"]


def test_a_workflow_of_the_job_s_own_is_read_by_what_is_written(place: Callable[..., JobFolder]) -> None:
    assert place(server=of_another_package).asked.rounds == range(4)


def test_rounds_that_are_no_number_are_refused(place: Callable[..., JobFolder]) -> None:
    copy = place(server=lambda config: config["workflows"][0]["args"].update(num_rounds="{nowhere}"))
    with pytest.raises(JobError, match="num_rounds is None"):
        _ = copy.asked


@pytest.fixture(scope="module")
def template(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job that `nvflare job create` makes of the project's template, in HOCON."""
    folder = tmp_path_factory.mktemp("template") / "job"
    words = ["job", "create", "-j", folder, "-w", CODE / "fl/job_template", "-sd", exported / "app/custom", "-force"]
    subprocess.run([Path(sys.executable).with_name("nvflare"), *words], check=True, capture_output=True)
    return folder


def test_the_project_s_template_is_a_job(template: Path, tmp_path: Path) -> None:
    copy = place_job(template, tmp_path)
    assert copy.asked == Asked(**TRAINED | EVALUATED | {"rounds": range(5)})
    assert copy.choose_sites(None) == ("site-1", "site-2")
    copy.add_writers()
    copy.add_guard(min_sites=1)
    copy.allow_loss(1)
    assert not list(copy.path.rglob("config_fed_*.conf")) and not list(copy.path.glob("meta.conf")), "FLARE reads one"
    assert copy.asked == place_job(template, tmp_path / "again").asked
    assert JobFolder(copy.path).min_clients == 1
    assert config_of(copy, "client")["components"][-1]["id"] == "guard"


def test_the_first_format_in_flare_s_order_is_the_one_that_counts(place: Callable[..., JobFolder]) -> None:
    copy = place()
    (copy.path / "app/config/config_fed_server.conf").write_text("workflows = []")
    (copy.path / "app/config/config_fed_server.yml").write_text("workflows: []")
    assert find_config(copy.path / "app/config", "config_fed_server").suffix == ".json"
    assert read_config(copy.path / "app/config/config_fed_server.conf") == {"workflows": []}
    assert copy.asked.rounds == range(4)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]"])
def test_a_configuration_that_cannot_be_read_is_named(text: str, place: Callable[..., JobFolder]) -> None:
    copy = place()
    (copy.path / "app/config/config_fed_client.json").write_text(text)
    with pytest.raises(JobError, match=r"config_fed_client\.json cannot be read .*: export the job again"):
        copy.add_guard()


# --- what is added ---


def test_the_guards_are_the_last_parts(place: Callable[..., JobFolder]) -> None:
    """They see what all others did. Mutation that must not live: they come first."""
    copy = place()
    copy.add_writers()
    copy.add_pace()
    copy.add_guard(sites=["site-1", "site-2"])
    for who in ("server", "client"):
        ids = [part["id"] for part in config_of(copy, who)["components"]]
        assert ids[-2:] == ["pace", "guard"] and len(ids) > 2
        assert list(config_of(copy, who))[-1] == "components", "FLARE builds in the file's order"


PROBE = """
import sys
from pathlib import Path
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path = [sys.argv[1], *(path for path in sys.path if not Path(path, "tutorial_utils").is_dir())]
import {module}
print({module}.__file__)
"""


def test_what_is_added_stands_alone_where_this_package_is_not(place: Callable[..., JobFolder], tmp_path: Path) -> None:
    copy = place()
    copy.add_pace()
    copy.add_guard()
    custom = copy.path / "app" / "custom"
    for who in ("server", "client"):
        for part in config_of(copy, who)["components"][-2:]:
            module = part["path"].rpartition(".")[0]
            command = [sys.executable, "-c", PROBE.format(module=module), str(custom)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
            assert done.stdout.strip() == str(custom / f"{module.replace('.', '/')}.py"), done.stderr


def test_a_job_without_the_parts_that_write_results_gets_them(place: Callable[..., JobFolder]) -> None:
    def strip(config: dict) -> None:
        config["components"] = [part for part in config["components"] if "_writer" not in part["id"]]
        config["components"] = [part for part in config["components"] if "generator" not in part["id"]]

    copy = place(server=strip)
    copy.add_writers()
    kinds = [part["path"].rpartition(".")[2] for part in config_of(copy, "server")["components"]]
    assert kinds[-2:] == [MetricsArtifactWriter.__name__, ValidationJsonGenerator.__name__]
    before = config_of(copy, "server")
    copy.add_writers()
    assert config_of(copy, "server") == before, "once"


def test_an_evaluation_that_writes_its_matrix_itself_gets_no_second_writer(tmp_path: Path) -> None:
    copy = export(tmp_path, CrossSiteEval())
    copy.add_writers()
    assert copy.server["components"] == []


def test_a_site_s_guard_knows_where_its_site_goes_on(place: Callable[..., JobFolder], tmp_path: Path) -> None:
    copy = place()
    checkpoint = tmp_path / "run/workspace/server/simulate_job/guard/checkpoint-3"
    copy.add_guard(resume_from=str(checkpoint))
    expected = {"resume_from": str(tmp_path / "run/workspace"), "rounds": 3}
    assert config_of(copy, "client")["components"][-1]["args"] == expected


@pytest.mark.parametrize(
    ("filters", "tasks", "expected"),
    [
        ([], ["train"], []),
        ([ExcludeVars(exclude_vars=["fc3.bias"])], ["train"], [r"^fc3\.bias$"]),
        ([ExcludeVars(exclude_vars=["a", "b"])], ["train", "submit_model"], ["^a$", "^b$"]),
        ([ExcludeVars(exclude_vars=["a"])], ["validate"], []),
        ([PercentilePrivacy()], ["train"], [""]),
    ],
)
def test_what_filters_take_out_is_told_to_the_guard(
    filters: list, tasks: list[str], expected: list[str], tmp_path: Path
) -> None:
    job = build_job("$SITE_DATA")
    for one in filters:
        job.to_clients(one, filter_type=FilterType.TASK_RESULT, tasks=tasks)
    copy = place_job(job, tmp_path)
    assert copy.filtered() == expected
    copy.add_guard()
    assert config_of(copy, "server")["components"][-1]["args"] == {"filtered": expected}


def test_a_pattern_of_a_filter_is_the_guard_s(tmp_path: Path, place: Callable[..., JobFolder]) -> None:
    path = "nvflare.app_common.filters.exclude_vars.ExcludeVars"
    chain = {"tasks": ["train"], "filters": [{"path": path, "args": {"exclude_vars": "^fc"}}]}
    copy = place(server=lambda config: config.update(task_result_filters=[chain]))
    assert copy.filtered() == ["^fc"], "the server's filters count too"


# --- where a resumed run starts ---


def test_a_run_goes_on_after_the_rounds_that_are_done(place: Callable[..., JobFolder], tmp_path: Path) -> None:
    (tmp_path / "FL_global_model.pt").write_text("weights")
    copy = place()
    copy.go_on_from(tmp_path, 3)
    workflow = config_of(copy, "server")["workflows"][0]
    assert (workflow["args"]["start_round"], workflow["args"]["num_rounds"]) == (3, 1)
    assert (copy.path / "app/custom/resume.pt").read_text() == "weights"
    (persistor,) = (part for part in config_of(copy, "server")["components"] if part["id"] == "persistor")
    assert persistor["args"]["source_ckpt_file_full_name"] == "resume.pt"
    done = place()
    done.go_on_from(tmp_path, 4)
    assert [workflow["id"] for workflow in config_of(done, "server")["workflows"]] == ["cross_site_eval"]


@pytest.mark.parametrize(
    ("change", "done", "text"),
    [
        (lambda config: None, 5, "did 5 rounds, and this job asks for 4 in all"),
        (lambda config: config["workflows"].pop(), 4, "did all 4 rounds, and this job asks for nothing more"),
        (lambda config: config["workflows"].pop(0), 1, "trains nothing: run it without resume_from"),
        (lambda config: config["components"].pop(0), 1, "no part 'persistor' that could load"),
    ],
)
def test_a_job_that_cannot_go_on_says_why(
    change: Callable, done: int, text: str, place: Callable[..., JobFolder], tmp_path: Path
) -> None:
    (tmp_path / "FL_global_model.pt").touch()
    with pytest.raises(JobError, match=text):
        place(server=change).go_on_from(tmp_path, done)


# --- names of sites ---

NAMED = {"app_server": ["server"], "app_sites": ["hospital-a", "hospital-b"]}


@pytest.mark.parametrize(
    ("meta", "sites", "expected"),
    [
        ({}, None, ("site-1", "site-2")),
        ({}, 3, ("site-1", "site-2", "site-3")),
        ({}, ["a", "b"], ("a", "b")),
        ({"custom_props": {"sites": 3}}, None, ("site-1", "site-2", "site-3")),
        ({"custom_props": {"sites": ["a", "b"]}}, None, ("a", "b")),
        ({"custom_props": {"sites": ["a", "b"]}}, 2, ("a", "b")),
        ({"custom_props": None}, None, ("site-1", "site-2")),
        ({"custom_props": None, "min_clients": 1}, ["a"], ("a",)),
        ({"custom_props": None, "deploy_map": NAMED}, None, ("hospital-a", "hospital-b")),
        ({"custom_props": None, "deploy_map": NAMED}, 2, ("hospital-a", "hospital-b")),
        ({"custom_props": None, "deploy_map": NAMED}, ["hospital-b", "hospital-a"], ("hospital-b", "hospital-a")),
        ({"deploy_map": {"app": [{"sites": ["server", "a", "b"]}]}, "custom_props": None}, None, ("a", "b")),
    ],
)
def test_the_sites_are_those_that_are_asked_for_or_that_the_job_names(
    meta: dict, sites: int | Sequence[str] | None, expected: tuple, place: Callable[..., JobFolder]
) -> None:
    assert place(meta).choose_sites(sites) == expected


@pytest.mark.parametrize(
    ("meta", "sites", "text"),
    [
        ({}, 1, r"The job needs 2 sites \(its min_clients\), and sites is 1"),
        ({}, ["a"], "The job needs 2 sites"),
        ({}, 0, "sites is 0: it must be a whole number"),
        ({}, ["../up", "b"], "A site cannot be called '../up'"),
        ({"custom_props": {"sites": ["../up", "b"]}}, None, "A site cannot be called '../up'"),
        ({"deploy_map": {"app": ["server", "a/b"]}}, None, "A site cannot be called 'a/b'"),
        ({"custom_props": None, "min_clients": 1}, None, r"How many sites\? Say simulate\(job, sites=2\)"),
        ({"deploy_map": NAMED}, 3, "The job is for hospital-a, hospital-b, and not for site-1, site-2, site-3: leave"),
        (
            {"deploy_map": NAMED},
            ["a", "b"],
            "The job is for hospital-a, hospital-b, and not for a, b: leave",
        ),
    ],
)
def test_sites_that_cannot_be_are_said_before_the_start(
    meta: dict, sites: Any, text: str, place: Callable[..., JobFolder]
) -> None:
    with pytest.raises(TutorialError, match=text):
        place(meta).choose_sites(sites)


# --- data and paths ---


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("$NO_SUCH_VARIABLE/sites", r"lie in \$NO_SUCH_VARIABLE/sites, and no such environment variable is set here"),
        ("data/sites", "lie in data/sites, which a site looks for below a folder of FLARE's: write the whole path"),
        ("~/sites", "lie in ~/sites, which a site looks for below a folder of FLARE's"),
        ("/nowhere", r"/nowhere has no folder site-1, site-2 \(it has none\): name its folders"),
    ],
)
def test_data_are_looked_for_as_a_site_will(data: str, text: str, place: Callable[..., JobFolder]) -> None:
    copy = place({"custom_props": {"data": data}})
    with pytest.raises(JobError, match=text):
        copy.check_data(("site-1", "site-2"))


def test_data_that_a_variable_names_are_found(
    place: Callable[..., JobFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site-1").mkdir()
    monkeypatch.setenv("SITE_DATA", str(tmp_path))
    place({"custom_props": {"data": "$SITE_DATA"}}).check_data(("site-1",))


def test_a_job_of_any_name_stays_in_its_folder(place: Callable[..., JobFolder], tmp_path: Path) -> None:
    """meta.json is the text of whoever wrote the job."""
    copy = place({"name": "../../../escaped"})
    again = place_job(copy.path, tmp_path / "runs" / "run" / "job")
    assert again.path.parent == tmp_path / "runs" / "run" / "job"
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("name", ["../up", "a/b", "..", ".", ""])
def test_a_name_that_leads_out_of_the_folder_of_runs_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(TutorialError, match="cannot be called"):
        fresh_folder(tmp_path / "runs", name)
    job = FedJob(name="job", min_clients=1)
    job.name = name
    with pytest.raises(JobError, match="its files would lie elsewhere"):
        name_of(job)


def test_a_folder_is_called_by_its_own_name_however_it_is_given(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(exported)
    assert name_of(".") == name_of(exported) == "example"


def test_a_job_that_one_may_only_read_can_be_run(exported: Path, tmp_path: Path) -> None:
    original = place_job(exported, tmp_path).path
    everything = [original, *original.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    copy = place_job(original, tmp_path / "copy")
    assert all(path.stat().st_mode & 0o200 for path in [copy.path, *copy.path.rglob("*")])
    for path in everything:
        path.chmod(0o755)


def test_what_is_no_job_is_said(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(JobError, match=r"is not an exported job .*export_job"):
            place_job(path, tmp_path / "runs")
