"""Three hospitals of very different size, from scikit-learn's table: what own/script.py reads."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from sklearn.datasets import load_breast_cancer

PARTS = {"university": (60, 20, 20), "st-anna": (33, 12, 12), "rural": (17, 8, 8)}  # 33 and 17: one row is left over
NAMES = list(PARTS)
ROWS = load_breast_cancer(as_frame=True).data
AGREED = {"mean": ROWS.mean().tolist(), "scale": ROWS.std(ddof=0).tolist()}


def place_hospitals(folder: Path) -> Path:
    """Three hospitals, and everyone's patients in a fourth folder."""
    table = load_breast_cancer(as_frame=True).frame.sample(frac=1, random_state=0)
    table["malignant"] = 1 - table.pop("target")
    start, whole = 0, {}
    for name, sizes in PARTS.items():
        (folder / name).mkdir()
        for part, size in zip(("train", "valid", "test"), sizes, strict=True):
            rows = table.iloc[start : start + size].assign(hospital=name)
            rows.to_csv(folder / name / f"{part}.csv", index=False)
            whole.setdefault(part, []).append(rows)
            start += size
    (folder / "everyone").mkdir()
    for part, rows in whole.items():
        pd.concat(rows).to_csv(folder / "everyone" / f"{part}.csv", index=False)
    return folder
