"""The apps of a job's folder: which machine gets which, and what code it brings to whom.

A job may say "@ALL" and send one app to the server and to every site that is connected. Here it names them.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutorial_utils._flare import EVERYBODY, KNOWN_CLASSES, SERVER, find_config, read_config
from tutorial_utils._simulate.guard_files import write_json
from tutorial_utils._simulate.job_folder import CLIENT_CONFIG, SERVER_CONFIG
from tutorial_utils.errors import DeploymentError, JobError

CLASS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


@dataclass(frozen=True)
class Review:
    """What a job brings to a site that runs no code but what it has read and installed.

    Such a site (`byoc: none` in its local/authorization.json) refuses an app with a folder custom/. An app without one
    it holds, class by class, against class_allow_list in its local/resources.json. What lies in local/custom of the
    startup kit can be imported. Read in FLARE 2.9.0, and run.

    Attributes:
        job: the folder of the job as it is sent, its guard included.
        code: the files that a site would run: to be read, and copied into local/custom.
        classes: what to add to class_allow_list; the others FLARE's own list has.
    """

    job: Path
    code: Path
    classes: tuple[str, ...]


def look_through(folder: Path) -> Review:
    """The review of a job's folder; JobError where it brings the sites no code."""
    configs = list(folder.glob(f"*/config/{CLIENT_CONFIG}"))
    code = [custom for config in configs if (custom := config.parents[1] / "custom").is_dir()]
    if not code:
        raise JobError(f"{folder} brings no code to the sites: there is nothing to review.")
    built = {name for config in configs for name in _classes(json.loads(config.read_text(encoding="utf-8")))}
    known = tuple(f"{name}." for name in KNOWN_CLASSES)
    return Review(folder, code[0], tuple(sorted(name for name in built if not f"{name}.".startswith(known))))


def _classes(part: object) -> Iterator[str]:
    """The class of every component in a configuration, however deep."""
    if isinstance(part, dict):
        for key in ("path", "class_path"):
            if isinstance(part.get(key), str) and CLASS.fullmatch(part[key]):
                yield part[key]
    for one in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _classes(one)


def choose_sites(folder: Path, connected: Sequence[str] | None) -> tuple[str, ...] | None:
    """The sites that a job is for: those of its deploy_map, else all that are connected.

    DeploymentError where too few of them are there. Where one may not ask who is (None), they are taken for there; None
    if the job does not name them either.
    """
    meta = _read_meta(folder)
    targets = [who for one in meta["deploy_map"].values() for who in _participants(one)]
    named = None if EVERYBODY in targets else tuple(who for who in targets if who != SERVER)
    if connected is None:
        return named
    there = tuple(connected) if named is None else tuple(site for site in named if site in connected)
    least = meta.get("min_clients") or 1
    if len(there) < least:
        who = f"{len(connected)} ({', '.join(connected)})" if connected else "none"
        whom = f" of {', '.join(named)}" if named else ""
        raise DeploymentError(
            f"The job needs {least} sites{whom}, and connected are {who}: start the others, or build it for those "
            "that there are (sites=)."
        )
    return there


def address(folder: Path, sites: Sequence[str], with_code: bool) -> None:
    """Name the server and these sites in the job's deploy_map.

    Without code for the sites, an app that goes to both becomes two: the server's keeps its folder custom/.
    """
    meta = _read_meta(folder)
    apps: dict[str, list[str]] = {}
    for app, targets in meta["deploy_map"].items():
        who = _participants(targets)
        names = [SERVER, *sites] if EVERYBODY in who else [name for name in who if name in (SERVER, *sites)]
        here = [name for name in names if name != SERVER]
        if not with_code and here:
            if SERVER in names:
                apps[_split_off_server(folder, app)] = [SERVER]
            shutil.rmtree(folder / app / "custom", ignore_errors=True)
            names = here
        if names:
            apps[app] = names
    _write_meta(folder, meta | {"deploy_map": apps})


def _split_off_server(folder: Path, app: str) -> str:
    """Make an app for the server alone; return its name."""
    own = f"{app}_server"
    shutil.copytree(folder / app, folder / own)
    (folder / own / "config" / CLIENT_CONFIG).unlink(missing_ok=True)
    (folder / app / "config" / SERVER_CONFIG).unlink(missing_ok=True)
    return own


def _participants(targets: object) -> list[str]:
    """The names in an entry of a deploy_map: a list of them, and of {"sites": [...]} or {"targets": [...]}."""
    if isinstance(targets, str):
        return [targets]
    parts = [*targets.values()] if isinstance(targets, dict) else targets
    return [name for part in parts for name in _participants(part)]


def _read_meta(folder: Path) -> dict[str, Any]:
    return read_config(find_config(folder, "meta"))


def _write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """As JSON, in place of what was there in another format."""
    find_config(folder, "meta").unlink()
    write_json(folder / "meta.json", meta)
