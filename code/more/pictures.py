"""Which digit is on a picture? A new head on a backbone that was trained elsewhere, and stays as it is.

    python code/more/pictures.py FOLDER CHECKPOINT

FOLDER holds train/, valid/ and test/, each with a folder of PNGs a digit: 0/, 1/, ... 9/.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

CLASSES = [str(digit) for digit in range(10)]
PLAIN = transforms.Compose([transforms.Grayscale(), transforms.ToTensor()])
TURNED = transforms.Compose([transforms.RandomRotation(10), PLAIN])


class Pictures(ImageFolder):
    """ImageFolder numbers the folders that it finds: without one, all behind it get other numbers."""

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        return CLASSES, {name: number for number, name in enumerate(CLASSES)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
        self.backbone = nn.Sequential(*layers).requires_grad_(False)
        self.head = nn.Linear(16 * 4 * 4, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


def load(folder: Path) -> dict[str, Pictures]:
    made = {"train": TURNED, "valid": PLAIN, "test": PLAIN}
    return {split: Pictures(folder / split, how, allow_empty=True) for split, how in made.items()}


def make_loader(pictures: Pictures) -> DataLoader:
    return DataLoader(pictures, batch_size=16, shuffle=True)


def train(net: Net, loader: Iterable[tuple[Tensor, Tensor]], epochs: int = 1) -> None:
    trained = [weights for weights in net.parameters() if weights.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for images, digits in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), digits).backward()
            optimizer.step()


@torch.inference_mode()
def score(net: Net, pictures: Pictures) -> dict[str, float]:
    right = [(net(images).argmax(1) == digits) for images, digits in DataLoader(pictures, 100)]
    return {"accuracy": torch.cat(right).float().mean().item()}


def main(folder: Path, checkpoint: Path) -> Net:
    net, pictures = Net(), load(folder)
    net.load_state_dict(torch.load(checkpoint, weights_only=True))
    torch.manual_seed(0)
    train(net, make_loader(pictures["train"]))
    return net


if __name__ == "__main__":
    site, start = map(Path, sys.argv[1:])
    print(score(main(site, start), load(site)["test"]))
