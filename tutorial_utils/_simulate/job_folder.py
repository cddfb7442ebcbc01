"""The runner's own copy of a job: what it asks for, and what the runner adds to it."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from nvflare.job_config.api import FedJob

from tutorial_utils import _flare, round_metrics
from tutorial_utils._simulate import guard, guard_checks, guard_files, guard_processes, guard_site, pace
from tutorial_utils._simulate.asked import Asked, read_asked
from tutorial_utils.errors import JobError
from tutorial_utils.sites import check_site_names

SERVER_CONFIG = "config_fed_server.json"
CLIENT_CONFIG = "config_fed_client.json"
CHECKPOINT = "resume.pt"
SERVER_GUARD = "tutorial_utils._simulate.guard.ServerGuard"
SITE_GUARD = "tutorial_utils._simulate.guard_site.SiteGuard"
SERVER_PACE = "tutorial_utils._simulate.pace.ServerPace"
SITE_PACE = "tutorial_utils._simulate.pace.SitePace"
JSON_GENERATOR = "nvflare.app_common.widgets.validation_json_generator.ValidationJsonGenerator"
ENCRYPTION = "nvflare.app_opt.he."
TAKE_NOTHING = (f"{ENCRYPTION}model_encryptor.HEModelEncryptor", "tutorial_utils.ciphertexts.OnlyFinite")
EXCLUDE_VARS = "nvflare.app_common.filters.exclude_vars.ExcludeVars"
GUARD_NEEDS = (guard_checks, guard_files, guard_processes, guard_site)
# FLARE parses the sources that it ships, and CPython's ast.parse fails now and then ("AST constructor recursion
# depth mismatch") where two threads parse and a garbage collection hands over in the middle: one export at a time.
ONE_EXPORT = threading.Lock()


@dataclass(frozen=True)
class JobFolder:
    """An exported job: meta.json and one folder an app, in any of FLARE's formats."""

    path: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        return _read(self.path, "meta")

    @cached_property
    def _server_folder(self) -> Path:
        for folder in sorted(self.path.glob("*/config")):
            if _flare.find_config(folder, _stem(SERVER_CONFIG)) and "workflows" in _read(folder, SERVER_CONFIG):
                return folder
        raise JobError(f"{self.path} has no {SERVER_CONFIG} with workflows: export the job with export_job().")

    @property
    def server_app(self) -> Path:
        """The folder of the app that the server gets."""
        return self._server_folder.parent

    @property
    def server(self) -> dict[str, Any]:
        """As FLARE reads it: variables resolved."""
        return _flare.resolve_variables(_read(self._server_folder, SERVER_CONFIG))

    @property
    def props(self) -> dict[str, Any]:
        """What the job's author noted for the runner: sites, data, metric (tutorial_utils.job.build_job does)."""
        return self.meta.get("custom_props") or {}

    @property
    def min_clients(self) -> int:
        return int(self.meta.get("min_clients") or 1)

    @property
    def asked(self) -> Asked:
        """What it asks for."""
        return read_asked(self.server)

    @property
    def rounds(self) -> range:
        """The numbers of the rounds that the job asks for; none in an evaluation alone."""
        return self.asked.rounds

    @property
    def evaluates(self) -> bool:
        """Does it end in a cross-site evaluation?"""
        return self.asked.evaluates

    @property
    def encrypted(self) -> bool:
        """Is the server to average what it cannot read?"""
        return any(str(part.get("path")).startswith(ENCRYPTION) for part in self.server.get("components") or ())

    def choose_sites(self, sites: int | Sequence[str] | None) -> tuple[str, ...]:
        """The names of the sites: those that are asked for, where the job has an app for each; else the job's own."""
        mapped = _flare.participants(self.meta.get("deploy_map") or {})
        noted = check_site_names(self.props["sites"]) if self.props.get("sites") else ()
        own = check_site_names(mapped) if mapped else noted
        names = own if sites is None else check_site_names(sites)
        if not names and self.min_clients > 1:  # 1 is FedJob's own default
            names = check_site_names(self.min_clients)
        if isinstance(sites, int) and len(own) == sites:
            names = own
        if not names:
            raise JobError("How many sites? Say simulate(job, sites=2), or build the job with sites=.")
        if mapped and set(names) != set(mapped):
            raise JobError(f"The job is for {', '.join(mapped)}, and not for {', '.join(names)}: leave sites= out.")
        if len(names) < self.min_clients:
            raise JobError(f"The job needs {self.min_clients} sites (its min_clients), and sites is {len(names)}.")
        return names

    def check_data(self, sites: tuple[str, ...]) -> None:
        """JobError if the author noted where the data lie, and a site would not find its folder there."""
        if "data" not in self.props:
            return
        data = Path(os.path.expandvars(self.props["data"]))
        if "$" in str(data):
            raise JobError(f"The job's data lie in {data}, and no such environment variable is set here: set it.")
        if not data.is_absolute():
            raise JobError(
                f"The job's data lie in {data}, which a site looks for below a folder of FLARE's: write the whole path."
            )
        lack = [site for site in sites if not (data / site).is_dir()]
        if lack:
            there = sorted(path.name for path in data.glob("*/")) if data.is_dir() else []
            has = f"it has {', '.join(there):.200}" if there else "it has none"
            raise JobError(
                f"{data} has no folder {', '.join(lack)} ({has}): name its folders as the job's sites, split the data "
                "(split_dataset, split_table), or name the folder that holds them."
            )

    def filtered(self) -> list[str]:
        """What filters of the job may take out of an update, as regular expressions."""
        return [
            pattern
            for name in (CLIENT_CONFIG, SERVER_CONFIG)
            for folder in self._folders(name)
            for chain in _flare.resolve_variables(_read(folder, name)).get("task_result_filters") or ()
            if any(fnmatch(self.asked.task, task) for task in chain.get("tasks") or ())
            for one in chain.get("filters") or ()
            for pattern in _taken_out(one)
        ]

    def add_writers(self) -> None:
        """The parts that write what a Run reads, where the job (of an older FLARE, say) has none."""
        asked, parts = self.asked, {_flare.class_path(part) for part in self.server.get("components") or ()}
        writer = round_metrics.class_path()
        if asked.training is not None and parts.isdisjoint({writer, round_metrics.OURS}):
            self._append(SERVER_CONFIG, "run_metrics_writer", writer, {}, [self._server_folder])
        if writer == round_metrics.OURS:  # FLARE 2.8 has none, and could not build that of a job which 2.9 wrote
            self._drop(round_metrics.FLARES)
            _ship(Path(round_metrics.__file__), self._server_folder.parent / "custom" / "tutorial_utils")
        if asked.evaluates and not asked.writes_matrix and JSON_GENERATOR not in parts:
            self._append(SERVER_CONFIG, "run_json_generator", JSON_GENERATOR, {}, [self._server_folder])

    def add_guard(self, **server_settings: object) -> None:
        """The guards: the last components, so that they see what all others did."""
        site_settings = {}
        if checkpoint := server_settings.get("resume_from"):
            checkpoint = Path(str(checkpoint))
            rounds = int(checkpoint.name.rpartition("-")[2])
            site_settings = {"resume_from": str(checkpoint.parents[3]), "rounds": rounds}
        server_settings |= {"filtered": self.filtered()}
        self.add("guard", (SERVER_GUARD, server_settings), (SITE_GUARD, site_settings), guard)

    def add_pace(self) -> None:
        """The parts of `tutorial_utils._simulate.pace`: a site is called when its next task is there."""
        self.add("pace", (SERVER_PACE, {}), (SITE_PACE, {}), pace)

    def add(self, name: str, server: tuple[str, dict], site: tuple[str, dict], *modules: ModuleType) -> None:
        """A last component to the server's apps and one to the sites': (class path, arguments), and their files."""
        needed = [*modules, *(GUARD_NEEDS if guard in modules else ())]
        for config, (path, args) in ((SERVER_CONFIG, server), (CLIENT_CONFIG, site)):
            folders = list(self._folders(config))
            self._append(config, name, path, args, folders)
            for folder in folders:
                for source in (Path(module.__file__) for module in needed):
                    _ship(source, folder.parent / "custom" / "tutorial_utils" / source.parent.name)

    def allow_loss(self, min_sites: int) -> None:
        """Let FLARE go on while `min_sites` are alive; the workflow still waits for every site that is."""
        _write(self.path, "meta", self.meta | {"min_clients": min_sites})

    def go_on_from(self, checkpoint: Path, done: int) -> None:
        """Start after `done` rounds, from the checkpoint's model."""
        asked, server = self.asked, _read(self._server_folder, SERVER_CONFIG)
        if asked.training is None:
            raise JobError("The job trains nothing: run it without resume_from.")
        left = asked.rounds.stop - done
        if left < 0:
            raise JobError(f"The earlier run did {done} rounds, and this job asks for {asked.rounds.stop} in all.")
        if left == 0 and not asked.evaluates:
            raise JobError(f"The earlier run did all {done} rounds, and this job asks for nothing more.")
        workflow = server["workflows"][asked.training]
        if left == 0:  # only the evaluation is missing
            server["workflows"].remove(workflow)
        workflow["args"] = workflow.get("args", {}) | {"start_round": done, "num_rounds": left}
        persistor = _flare.arguments_of(workflow).get("persistor_id") or "persistor"
        parts = [part for part in server["components"] if part["id"] == persistor]
        if not parts:
            raise JobError(f"The job has no part {persistor!r} that could load the earlier model: it cannot go on.")
        parts[0]["args"] = parts[0].get("args", {}) | {"source_ckpt_file_full_name": CHECKPOINT}
        _write(self._server_folder, SERVER_CONFIG, server)
        custom = self._server_folder.parent / "custom"
        custom.mkdir(exist_ok=True)
        shutil.copy2(checkpoint / "FL_global_model.pt", custom / CHECKPOINT)

    def _folders(self, config: str) -> Iterator[Path]:
        for folder in sorted(self.path.glob("*/config")):
            if _flare.find_config(folder, _stem(config)):
                yield folder

    def _drop(self, path: str) -> None:
        """Take a component of this class out of the server's part."""
        content = _read(self._server_folder, SERVER_CONFIG)
        content["components"] = [part for part in content["components"] if _flare.class_path(part) != path]
        _write(self._server_folder, SERVER_CONFIG, content)

    def _append(self, config: str, name: str, path: str, args: Mapping[str, Any], folders: Sequence[Path]) -> None:
        for folder in folders:
            content = _read(folder, config)
            part = {"id": name, "path": path, "args": dict(args)}
            content["components"] = [*content.pop("components", []), part]  # FLARE builds in the file's order
            _write(folder, config, content)


