"""Act before or after each step of an optimizer, from outside: the training loop of a script stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

Act = Callable[[Optimizer], None]


@contextmanager
def at_each_step(net: nn.Module, *, before: Act | None = None, after: Act | None = None) -> Iterator[None]:
    """Inside the `with`, act before or after each step of any optimizer that trains this net.

    So a script's own loop stays as it is. Both are handed the optimizer; `before` finds the step's gradients, and may
    add to them.
    """
    ours = {id(param) for param in net.parameters()}

    def hook(act: Act, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        if any(id(param) in ours for group in optimizer.param_groups for param in group["params"]):
            act(optimizer)

    with ExitStack() as hooks:  # torch calls them for the optimizers of the whole process
        if before:
            hooks.callback(register_optimizer_step_pre_hook(partial(hook, before)).remove)
        if after:
            hooks.callback(register_optimizer_step_post_hook(partial(hook, after)).remove)
        yield
