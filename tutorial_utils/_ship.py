"""Which files a job must carry: the learner's own module, all that it imports of the reader's code, packages whole.

FLARE's FedJob follows imports too, and misses what users have: `from package import module`, an `__init__.py`, a data
file beside the code, a module from another folder of sys.path, an installed package such as this one.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

from tutorial_utils.errors import JobError

HERE = Path(__file__).resolve().parents[1]
MOST_BYTES = 100_000_000  # of one package: what is larger holds data, which does not travel with code
LEFT_OUT = ("__pycache__", "egg-info", ".pyc")
# Calls at a module's top level that cannot be meant for an import at a site.
AT_IMPORT = ("parse_args", "parse_known_args", "backward", "exit", "input", "step")


def find_files(kind: type) -> dict[Path, str]:
    """The files that a class needs, each with the folder below custom/ where it belongs ("" for custom/ itself).

    JobError: a class that was typed in a notebook, a package full of data, a module that does its work when imported.
    """
    module = sys.modules[kind.__module__]
    file = getattr(module, "__file__", None)
    if not file or not Path(file).is_file():
        raise JobError(
            f"{kind.__name__} was typed into a notebook or a console, and a site needs a file: write it into one (.py)."
        )
    name = Path(file).stem if kind.__module__ == "__main__" else kind.__module__
    return files_of(Path(file).resolve(), name)


def files_of(path: Path, name: str | None = None) -> dict[Path, str]:
    """The same for a module: its file, and its full name (by default as it would be imported from sys.path)."""
    found: dict[str, Path] = {}
    _follow(name or _name_of(path), path, found)
    files: dict[Path, str] = {}
    for name, path in found.items():
        check_import(path)
        depth = name.count(".") + (path.name == "__init__.py")
        files[path] = "/".join(name.split(".")[:depth])
    for package in sorted({name.split(".")[0] for name in found}):
        top = found[next(name for name in found if name.split(".")[0] == package)]
        root = _root_of(next(name for name in found if name.split(".")[0] == package), top)
        if package != "tutorial_utils" and (root / package / "__init__.py").is_file():
            files |= {path: path.parent.relative_to(root).as_posix() for path in _whole(root / package)}
    return {path: "" if folder == "." else folder for path, folder in files.items()}


def _name_of(path: Path) -> str:
    """The full name of the module in a file, by the nearest folder of sys.path."""
    if not path.is_file():
        raise JobError(f"There is no file {path} to ship.")
    folders = [Path(entry or ".").resolve() for entry in sys.path]
    above = [folder for folder in folders if path.is_relative_to(folder)] or [path.parent]
    nearest = max(above, key=lambda folder: len(folder.parts))
    return ".".join(path.relative_to(nearest).with_suffix("").parts)


def _root_of(name: str, path: Path) -> Path:
    """The folder of sys.path from which a module is imported by this name."""
    return path.parents[name.count(".") + (path.name == "__init__.py")]


def _follow(name: str, path: Path, found: dict[str, Path]) -> None:
    if name in found:
        return
    found[name] = path
    root = _root_of(name, path)
    for wanted in _imports(name, path):
        if other := _find(wanted, root):
            _follow(wanted, other, found)


def _imports(name: str, path: Path) -> Iterator[str]:
    """Every module that a file may import, by its full name: `from a import b` may mean the module a.b."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _find(name: str, root: Path) -> Path | None:
    """The file of a module of the reader's own, or of this package; None for the libraries that every site has."""
    places = sysconfig.get_paths()
    libraries = [Path(places[key]).resolve() for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    first = name.split(".")[0]
    if first in sys.stdlib_module_names:
        return None
    folders = [HERE] if first == "tutorial_utils" else [root, *(Path(entry or ".").resolve() for entry in sys.path)]
    for folder in folders:
        if first != "tutorial_utils" and any(folder.is_relative_to(library) for library in libraries):
            continue
        base = folder.joinpath(*name.split("."))
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
    return None


def _whole(package: Path) -> list[Path]:
    """All files of a package, its data files too."""
    files = [path for path in sorted(package.rglob("*")) if path.is_file() and not _is_left_out(path, package)]
    size = sum(path.stat().st_size for path in files)
    if size > MOST_BYTES:
        raise JobError(
            f"The package {package} holds {size / 1e6:.0f} MB, and would travel whole: move the data out of it."
        )
    return files


def _is_left_out(path: Path, package: Path) -> bool:
    parts = path.relative_to(package).parts
    return any(part.startswith(".") or part.endswith(LEFT_OUT) for part in parts)


def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"), str(path))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise JobError(f"{path} is no Python file that can be read ({error}).") from error


def check_import(path: Path) -> None:
    """JobError for a module that parses arguments, trains or ends the process when it is imported, as a site does."""
    for statement in _tree(path).body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or _is_guard(statement):
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and (called := _called(node)) in AT_IMPORT:
                raise JobError(
                    f"{path.name} works when it is imported (line {node.lineno}: {called}()), and each site imports it: "
                    'put that under  if __name__ == "__main__":'
                )


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _is_guard(statement: ast.stmt) -> bool:
    """Is it `if __name__ == ...`?"""
    return isinstance(statement, ast.If) and any(
        isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(statement.test)
    )
