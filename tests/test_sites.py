"""The names of sites."""

from __future__ import annotations

from argparse import ArgumentTypeError

import numpy as np
import pytest
from nvflare.apis.utils.format_check import name_check

from tutorial_utils.errors import TutorialError
from tutorial_utils.sites import check_site_names, parse_sites


def test_a_number_and_names() -> None:
    assert check_site_names(3) == check_site_names(np.int64(3)) == ("site-1", "site-2", "site-3")
    assert check_site_names(["hospital-b", "hospital-a"]) == ("hospital-b", "hospital-a"), "in the list's order"
    assert check_site_names(("Ward_7",)) == ("Ward_7",)
    assert check_site_names(check_site_names(2)) == ("site-1", "site-2")


@pytest.mark.parametrize(
    "sites", [0, -1, 10_001, 10**30, 1.5, 2.0, True, None, "hospital-a", "3", [], (), {"a": 1}, {"a"}]
)
def test_what_is_no_number_and_no_list_of_names(sites: object) -> None:
    with pytest.raises(TutorialError, match="sites is "):
        check_site_names(sites)


WRONG = ["", ".", "..", "../up", "a/b", "a\\b", "~", "-a", "a b", "a.b", "a\n", "é", "a,b", "a" * 65, "\ud800", "\0"]
TAKEN = ["server", "Server", "global", "SRV_a", "srv_ward"]


@pytest.mark.parametrize("name", [*WRONG, *TAKEN, 1, None, True, b"a", ["a"]])
def test_names_that_a_site_cannot_have(name: object) -> None:
    for sites in ([name], ["hospital-a", name]):
        with pytest.raises(TutorialError, match="A site cannot be called"):
            check_site_names(sites)


@pytest.mark.parametrize("sites", [["a", "b", "a"], ["Ward", "ward"]])
def test_two_sites_of_one_name(sites: list[str]) -> None:
    with pytest.raises(TutorialError, match=r"names '[aW]\w*' twice"):
        check_site_names(sites)


def test_what_is_allowed_here_is_allowed_in_flare() -> None:
    for name in check_site_names(["a", "A1_-", "_a", "0", "a" * 64]):
        refused, why = name_check(name, "client")
        assert not refused, why
    assert name_check("a.b", "client")[0], "FLARE takes dots by now: allow them here"


def test_the_command_line() -> None:
    assert parse_sites("3") == 3 and parse_sites(" 2 ") == 2
    assert parse_sites("hospital-a,hospital-b") == parse_sites("hospital-a, hospital-b") == ("hospital-a", "hospital-b")
    assert parse_sites("3,4") == ("3", "4") and parse_sites("lone") == ("lone",)


@pytest.mark.parametrize("text", ["", "0", "-1", "+", "a,,b", "a,a", "server,a", "1.5", "\u00b2", "a b", "9" * 5000])
def test_a_command_line_that_makes_no_sense(text: str) -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        parse_sites(text)
    assert len(str(caught.value)) < 200
