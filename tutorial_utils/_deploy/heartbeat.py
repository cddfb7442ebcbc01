"""How soon the machines of a federation miss each other: FLARE's own settings, written into the startup kits.

All of them were found and read in FLARE 2.9.0. What a kit carries holds wherever it is taken.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tutorial_utils._deploy.ports import SIGNED
from tutorial_utils.errors import DeploymentError

STEP_SECONDS = 2.0  # a site's heartbeat sleeps in steps of two seconds; below one step it would never sleep
OUTCOME_SECONDS = 30.0  # at least, until the server ends a job whose site does not say how it ended; FLARE: 900
SCRIPT = "sub_start.sh"
SHEBANG = "#!/usr/bin/env bash\n"
SETTINGS = "--set secure_train=true"


@dataclass(frozen=True)
class Heartbeat:
    """How often a site shows that it lives, and how long its silence is borne.

    A short timeout finds a dead site soon, and takes a slow one for dead: a machine that swaps, a network that is cut
    for a moment, a slow line that an update fills (10 MB at 2 Mbit/s take 40 s, and what a site answers waits behind
    them). A long one makes a round with a dead site last so much longer.

    Attributes:
        interval: seconds between two beats; FLARE counts in twos, and takes 10 by itself.
        timeout: seconds of silence after which a site is lost, for its job and for the server; FLARE takes 600.

    Raises: DeploymentError for times that cannot work.
    """

    interval: float = 4.0
    timeout: float = 30.0

    def __post_init__(self) -> None:
        if not STEP_SECONDS <= self.interval <= self.timeout / 2:
            raise DeploymentError(
                f"A heartbeat every {self.interval:g} s with a timeout of {self.timeout:g} s cannot work: FLARE counts "
                "in steps of 2 s, and one late beat must not count as a loss. Take Heartbeat(4, 30), or 2 and 6."
            )

    @property
    def variables(self) -> dict[str, str]:
        """What FLARE reads from the environment of a server or a site.

        A job's process says as often as its machine that it lives. Where a site reports that its job's process is gone,
        or the server has missed the site, the job may still show within the grace period that it lives.
        """
        return {
            "NVFLARE_JOB_HEARTBEAT_INTERVAL": f"{self.interval:g}",  # 10
            "NVFLARE_DEAD_CLIENT_GRACE_PERIOD": f"{2 * self.interval + STEP_SECONDS:g}",  # 60
            "NVFLARE_DEAD_CLIENT_CHECK_LEAD_TIME": "1",  # 30
            "NVFLARE_CLIENT_OUTCOME_WAIT_TIMEOUT": f"{max(self.timeout, OUTCOME_SECONDS):g}",  # 900
        }

    def write(self, machine: Path) -> None:
        """Into the startup kit of a server or a site, so that it holds wherever the kit is taken.

        A signed kit stays as it is but for the server's local/resources.json, which a site may change: there the
        sites' interval is FLARE's own.
        """
        if (resources := machine / "local" / "resources.json").is_file():
            settings = json.loads(resources.read_text(encoding="utf-8"))
            for server in settings.get("servers", ()):
                server["heart_beat_timeout"] = self.timeout
            resources.write_text(json.dumps(settings, indent=2), encoding="utf-8")
        script = machine / "startup" / SCRIPT
        if (machine / "startup" / SIGNED).exists():
            return
        text = script.read_text(encoding="utf-8")
        exports = "".join(f"export {name}={value}\n" for name, value in self.variables.items())
        text = text.replace(SHEBANG, f"{SHEBANG}{exports}", 1)
        text = text.replace(SETTINGS, f"{SETTINGS} heart_beat_interval={self.interval:g}", 1)
        script.write_text(text, encoding="utf-8")
