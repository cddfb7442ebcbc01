"""The series' learner with what NIID-Bench adds to the script: weight decay, and images cropped and flipped by chance.

A sibling of fl/model_learner.py and dl/train.py, and no option of theirs: the script that the series teaches stays as
short as it is, and its loop is called here as it stands.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from dl.train import make_loader, train
from fl.model_learner import CIFAR10ModelLearner
from tutorial_utils.algorithms.steps import at_each_step

MARGIN = 4  # pixels


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image [N, C, H, W] moved by up to 4 pixels (the edge is mirrored), and every second one left to right.

    All of a batch at once, by one look-up of pixels: image by image it takes longer than the training itself.
    """
    count, channels, height, width = images.shape
    down, right = torch.randint(-MARGIN, MARGIN + 1, (2, count, 1), generator=generator)
    flipped = torch.rand(count, 1, generator=generator) < 0.5
    rows, columns = mirror(down + torch.arange(height), height), mirror(right + torch.arange(width), width)
    columns = torch.where(flipped, columns.flip(1), columns)
    places = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, -1).expand(-1, channels, -1)
    moved = images.flatten(2).gather(2, places).view_as(images)
    return moved.contiguous(memory_format=torch.channels_last)  # the order in which the net is fastest


def mirror(places: Tensor, size: int) -> Tensor:
    """Places outside 0..size-1 as their mirror images inside: numpy's and torch's padding "reflect"."""
    return size - 1 - (size - 1 - places.abs()).abs()


class Augmented:
    """A loader whose batches are cropped and flipped anew each time, in an order that the seed fixes."""

    def __init__(self, loader: DataLoader, seed: int) -> None:
        self.loader = loader
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.loader:
            yield crop_and_flip(images, self.generator), labels


def see_from_zero(net: nn.Module) -> nn.Module:
    """The same net, which sees pixels from 0 to 1, as theirs does; the script's go from -1."""
    net.register_forward_pre_hook(_raise)
    return net


def _raise(net: nn.Module, images: tuple[Tensor]) -> tuple[Tensor]:
    return ((images[0] + 1) / 2,)


class NIIDLearner(CIFAR10ModelLearner):
    """NIID-Bench's site: the blitz net, SGD with momentum and weight decay, batches of 64, ten local epochs."""

    def __init__(
        self,
        data: str,
        epochs: int = 10,
        lr: float = 0.01,
        batch_size: int = 64,
        momentum: float = 0.9,
        seed: int = 0,
        weight_decay: float = 1e-5,
        pixels_from_zero: bool = False,
    ) -> None:
        super().__init__(data, epochs, lr, batch_size, momentum, seed)
        self.weight_decay = weight_decay
        self.pixels_from_zero = pixels_from_zero

    def initialize(self) -> None:
        super().initialize()
        self.net.to(memory_format=torch.channels_last)  # a fifth of the time of a step, on a CPU
        if self.pixels_from_zero:
            see_from_zero(self.net)

    def local_train(self) -> int:
        seed = self.seed_of_round()
        loader = Augmented(make_loader(self.images.train, self.batch_size, seed), seed)
        with at_each_step(self.net, before=self.decay):
            return train(self.net, loader, self.epochs, self.lr, self.momentum, stop=self.is_aborted)

    def decay(self, optimizer: Optimizer) -> None:
        """What SGD(weight_decay=...) adds to the gradients; the script's optimizer is made without it."""
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad.add_(param.detach(), alpha=self.weight_decay)
