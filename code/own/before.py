"""Is a growth malignant? Thirty measurements of each patient, one small net: a script as people have it.

python code/own/before.py
"""

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

LABEL = "malignant"

if __name__ == "__main__":
    torch.manual_seed(0)
    table = load_breast_cancer(as_frame=True).frame
    table[LABEL] = 1 - table.pop("target")
    train_table, test_table = train_test_split(table, test_size=0.2, random_state=0)
    scaler = StandardScaler().fit(train_table.drop(columns=LABEL))
    parts = {}
    for name, part in {"train": train_table, "test": test_table}.items():
        rows = torch.tensor(scaler.transform(part.drop(columns=LABEL))).float()
        parts[name] = rows, torch.tensor(part[LABEL].to_numpy()).float()

    net = nn.Sequential(
        nn.Linear(30, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 1)
    )

    optimizer = torch.optim.Adam(net.parameters(), lr=0.003)
    loader = DataLoader(TensorDataset(*parts["train"]), batch_size=16, shuffle=True, drop_last=True)
    best, waited = 0.0, 0
    for epoch in range(50):
        net.train()
        for rows, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(net(rows).squeeze(1), labels)
            loss.backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            auc = roc_auc_score(parts["test"][1], net(parts["test"][0]).squeeze(1))
        best, waited = (auc, 0) if auc > best else (best, waited + 1)
        print(f"epoch {epoch + 1:2d}   AUC {auc:.4f}")
        if waited == 5:
            break
    print(f"best AUC {best:.4f} ({len(test_table)} patients)")
