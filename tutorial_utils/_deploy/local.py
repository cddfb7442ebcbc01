"""A federation on this machine, for trying out: each machine is a folder and a family of processes of its own."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tutorial_utils._deploy.admin import Admin
from tutorial_utils._deploy.federation import Federation
from tutorial_utils._deploy.kits import Kits, add_kits, find_data, give_data
from tutorial_utils._deploy.ports import is_free, move
from tutorial_utils._deploy.services import Kept, start_kit
from tutorial_utils.errors import DeploymentError
from tutorial_utils.results import Run

START_SECONDS = 60.0


class LocalFederation(Federation):
    """A provisioned server and its sites, all on this machine; `deploy.provision` makes one.

    `with federation:` starts every machine and ends it; so do start() and stop(), for a notebook. The processes end
    with this one in any case.

    Args:
        kits: the machines.
        data: by site, the folder that its environment variable SITE_DATA shall name.
        folder: where jobs and their results are put.

    Attributes:
        inside: by the name of a machine, a command to start it with, as in a network namespace or a control group of
            its own: {"site-1": ["ip", "netns", "exec", "north"]}. Empty at first; it counts from the next start on.
    """

    def __init__(self, kits: Kits, data: dict[str, Path], folder: Path) -> None:
        super().__init__(kits.folder / kits.admin, folder)
        self.kits = kits
        self.data = data
        self.inside: dict[str, Sequence[str]] = {}
        self._running: dict[str, Kept] = {}

    def start(self) -> LocalFederation:
        """Start the server, then the sites; return when the server says that all are connected.

        Where another program has taken the server's port since the kits were made, they get another one.
        """
        if not self._running and not is_free(port := self.admin.address[1]):
            move(self.kits.folder.parent / "project.yml", self.kits.folder.iterdir(), port)
            self.admin = Admin(self.admin.kit)
        try:
            self.start_server()
            for site in self.kits.sites:
                self._start(site)
            self._wait_for_sites(self.kits.sites)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End every process. What the jobs left behind stays in the folder."""
        self.close()
        for name in [*self.kits.sites, self.kits.server]:
            if service := self._running.pop(name, None):
                service.stop()

    def start_server(self) -> None:
        """Start the server, with what it has stored, and wait until it answers, and knows the sites that run.

        A job that ran when it ended is gone: watch() says so, and resume_from= goes on from its last safe round.
        """
        self._start(self.kits.server)
        self.admin.connect(START_SECONDS, lambda: self._why_ended(self.kits.server))
        self._wait_for_sites(tuple(site for site in self.kits.sites if self.is_running(site)))

    def stop_server(self) -> None:
        """End the server's processes at once, as a power cut would. The sites go on and wait for it."""
        self.close()
        if service := self._running.pop(self.kits.server, None):
            service.stop()

    def start_site(self, site: str, limit: float = START_SECONDS) -> None:
        """Start a site, and wait until the server says that it is connected.

        DeploymentError where that takes more than `limit` seconds; the site goes on trying.
        """
        self._check(site)
        before = self._connected_since().get(site)
        self._start(site)
        self._wait_for_sites((site,), before, limit)

    def stop_site(self, site: str) -> None:
        """End a site's processes at once, as a power cut would."""
        self._check(site)
        if service := self._running.pop(site, None):
            service.stop()

    def join(self, newcomers: Sequence[Mapping[str, Any]], data: Sequence[str | Path] = ()) -> None:
        """Make kits for more participants, while the federation runs: `nvflare provision` again, with the same root.

        Nobody's kit changes, and the server need not be told. Then `start_site` starts a new site.

        Args:
            newcomers: entries of a project file: name, type ("client" or "admin"), org, for an admin its role.
            data: the new sites' dataset folders, named as they are.
        """
        sites = [one["name"] for one in newcomers if isinstance(one, Mapping) and one.get("type") == "client"]
        folders = find_data(sites, data)
        self.kits = add_kits(self.kits, newcomers)
        self.data |= give_data(self.kits, folders)

    def is_running(self, name: str) -> bool:
        """Has the machine of this name a process?"""
        return name in self._running and self._running[name].alive

    def console(self, name: str) -> str:
        """What a machine's own start script printed."""
        return (self.kits.folder / name / "console.txt").read_text(encoding="utf-8", errors="replace")

    def __enter__(self) -> LocalFederation:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _check(self, site: str) -> None:
        if site not in self.kits.sites:
            raise DeploymentError(f"There is no site {site!r}: choose one of {', '.join(self.kits.sites)}.")

    def _start(self, name: str) -> None:
        running = self._running.get(name)
        if running and running.alive:
            return
        settings = {"SITE_DATA": str(self.data[name])} if name in self.data else {}
        settings |= self.kits.heartbeat.variables
        self._running[name] = start_kit(self.kits.folder / name, settings, self.inside.get(name, ()))

    def _why_ended(self, name: str) -> str | None:
        if self._running[name].alive:
            return None
        said = self.console(name).strip().splitlines()
        return f"{name} ended while it started, and said: {said[-1] if said else 'nothing'}."

    def _connected_since(self) -> dict[str, object]:
        clients = self.admin.ask(lambda session: session.get_system_info()).client_info
        return {client.name: client.last_connect_time for client in clients}

    def _wait_for_sites(self, sites: tuple[str, ...], before: object = None, limit: float = START_SECONDS) -> None:
        """Until the server has heard from each since it was started."""
        deadline = time.monotonic() + limit
        while lack := [site for site in sites if self._connected_since().get(site) in (None, before)]:
            for site in lack:
                if reason := self._why_ended(site):
                    raise DeploymentError(reason)
            if time.monotonic() > deadline:
                host, port = self.admin.address
                raise DeploymentError(
                    f"The server has not heard of {', '.join(lack)} for {limit:.0f} s: is port {port} of {host} open "
                    "on the way? console() says what the site prints."
                )
            time.sleep(0.2)

    def _server_ended(self) -> bool:
        return not self.is_running(self.kits.server)

    def _bring_from_server(self, job_id: str, run: Run) -> Run | None:
        """On this machine we may read it."""
        run.job_folder.parent.mkdir(parents=True)
        if (kept := self.kits.folder / self.kits.server / job_id).is_dir():  # or the job had not begun
            shutil.copytree(kept, run.job_folder)
        for log in run.job_folder.glob("log.*"):
            shutil.copy2(log, run.workspace / "server")
        found = Run(run.folder, self.kits.sites, 0.0)
        self._collect_site_logs(job_id, found)
        return found

    def _collect_site_logs(self, job_id: str, run: Run) -> None:
        """On this machine we may read them."""
        for site in run.sites:
            for log in (self.kits.folder / site / job_id).glob("log.*"):
                (run.workspace / site).mkdir(exist_ok=True)
                shutil.copy2(log, run.workspace / site)
