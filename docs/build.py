"""Build the web edition from the committed files:  make site  (then open build/site/html/index.html).

Nothing is run and nothing is fetched. The pages are laid out as in the repository, so that a link between two files
is a link between two pages; a new notebook, page of docs/ or module of tutorial_utils/ is taken in by its name alone.
With --external-links it asks the web whether the links that lead out still lead somewhere, and builds no page.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import main as sphinx_build

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build/site"
CORE = ("01", "04", "05", "06")
READ = ("CONTRIBUTING.md", "CHANGELOG.md", "data/README.md", "tests/README.md", "tests/benchmarks/README.md")
CODE = ("code", "data", "tutorial_utils")  # what pages link to, for download
PICTURES = ("notebooks/figures", "tests/benchmarks")
MOST_BYTES = 12_000_000


def module_names() -> list[str]:
    """The public modules of the package, by their names."""
    paths = sorted((ROOT / "tutorial_utils").rglob("*.py"))
    parts = [path.relative_to(ROOT).with_suffix("").parts for path in paths]
    return [".".join(names) for names in parts if not any(name.startswith("_") for name in names)]


def summary(module: str) -> str:
    """The first sentence of a module's docstring."""
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return re.split(r"(?<=[.:])\s", ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")[0].rstrip(":")


def api_pages() -> dict[str, str]:
    """A page for each public module, and one that lists them."""
    pages, rows = {}, []
    for module in module_names():
        rows.append(f"| [{module}]({module}.md) | {summary(module)} |")
        pages[f"api/{module}.md"] = f"# {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n```\n"
    listed = "\n".join(f"{module}.md" for module in module_names())
    table = "\n".join(["| module | what it is for |", "|---|---|", *rows])
    hidden = f"```{{toctree}}\n:hidden:\n\n{listed}\n```"
    words = "What the notebooks call, and what you import for your own script: the public modules, by their docstrings."
    pages["api/index.md"] = f"# The package tutorial_utils\n\n{words}\n\n{table}\n\n{hidden}\n"
    return pages


def tree(caption: str, pages: list[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"])


def front_page() -> str:
    """The README up to its part on the data, and the table of contents in three parts."""
    notebooks = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))]
    numbered = {path: path.partition("/")[2][:2] for path in notebooks}
    docs = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md")) if path.stem != "README"]
    last = ["docs/results.md", "docs/glossary.md"]
    beyond = [path for path in notebooks if numbered[path] > "10"] + [path for path in docs if path not in last]
    readme, _ = split_readme()
    contents = [
        tree("The core, one hour", [path for path in notebooks if numbered[path] in CORE]),
        tree("All of it, in order", [path for path in notebooks if numbered[path] <= "10"]),
        tree("Beyond", [*beyond, *last, "api/index.md", *(page for page in READ if (ROOT / page).is_file())]),
    ]
    return "\n\n".join([readme, *contents]) + "\n"


def split_readme() -> tuple[str, str]:
    """What the front page shows, and the results."""
    before, heading, after = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## The data\n")
    if not heading:
        raise SystemExit("README.md has no part '## The data' any more: docs/build.py parts it there.")
    return before, f"{heading.lstrip()}{after}"


def lay_out(folder: Path) -> None:
    """Copy what becomes pages, pictures and downloads, and write the pages that are made of others."""
    shutil.rmtree(folder, ignore_errors=True)
    copied = [*(ROOT / page for page in READ), *(ROOT / "docs").glob("*.md")]
    copied += (ROOT / "notebooks").glob("[0-9]*.ipynb")
    copied += [path for place in CODE for path in (ROOT / place).rglob("*.py")]
    copied += [path for place in PICTURES for path in (ROOT / place).iterdir() if path.suffix in (".png", ".svg")]
    for path in filter(Path.is_file, copied):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    results = re.sub(r"(?<=\]\()(?=[\w.]+(?:/|\.md|\.py))(?!https?:)", "../", split_readme()[1])
    made = {"index.md": front_page(), "docs/results.md": f"# What it reaches, on which data\n\n{results}"} | api_pages()
    for name, text in made.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def main() -> int:
    lay_out(OUT / "source")
    html = OUT / "html"
    shutil.rmtree(html, ignore_errors=True)
    options = ["--keep-going", "--quiet", "--conf-dir", str(ROOT / "docs"), "--doctree-dir", str(OUT / "doctrees")]
    if "--external-links" in sys.argv:
        return sphinx_build([*options, "--builder", "linkcheck", str(OUT / "source"), str(OUT / "links")])
    failed = sphinx_build([*options, "--fail-on-warning", str(OUT / "source"), str(html)])
    for path in [*html.rglob("*.map"), *html.glob("_static/*macros.html")]:  # for the theme's own makers
        path.unlink()
    shutil.rmtree(html / "_static/locales", ignore_errors=True)  # other tongues of the theme's buttons
    size = sum(path.stat().st_size for path in html.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        raise SystemExit(f"The site has {size / 1e6:.1f} MB: {MOST_BYTES / 1e6:.0f} at most.")
    sys.stdout.write(f"{html.relative_to(ROOT)}/index.html: {size / 1e6:.1f} MB\n" if not failed else "")
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
