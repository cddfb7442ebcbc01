"""The runner's own copy of a job: what it asks for, and what the runner adds to it."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from nvflare.fuel.utils.class_utils import load_class
from nvflare.job_config.api import FedJob

from tutorial_utils._simulate import guard, pace
from tutorial_utils.errors import JobError

SERVER_CONFIG = "config_fed_server.json"
CLIENT_CONFIG = "config_fed_client.json"
CHECKPOINT = "resume.pt"
SERVER_GUARD = "tutorial_utils._simulate.guard.ServerGuard"
SITE_GUARD = "tutorial_utils._simulate.guard.SiteGuard"
SERVER_PACE = "tutorial_utils._simulate.pace.ServerPace"
SITE_PACE = "tutorial_utils._simulate.pace.SitePace"
# FLARE parses the sources that it ships, and CPython's ast.parse fails now and then ("AST constructor recursion
# depth mismatch") where two threads parse and a garbage collection hands over in the middle: one export at a time.
ONE_EXPORT = threading.Lock()


@dataclass(frozen=True)
class JobFolder:
    """An exported job: meta.json and one folder an app."""

    path: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        return _read(self.path / "meta.json")

    @cached_property
    def _server_file(self) -> Path:
        for path in self.path.glob(f"*/config/{SERVER_CONFIG}"):
            if "workflows" in _read(path):
                return path
        raise JobError(f"{self.path} has no {SERVER_CONFIG} with workflows: export the job with export_job().")

    @property
    def server(self) -> dict[str, Any]:
        return _read(self._server_file)

    @property
    def props(self) -> dict[str, Any]:
        """What the job's author noted for the runner: sites, data (fl.job.build_job does)."""
        return self.meta.get("custom_props") or {}

    @property
    def min_clients(self) -> int:
        return self.meta.get("min_clients") or 1

    @property
    def sites(self) -> int | None:
        """How many sites the job is for, None if it does not say: 1 is FedJob's own default."""
        return self.props.get("sites") or (self.min_clients if self.min_clients > 1 else None)

    @property
    def evaluates(self) -> bool:
        """Does it end in a cross-site evaluation?"""
        return any("CrossSite" in workflow["path"] for workflow in self.server["workflows"])

    def training(self, server: dict[str, Any]) -> tuple[dict[str, Any], int, int]:
        """The workflow that trains, its first round and the number of its rounds."""
        for workflow in server["workflows"]:
            defaults = _defaults(load_class(workflow["path"]))
            if "num_rounds" in defaults:
                args = defaults | workflow.setdefault("args", {})  # FedJob writes what is not the default
                return workflow, args.get("start_round", 0), args["num_rounds"]
        raise JobError("The job has no workflow with rounds, such as ScatterAndGather or FedAvg.")

    @property
    def rounds(self) -> range:
        """The numbers of the rounds that the job asks for."""
        _, start, rounds = self.training(self.server)
        return range(start, start + rounds)

    def check_data(self, sites: tuple[str, ...]) -> None:
        """JobError if the author noted where the data lie, and a site has no folder there."""
        if "data" in self.props:
            data = Path(os.path.expandvars(self.props["data"]))
            lack = [site for site in sites if not (data / site).is_dir()]
            if lack:
                raise JobError(
                    f"{data} has no folder {', '.join(lack)}: split the data for {len(sites)} sites "
                    "(data/split.py, split_dataset), or name the folder that holds them."
                )

    def add_guard(self, **server_settings: object) -> None:
        """The guards of `tutorial_utils._simulate.guard`: the last components, so that they see what all others did."""
        site_settings = {}
        if checkpoint := server_settings.get("resume_from"):
            site_settings = {"resume_from": str(Path(checkpoint).parents[3])}
        self.add("guard", (SERVER_GUARD, server_settings), (SITE_GUARD, site_settings), guard)

    def add_pace(self) -> None:
        """The parts of `tutorial_utils._simulate.pace`: a site is called when its next task is there."""
        self.add("pace", (SERVER_PACE, {}), (SITE_PACE, {}), pace)

    def add(self, name: str, server: tuple[str, dict], site: tuple[str, dict], *modules: ModuleType) -> None:
        """A last component to the server's apps and one to the sites': (class path, arguments), and their files."""
        for config, (path, args) in ((SERVER_CONFIG, server), (CLIENT_CONFIG, site)):
            for file in self.path.glob(f"*/config/{config}"):
                content = _read(file)
                part = {"id": name, "path": path, "args": args}
                content["components"] = [*content.pop("components", []), part]  # FLARE builds in the file's order
                guard.write_json(file, content)
                for source in (Path(module.__file__) for module in modules):
                    _ship(source, file.parents[1] / "custom" / "tutorial_utils" / source.parent.name)

    def allow_loss(self, min_sites: int) -> None:
        """Let FLARE go on while `min_sites` are alive; the workflow still waits for every site that is."""
        guard.write_json(self.path / "meta.json", self.meta | {"min_clients": min_sites})

    def go_on_from(self, checkpoint: Path, done: int) -> None:
        """Start after `done` rounds, from the checkpoint's model."""
        server = self.server
        workflow, start, rounds = self.training(server)
        left = start + rounds - done
        if left < 0:
            raise JobError(f"The earlier run did {done} rounds, and this job asks for {start + rounds} in all.")
        if left == 0:  # only the evaluation is missing
            server["workflows"].remove(workflow)
        workflow["args"] |= {"start_round": done, "num_rounds": left}
        persistor = workflow["args"].get("persistor_id", "persistor")
        (part,) = (part for part in server["components"] if part["id"] == persistor)
        part["args"] = part.get("args", {}) | {"source_ckpt_file_full_name": CHECKPOINT}
        guard.write_json(self._server_file, server)
        custom = self._server_file.parents[1] / "custom"
        custom.mkdir(exist_ok=True)
        shutil.copy2(checkpoint / "FL_global_model.pt", custom / CHECKPOINT)


def place_job(job: FedJob | str | Path, folder: Path) -> JobFolder:
    """Export a job, or copy an exported one, into `folder`/its-name."""
    if isinstance(job, FedJob):
        with ONE_EXPORT:
            job.export_job(str(folder))
        return JobFolder(folder / job.name)
    source = Path(job)
    if not (source / "meta.json").is_file():
        raise JobError(f"{source} is not an exported job (it has no meta.json): write one with job.export_job().")
    name = _read(source / "meta.json").get("name") or source.name
    shutil.copytree(source, folder / name)
    return JobFolder(folder / name)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(f"{path} cannot be read ({error}): export the job again.") from error


def _defaults(kind: type) -> dict[str, Any]:
    """The defaults of a component's constructor, and of those that it hands its **kwargs on to."""
    found: dict[str, Any] = {}
    for ancestor in kind.__mro__:
        if "__init__" in vars(ancestor):
            for name, parameter in inspect.signature(ancestor.__init__).parameters.items():
                if parameter.default is not inspect.Parameter.empty:
                    found.setdefault(name, parameter.default)
    return found


def _ship(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy2(file, folder / file.name)
