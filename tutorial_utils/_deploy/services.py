"""The processes of one machine: started by FLARE's own script, ended with whoever asked for them."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tutorial_utils._simulate import keeper


class Kept:
    """A command and all that it starts, in one family: `stop` ends it, and so does the end of this process.

    Args:
        command: what to run.
        log: a file that gets what it prints.
        environment: variables beside those of this process.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.token = secrets.token_hex(8)
        # FLARE's scripts say python3: let it be this one.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, keeper.__file__, self.token, *command],
                env=os.environ | {"PATH": path} | dict(environment or {}),
                cwd=log.parent,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """End every process of it at once, as a power cut would."""
        self._process.stdin.close()  # the keeper ends the family
        self._process.wait()
        keeper.end_family(self.token)  # in case that the keeper itself was killed


def start_kit(machine: Path, environment: Mapping[str, str], inside: Sequence[str] = ()) -> Kept:
    """Start a server or a site from its startup kit.

    Args:
        inside: a command that runs the command after it.
    """
    command = [*inside, str(machine / "startup" / "sub_start.sh"), "--once"]
    return Kept(command, machine / "console.txt", environment)
