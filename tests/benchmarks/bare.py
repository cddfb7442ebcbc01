"""The least that a site's process can hold: torch and nvflare imported, one step of SGD, the site's images as bytes.

python tests/benchmarks/bare.py SITE_FOLDER       prints its peak resident memory in bytes
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import nvflare
import torch
from measure import peak_memory


def main() -> None:
    torch.set_num_threads(1)
    arrays = []
    for split in ("train", "valid", "test"):
        with np.load(Path(sys.argv[1]) / f"{split}.npz") as file:
            arrays.append((torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])))
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.01, momentum=0.9)
    (weight * 1.0).sum().backward()
    optimizer.step()
    sys.stdout.write(f"{peak_memory()} {nvflare.__version__} {sum(images.nbytes for images, _ in arrays)}\n")


if __name__ == "__main__":
    main()
