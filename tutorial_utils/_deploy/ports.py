"""The server's one port: chosen when a federation is provisioned, and again where another program has it by then."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from pathlib import Path

import yaml

from tutorial_utils.errors import DeploymentError

ANYWHERE = ""  # the server listens at every address of its machine
SIGNED = "signature.json"  # in the kits of an encrypted federation: FLARE refuses a file that differs


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as place:
        place.bind((ANYWHERE, 0))
        return place.getsockname()[1]


def is_free(port: int) -> bool:
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as FLARE's server: one that ended is no hindrance
        try:
            place.bind((ANYWHERE, port))
        except OSError:
            return False
    return True


def move(project: Path, machines: Iterable[Path], before: int) -> int:
    """Write another port, which is free, into the project file and into every startup kit; return it.

    DeploymentError where the kits are signed.
    """
    machines = list(machines)
    if any((machine / "startup" / SIGNED).exists() for machine in machines):
        raise DeploymentError(
            f"Another program has taken port {before} since the federation was provisioned, and signed startup kits "
            "name it: end that program, or provision again."
        )
    port = free_port()
    for path in (path for machine in machines for path in (machine / "startup").glob("fed_*.json")):
        settings = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(_replace(settings, before, port), indent=2), encoding="utf-8")
    whole = yaml.safe_load(project.read_text(encoding="utf-8"))  # for who joins later
    project.write_text(yaml.safe_dump(_replace(whole, before, port), sort_keys=False), encoding="utf-8")
    return port


def _replace(part: object, before: int, port: int) -> object:
    """The port stands alone, or behind a host: "localhost:8002"."""
    if isinstance(part, dict):
        return {key: _replace(value, before, port) for key, value in part.items()}
    if isinstance(part, list):
        return [_replace(value, before, port) for value in part]
    if isinstance(part, str) and part.endswith(f":{before}"):
        return f"{part.removesuffix(str(before))}{port}"
    return port if part == before and not isinstance(part, bool) else part
