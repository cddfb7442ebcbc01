"""Updates that are cut and noised as they leave: what it costs a federation, and what can still be read
in them.

By hand, with the bits of the simulator, and sooner; `tutorial_utils.study.run_tasks` runs several at
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.filter import Filter

from dl.train import Net, load_data, normalize
from fl.by_hand import Params, federated_averaging, score, train_locally
from privacy.invert import correlation, match, read_images, rebuild, update_of
from privacy.membership import losses, tell_members
from tutorial_utils.filters import ClipAndNoise, norm
from tutorial_utils.learner import to_numpy
from tutorial_utils.privacy import compare_updates, difference, epsilon, pass_through
from tutorial_utils.results import sha256
from tutorial_utils.values import LearnerError


def federate_guarded(
    folders: Sequence[Path],
    rounds: int,
    *,
    clip: float | None,
    noise: float,
    seed: int,
    test: Path | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Federated Averaging with a ClipAndNoise at each site.

    Args:
        test: a dataset folder whose test images judge; by default those of the sites.

    Returns: sites, noise, seed; accuracy (0..1) on `images` test images; auc: how well the last
        update of the first site tells its training images from the test images; lengths: the median
        length of an update before it is cut; sha256 of the last average; stopped: the round in which
        noise ended the training (no finite numbers: then the model before counts), else None.
    """
    chain, first = [ClipAndNoise(clip, noise, seed=seed)], min(folders, key=lambda one: one.name)
    lengths: list[float] = []
    left: list[Params] = []
    models: list[Params] = [to_numpy(Net(seed).state_dict())]

    def leave(received: Params, sent: Params, *, site: str, **more: Any) -> Params:
        lengths.append(norm({name: sent[name] - received[name] for name in sent}))
        out, _ = pass_through(chain, received, sent, site=site, **more)
        left.extend([out] if site == first.name else [])
        return out

    row: dict[str, Any] = {"sites": len(folders), "noise": noise, "seed": seed, "stopped": None}
    try:
        looks = {"after_round": lambda _, params: models.append(params), "leave": leave}
        federated_averaging(folders, rounds, seed=seed, **looks, **how)
    except LearnerError:  # what is not finite does not leave
        row["stopped"] = len(models) - 1
    judges = [test] if test else folders
    row["accuracy"], row["images"] = score(models[-1], judges)
    members, others = load_data(first).train, load_data(test or first).test
    row["auc"] = tell_members(losses(left[-1], members), losses(left[-1], others)).auc
    return row | {"lengths": float(np.median(lengths)), "sha256": sha256(models[-1])}


def first_update(folder: Path, *, seed: int, **how: Any) -> tuple[Params, Params, int]:
    """The weights that a site receives first, those that it would send, and its steps."""
    net = Net(seed)
    received = to_numpy(net.state_dict())
    steps = train_locally(net, folder, received, seed, **how)
    return received, to_numpy(net.state_dict()), steps


def read_label_mix(
    chain: Sequence[Filter], folder: Path, *, seed: int, differences: bool = False, **how: Any
) -> float:
    """How well a site's first update tells how many images of each class it has, after these filters.

    Returns: the correlation of the change of the last layer's biases with the numbers of images.
    """
    received, sent, steps = first_update(folder, seed=seed, **how)
    left, _ = pass_through(chain, received, sent, steps=steps, differences=differences)
    moved = left.get("fc3.bias", received["fc3.bias"]) - received["fc3.bias"]
    labels = load_data(folder).train.tensors[1].numpy()
    held = np.bincount(labels, minlength=len(moved))
    return float(np.corrcoef(moved, held)[0, 1]) if moved.std() and held.std() else 0.0


def rebuild_through(
    chain: Sequence[Filter], folder: Path, *, seed: int, differences: bool = False, search: int = 200
) -> dict[str, float]:
    """Rebuild one image from the update of one step that went through filters.

    Returns: rebuilt: the correlation with the true image; class mean: that of its class's mean picture.
    """
    pixels, labels = read_images(folder)
    place = int(np.random.default_rng(seed).integers(len(labels)))
    one = slice(place, place + 1)
    net = Net(seed)
    received = to_numpy(net.state_dict())
    update = update_of(net, pixels[one], labels[one], batch_size=1)
    sent = {name: received[name] + update[name] for name in update}
    left, _ = pass_through(chain, received, sent, differences=differences)
    seen = {name: left.get(name, value) - value for name, value in received.items()}
    true = normalize(pixels[place])
    found = rebuild(net, seen, labels[one], steps=search, seed=seed)
    mean = normalize(pixels[labels == labels[place]]).mean(0)
    return {"rebuilt": float(match(found, true[None])[0]), "class mean": correlation(mean, true)}


def attack_through(
    pictures: Path, folder: Path, *, clip: float, noise: float, seed: int, **how: Any
) -> dict[str, float]:
    """Both attacks on what ClipAndNoise lets out: one of the `pictures`, and the labels of a site's
    folder."""
    chain = [ClipAndNoise(clip, noise, seed=seed)]
    found = rebuild_through(chain, pictures, seed=seed) | {"noise": noise, "seed": seed}
    return found | {"label mix": read_label_mix(chain, folder, seed=seed, **how)}


def judge_filter(
    name: str,
    kind: type[Filter] | None,
    arguments: dict[str, Any],
    folder: Path,
    pictures: Path,
    *,
    seed: int,
    **how: Any,
) -> dict[str, Any]:
    """What a filter leaves of a site's first update, sent as a difference, and what can be read in it.

    Returns: cosine to the true update; moved: the share of its weights that change anything; rebuilt
        and label mix: see rebuild_through and read_label_mix; epsilon of this one release, as the
        filter itself notes it, or by Opacus for ClipAndNoise; infinite for a filter that promises none.
    """
    np.random.seed(seed)  # SVTPrivacy draws from numpy's own
    received, sent, steps = first_update(folder, seed=seed, **how)

    def chain() -> list[Filter]:
        return [kind(**arguments)] if kind else []

    left, noted = pass_through(chain(), received, sent, steps=steps, differences=True)
    left = {key: left.get(key, value) for key, value in received.items()}
    row: dict[str, Any] = {"filter": name, "seed": seed}
    row |= compare_updates(difference(sent, received), difference(left, received))
    row["rebuilt"] = rebuild_through(chain(), pictures, seed=seed, differences=True)["rebuilt"]
    row["label mix"] = read_label_mix(chain(), folder, seed=seed, differences=True, **how)
    promised = noted.get("svt_privacy_budget", {}).get("epsilon_total", np.inf)
    is_ours = kind is ClipAndNoise and arguments.get("noise")
    return row | {"epsilon": epsilon(arguments["noise"], 1) if is_ours else promised}
