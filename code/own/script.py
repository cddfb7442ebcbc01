"""Is a growth malignant? The script of before.py, cut so that it can be called.

python code/own/script.py FOLDER       # with train.csv, valid.csv and test.csv in it
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

LABEL = "malignant"
NOT_MEASURED = [LABEL, "hospital"]


def read_rows(folder: Path) -> pd.DataFrame:
    """What was measured on the training patients: [N, 30]."""
    return pd.read_csv(folder / "train.csv").drop(columns=NOT_MEASURED)


def load(folder: Path, mean: Sequence[float], scale: Sequence[float]) -> dict[str, TensorDataset]:
    """The three parts: rows [N, 30], scaled, and labels [N], 1 for malignant."""
    parts = {}
    for name in ("train", "valid", "test"):
        part = pd.read_csv(folder / f"{name}.csv")
        rows = torch.tensor(((part.drop(columns=NOT_MEASURED) - mean) / scale).to_numpy()).float()
        parts[name] = TensorDataset(rows, torch.tensor(part[LABEL].to_numpy()).float())
    return parts


def make_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(30, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 1)
    )


def make_loader(data: TensorDataset, batch_size: int = 16) -> DataLoader:
    """A last batch of one row, of which BatchNorm can learn nothing, is left out, and no other."""
    return DataLoader(data, batch_size, shuffle=True, drop_last=len(data) % batch_size == 1)


def train(
    net: nn.Module,
    loader: DataLoader,
    valid: TensorDataset,
    progress: dict[str, float],
    epochs: int,
    lr: float = 0.003,
    patience: int = 5,
) -> int:
    """Returns the steps done. `progress` says how early stopping stands: it goes on from there."""
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    steps = 0
    for _ in range(epochs):
        net.train()
        for rows, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(net(rows).squeeze(1), labels)
            loss.backward()
            optimizer.step()
            steps += 1
        auc = score(net, valid)["auc"]
        best, waited = progress.get("best", 0.0), progress.get("waited", 0)
        best, waited = (auc, 0) if auc > best else (best, waited + 1)
        progress.update(best=best, waited=waited)
        if waited >= patience:
            break
    return steps


def score(net: nn.Module, data: TensorDataset) -> dict[str, float]:
    """AUC, NaN where there is but one class, and the mean cross-entropy (nats)."""
    rows, labels = data.tensors
    net.eval()
    with torch.no_grad():
        found = net(rows).squeeze(1)
    auc = roc_auc_score(labels, found) if len(labels.unique()) == 2 else float("nan")
    loss = nn.functional.binary_cross_entropy_with_logits(found, labels).item()
    return {"auc": auc, "loss": loss}


def main(
    folder: Path, mean: Sequence[float], scale: Sequence[float], epochs: int = 50, seed: int = 0
) -> nn.Module:
    parts = load(folder, mean, scale)
    net = make_net(seed)
    torch.manual_seed(seed)  # again: what training draws does not depend on what the net has drawn
    train(net, make_loader(parts["train"]), parts["valid"], {}, epochs)
    print(f"AUC {score(net, parts['test'])['auc']:.4f} ({len(parts['test'])} patients)")
    return net


if __name__ == "__main__":
    where = Path(sys.argv[1])
    scaler = StandardScaler().fit(read_rows(where))
    main(where, scaler.mean_, scaler.scale_)
