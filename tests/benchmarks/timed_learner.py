"""The series' learner with a clock: the figure of where the seconds go is drawn from what it writes."""

import json
import time
from pathlib import Path

from nvflare.app_common.abstract.fl_model import FLModel

from fl.model_learner import CIFAR10ModelLearner

STAMPS = "stamps.jsonl"


class TimedLearner(CIFAR10ModelLearner):
    """Writes when training, validating and cross-site evaluation began and ended; all else is its parent's."""

    def local_train(self) -> int:
        begin = time.time()
        steps = super().local_train()
        self.note("train", begin)
        return steps

    def local_validate(self, split: str) -> dict[str, float]:
        begin = time.time()
        metrics = super().local_validate(split)
        self.note("cross-site" if split == "test" else "validate", begin)
        return metrics

    def get_model(self, model_name: str) -> FLModel:
        begin = time.time()
        model = super().get_model(model_name)
        self.note("cross-site", begin)
        return model

    def note(self, phase: str, begin: float) -> None:
        line = json.dumps({"phase": phase, "begin": begin, "end": time.time()})
        with (Path(self.app_root) / STAMPS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
