"""Which files a job must carry: the learner's own module, all that it imports of the reader's code, packages whole.

FLARE's FedJob follows imports too, and misses what users have: `from package import module`, an `__init__.py`, a data
file beside the code, a module from another folder of sys.path, an installed package such as this one.
"""

from __future__ import annotations

import ast
import re
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import PathFinder
from importlib.util import resolve_name
from pathlib import Path

from tutorial_utils.errors import JobError

HERE = Path(__file__).resolve().parents[1]
LIBRARIES = [Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "platstdlib", "purelib", "platlib")]
INSTALLED = {"site-packages", "dist-packages"}
EVERYWHERE = ("nvflare", "torch", "torchvision", "numpy")  # at every site, wherever they lie here: in a checkout, say
MOST_BYTES = 100_000_000  # of one package: what is larger holds data, which does not travel with code
LEFT_OUT = ("__pycache__", "egg-info", ".pyc")
# Calls at a module's top level that cannot be meant for an import at a site. Of RUNS only this package's own.
AT_IMPORT = ("parse_args", "parse_known_args", "backward", "exit", "input", "step")
RUNS = ("simulate", "build_job", "build_evaluation", "run_in_poc")
DRAWS = re.compile(
    r"torch\.(rand|randn|randint|randperm|normal|bernoulli|multinomial)"
    r"|(np|numpy)\.random\.(?!default_rng|seed|Generator|RandomState|SeedSequence)\w+"
    r"|random\.(?!seed|Random|SystemRandom)\w+"
)
SEEDS = ("manual_seed", "seed")


def find_files(kind: type) -> dict[Path, str]:
    """The files that a class needs, each with the folder below custom/ where it belongs ("" for custom/ itself).

    JobError: a class that no site could import, a package full of data, a module that does its work when imported.
    """
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    if not file or not Path(file).is_file():
        raise JobError(
            f"{kind.__name__} was typed into a notebook or a console, and a site needs a file: write it into one (.py)."
        )
    if kind.__qualname__ != kind.__name__:
        around = kind.__qualname__.rpartition(".")[0].removesuffix(".<locals>")
        raise JobError(f"{kind.__name__} is defined inside {around}: move it to the top of its module.")
    name = Path(file).stem if kind.__module__ == "__main__" else kind.__module__
    return files_of(Path(file).resolve(), name)


def is_library(kind: type) -> bool:
    """Does a class come with what every site has installed, or with this package?"""
    if kind.__module__.split(".")[0] in (*EVERYWHERE, "tutorial_utils"):
        return True
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return file is not None and _is_library(Path(file).resolve())


def check_module(name: str, path: Path) -> None:
    """JobError for a name by which a site would not find the module: custom/ is the last place where it looks."""
    first = name.split(".")[0]
    if not all(part.isidentifier() for part in name.split(".")):
        raise JobError(f"{name!r} is no name for a module: call {path.name} otherwise, with letters, digits and '_'.")
    if first == "tutorial_utils" or _is_library(path):
        return
    spec = PathFinder.find_spec(first, [str(folder) for folder in LIBRARIES])
    if first in (*sys.stdlib_module_names, *EVERYWHERE) or (spec and spec.origin):
        raise JobError(
            f"{first} is a module of Python's or a library's, which a site would import: call yours otherwise."
        )


def files_of(path: Path, name: str | None = None) -> dict[Path, str]:
    """The same for a module: its file, and its full name (by default as it would be imported from sys.path)."""
    found: dict[str, Path] = {}
    _follow(name or _name_of(path), path, found)
    files: dict[Path, str] = {}
    for name, path in found.items():
        check_module(name, path)
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
    for wanted in [*_packages(name), *_imports(name, path)]:
        if other := _find(wanted, root):
            _follow(wanted, other, found)


def _packages(name: str) -> Iterator[str]:
    """The packages around a module: a site runs the __init__.py of each first. This package's own are empty."""
    while (name := name.rpartition(".")[0]) not in ("", "tutorial_utils"):
        yield name


def _imports(name: str, path: Path) -> Iterator[str]:
    """Every module that a file may import, by its full name: `from a import b` may mean the module a.b."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in _walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level > len(package.split(".")) * bool(package):
                raise JobError(
                    f"{path.name} imports relatively (line {node.lineno}), and lies in no package that deep: "
                    "import by the full name."
                )
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """As ast.walk, without what stands under `if TYPE_CHECKING`, which never runs."""
    yield node
    test = getattr(node, "test", None)
    is_for_types = "TYPE_CHECKING" in (getattr(test, "id", None), getattr(test, "attr", None))
    for child in node.orelse if is_for_types else ast.iter_child_nodes(node):
        yield from _walk(child)


def _find(name: str, root: Path) -> Path | None:
    """The file of a module of the reader's own, or of this package; None for the libraries that every site has."""
    first = name.split(".")[0]
    if first in (*sys.stdlib_module_names, *EVERYWHERE):
        return None
    folders = [HERE] if first == "tutorial_utils" else [root, *(Path(entry or ".").resolve() for entry in sys.path)]
    for folder in folders:
        if first != "tutorial_utils" and _is_library(folder):
            continue
        base = folder.joinpath(*name.split("."))
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file():
                return path
    return None


def _is_library(path: Path) -> bool:
    """Below Python's own folders, or where pip or a distribution puts packages for a user or for all."""
    return any(path.is_relative_to(library) for library in LIBRARIES) or not INSTALLED.isdisjoint(path.parts)


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
        return ast.parse(path.read_bytes(), str(path))  # bytes: the file may say its encoding
    except (SyntaxError, ValueError) as error:
        raise JobError(f"{path} is no Python file that can be read ({error}).") from error


def check_import(path: Path) -> None:
    """JobError for a module that parses arguments, trains, draws random numbers or ends when it is imported.

    Each site imports it, in a process of its own: what is drawn without a seed is another number at each.
    """
    tree = _tree(path)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    ours = {alias.name for node in ast.walk(tree) if _is_from_here(node) for alias in node.names}
    seeded = False
    for statement in tree.body:
        if _is_guard(statement):
            continue
        for call in _calls(statement, functions):
            called = _called(call)
            # an exit inside `try` or `if` is for the day when a library is missing
            is_work = called in AT_IMPORT and (called != "exit" or isinstance(statement, ast.Expr))
            if is_work or (called in RUNS and called in ours):
                raise JobError(
                    f"{path.name} works when it is imported (line {call.lineno}: {called}()), as each site does: "
                    'put that under  if __name__ == "__main__":'
                )
            seeded = seeded or called in SEEDS
            if not seeded and DRAWS.fullmatch(ast.unparse(call.func)):
                raise JobError(
                    f"{path.name} draws random numbers when it is imported (line {call.lineno}: {called}()), and each "
                    "site would draw others: do it in a function, or set the seed above that line."
                )


def _calls(node: ast.AST, functions: dict[str, ast.FunctionDef]) -> Iterator[ast.Call]:
    """The calls that are made where this is executed, and those inside the module's own functions that it calls."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        return
    if isinstance(node, ast.Call):
        yield node
        if isinstance(node.func, ast.Name) and node.func.id in functions:
            others = {name: body for name, body in functions.items() if name != node.func.id}
            for statement in functions[node.func.id].body:
                yield from _calls(statement, others)
    for child in ast.iter_child_nodes(node):
        yield from _calls(child, functions)


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _is_from_here(node: ast.AST) -> bool:
    return isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tutorial_utils"


def _is_guard(statement: ast.stmt) -> bool:
    """Is it `if __name__ == ...`?"""
    return isinstance(statement, ast.If) and any(
        isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(statement.test)
    )
