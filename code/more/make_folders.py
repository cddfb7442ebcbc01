"""Data for the scripts beside this file, two sites each: from scikit-learn, and 40 notes of our own.

python code/more/make_folders.py OUT      # makes OUT/regression/site-1, OUT/texts/valley, ...
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from sklearn.datasets import load_diabetes, load_digits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from more import pictures
from tutorial_utils.table import read_table, split_table

NOTES = Path(__file__).with_name("notes.csv")
ELSEWHERE = 1200  # so many digits belong to no site: the backbone is trained on them


def read_digits() -> pd.DataFrame:
    """64 columns of pixels, 0 to 16, then the digit as "target"."""
    return load_digits(as_frame=True).frame.astype(int)


def make_regression(out: Path, sites: int = 2) -> Path:
    return split_table(load_diabetes(as_frame=True).frame, sites, label="target", out=out)[0].parent


def make_lstm(out: Path) -> Path:
    return split_table(read_digits(), 2, label="target", alpha=1.0, out=out)[0].parent


def make_texts(out: Path) -> Path:
    return split_table(NOTES, label="urgent", by="hospital", out=out)[0].parent


def make_pictures(out: Path) -> Path:
    """PNGs of 8 x 8 pixels, and beside the sites start.pt, the net that was trained elsewhere."""
    digits = read_digits()
    write_pngs(digits[:ELSEWHERE], out / "elsewhere")
    with tempfile.TemporaryDirectory() as folder:
        for site in split_table(
            digits[ELSEWHERE:], 2, label="target", alpha=0.3, out=Path(folder, "sites")
        ):
            for split, rows in read_table(site).items():
                write_pngs(rows, out / site.name / split)
    torch.manual_seed(0)
    net = pictures.Net().requires_grad_()
    pictures.train(net, pictures.make_loader(pictures.Pictures(out / "elsewhere", pictures.PLAIN)))
    torch.save(net.state_dict(), out / "start.pt")
    return out


def write_pngs(digits: pd.DataFrame, out: Path) -> None:
    """One folder a digit, as torchvision's ImageFolder wants it; a digit without pictures has none."""
    for number, (*pixels, digit) in enumerate(digits.to_numpy("uint8")):
        path = out / str(digit) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("L", (8, 8), bytes(15 * pixel for pixel in pixels)).save(path)


MAKERS = {
    "regression": make_regression,
    "lstm": make_lstm,
    "pictures": make_pictures,
    "texts": make_texts,
}

if __name__ == "__main__":
    for name, make in MAKERS.items():
        print(make(Path(sys.argv[1]) / name))
