"""Where the seconds of a run go, from the stamps that the sites wrote, and the figure of it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tutorial_utils.plots import PALETTE

PHASES = ("start", "train", "validate", "exchange", "cross-site evaluation", "shutdown")
# Compute in the palette's colours, waiting in greys; hatches tell them apart without any colour.
LOOKS = {
    "start": ("#8C8C8C", ""),
    "train": (PALETTE[0], ""),
    "validate": (PALETTE[3], "//"),
    "exchange": (PALETTE[1], ".."),
    "cross-site evaluation": (PALETTE[2], "\\\\"),
    "shutdown": ("#D9D9D9", "xx"),
}


def split_time(stamps: Mapping[str, Sequence[dict[str, Any]]], begin: float, end: float) -> dict[str, float]:
    """Seconds in each phase; together they are exactly end - begin.

    Seen from the site with the most to do, since the others wait for it:
        start: from the command to its first validation (imports, processes, first weights)
        exchange: between its first validation and the cross-site evaluation, all that is neither train nor validate
        cross-site evaluation: from the hand-over of its best model to its last test, exchange included
        shutdown: from there to the end of the command
    """
    busiest = max(stamps.values(), key=lambda site: _total(site, "train") + _total(site, "validate"))
    work = [stamp for stamp in busiest if stamp["phase"] in ("train", "validate")]
    last = [stamp for stamp in busiest if stamp["phase"] == "cross-site"]
    first, cross, done = work[0]["begin"], last[0]["begin"], last[-1]["end"]
    spent = {name: _total(work, name) for name in ("train", "validate")}
    seconds = {"start": first - begin, **spent, "exchange": cross - first - sum(spent.values())}
    return seconds | {"cross-site evaluation": done - cross, "shutdown": end - done}


def _total(stamps: Sequence[dict[str, Any]], phase: str) -> float:
    return sum(stamp["end"] - stamp["begin"] for stamp in stamps if stamp["phase"] == phase)


def draw(seconds: Mapping[str, Mapping[str, float]], title: str, path: Path) -> None:
    """Stacked bars, one a contestant: {contestant: {phase: seconds}}."""
    figure = Figure(figsize=(8, 1.9 + 0.55 * len(seconds)), layout="constrained")
    figure.suptitle(textwrap.fill(title, 95), x=0.01, ha="left", fontsize=10, fontweight="bold")
    axes = figure.subplots()
    longest = max(sum(phases.values()) for phases in seconds.values())
    for row, phases in enumerate(seconds.values()):
        left = 0.0
        for phase in PHASES:
            colour, hatch = LOOKS[phase]
            label = phase if row == 0 else None
            width = phases[phase]
            axes.barh(row, width, 0.6, left, color=colour, hatch=hatch, edgecolor="white", linewidth=0.6, label=label)
            if width > 0.045 * longest:
                _write(axes, left + width / 2, row, f"{width:.1f}")
            left += width
        axes.text(left + 0.01 * longest, row, f"{left:.1f} s", va="center", fontsize=9, fontweight="bold")
    axes.set_yticks(range(len(seconds)), list(seconds))
    axes.set(xlabel="seconds of wall time", xlim=(0, 1.1 * longest), ylim=(len(seconds) - 0.5, -0.5))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def _write(axes: Any, x: float, y: float, text: str) -> None:
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}  # reads on colour and hatch alike
    axes.text(x, y, text, ha="center", va="center", fontsize=8, bbox=box)
