"""A card for each site. On a machine without any: what is said, and what the sites' processes are told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from tutorial_utils import deploy
from tutorial_utils._simulate.cards import deal_cards
from tutorial_utils._simulate.start import CARDS, VISIBLE, start_site
from tutorial_utils.errors import JobError
from tutorial_utils.job import build_job
from tutorial_utils.simulate import simulate

SITES = ("north", "south", "west")
PROJECT = Path(__file__).parents[1] / "code/fl/project.yml"


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv(VISIBLE, raising=False)


@pytest.mark.usefixtures("two_cards")
@pytest.mark.parametrize(
    ("gpus", "dealt"),
    [
        (None, {}),
        ([0, 1], {"north": "0", "south": "1", "west": "0"}),
        ([1], dict.fromkeys(SITES, "1")),
        (range(2), {"north": "0", "south": "1", "west": "0"}),
        ([1, 1, 0, 1], {"north": "1", "south": "1", "west": "0"}),
    ],
)
def test_cards_are_dealt_out_in_order_and_round_again(gpus: Any, dealt: dict[str, str]) -> None:
    assert deal_cards(gpus, SITES) == dealt


@pytest.mark.usefixtures("two_cards")
def test_a_card_keeps_the_name_that_the_variable_gives_it_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's cuda:0 is the first card that CUDA_VISIBLE_DEVICES names. Mutation that must not live: its number."""
    monkeypatch.setenv(VISIBLE, "3, GPU-5f0c")
    assert deal_cards([0, 1], SITES) == {"north": "3", "south": "GPU-5f0c", "west": "3"}


@pytest.mark.parametrize(
    ("count", "gpus", "text"),
    [
        (2, [], "gpus is empty: name the cards, [0] say, or leave gpus out, and every site sees them all."),
        (2, [0, -1], "gpus is [0, -1]: it must be a list of numbers of cards, 0 or more, such as [0, 1]."),
        (2, 1, "gpus is 1: it must be a list of numbers of cards, 0 or more, such as [0, 1]."),
        (2, "0,1", "gpus is '0,1': it must be a list of numbers of cards, 0 or more, such as [0, 1]."),
        (2, [True], "gpus is [True]: it must be a list of numbers of cards, 0 or more, such as [0, 1]."),
        (3, [1, 3], "gpus names card 3, and torch sees 3 here, 0 to 2: name those, or leave gpus out."),
        (1, [1], "gpus names card 1, and torch sees one here: name 0, or leave gpus out."),
        (0, [0], "gpus names card 0, and torch sees none here: leave gpus out."),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(
    count: int, gpus: Any, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    job = build_job(tiny.CardLearner(), tiny.make_net(), sites=SITES)
    with pytest.raises(JobError) as error:
        simulate(job, gpus=gpus, runs=tmp_path, progress=False)
    assert str(error.value) == text and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("cards", "seen"), [({"south": "GPU-5f0c"}, ["GPU-5f0c", "6,7"]), ({}, ["6,7", "6,7"]), (None, ["6,7", "6,7"])]
)
def test_a_site_s_process_sees_its_card_alone(
    cards: dict[str, str] | None, seen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever process FLARE starts for it: with fewer threads than sites, one for every task."""
    told = tmp_path / "tell.py"
    told.write_text(f"import os; print(os.environ[{VISIBLE!r}], os.environ['MINE'])")
    monkeypatch.setattr("tutorial_utils._simulate.start.SITE_PROCESS", told)
    monkeypatch.setenv(VISIBLE, "6,7")
    environment = {VISIBLE: "6,7", "MINE": "kept"} | ({} if cards is None else {CARDS: json.dumps(cards)})
    for site, card in zip(("south", "north"), seen, strict=True):
        (folder := tmp_path / site).mkdir()
        (folder / "log.txt").touch()  # so that its end is no failure
        words = [sys.executable, "-m", "worker", "-o", str(folder), "--client", site]
        process = start_site(words, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.communicate(timeout=60)[0].split() == [card, "kept"]


@pytest.mark.slow
@pytest.mark.usefixtures("two_cards")
def test_in_a_simulation_every_learner_sees_the_card_that_was_dealt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE, "4,7")  # no such cards: the learner tells them, and trains on the CPU
    job = build_job(tiny.CardLearner(), tiny.make_net(), sites=SITES, rounds=2, cross_site="global")
    run = simulate(job, gpus=[0, 1], runs=tmp_path, progress=False)
    told = run.rounds.groupby("site")["card"].agg(set).to_dict()
    assert told == {"north": {4.0}, "south": {7.0}, "west": {4.0}}


@pytest.mark.slow
def test_at_a_real_site_the_shell_that_starts_it_says_which_card(
    sites: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From startup/start.sh to the process of the job; FLARE's own manager of cards leaves the variable alone."""
    job = build_job(tiny.CardLearner(), tiny.make_net(), sites=2, rounds=1, cross_site="none")
    monkeypatch.setenv(VISIBLE, "4")
    with deploy.provision(PROJECT, sites, runs=tmp_path) as federation:
        federation.stop_site("site-2")
        monkeypatch.setenv(VISIBLE, "7")
        federation.start_site("site-2")
        run = federation.run(job)
    assert dict(zip(run.rounds["site"], run.rounds["card"], strict=True)) == {"site-1": 4.0, "site-2": 7.0}
