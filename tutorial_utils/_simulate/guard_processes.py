"""Which sites' processes live, on the one machine of a simulation. This file ships with the job, and imports psutil."""

from __future__ import annotations

import psutil


def sites_alive(server: psutil.Process | None = None) -> set[str] | None:
    """The sites that have a process under the server's, which is this one by default; None if it cannot be said now."""
    try:
        children = (server or psutil.Process()).children()
    except psutil.Error:  # one of them ended in this moment
        return None
    return {site for child in children if (site := site_of(child))}


def site_of(process: psutil.Process) -> str | None:
    """The site of a simulator's worker process, None for any other and for one that has ended."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        words = process.cmdline()  # nvflare 2.9.0: the worker is started with --client SITE
        return words[words.index("--client") + 1] if "--client" in words else None
    except psutil.Error:
        return None
