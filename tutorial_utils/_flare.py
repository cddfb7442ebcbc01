"""Every touch of a part of nvflare that its makers do not promise, where it runs on the reader's machine.

Each line was read in nvflare 2.9.0, and runs with 2.8.3. Where another version has it otherwise, this is the place to
look, and the parts that must stand alone because they run in FLARE's own processes: what ships with a job
(_simulate/guard.py, alive.py and pace.py, _deploy/pulse.py, algorithms/aggregator.py) and _simulate/start.py. There a
comment names the version.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tutorial_utils.versions  # noqa: F401  isort: skip  (it speaks before an import fails)
from nvflare.apis.filter import Filter
from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST
from nvflare.fuel.utils.class_loader import load_class
from nvflare.fuel.utils.class_utils import ModuleScanner, get_class_path_from_config
from nvflare.fuel.utils.config import ConfigFormat
from nvflare.fuel.utils.config_factory import ConfigFactory
from nvflare.fuel.utils.json_scanner import JsonScanner
from nvflare.fuel.utils.wfconf import resolve_var_refs
from nvflare.job_config.api import ClientApp, FedJob, ServerApp
from nvflare.job_config.fed_app_config import FedAppConfig

if TYPE_CHECKING:
    from nvflare.fuel.flare_api.flare_api import Session

SIMULATOR_CODES = (0, 2)  # that the simulator ends with by itself once it has begun; they prove nothing
SIMULATOR_SETTINGS = {"NVFLARE_DEAD_CLIENT_GRACE_PERIOD": "0", "NVFLARE_DEAD_CLIENT_CHECK_LEAD_TIME": "1"}
LOG = "log.json"  # in the workspace of each participant: one JSON object a line
ASKED_TOO_EARLY = "'NoneType' object has no attribute 'get_widget'"  # show_stats of a job that begins or ends (2.9.0)
LOG_TIME = "%Y-%m-%d %H:%M:%S,%f"  # of this machine's clock
KNOWN_CLASSES = DEFAULT_CLASS_ALLOW_LIST  # that a site builds for a job that brings no code, as its kit comes
SERVER, EVERYBODY = "server", "@ALL"  # in a deploy_map
CLASS_FOLDERS = ["apis", "app_common", "widgets", "server", "app_opt"]  # where FLARE looks for a class by its name


def find_config(folder: Path, name: str) -> Path | None:
    """FLARE's configuration of this name (no suffix): JSON, HOCON or YAML, in the order in which FLARE looks."""
    paths = (folder / f"{name}{suffix}" for suffix in ConfigFormat.config_ext_formats())
    return next((path for path in paths if path.is_file()), None)


def read_config(path: Path) -> dict[str, Any]:
    """A configuration in any of FLARE's formats. It raises whatever its parser does."""
    suffix = path.name[path.name.index(".") :]
    loader = ConfigFactory.get_config_loader(ConfigFormat.config_ext_formats()[suffix])
    if loader is None:
        raise ValueError(f"this environment cannot read {suffix}")
    content = loader.load_config(file_path=str(path)).to_dict()
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    return content


def resolve_variables(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says once FLARE has put its own entries in for {their_names}."""
    resolved = copy.deepcopy(dict(config))
    resolve_var_refs(JsonScanner(resolved), copy.deepcopy(resolved))
    return resolved


def class_path(part: Mapping[str, Any]) -> str:
    """The class of a component in a configuration, which may give its name alone; ConfigError if it has none."""
    return get_class_path_from_config(dict(part), ModuleScanner(["nvflare"], CLASS_FOLDERS).get_module_name)


def arguments_of(part: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a component gets: those that are written down, and its defaults, as far as its class is here.

    Of a constructor that takes **kwargs, those of its ancestors too.
    """
    found = dict(part.get("args") or {})
    try:
        kind = load_class(class_path(part))
    except TypeError:  # a class that ships with the job
        return found
    for ancestor in kind.__mro__:
        if "__init__" in vars(ancestor):
            parameters = list(inspect.signature(ancestor.__init__).parameters.values())
            named = {one.name: one.default for one in parameters if one.default is not one.empty}
            found = named | found
            if not any(one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL) for one in parameters):
                break
    return found


