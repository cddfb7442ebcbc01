"""The net of train.py with BatchNorm after its convolutions: for studies of what BatchNorm does."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from dl.train import Net


class NormNet(Net):
    """[N, 3, 32, 32] floats in -1..1 to [N, classes] scores, as `Net`, from the same first weights.

    No BatchNorm after the linear layers: there a last batch of one image could not be trained on, and
    sites come in all sizes.
    """

    def __init__(self, seed: int = 0, classes: int = 10) -> None:
        super().__init__(seed, classes)
        self.norm1 = nn.BatchNorm2d(6)  # begins as the identity: it draws no random numbers
        self.norm2 = nn.BatchNorm2d(16)

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.max_pool2d(functional.relu(self.norm1(self.conv1(images))), 2)
        hidden = functional.max_pool2d(functional.relu(self.norm2(self.conv2(hidden))), 2)
        hidden = functional.relu(self.fc1(hidden.flatten(1)))
        hidden = functional.relu(self.fc2(hidden))
        return self.fc3(hidden)
