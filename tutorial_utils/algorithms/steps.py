"""Act before or after each step of an optimizer, from outside: the training loop of a script stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from tutorial_utils.values import LearnerError

Act = Callable[[Optimizer], None]


class Received:
    """The weights that a net has now, as FLARE's helpers ask a module for them. Not every net can be copied."""

    def __init__(self, net: nn.Module) -> None:
        self._params = {name: param.detach().clone() for name, param in net.named_parameters()}

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self._params.items())

    def state_dict(self) -> dict[str, Tensor]:
        return self._params


@contextmanager
def at_each_step(net: nn.Module, *, before: Act | None = None, after: Act | None = None) -> Iterator[None]:
    """Inside the `with`, act before or after each step of any optimizer that trains this net.

    So a script's own loop stays as it is. Both are handed the optimizer; `before` finds the step's gradients, and may
    add to them: LearnerError for a step(closure), which makes them itself.
    """
    ours = {id(param) for param in net.parameters()}

    def hook(act: Act, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        if any(id(param) in ours for group in optimizer.param_groups for param in group["params"]):
            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            if act is before and closure is not None:
                raise LearnerError(
                    f"{type(optimizer).__name__} makes its own gradients in step(closure), where what was added before "
                    "is lost: call backward() and then step(), with SGD or Adam."
                )
            act(optimizer)

    with ExitStack() as hooks:  # torch calls them for the optimizers of the whole process
        if before:
            hooks.callback(register_optimizer_step_pre_hook(partial(hook, before)).remove)
        if after:
            hooks.callback(register_optimizer_step_post_hook(partial(hook, after)).remove)
        yield
