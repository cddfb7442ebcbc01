"""Do the tests notice? Break the code in one place, run the tests that should see it, and say what lives.

    .venv/bin/python tests/mutate.py             # every mutation of mutations.py
    .venv/bin/python tests/mutate.py L2 learner  # some: by their ids, or by a part of a file's name

Each is tried in a copy of the project under the temporary folder, so the working tree stays as it is, and may be
edited meanwhile. A mutation whose old text is not in its file once, or whose tests fail without it, is an error: mend
the table. The exit code is the number of mutations that live without a reason in the table.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[1]
NOTICED = {1, 2}  # pytest's codes: a test failed; a module could not be imported
SECONDS = 600  # for the tests of one mutation: one that hangs is noticed


def choose(words: Sequence[str]) -> list[Mutation]:
    """All, or those of these ids or files."""
    chosen = [one for one in MUTATIONS if not words or any(word == one.id or word in one.file for word in words)]
    if not chosen:
        raise SystemExit(f"No mutation is called {', '.join(words)}, nor is one in a file of such a name.")
    return chosen


def copy_project(target: Path) -> None:
    """Every file that git knows or would add, as it stands in the working tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def mutate(one: Mutation, text: str) -> str:
    """The broken text; SystemExit for a table that is out of date."""
    if text.count(one.old) != 1:
        raise SystemExit(f"{one.id}: its old text is {text.count(one.old)} times in {one.file}: mend mutations.py.")
    broken = text.replace(one.old, one.new)
    compile(broken, one.file, "exec")  # a syntax error would be noticed by any test
    return broken


def passes(tests: Sequence[str], project: Path) -> bool:
    """Do these tests pass in the copy? One that takes too long does not."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    env = os.environ | {"PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in NOTICED | {0}:  # there is no such test, say
        raise SystemExit(
            f"pytest {' '.join(tests)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done.returncode == 0


def check_table(chosen: Sequence[Mutation], project: Path) -> None:
    """SystemExit where a mutation does not fit its file, or its tests fail without it."""
    for one in chosen:
        mutate(one, (project / one.file).read_text(encoding="utf-8"))
    for tests in sorted({one.tests for one in chosen}):
        if not passes(tests, project):
            raise SystemExit(f"These fail without any mutation: pytest {' '.join(tests)}")


def is_noticed(one: Mutation, project: Path) -> bool:
    file = project / one.file
    whole = file.read_text(encoding="utf-8")
    file.write_text(mutate(one, whole), encoding="utf-8")
    try:
        return not passes(one.tests, project)
    finally:
        file.write_text(whole, encoding="utf-8")


def main() -> None:
    chosen = choose(sys.argv[1:])
    alive: list[Mutation] = []
    with tempfile.TemporaryDirectory(prefix="mutate-") as name:
        project = Path(name)
        copy_project(project)
        check_table(chosen, project)
        for one in chosen:
            start = time.monotonic()
            noticed = is_noticed(one, project)
            alive += [] if noticed else [one]
            word = "noticed" if noticed else "LIVES"
            sys.stdout.write(f"{word:8} {time.monotonic() - start:5.1f} s  {one.id:4} {one.file}: {one.what}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(alive)} of {len(chosen)} live\n")
    for one in alive:
        sys.stdout.write(f"  {one.id}: {one.lives or 'and should not'}\n")
    raise SystemExit(sum(not one.lives for one in alive))


if __name__ == "__main__":
    main()
