"""What a run that goes on takes from the one before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tutorial_utils._simulate.resume import earlier_lines, find_earlier
from tutorial_utils.errors import JobError, SimulationError
from tutorial_utils.results import Run


def test_an_earlier_run_is_found_by_itself_its_error_or_its_folder(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="holds no finished round to go on from"):
        find_earlier(tmp_path)
    earlier = Run(tmp_path, ("site-1",), 0.0)
    checkpoint = earlier.job_folder / "guard/checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "FL_global_model.pt").touch()
    (checkpoint / "checkpoint.json").write_text('{"rounds": 1}')
    for one in (earlier, SimulationError("It failed.", earlier), tmp_path, str(tmp_path)):
        assert find_earlier(one).checkpoint == checkpoint


def test_a_line_that_was_cut_is_no_round_that_is_kept(tmp_path: Path) -> None:
    """The process that wrote it was killed. Mutation that must not live: the line of the round that was cut stays."""
    earlier = Run(tmp_path, ("site-1",), 0.0)
    checkpoint = earlier.job_folder / "guard" / "checkpoint-2"
    for folder in (checkpoint, earlier.job_folder / "metrics"):
        folder.mkdir(parents=True)
    (checkpoint / "FL_global_model.pt").touch()
    (checkpoint / "checkpoint.json").write_text('{"rounds": 2}')
    lines = [json.dumps({"round": number, "sites": []}) for number in range(3)]
    (earlier.job_folder / "metrics" / "round_metrics.jsonl").write_text("\n".join([*lines, '{"round": 3, "si']))
    assert earlier_lines(find_earlier(earlier)).splitlines() == lines[:2]
