"""Two hospitals' patients, from scikit-learn's breast cancer table, and the scaler that they agreed on.

python code/own/make_hospitals.py data/hospitals
"""

import json
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from own.script import LABEL, read_rows
from tutorial_utils.agree import Moments, merge
from tutorial_utils.table import split_table


def make_hospitals(out: Path) -> Path:
    """A folder each, and scaling.json beside them, from sums alone, as FLARE collects them in 11."""
    table = load_breast_cancer(as_frame=True).frame
    table[LABEL] = 1 - table.pop("target")
    draw = np.random.default_rng(0)
    table["hospital"] = draw.choice(["university", "st-anna"], size=len(table), p=[0.7, 0.3])
    folders = split_table(table, by="hospital", label=LABEL, out=out)
    told = [read_rows(folder).agg(["count", "sum", "std"]) for folder in folders]
    pairs = [merge([Moments(*site[column]) for site in told]) for column in told[0]]
    mean, scale = zip(*pairs, strict=True)
    (out / "scaling.json").write_text(json.dumps({"mean": mean, "scale": scale}))
    return out


if __name__ == "__main__":
    print(make_hospitals(Path(sys.argv[1])))
