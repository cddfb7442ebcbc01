"""DP-SGD inside a script's own loop: no single training image of a site moves the weights by more than noise hides.

Abadi et al., Deep Learning with Differential Privacy, 2016 (arXiv:1607.00133), by Opacus (https://opacus.ai), which
this module alone needs: pip install opacus. It ships with the learner that imports it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.data import DataLoader

from tutorial_utils.algorithms.fedprox import FedProxSite
from tutorial_utils.algorithms.steps import at_each_step
from tutorial_utils.learner import PTModelLearner
from tutorial_utils.values import LearnerError

STATE = "privacy"  # where a learner's state holds what its steps have cost so far


@contextmanager
def private_steps(
    learner: PTModelLearner, loader: DataLoader, noise: float, clip: float, secret: bool = True, poisson: bool = True
) -> Iterator[DataLoader]:
    """Inside the `with`, each step of the script's optimizer on `learner.net` is one of DP-SGD.

    The gradient of each image is cut to the length `clip`; to their sum comes Gaussian noise of the standard deviation
    noise * clip; what that has cost is added to the learner's state, which outlives rounds, processes and a resume.

    Args:
        loader: what the script would train on; its loss must be a mean over a batch.
        noise: the noise multiplier, 0 or more; with 0 nothing is private.
        clip: more than 0, in the unit of the gradient's length; math.inf cuts nothing.
        secret: noise and batches come from this machine's entropy. False: from the learner's seed, which makes runs
            repeatable and protects nothing: who knows the seed (it stands in the job) takes the noise off again.
        poisson: each batch draws every image by itself, with the chance 1 / batches of an epoch, as the accountant
            assumes. False, for comparisons: the loader's own batches.

    Yields: the loader to train on.

    Raises: LearnerError without Opacus, for a net that mixes the images of a batch (BatchNorm), with FedProx, for wrong
        numbers.

    A round that a cut run does anew costs once more, and is counted once. What the learner tells of its validation
    images is not covered.
    """
    _check(learner, noise, clip)
    net = learner.net.train()
    engine, optimizer = _engine(net), torch.optim.SGD([p for p in net.parameters() if p.requires_grad])
    if STATE in learner.state:
        engine.accountant.load_state_dict(learner.state[STATE])
    if poisson:
        loader.generator = _generator(learner, "cpu", secret)
    hooks, gradients, batches = engine.make_private(
        module=net,
        optimizer=optimizer,
        data_loader=loader,
        noise_multiplier=noise,
        max_grad_norm=min(clip, torch.finfo(torch.float32).max),  # 0 times infinity is no number
        noise_generator=_generator(learner, next(net.parameters()).device, secret),
        poisson_sampling=poisson,
        wrap_model=False,  # the net stays itself: no "_module." in its state dict
    )
    gradients.expected_batch_size = len(loader.dataset) / len(loader)  # opacus 1.6 rounds it down
    try:  # the script's own optimizer takes the steps, with the gradients that Opacus's has prepared
        with (
            warnings.catch_warnings(),
            at_each_step(net, before=lambda _: gradients.pre_step(), after=lambda _: gradients.zero_grad()),
        ):
            warnings.filterwarnings("ignore", "Full backward hook is firing")  # no image needs a gradient
            yield batches
    finally:
        hooks.cleanup()
    learner.state[STATE] = engine.accountant.state_dict()


def epsilon_spent(learner: PTModelLearner, delta: float) -> float:
    """What all rounds so far have cost an image: epsilon at this delta, by Opacus's RDPAccountant; inf without noise.

    It holds for one image more or less at this site. Renyi accounting (Mironov 2017, arXiv:1702.07476) is quick at any
    noise; Opacus's PRVAccountant finds a fifth less, in seconds to minutes.
    """
    history = [tuple(one) for one in learner.state.get(STATE, {}).get("history", ())]
    if any(noise == 0 for noise, _, _ in history):
        return math.inf
    accountant = _engine(None).accountant
    accountant.history = history
    return float(accountant.get_epsilon(delta))


def _check(learner: PTModelLearner, noise: float, clip: float) -> None:
    if isinstance(learner.algorithm, FedProxSite):
        raise LearnerError("FedProx adds its pull to gradients that DP-SGD makes anew: take another algorithm.")
    if not 0 <= noise < math.inf or not clip > 0 or (noise and math.isinf(clip)):
        raise LearnerError(
            f"noise is {noise} and clip {clip}: noise must be 0 or more, clip more than 0, and a number where there is "
            "noise, which is measured in it."
        )


def _engine(net: torch.nn.Module | None):  # noqa: ANN202, opacus is not there everywhere
    """Opacus's PrivacyEngine, for a net that it can take."""
    try:
        from opacus import PrivacyEngine
        from opacus.validators import ModuleValidator
    except ImportError:
        raise LearnerError("DP-SGD needs Opacus at every site: pip install opacus.") from None
    if net is not None and (faults := ModuleValidator.validate(net, strict=False)):
        raise LearnerError(
            f"This net cannot be trained privately: {faults[0]} What mixes the images of a batch, such as BatchNorm, "
            "lets none be cut by itself: build the net with GroupNorm (opacus.validators.ModuleValidator.fix does)."
        )
    with warnings.catch_warnings():  # of torchcsprng, which no current torch has: said in `private_steps`
        warnings.filterwarnings("ignore", "Secure RNG turned off")
        return PrivacyEngine(accountant="rdp")


def _generator(learner: PTModelLearner, device: torch.device | str, secret: bool) -> torch.Generator:
    generator = torch.Generator(device)
    if secret:
        generator.seed()
    else:
        generator.manual_seed(learner.seed_of_round())
    return generator
