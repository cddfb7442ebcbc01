"""The names of sites, said once: a number, or a list. Every function and command line that takes `sites` asks here."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Sequence
from numbers import Integral

from tutorial_utils.errors import TutorialError

MOST = 10_000
TAKEN = ("server", "global")  # who FLARE's server is, and the column of the averaged model in every table
OF_THE_SERVER = "srv_"  # nvflare 2.9.0 (CrossSiteModelEval) begins so, in capitals, what it calls the server's models


def check_site_names(sites: int | Sequence[str]) -> tuple[str, ...]:
    """The names of the sites: n stands for site-1 ... site-n; a list of names stays as it is, in its order.

    What a name may be is what all must take: FLARE's kits ([A-Za-z0-9_-]; a dot cuts FLARE's addresses in two), the
    subject of a certificate (64 letters), and a folder on a disk that does not tell a from A.

    TutorialError: no number above 0, no list of names, or a name that one of these would refuse.
    """
    if isinstance(sites, Integral) and not isinstance(sites, bool):
        if not 1 <= sites <= MOST:
            raise TutorialError(
                f"sites is {sites!s:.20}: it must be a whole number from 1 to {MOST:,}, or a list of names."
            )
        return tuple(f"site-{number}" for number in range(1, int(sites) + 1))
    if isinstance(sites, str) or not isinstance(sites, Sequence) or not sites:
        raise TutorialError(f"sites is {sites!r:.80}: give a number above 0, or a list of names.")
    for name in sites:
        _check(name)
    folded = [name.lower() for name in sites]
    for name, small in zip(sites, folded, strict=True):
        if folded.count(small) > 1:
            raise TutorialError(f"sites names {name!r} twice (capitals do not count): give each site its own name.")
    return tuple(sites)


def parse_sites(text: str) -> int | tuple[str, ...]:
    """What a command line takes for the sites: a number ("3"), or names ("hospital-a,hospital-b").

    ArgumentTypeError, which argparse turns into its own message, where `check_site_names` would refuse them.
    """
    number = re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", text)
    sites = int(text) if number else tuple(name.strip() for name in text.split(","))
    try:
        check_site_names(sites)
    except TutorialError as error:
        raise ArgumentTypeError(str(error).rstrip(".")) from error
    return sites


def _check(name: object) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}", name):
        rule = "letters (a to z), digits, '_' and '-', not '-' first, 64 at most"
        raise TutorialError(f"A site cannot be called {name!r:.80}: a name has {rule}.")
    if name.lower() in TAKEN:
        raise TutorialError(f"A site cannot be called {name!r}: that name is taken, choose another.")
    if name.lower().startswith(OF_THE_SERVER):
        raise TutorialError(f"A site cannot be called {name!r}: SRV_ begins the names of the server's own models.")
