"""Is a note to a hospital urgent? A bag of the words that are known: as people have it.

    python code/more/texts.py FOLDER

FOLDER holds train.csv, valid.csv and test.csv with the columns note and urgent (0 or 1).
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader


class Net(nn.Module):
    def __init__(self, words: int) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(words + 1, 16)  # number 0: a word that is not known
        self.out = nn.Linear(16, 2)

    def forward(self, notes: Tensor) -> Tensor:
        return self.out(self.embed(notes))


def words_of(note: str) -> list[str]:
    return re.findall(r"[a-z]+", note.lower())


def find_words(folder: Path, least: int = 2) -> list[str]:
    """Those of the training notes that stand in as many of them, by the alphabet."""
    notes = pd.read_csv(folder / "train.csv")["note"]
    counts = Counter(word for note in notes for word in set(words_of(note)))
    return sorted(word for word, count in counts.items() if count >= least)


def load(folder: Path, words: Sequence[str], longest: int = 12) -> dict[str, list[tuple[Tensor, int]]]:
    number = {word: at for at, word in enumerate(words, start=1)}
    found = {}
    for split in ("train", "valid", "test"):
        table = pd.read_csv(folder / f"{split}.csv")
        rows = [[number.get(word, 0) for word in words_of(note)][:longest] for note in table["note"]]
        filled = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        found[split] = list(zip(filled, table["urgent"].tolist(), strict=True))
    return found


def make_loader(notes: list[tuple[Tensor, int]]) -> DataLoader:
    return DataLoader(notes, batch_size=4, shuffle=True)


def train(net: Net, loader: Iterable[tuple[Tensor, Tensor]], epochs: int) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for _ in range(epochs):
        for notes, urgent in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(notes), urgent).backward()
            optimizer.step()


@torch.inference_mode()
def score(net: Net, notes: list[tuple[Tensor, int]]) -> dict[str, float]:
    (numbers, urgent) = next(iter(DataLoader(notes, len(notes))))
    return {"accuracy": (net(numbers).argmax(1) == urgent).float().mean().item()}


def main(folder: Path, net: Net, words: Sequence[str], epochs: int = 5) -> Net:
    notes = load(folder, words)
    torch.manual_seed(0)
    train(net, make_loader(notes["train"]), epochs)
    return net


if __name__ == "__main__":
    site = Path(sys.argv[1])
    known = find_words(site)
    print(score(main(site, Net(len(known)), known), load(site, known)["test"]))
