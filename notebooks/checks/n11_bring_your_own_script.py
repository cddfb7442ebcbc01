"""The exercise of notebook 11: which of the three traps of code/own/wine.py is still in the reader's text of it?"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from checks.reply import Reply, exercise, not_yet, right

if TYPE_CHECKING:
    from torch.optim import Optimizer

FILE = "wine.py"
SIZES = {"width": 5, "dropout": 0.25}  # other than the script's own
KEEP = "keep Net(width, dropout), scale(train, test) and fit(net, rows, growers)"


@exercise("mend a copy of wine.py, and put its text, or its path, in answer.", f"Change no more than is asked: {KEEP}.")
def callable_script(answer: str | Path) -> Reply:
    text = _read(answer)
    if text is None:
        return not_yet("answer must be the text of the mended script, or the path of its file.")
    try:
        code = compile(text, FILE, "exec")
    except (SyntaxError, ValueError) as error:
        return not_yet(f"It is no Python that can be read: {error}.")
    names, steps, said = _run(code, "wine")
    hint = _fault_of_import(names, steps, said) or _fault_of_scale(names) or _fault_of_net(names)
    if hint:
        return not_yet(hint)
    if not _run(code, "__main__")[1]:
        return not_yet('As a script it trains no more: below  if __name__ == "__main__":  it should.')
    return right("It can be imported, its scaler has seen the training rows alone, and its net can be built again.")


def _read(answer: object) -> str | None:
    if isinstance(answer, str) and "\n" not in answer and answer.endswith(".py"):
        answer = Path(answer)
    if isinstance(answer, Path):
        return answer.read_text(encoding="utf-8")
    return answer if isinstance(answer, str) else None


def _run(code: Any, name: str) -> tuple[dict[str, Any], int, str]:  # noqa: ANN401
    """The names that the script has made, the optimizer's steps, and what it has printed."""
    names: dict[str, Any] = {"__name__": name}
    said = io.StringIO()
    with _counted() as steps, contextlib.redirect_stdout(said), _arguments():
        exec(code, names)
    return names, len(steps), said.getvalue()


@contextlib.contextmanager
def _counted() -> Iterator[list[int]]:
    from torch.optim.optimizer import register_optimizer_step_post_hook  # seconds: only where it is needed

    steps: list[int] = []

    def count(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        steps.append(1)

    watch = register_optimizer_step_post_hook(count)  # of any optimizer in this process
    try:
        yield steps
    finally:
        watch.remove()


@contextlib.contextmanager
def _arguments() -> Iterator[None]:
    """The command line of a script that is called with nothing, and not the notebook's."""
    kept, sys.argv = sys.argv, [FILE]
    try:
        yield
    finally:
        sys.argv = kept


def _fault_of_import(names: dict[str, Any], steps: int, said: str) -> str | None:
    from torch import Tensor, nn

    under = 'put it in a function, or below  if __name__ == "__main__":  at the end.'
    if steps:
        return f"It still trains when it is imported ({steps} steps), as every site would: {under}"
    if said:
        return f"It prints when it is imported: {under}"
    made = [name for name, value in names.items() if isinstance(value, np.ndarray | Tensor | nn.Module)]
    return f"It makes {made[0]} when it is imported: {under}" if made else None


def _function(names: dict[str, Any], name: str) -> Callable[..., Any] | None:
    return names.get(name) if callable(names.get(name)) else None


def _fault_of_scale(names: dict[str, Any]) -> str | None:
    scale = _function(names, "scale")
    if scale is None:
        return f"There is no scale(train, test) any more: {KEEP}."
    draw = np.random.default_rng(0)
    train, test = draw.normal(3, 2, (40, 13)), draw.normal(8, 5, (20, 13))
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    made = scale(train.copy(), test.copy())
    if not isinstance(made, tuple | list) or len(made) != 2:
        return "scale must return two arrays: the training rows and the test rows, scaled."
    rows, other = (np.asarray(part, dtype=float) for part in made)
    every = np.concatenate([train, test])
    if np.allclose(rows, (train - every.mean(axis=0)) / every.std(axis=0)):
        return "The scaler is still fitted on all rows: what it has seen of the test rows, training has seen too."
    if np.allclose(rows, train):
        return "scale scales nothing: fit a StandardScaler on the training rows."
    if not np.allclose(rows, (train - mean) / deviation):
        return "The training rows should come out with mean 0 and deviation 1: fit a StandardScaler on them alone."
    if not np.allclose(other, (test - mean) / deviation):
        return "The test rows must be scaled with the training rows' mean and deviation: a second fit moves the ruler."
    return None


def _fault_of_net(names: dict[str, Any]) -> str | None:
    make = _function(names, "Net")
    if make is None:
        return f"There is no Net any more: {KEEP}."
    net = make(**SIZES)
    lost = [name for name, value in SIZES.items() if getattr(net, name, getattr(net, f"_{name}", None)) != value]
    if lost:
        return f"Net does not keep its argument {lost[0]}: write self.{lost[0]} = {lost[0]} in its constructor."
    return None
