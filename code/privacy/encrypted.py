"""One job twice in one federation, in plain and encrypted: is the model the same, and what does it cost?

Encryption needs TenSEAL: pip install tenseal
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from fl.job import PROJECT, build_job
from tutorial_utils import deploy
from tutorial_utils.encrypt import encrypt, open_model
from tutorial_utils.results import Run
from tutorial_utils.settings import Training


@dataclass(frozen=True)
class Pair:
    """The two runs, of as many rounds, and the startup kit of a site, which holds the key."""

    plain: Run
    encrypted: Run
    kit: Path

    def costs(self) -> pd.DataFrame:
        """MB through the server, as FLARE counted them, and seconds of the job."""
        runs = {"in plain": self.plain, "encrypted": self.encrypted}
        return pd.DataFrame(
            {name: {"MB": run.bytes / 1e6, "seconds": run.seconds} for name, run in runs.items()}
        ).T

    def differences(self, net: nn.Module) -> pd.Series:
        """The largest difference of any weight between the runs: of the first average, and of the last.

        The first average is the best model of a run of two rounds: FLARE has scored no other.
        """
        first = open_model(self.encrypted, self.kit, net, best=True), self.plain.best_model
        last = open_model(self.encrypted, self.kit, net), self.plain.global_model
        pairs = {"first average": first, "last average": last}
        return pd.Series(
            {
                when: max(float((one[name] - other[name]).abs().max()) for name in one)
                for when, (one, other) in pairs.items()
            },
            name="largest difference",
        )

    def seen_by_server(self, name: str) -> bytes:
        """What the server's file holds under this name of the net's."""
        return torch.load(self.encrypted.global_model_path, weights_only=True)["model"][name]


def run_both(sites: Sequence[Path], training: Training, runs: str | Path, name: str) -> Pair:
    """Two rounds in plain and two encrypted, in a federation on this machine whose kits hold keys.

    Args:
        sites: the dataset folders, named as the sites.
        runs, name: of the federation's folder.
    """
    federation = deploy.provision(
        PROJECT, sites, sites=[site.name for site in sites], runs=runs, name=name, encrypted=True
    )
    where = {"data": "$SITE_DATA", "sites": [site.name for site in sites], "training": training}
    jobs = [
        build_job(**where, rounds=2, cross_site="global", name=name)
        for name in ("in-plain", "encrypted")
    ]
    with federation:
        plain = federation.run(jobs[0])
        encrypted = federation.run(encrypt(jobs[1]))
    return Pair(plain, encrypted, federation.kits.folder / sites[0].name)