def participants(deploy_map: Mapping[str, Any]) -> list[str]:
    """Whom a job's deploy_map names, the server and "@ALL" left out."""
    entries = [entry for entries in deploy_map.values() for entry in entries]
    names = [name for entry in entries for name in (entry.get("sites", []) if isinstance(entry, dict) else [entry])]
    return [name for name in names if name.lower() not in (SERVER, EVERYBODY.lower())]


def read_errors(log: Path) -> Iterator[tuple[float, str]]:
    """The time (seconds since 1970; 0.0 if unknown) and the text of each error in a participant's log, in its order."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # the last line of a process that was killed while it wrote
            continue
        if not isinstance(record, dict) or record.get("levelname") not in ("ERROR", "CRITICAL"):
            continue
        if ASKED_TOO_EARLY not in (text := str(record.get("message", "")).strip()):
            yield _seconds(record.get("asctime")), text


def look_for_secrets(job: Path) -> None:
    """FLARE 2.9 warns of what looks like a password in a job's folder; 2.8 does not look."""
    with suppress(ModuleNotFoundError):
        from nvflare.fuel.utils.job_secret_scanner import warn_on_potential_secrets_in_job_dir as look

        look(str(job))


def silence(session: Session, tell: Callable[[str], object]) -> None:
    """A Session of nvflare.fuel.flare_api prints "Connecting to FLARE ..." at each login: to `tell` instead."""
    session.api._print_hci = tell


def cut_connections(session: Session) -> None:
    """Close what a Session's cell has of connections to its server (nvflare 2.9.0: in the drivers of its cell)."""
    if cell := session.api.cell:
        for connector in list(cell.core_cell.communicator.conn_manager.connectors.values()):
            connector.driver.close_all()


def _seconds(stamp: object) -> float:
    try:
        return datetime.strptime(str(stamp), LOG_TIME).timestamp()
    except ValueError:
        return 0.0


class SplitJob(FedJob):
    """A FedJob that may go to the sites of some names, and to no others that a server may know.

    FedJob (2.9.0) puts server and sites into one app for whoever is there, and `_set_all_app` does it. Where sites
    are named, server and sites have an app each, so that what only the server needs does not travel to the sites.
    """

    named: tuple[str, ...] = ()

    def part(self, id: str) -> object | None:  # noqa: A002, as FedJob's own methods call it
        """The server's component or workflow with this id."""
        app = self._deploy_map[SERVER].get_app_config()
        workflows = {workflow.id: workflow.controller for workflow in app.workflows}
        return {**app.components, **workflows}.get(id)

    def replace(self, id: str, part: object) -> None:  # noqa: A002
        """Another part at the server, in the place of the one with this id: FedJob only adds."""
        app = self._deploy_map[SERVER].get_app_config()
        if id in app.components:
            app.components[id] = part
        for workflow in app.workflows:
            if workflow.id == id:
                workflow.controller = part

    def add_last_filter(self, task: str, part: Filter) -> None:
        """One more filter of what the sites answer to a task, after all others: FedJob wants equal sets of tasks."""
        chains = self._deploy_map[EVERYBODY].get_app_config().task_result_filters
        before = [one for tasks, filters in chains if task in tasks for one in filters]
        chains[:] = [(tasks - {task}, filters) for tasks, filters in chains if tasks - {task}]
        chains.append(({task}, [*before, part]))

    def _set_all_app(self, client_app: ClientApp, server_app: ServerApp) -> None:
        if not self.named:
            super()._set_all_app(client_app, server_app)
            return
        self.job.add_fed_app("app_server", FedAppConfig(server_app=server_app.get_app_config(), client_app=None))
        self.job.set_site_app(SERVER, "app_server")
        self.job.add_fed_app("app_sites", FedAppConfig(server_app=None, client_app=client_app.get_app_config()))
        for site in self.named:
            self.job.set_site_app(site, "app_sites")
