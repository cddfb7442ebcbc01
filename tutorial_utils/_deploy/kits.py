"""Startup kits: `nvflare provision` makes them, each is put into a folder of its own that stands for a machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from nvflare.lighter.utils import update_storage_locations

from tutorial_utils._deploy import rejoin
from tutorial_utils._deploy.heartbeat import Heartbeat
from tutorial_utils._deploy.ports import free_port
from tutorial_utils._deploy.rejoin import Rejoin
from tutorial_utils._simulate.watch import PLAIN_PATH
from tutorial_utils.errors import DeploymentError
from tutorial_utils.folder import reason
from tutorial_utils.sites import check_site_names

MACHINES = "machines"
REJOIN = "tutorial_rejoin"  # the name of rejoin.py in the server's local/custom, beside whatever else lies there
KEYS = "nvflare.lighter.impl.he.HEBuilder"  # a secret key for all sites, and for the server what it needs to add
SIGNATURE = "nvflare.lighter.impl.signature.SignatureBuilder"

NOT_THE_REASON = ("Project yaml", "Hint:", "Code:")  # what else `nvflare provision` prints when it refuses


@dataclass(frozen=True)
class Kits:
    """The machines of a provisioned project.

    Attributes:
        folder: the folder of their folders, each with startup/, local/ and transfer/.
        server, admin, sites: their names, which are in their certificates too.
        heartbeat: how soon they miss each other.
    """

    folder: Path
    server: str
    admin: str
    sites: tuple[str, ...]
    heartbeat: Heartbeat = field(default_factory=Heartbeat)


def check_path(folder: Path) -> None:
    """DeploymentError for a path that FLARE's commands would split."""
    if not PLAIN_PATH.fullmatch(str(folder)):
        raise DeploymentError(
            f"FLARE starts its processes by commands that it splits at spaces, and {folder} has a space or the like: "
            "name another folder with runs=."
        )


def read_project(path: Path) -> dict[str, Any]:
    try:
        project = yaml.safe_load(path.read_text(encoding="utf-8"))
        kinds = [one["type"] for one in project["participants"]]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise DeploymentError(f"{path} is no project file ({reason(error)}): code/fl/project.yml is one.") from error
    lack = [kind for kind in ("server", "client", "admin") if kind not in kinds]
    if lack or kinds.count("server") > 1:
        raise DeploymentError(f"{path} needs one server, and at least one client and one admin: see its participants.")
    return project


def copy_project(
    path: Path, folder: Path, sites: Sequence[str] = (), encrypted: bool = False
) -> tuple[dict[str, Any], Path]:
    """A copy of a project file that has a free port of this machine, other sites if these are named, and keys.

    A site that the file has stays as it is; another one becomes the file's first under a new name.
    """
    project = read_project(path)
    server, client = ([one for one in project["participants"] if one["type"] == kind] for kind in ("server", "client"))
    server[0]["fed_learn_port"] = free_port()
    server[0].pop("admin_port", None)  # the same one then
    if sites:
        others = [one for one in project["participants"] if one["type"] != "client"]
        known = {one["name"]: one for one in client}
        project["participants"] = [*others, *(known.get(site, client[0]) | {"name": site} for site in sites)]
    builders = [one["path"] for one in project["builders"]] if encrypted else [KEYS]
    if KEYS not in builders:  # before the builder that signs what the others made
        project["builders"].insert(
            builders.index(SIGNATURE) if SIGNATURE in builders else len(builders), {"path": KEYS}
        )
    copy = folder / "project.yml"
    copy.write_text(yaml.safe_dump(project, sort_keys=False), encoding="utf-8")
    return project, copy


def admin_of(project: Mapping[str, Any]) -> str:
    """Who runs the federation: the first admin that may do everything, else the first one."""
    admins = [one for one in project["participants"] if one["type"] == "admin"]
    return next((one["name"] for one in admins if one.get("role") == "project_admin"), admins[0]["name"])


def names_in(project: Mapping[str, Any], kind: str) -> list[str]:
    """The participants of a type: "server", "client" or "admin"."""
    return [one["name"] for one in project["participants"] if one["type"] == kind]


def make_kits(
    project_file: Path,
    folder: Path,
    sites: Sequence[str] = (),
    encrypted: bool = False,
    heartbeat: Heartbeat | None = None,
) -> Kits:
    """Run `nvflare provision`, and put each participant's startup kit into folder/machines."""
    project, copy = copy_project(project_file, folder, sites, encrypted)
    made = _provision(copy, project["name"], project_file)
    (server,), admins, clients = (names_in(project, kind) for kind in ("server", "admin", "client"))
    for name in (server, *admins, *clients):
        shutil.copytree(made / name, folder / MACHINES / name)
    kits = Kits(folder / MACHINES, server, admin_of(project), tuple(clients), heartbeat or Heartbeat())
    _furnish(kits.folder / kits.server)
    for name in (server, *clients):
        kits.heartbeat.write(kits.folder / name)
    return kits


