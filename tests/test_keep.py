"""What a site keeps on its disk: its best model, and the state that it goes on with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tutorial_utils.keep import BestModel, SiteState, save_safely
from tutorial_utils.metric import Metric
from tutorial_utils.values import LearnerError

HIGHER, LOWER = Metric("auc"), Metric("loss", higher_is_better=False)


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2,), value)}


def best_of(folder: Path, metric: Metric, *scores: Any) -> dict[str, Any]:
    """What is kept after one offer a round, each with the round's number as its weights."""
    for number, score in enumerate(scores):
        BestModel(folder, metric).offer(score, number, weights(number))
    return BestModel(folder, metric).load()


@pytest.mark.parametrize(
    ("metric", "scores", "chosen"),
    [
        (HIGHER, (0.1, 0.3, 0.2), 1),
        (LOWER, (0.3, 0.1, 0.2), 1),
        (HIGHER, (0.3, 0.3), 0),
        (LOWER, (0.3, 0.3), 0),
        (HIGHER, (math.nan, 0.1, math.nan), 1),
        (LOWER, (math.nan, 0.1, math.nan), 1),
        (HIGHER, (0.1, math.inf), 0),
        (LOWER, (0.1, -math.inf), 0),
        (HIGHER, (math.nan, math.nan), 0),
    ],
)
def test_the_best_is_kept_the_first_of_equals_and_never_what_is_no_number(
    metric: Metric, scores: tuple[float, ...], chosen: int, tmp_path: Path
) -> None:
    """Mutations that must not live: the last of equals; the last of all."""
    best = best_of(tmp_path, metric, *scores)
    assert best["round"] == chosen
    assert best["params"]["w"].tolist() == [chosen, chosen]
    assert best["score"] == scores[chosen] or math.isnan(scores[chosen])


@pytest.mark.parametrize("score", [np.float64(0.5), np.float32(0.5), torch.tensor(0.5), np.array(0.5), 1])
def test_a_score_of_any_library_can_be_read_again(score: Any, tmp_path: Path) -> None:
    assert best_of(tmp_path, HIGHER, score)["score"] == float(score)


def test_weights_are_tensors_or_arrays_and_of_any_type(tmp_path: Path) -> None:
    params = {"half": torch.ones(2).bfloat16(), "array": np.float64([1, 2]), "count": np.array(3), "on": np.array(True)}
    BestModel(tmp_path, HIGHER).offer(0.1, None, params)
    best = BestModel(tmp_path, HIGHER).load()
    assert best["round"] is None
    kinds = {name: value.dtype for name, value in best["params"].items()}
    assert kinds == {"half": torch.bfloat16, "array": torch.float64, "count": torch.int64, "on": torch.bool}


def test_without_a_round_there_is_no_best_model(tmp_path: Path) -> None:
    with pytest.raises(LearnerError, match="no best model yet: train at least one round"):
        BestModel(tmp_path, HIGHER).load()


def die_half_way(value: object, path: Path) -> None:
    """torch.save of a process that is killed in the middle of it."""
    Path(path).write_bytes(b"PK half a file")
    raise KeyboardInterrupt


def test_a_process_that_is_killed_while_saving_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutation that must not live: torch.save straight to the file."""
    best_of(tmp_path, HIGHER, 0.1)
    SiteState(tmp_path).save(0, {"a": 1}, {})
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", die_half_way)
        for save in (
            lambda: BestModel(tmp_path, HIGHER).offer(0.2, 1, weights(1)),
            lambda: SiteState(tmp_path).save(0, {"a": 2}, {}),
            lambda: save_safely(1, tmp_path / "new.pt"),
        ):
            with pytest.raises(KeyboardInterrupt):
                save()
    assert BestModel(tmp_path, HIGHER).load()["round"] == 0
    assert SiteState(tmp_path).load(before=None)["state"] == {"a": 1}
    assert not (tmp_path / "new.pt").exists()
    assert best_of(tmp_path, HIGHER, 0.2)["score"] == 0.2, "what was left half-written is in nobody's way"


def test_a_state_is_found_by_its_round(tmp_path: Path) -> None:
    kept = SiteState(tmp_path)
    assert kept.load(before=None) is None and kept.load(before=5) is None
    for number in range(3):
        SiteState(tmp_path).save(number, {"n": number}, {"norm": torch.ones(1) * number})
    assert kept.load(before=None) == {"state": {"n": 2}, "local": {"norm": torch.ones(1) * 2}}
    assert kept.load(before=3)["state"] == {"n": 2}
    assert kept.load(before=2)["state"] == {"n": 1}, "a round that is done again takes what it took"
    assert kept.load(before=1) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["learner_state_1.pt", "learner_state_2.pt"]


def test_ten_is_more_than_nine(tmp_path: Path) -> None:
    for number in range(8, 12):
        SiteState(tmp_path).save(number, {"n": number}, {})
    assert SiteState(tmp_path).load(before=None)["state"] == {"n": 11}
    assert SiteState(tmp_path).load(before=11)["state"] == {"n": 10}


def test_a_round_that_is_done_again_is_kept_and_what_came_after_it_is_not(tmp_path: Path) -> None:
    for number in range(5):
        SiteState(tmp_path).save(number, {"n": number}, {})
    SiteState(tmp_path).save(2, {"n": "again"}, {})  # gone on from an older checkpoint
    assert SiteState(tmp_path).load(before=3)["state"] == {"n": "again"}
    assert SiteState(tmp_path).load(before=None)["state"] == {"n": "again"}


def test_other_files_in_the_folder_are_nobody_s_state(tmp_path: Path) -> None:
    for name in ("learner_state_1.tmp", "learner_state_mine.pt", "learner_state_.pt", "best_local_model.pt"):
        (tmp_path / name).write_text("")
    assert SiteState(tmp_path).load(before=None) is None
    SiteState(tmp_path).save(0, {"n": 0}, {})
    assert SiteState(tmp_path).load(before=None)["state"] == {"n": 0}
