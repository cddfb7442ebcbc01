from __future__ import annotations

from collections.abc import Iterable, Sequence

from more.texts import Net, load, make_loader, score, train
from tutorial_utils.learner import PTModelLearner
from tutorial_utils.metric import Metric


def agree_on_words(found: Iterable[Sequence[str]]) -> list[str]:
    """One vocabulary of all sites, before any training: word 7 must be the same word everywhere.

    Args:
        found: what `find_words` gave at each site: the words leave it, the notes do not.
    """
    return sorted(set().union(*found))


class TextsLearner(PTModelLearner):
    """The sites agree on one vocabulary before training; it is an argument, so the job carries it."""

    metric = Metric("accuracy")

    def __init__(self, data: str, words: Sequence[str], epochs: int = 5, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.data = data
        self.words = words
        self.epochs = epochs

    def initialize(self) -> None:
        super().initialize()
        self.notes = load(self.site_folder(self.data), self.words)
        self.net = Net(len(self.words))

    def local_train(self) -> None:
        train(self.net, self.watched(make_loader(self.notes["train"])), self.epochs)

    def local_validate(self, split: str) -> dict[str, float]:
        return score(self.net, self.notes[split])