def add_kits(kits: Kits, newcomers: Sequence[Mapping[str, Any]]) -> Kits:
    """Kits for more participants, signed by the same root: those that are out stay as they are.

    DeploymentError for entries that a project file cannot have, and for names that are taken.
    """
    copy = kits.folder.parent / "project.yml"
    project = read_project(copy)
    if KEYS in (one["path"] for one in project["builders"]):  # nvflare 2.9.0 would make other keys, for the newcomers
        raise DeploymentError("The keys of an encrypted federation are made once, for all: provision it anew.")
    known = {one["name"] for one in project["participants"]}
    for one in newcomers:
        if not isinstance(one, Mapping) or not {"name", "type", "org"} <= one.keys():
            raise DeploymentError(f"{one!r:.80} is no participant: give a dict with name, type and org.")
        if one["name"] in known or one["type"] not in ("client", "admin"):
            raise DeploymentError(f"{one['name']} cannot join: its name is taken, or its type is not client or admin.")
        known.add(one["name"])
    clients = [one["name"] for one in newcomers if one["type"] == "client"]
    sites = check_site_names([*kits.sites, *clients])
    before = copy.read_text(encoding="utf-8")
    participants = [*project["participants"], *map(dict, newcomers)]
    copy.write_text(yaml.safe_dump(project | {"participants": participants}, sort_keys=False), encoding="utf-8")
    try:
        made = _provision(copy, project["name"], "the newcomers")
    except DeploymentError:
        copy.write_text(before, encoding="utf-8")
        raise
    for one in newcomers:
        shutil.copytree(made / one["name"], kits.folder / one["name"])
    for name in clients:
        kits.heartbeat.write(kits.folder / name)
    return replace(kits, sites=sites)


def _provision(project_file: Path, name: str, whose: object) -> Path:
    """Run `nvflare provision` on a copy of a project file; the folder of the kits that this run has made."""
    workspace = project_file.parent / "provisioned"
    earlier = set((workspace / name).glob("prod_*"))
    command = [sys.executable, "-m", "nvflare.cli", "provision", "-p", str(project_file), "-w", str(workspace)]
    command.append("--force")  # no question where it was run before: it goes on, with the same root
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    made = set((workspace / name).glob("prod_*")) - earlier
    if done.returncode or not made:
        said = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith(NOT_THE_REASON)]
        raise DeploymentError(f"nvflare provision refuses {whose}: {' '.join(said)}.")
    return max(made)


def _furnish(server: Path) -> None:
    """A server's own parts.

    FLARE's default for jobs, snapshots and logs that come in is a place under /tmp, for all servers of a machine. And
    rejoin.py, in local/custom, where FLARE looks for a machine's own classes.
    """
    update_storage_locations(str(server / "local"), workspace=str(server / "storage"))
    path = server / "local" / "resources.json"
    resources = json.loads(path.read_text(encoding="utf-8"))
    for part in resources["components"]:
        if part["id"] == "log_receiver":
            part["args"] = {"dest_dir": str(server / "storage" / "incoming")}
    resources["components"].append({"id": REJOIN, "path": f"{REJOIN}.{Rejoin.__name__}", "args": {}})
    path.write_text(json.dumps(resources, indent=2), encoding="utf-8")
    custom = server / "local" / "custom"
    custom.mkdir(exist_ok=True)
    shutil.copyfile(rejoin.__file__, custom / f"{REJOIN}.py")


def find_data(sites: Sequence[str], datasets: Sequence[str | Path]) -> dict[str, Path]:
    """By site, the dataset folder that is named as it; DeploymentError where one has none."""
    folders = {(path := Path(folder).resolve()).name: path for folder in datasets}
    if lack := [site for site in sites if site not in folders or not folders[site].is_dir()]:
        raise DeploymentError(
            f"There is no dataset folder for {', '.join(lack)}: give a list of folders that are named as the sites, as "
            "split_dataset makes them, and the names as sites= where the project file has others."
        )
    return {site: folders[site] for site in sites}


def give_data(kits: Kits, folders: Mapping[str, Path]) -> dict[str, Path]:
    """Copy each dataset folder onto its site's machine, as data/its-name; the folder to name in SITE_DATA by site."""
    for site, folder in folders.items():
        shutil.copytree(folder, kits.folder / site / "data" / site)
    return {site: kits.folder / site / "data" for site in folders}
