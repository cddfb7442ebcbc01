"""By which one tells that a notebook's outputs belong to its code, and to the code that it calls."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import tokenize
from collections.abc import Iterator
from pathlib import Path

from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
OURS, ROOTS = ("dl", "faults", "fl", "more", "own", "tutorial_utils"), (ROOT / "code", ROOT, ROOT / "tests")


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def code_hash(notebook: NotebookNode) -> str:
    """SHA-256 of the sources of the code cells, in order: it changes with the code, not with prose or outputs."""
    sources = [cell.source for cell in code_cells(notebook)]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def called_hash(notebook: NotebookNode) -> str:
    """SHA-256 of the project's own modules that the cells import, and of what these import, without comments and
    docstrings: it changes with what the code does and not with a comment."""
    found: dict[Path, str] = {}
    for cell in code_cells(notebook):
        _follow(ast.parse(cell.source), found)
    sources = sorted((path.relative_to(ROOT).as_posix(), dump) for path, dump in found.items())
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def _follow(tree: ast.Module, found: dict[Path, str]) -> None:
    for path in (path for name in _imported(tree) if (path := _module_file(name))):
        if path not in found:
            text = path.read_text(encoding="utf-8")
            found[path] = _without_words(text)
            _follow(ast.parse(text), found)


def _without_words(text: str) -> str:
    """Python without comments, docstrings and blank lines: the same for every version of Python, as ast.dump is not."""
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        first = node.body[0] if isinstance(getattr(node, "body", None), list) and node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            lines[first.lineno - 1 : first.end_lineno] = [""] * (first.end_lineno - first.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _module_file(name: str) -> Path | None:
    """The file of a module of the project's; None for libraries, and for the checks, which no output shows."""
    if name.split(".")[0] not in OURS:
        return None
    return next(
        (path for root in ROOTS if (path := root.joinpath(*name.split(".")).with_suffix(".py")).is_file()), None
    )
