"""Gradient inversion: look for images whose update is the one that left a site.

Zhu et al., Deep Leakage from Gradients, 2019 (arXiv:1906.08935), who search images with the same
gradient; Geiping et al., Inverting Gradients, 2020 (arXiv:2003.14053), for the cosine, the total
variation and the signed steps used here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from dl.train import Net, load_data, make_loader, normalize, train
from fl.by_hand import average
from tutorial_utils.learner import to_numpy

Update = Mapping[str, np.ndarray]


def update_of(
    net: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int, epochs: int = 1
) -> Update:
    """What the script's training changes: weights after it minus weights before.

    Args:
        images: uint8 [N, 3, 32, 32]; labels: int64 [N].
        batch_size: N for a single step.
    """
    trained = copy.deepcopy(net)
    train(trained, make_loader(TensorDataset(images, labels), batch_size, seed=0), epochs)
    before = to_numpy(net.state_dict())
    return {name: value - before[name] for name, value in to_numpy(trained.state_dict()).items()}


def update_of_sites(net: nn.Module, images: Tensor, labels: Tensor, *, sites: int) -> Update:
    """The mean update of some sites that hold a share of the images each and take one step on it."""
    parts = zip(images.chunk(sites), labels.chunk(sites), strict=True)
    return average([(update_of(net, some, theirs, batch_size=len(some)), 1) for some, theirs in parts])


def read_label(update: Update, bias: str = "fc3.bias") -> int:
    """The label of the one image behind an update: training raises the bias of that class alone (Zhao et
    al. 2020, arXiv:2001.02610)."""
    return int(np.argmax(update[bias]))


def enlarge(grey: Tensor) -> Tensor:
    """[N, 1, 8, 8] as the digits are drawn: [N, 3, 32, 32]."""
    return grey.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)


def rebuild(
    net: nn.Module,
    update: Update,
    labels: Sequence[int],
    *,
    knows_the_format: bool = True,
    steps: int = 300,
    lr: float = 0.1,
    smooth: float = 0.01,
    seed: int = 0,
) -> Tensor:
    """Images [N, 3, 32, 32] in -1..1 whose gradient points where the update came from, found from noise.

    Args:
        net: with the weights that the site had received.
        labels: of the N images; `read_label` finds that of one.
        knows_the_format: look among grey pictures of 8x8 pixels, enlarged; else among all of 3x32x32.
        steps: of Adam on the sign of the gradient; lr falls to 3 % of itself.
        smooth: weight of the total variation beside the cosine distance.
    """
    wanted = [-torch.as_tensor(update[name]) for name, _ in net.named_parameters()]
    labels = torch.as_tensor(labels)
    shape = (len(labels), 1, 8, 8) if knows_the_format else (len(labels), 3, 32, 32)
    draw = enlarge if knows_the_format else nn.Identity()
    canvas = (0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).requires_grad_()
    optimizer = torch.optim.Adam([canvas], lr)
    slower = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, [steps * part // 8 for part in (3, 5, 7)], 0.3
    )
    for _ in range(steps):
        images = draw(canvas)
        loss = functional.cross_entropy(net(images), labels)
        made = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
        apart = 1 - cosine(made, wanted) + smooth * total_variation(images)
        canvas.grad = torch.autograd.grad(apart, canvas)[0].sign()
        optimizer.step()
        slower.step()
        with torch.no_grad():
            canvas.clamp_(-1, 1)
    return draw(canvas.detach())


def cosine(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Of the angle between two gradients, all of their arrays seen as one vector. It knows no learning
    rate."""
    lengths = [torch.sqrt(sum(array.square().sum() for array in arrays)) for arrays in (one, other)]
    return sum((a * b).sum() for a, b in zip(one, other, strict=True)) / (
        lengths[0] * lengths[1] + 1e-12
    )


def total_variation(images: Tensor) -> Tensor:
    """Mean step from a pixel to its neighbours: small where a picture is smooth."""
    return images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()


def correlation(one: Tensor, other: Tensor) -> float:
    """Of two images' pixels, -1 to 1: 1 for the same picture, whatever its brightness and contrast."""
    pair = [np.asarray(image, float).ravel() for image in (one, other)]
    return float(np.corrcoef(pair)[0, 1]) if all(pixels.std() for pixels in pair) else 0.0


def match(found: Tensor, true: Tensor) -> np.ndarray:
    """The correlation of each true image with the found one that is paired with it, in the pairing best
    for all."""
    table = np.array([[correlation(one, other) for other in true] for one in found])
    rows, columns = linear_sum_assignment(-table)
    return table[rows, columns][np.argsort(columns)]


def read_images(folder: Path) -> tuple[Tensor, Tensor]:
    """The training images uint8 [N, 3, 32, 32] of a dataset folder, and their labels int64 [N]."""
    return load_data(folder).train.tensors


def attack(
    folder: Path,
    images: int,
    *,
    seed: int,
    batch_size: int | None = None,
    epochs: int = 1,
    sites: int = 1,
    search: int = 200,
) -> dict[str, Any]:
    """One attack on images drawn from a folder: how like the true ones the rebuilt are, beside what
    needs no update.

    The attacker is handed the labels. With several sites, all take one step and their mean is attacked.

    Returns: images, steps, sites; rebuilt, class mean, other images: the mean correlation to the true
        images of what was rebuilt, of the mean picture of each one's class, and of as many others drawn
        by chance; best: of the rebuilt.
    """
    pixels, labels = read_images(folder)
    net, order = Net(seed), np.random.default_rng(seed).permutation(len(labels))
    mine, others = order[:images], order[images : 2 * images]
    if sites > 1:
        update = update_of_sites(net, pixels[mine], labels[mine], sites=sites)
    else:
        update = update_of(
            net, pixels[mine], labels[mine], batch_size=batch_size or images, epochs=epochs
        )
    true = normalize(pixels[mine])
    like = match(rebuild(net, update, labels[mine], steps=search, seed=seed), true)
    means = [normalize(pixels[labels == label]).mean(0) for label in labels[mine]]
    return {
        "images": images,
        "steps": epochs * -(-images // (batch_size or images)) if sites == 1 else 1,
        "sites": sites,
        "seed": seed,
        "rebuilt": like.mean(),
        "best": like.max(),
        "class mean": np.mean([correlation(mean, one) for mean, one in zip(means, true, strict=True)]),
        "other images": match(normalize(pixels[others]), true).mean(),
    }
