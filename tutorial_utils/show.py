"""Code and files shown from where they live: `show.source(train)` in place of a pasted copy that goes stale.

Each function returns what a notebook displays in colour, with its place, where the call is the last line of a
cell; a terminal prints it as plain text.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import io
import sys
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from types import ModuleType

from tutorial_utils.errors import TutorialError

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = {".py": "python", ".json": "json", ".toml": "toml", ".yml": "yaml"}
CODE = (tokenize.NAME, tokenize.OP, tokenize.NUMBER)  # what a line of code has, and a docstring has not
Code = Callable | property | type | ModuleType


@dataclass(frozen=True, repr=False)
class Listing:
    """Text, the place it comes from ("code/dl/train.py, line 42") and its language, by pygments' name."""

    place: str
    text: str
    language: str = "text"

    def __repr__(self) -> str:
        return f"{self.place}\n\n{self.text}"

    def _repr_html_(self) -> str:
        from pygments import highlight  # comes with IPython, and only IPython asks for HTML
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import get_lexer_by_name

        # The colours stand in each tag: Jupyter drops a style sheet from a notebook that it does not trust.
        pre = "font: 13px monospace; white-space: pre; background: transparent; color: inherit; margin: 0"
        box = "color: #222222; padding: 0.4em 0.6em; overflow-x: auto"
        looks = HtmlFormatter(noclasses=True, cssstyles=box, prestyles=pre)
        code = highlight(self.text, get_lexer_by_name(self.language, stripnl=False), looks)
        return f"<div><code>{escape(self.place)}</code></div>\n{code}"


def source(code: Code) -> Listing:
    """The source of a function, class, method, property or module, as it stands in its own file."""
    code = code.fget if isinstance(code, property) else code
    try:
        lines, first = inspect.getsourcelines(code)
        where = _place(Path(inspect.getfile(inspect.unwrap(code))))
    except (OSError, TypeError) as error:
        name = getattr(code, "__name__", f"this {type(code).__name__}")
        raise TutorialError(
            f"Python knows no source file for {name}: show a function, class or method written in a .py file "
            "(a class typed in a notebook cell, an object and a builtin have none)."
        ) from error
    text = textwrap.dedent("".join(lines)).rstrip()
    return Listing(f"{where}, line {max(first, 1)}", text, "python")  # a module's own source starts at line 0


def count_lines(code: Code) -> int:
    """The lines of code in it: no comments, no docstrings, no blank ones."""
    text = source(code).text
    kept = {token.start[0] for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type in CODE}
    return len(kept)


def names_from(package: str, code: Code) -> list[str]:
    """What a class, function or module uses of a package, sorted: what its module imports from there, and what it calls
    of that, of its own base classes and of arguments that are annotated so; methods that it writes anew are among them.
    """
    tree = ast.parse(source(code).text)
    module = code if isinstance(code, ModuleType) else sys.modules[code.__module__]
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    imported = {name: value for name, value in vars(module).items() if name in used and _is_from(package, value)}
    arguments = [node for node in ast.walk(tree) if isinstance(node, ast.arg) and node.annotation]
    known = imported | {
        node.arg: imported.get(ast.unparse(node.annotation)) for node in arguments if node.arg != "self"
    }
    owned = [kind for kind in vars(module).values() if getattr(kind, "__module__", None) == module.__name__]
    inherited = {name for kind in (owned if code is module else [code]) for name in _routines(package, kind)}
    found = set(imported)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found |= {node.attr} & (
                inherited if node.value.id == "self" else _routines(package, known.get(node.value.id))
            )
        elif isinstance(node, ast.FunctionDef):
            found |= {node.name} & inherited
    return sorted(name for name in found if not name.startswith("_"))


def _is_from(package: str, value: object) -> bool:
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return isinstance(name, str) and f"{name}.".startswith(f"{package}.")


def _routines(package: str, owner: object) -> set[str]:
    """The functions of a module, or of a class and its bases, as far as they are the package's."""
    kinds = [kind for kind in getattr(owner, "__mro__", [owner]) if _is_from(package, kind)]
    return {name for kind in kinds for name, value in vars(kind).items() if inspect.isroutine(value)}


def diff(before: Code | Path, after: Code | Path, context: int = 3) -> Listing:
    """What changes from one piece of code, or one text file (a Path), to another: lines marked - and +."""
    old, new = (file(one) if isinstance(one, Path) else source(one) for one in (before, after))
    a, b = old.text.splitlines(), new.text.splitlines()
    changes = list(difflib.unified_diff(a, b, n=context, lineterm=""))[2:]  # without the two lines of names
    place = f"- {old.place}   + {new.place}"
    return Listing(place, "\n".join(changes) or "(no difference)", "diff")


def file(path: str | Path, start: int | None = None, end: int | None = None) -> Listing:
    """A text file, or its lines from `start` to `end` (both counted from 1 and both included)."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TutorialError(f"{path} cannot be shown: give the path of a text file that exists.") from error
    first, last = start or 1, min(end or len(lines), len(lines))
    if not 1 <= first <= max(last, 1):
        raise TutorialError(f"{path} has lines 1 to {len(lines)}: choose a start and an end among them.")
    part = f", lines {first} to {last}" if start or end else ""
    language = LANGUAGES.get(path.suffix, "text")
    return Listing(f"{_place(path)}{part}", "\n".join(lines[first - 1 : last]), language)


def tree(folder: str | Path, most: int = 60) -> Listing:
    """The folders and files below `folder`, hidden ones left out, `most` lines of them."""
    folder = Path(folder)
    if not folder.is_dir():
        raise TutorialError(f"{folder} is not a folder: give the path of one that exists.")
    lines = list(_branches(folder, ""))
    rest = [f"... and {len(lines) - most} more"] if len(lines) > most else []
    return Listing(f"{_place(folder)}/", "\n".join(lines[:most] + rest) or "(empty)")


def _branches(folder: Path, indent: str) -> Iterator[str]:
    inside = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.name != "__pycache__")
    for path in inside:
        last, is_folder = path == inside[-1], path.is_dir() and not path.is_symlink()
        yield f"{indent}{'└── ' if last else '├── '}{path.name}{'/' * is_folder}"
        if is_folder:
            yield from _branches(path, indent + ("    " if last else "│   "))


def _place(path: Path) -> str:
    """The path as the reader knows it: within the repository, or as imported; nothing of this machine."""
    if "ipykernel" in str(path) or str(path).startswith("<"):
        return "this notebook"
    path = path.resolve()
    bases = [Path(entry).resolve() for entry in sys.path]
    if "site-packages" not in path.parts:
        bases = [ROOT] if path.is_relative_to(ROOT) else bases
    bases = [base for base in bases if path.is_relative_to(base)]
    return path.relative_to(max(bases, key=lambda base: len(base.parts))).as_posix() if bases else path.name