def place_job(job: FedJob | str | Path, folder: Path) -> JobFolder:
    """Export a job, or copy an exported one, into a folder of its name in `folder`. JobError for what is no job."""
    if isinstance(job, FedJob):
        with ONE_EXPORT:
            job.export_job(str(folder))
        return JobFolder(folder / job.name)
    source = Path(job).resolve()
    if not _flare.find_config(source, "meta"):
        raise JobError(f"{job} is not an exported job (it has no meta.json): write one with job.export_job().")
    target = folder / source.name  # the name in meta.json may be any text, "../.." too
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for inner in (target, *(path for path in target.rglob("*") if path.is_dir())):
        inner.chmod(0o755)  # the original may not be ours to write
    return JobFolder(target)


def name_of(job: FedJob | str | Path) -> str:
    """What a job is called: the FedJob's name, or the folder's. JobError for a name that leads out of a folder."""
    name = job.name if isinstance(job, FedJob) else Path(job).resolve().name
    if not isinstance(name, str) or not is_plain(name):
        raise JobError(
            f"The job is called {name!r}, and its files would lie elsewhere: give it a name without / in it."
        )
    return name


def is_plain(name: str) -> bool:
    """Can it be the name of a folder, and of nothing above it?"""
    return bool(name) and name not in (".", "..") and not re.search(r"[/\\\x00]", name)


def _taken_out(part: Mapping[str, Any]) -> list[str]:
    """ExcludeVars says what, an encryption and its check take nothing out; of any other filter one cannot know."""
    if (path := _flare.class_path(part)) != EXCLUDE_VARS:
        return [] if path in TAKE_NOTHING else [""]
    names = (part.get("args") or {}).get("exclude_vars") or []
    return [names] if isinstance(names, str) else [f"^{re.escape(str(name))}$" for name in names]


def _stem(config: str) -> str:
    return config.partition(".")[0]


def _read(folder: Path, config: str) -> dict[str, Any]:
    path = _flare.find_config(folder, _stem(config))
    if path is None:
        raise JobError(f"{folder} has no {config}: export the job again.")
    try:
        return _flare.read_config(path)
    except Exception as error:  # each format has a parser of its own, with errors of its own
        raise JobError(f"{path} cannot be read ({error}): export the job again.") from error


def _write(folder: Path, config: str, content: Mapping[str, Any]) -> None:
    """As JSON, in place of what was there in another format."""
    before = _flare.find_config(folder, _stem(config))
    path = folder / f"{_stem(config)}.json"
    guard_files.write_json(path, content)
    if before and before != path:
        before.unlink()


def _ship(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy2(file, folder / file.name)
