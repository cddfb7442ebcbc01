"""What the web edition adds while Sphinx reads: links to the glossary, reading times, the order of the pages.

The files themselves stay as they are, so that what a page offers for download is the notebook of the repository.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

# Where no term becomes a link: code, links and pictures, headings, rows of a table, HTML, roles.
PROTECTED = re.compile(
    r"```.*?```|``?[^`\n]*``?|!?\[[^\]]*\]\([^)]*\)|^#[^\n]*|^\|[^\n]*|<[^>]+>|\{\w+\}`[^`]*`",
    re.MULTILINE | re.DOTALL,
)
SECTION = re.compile(r"\s*(Args|Attributes|Returns|Raises|Yields|Example|Note)s?:\s*$")  # napoleon reads these
PYTHON = re.compile(r"\s*(\w+ = |with |from \w|import |>>> )")
WORDS_A_MINUTE = 200  # of prose about code
TIMED = re.compile(r"\*\*It takes\*\*")  # the notebooks say it themselves, and count the machine's time


def glossary_terms(text: str) -> list[str]:
    """The terms of a page with the directive {glossary}: lines that an indented one follows."""
    body = re.search(r"```\{glossary\}\n(.*?)```", text, re.DOTALL)
    return re.findall(r"^(\S.*)\n(?=[ ]+\S)", body[1], re.MULTILINE) if body else []


def linker(terms: list[str]) -> Callable[[str], str]:
    """A function that links each term where it comes first, over all the texts that it is handed."""
    by_name = {term.lower(): term for term in terms}
    longest_first = sorted(map(re.escape, terms), key=len, reverse=True)
    wanted = re.compile(rf"(?<![\w-])({'|'.join(longest_first)})(?:s\b|(?![\w-]))", re.IGNORECASE)
    seen: set[str] = set()

    def link(found: re.Match[str]) -> str:
        term = by_name[found[1].lower()]
        if term in seen:
            return found[0]
        seen.add(term)
        return f"{{term}}`{found[0]} <{term}>`"

    def apply(text: str) -> str:
        done, at = [], 0
        for kept in PROTECTED.finditer(text):
            done += [wanted.sub(link, text[at : kept.start()]), kept[0]]
            at = kept.end()
        return "".join([*done, wanted.sub(link, text[at:])])

    return apply if terms else lambda text: text


def reading_time(text: str) -> str:
    words = len(re.sub(r"\]\([^)]*\)|<[^>]+>|[|#*`>-]", " ", text).split())
    return f"*{max(1, round(words / WORDS_A_MINUTE))} min to read*"


def on_page(text: str, name: str, terms: list[str]) -> str:
    """A page of markdown as it is read: with a reading time under its title, and terms linked."""
    text = re.sub(r"\]\((?:\.\./)*README\.md(#[\w-]*)?\)", "](/index.md)", text)
    title, rest = re.match(r"(\s*# .+\n)?(.*)\Z", text, re.DOTALL).groups()
    rest = rest if name == "docs/glossary" else linker(terms)(rest)
    timed = not title or name == "index" or TIMED.search(text)
    return f"{title or ''}{'' if timed else f'{chr(10)}{reading_time(text)}{chr(10)}'}{rest}"


def on_notebook(text: str, terms: list[str]) -> str:
    """A notebook, its JSON, with the terms linked in its prose."""
    notebook, link = json.loads(text), linker(terms)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            source = "".join(cell["source"])
            source = re.sub(r"\]\(\.\./README\.md(#[\w-]*)?\)", "](../index.md)", source)
            cell["source"] = link(source)
    return json.dumps(notebook)


def read_source(app: Sphinx, name: str, source: list[str]) -> None:
    terms = glossary_terms((Path(app.srcdir) / "docs/glossary.md").read_text(encoding="utf-8"))
    path = Path(app.env.doc2path(name))
    if path.suffix == ".ipynb":
        source[0] = on_notebook(source[0], terms)
    elif path.suffix == ".md":
        source[0] = on_page(source[0], name, terms)


def reading_order(app: Sphinx) -> Iterator[str]:
    """The pages as one reads them: the front page, every notebook by its number, then the rest as it is listed."""
    names = sorted(name for name in app.env.found_docs if name.startswith("notebooks/"))
    rest = [name for tree in app.env.toctree_includes.values() for name in tree if name not in names]
    yield from dict.fromkeys(["index", *names, *rest])


def set_neighbours(app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Previous and next: the contents list the core twice, and it is not the order in which all is read."""
    order = list(reading_order(app))
    if name not in order:
        return
    here = order.index(name)
    for key, at in (("prev", here - 1), ("next", here + 1)):
        other = order[at] if 0 <= at < len(order) else None
        title = app.env.titles[other].astext() if other else ""
        context[key] = {"link": context["pathto"](other), "title": title} if other else None


def plain_docstring(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text, code in backticks: * and _ mean themselves, and what stands further in stays so."""
    paragraphs = [part.splitlines() for part in re.split(r"\n\s*\n", "\n".join(lines)) if part.strip()]
    lines[:] = [line for paragraph in paragraphs for line in [*_as_rest(paragraph), ""]]


def _as_rest(paragraph: list[str]) -> list[str]:
    """A paragraph; lines that stand further in than its first, or Python from the start, as a literal block."""
    if SECTION.match(paragraph[0]):
        return [_escaped(line) for line in paragraph]
    base = _indent(paragraph[0])
    deep = [number for number, line in enumerate(paragraph) if _indent(line) > base]
    start = 0 if PYTHON.match(paragraph[0]) else deep[0] if deep else len(paragraph)
    end = len(paragraph) if start == 0 or not deep else deep[-1] + 1
    block, pad = paragraph[start:end], "    " * (start == 0)
    literal = ["", " " * base + "::", "", *(pad + line for line in block), ""] if block else []
    return [*map(_escaped, paragraph[:start]), *literal, *map(_escaped, paragraph[end:])]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _escaped(line: str) -> str:
    parts = re.split(r"(``?[^`]+``?)", line)
    return "".join(part if at % 2 else re.sub(r"([*_|])", r"\\\1", part) for at, part in enumerate(parts))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", read_source)
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)  # before napoleon
    app.connect("html-page-context", set_neighbours, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
