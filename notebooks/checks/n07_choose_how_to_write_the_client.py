"""The exercise of notebook 07: the calls of a learner that answer each question of the Client API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from checks.reply import Reply, exercise, not_yet, right

REQUESTS = ("is_train", "is_evaluate", "is_submit_model")
CALLS = ("load_params", "local_validate valid", "local_validate test", "train", "get_model")


@dataclass
class Loop:
    """What a list of calls does to the learner's net, and what it leaves to be sent."""

    net: str = "whatever it held before"
    scored: tuple[str, str] | None = None  # which model, on which images
    trained: int = 0
    fetched: bool = False

    def run(self, calls: Sequence[str]) -> Loop:
        for call in calls:
            if call == "load_params":
                self.net = "received"
            elif call == "train":  # loads the received weights itself
                self.net, self.trained = "trained", self.trained + 1
            elif call == "get_model":
                self.fetched = True
            else:
                self.scored = (self.net, call.removeprefix("local_validate "))
        return self


@exercise("fill in the three lists, and put the dict in answer.", f"It is a dict of {', '.join(REQUESTS)}.")
def requests(answer: Mapping[str, Sequence[str]]) -> Reply:
    if not (isinstance(answer, Mapping) and all(isinstance(answer.get(name), list | tuple) for name in REQUESTS)):
        return not_yet(f"answer must be a dict that has a list of calls for each of {', '.join(REQUESTS)}.")
    if strange := [call for name in REQUESTS for call in answer[name] if call not in CALLS]:
        return not_yet(f"There is no call {strange[0]!r:.40}: take the names as they stand above, {', '.join(CALLS)}.")
    for name, judge in zip(REQUESTS, (_of_train, _of_evaluate, _of_submit), strict=True):
        if hint := judge(Loop().run(answer[name])):
            return not_yet(f"{name}: {hint}")
    return right("The model that came in is scored as it came, on valid; test images only report.")


def _of_train(loop: Loop) -> str | None:
    if loop.trained != 1:
        return "the server wants a model that was trained, once, on this site's images."
    if loop.scored is None:
        return "the server wants metrics too: of the model that it sent, on valid."
    model, split = loop.scored
    if model == "trained":
        return "that scores the trained model, and not the one that came in."
    if model != "received":
        return "that scores whatever the net still holds from before. What must come first?"
    if split != "valid":
        return "by these metrics the server chooses its best model, and test images must choose nothing: take valid."
    return "it hands in no best model: that is another question." if loop.fetched else None


def _of_evaluate(loop: Loop) -> str | None:
    if loop.trained:
        return "it asks for a score, and training would change the model that is to be scored."
    if loop.scored != ("received", "test"):
        return "it only reports: the received model, on the test images."
    return None


def _of_submit(loop: Loop) -> str | None:
    if loop.trained or not loop.fetched:
        return "it asks for the best model that this site has kept: one call finds it."
    return None
