"""The learner as the tutorials before this series had it: the setting to measure against, not one to copy.

Batches of 4, two DataLoader worker processes, each image turned by torchvision into a PIL image and from there into
a normalised tensor, every time anew; every site trains on all images; torch takes as many threads as there are cores.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from dl.train import Net
from tutorial_utils.learner import PTModelLearner
from tutorial_utils.metric import Metric

BATCH_SIZE, WORKERS = 4, 2


class TransformedImages(Dataset):
    """What torchvision.datasets.CIFAR10 does with an image, over the arrays of a dataset folder."""

    def __init__(self, path: str) -> None:
        with np.load(path) as arrays:
            self.images = arrays["images"].transpose(0, 2, 3, 1).copy()
            self.labels = arrays["labels"]
        half = (0.5, 0.5, 0.5)
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(half, half)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


class AncestorLearner(PTModelLearner):
    """Args: data is ONE dataset folder, the same for every site; the others as in the series' learner."""

    metric = Metric("accuracy", higher_is_better=True)

    def __init__(self, data: str, epochs: int = 1, lr: float = 0.01, momentum: float = 0.9, seed: int = 0) -> None:
        super().__init__(seed=seed, threads=torch.get_num_threads())
        self.data = data
        self.epochs = epochs
        self.lr = lr
        self.momentum = momentum

    def initialize(self) -> None:
        torch_threads = torch.get_num_threads()  # torch's default in this process, whatever built the job
        super().initialize()
        torch.set_num_threads(torch_threads)
        self.net = Net(self.seed)
        self.loaders = {
            split: DataLoader(
                TransformedImages(f"{self.data}/{split}.npz"), BATCH_SIZE, shuffle=split == "train", num_workers=WORKERS
            )
            for split in ("train", "valid", "test")
        }

    def local_train(self) -> int:
        optimizer = torch.optim.SGD(self.net.parameters(), lr=self.lr, momentum=self.momentum)
        loss_of = nn.CrossEntropyLoss()
        self.net.train()
        steps = 0
        for _ in range(self.epochs):
            for images, labels in self.loaders["train"]:
                if self.is_aborted():
                    return steps
                optimizer.zero_grad()
                loss_of(self.net(images), labels).backward()
                optimizer.step()
                steps += 1
        return steps

    def local_validate(self, split: str) -> dict[str, float]:
        correct = total = 0
        self.net.eval()
        with torch.no_grad():
            for images, labels in self.loaders[split]:
                correct += (self.net(images).argmax(1) == labels).sum().item()
                total += len(labels)
        return {"accuracy": correct / total}
