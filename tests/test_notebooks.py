"""The house rules for notebooks (see CONTRIBUTING), held over every one of them; there is no list of exceptions."""

from __future__ import annotations

import ast
import base64
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nbformat
import pytest
from matplotlib.colors import to_hex
from nbformat import NotebookNode

from tutorial_utils.plots import PALETTE

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "notebooks"))

import refresh
from refresh import code_cells, tags

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIGURES = sorted((ROOT / "notebooks/figures").glob("*.svg"))
FIRST = ["You will", "You will learn", "It takes", "Why?"]  # four bullets under the title: one screen, then the work
LAST = ["Your turn", "What you have now", "In practice", "Next"]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
WIDEST = 120  # characters of code that fit on the web page at 1280 pixels (test_site.py looks); ruff has it too
SETUP = {"os.chdir", "sys.path.insert", "torch.set_num_threads", "needs_flare"}  # all that an import cell may call

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
every_figure = pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.name)


@cache
def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def markdown_cells(path: Path) -> list[NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "markdown"]


def prose(path: Path) -> str:
    """All markdown of a notebook, without its fenced code."""
    return FENCE.sub("", "\n\n".join(cell.source for cell in markdown_cells(path)))


def headings(path: Path, level: int) -> list[str]:
    return re.findall(rf"^#{{{level}}} +(.+?) *$", prose(path), re.MULTILINE)


def section(path: Path, heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", prose(path), re.MULTILINE | re.DOTALL)
    assert found, f"Give {path.name} a part '## {heading}'."
    return found[1].strip()


def parsed(cell: NotebookNode) -> ast.Module:
    try:
        return ast.parse(cell.source)
    except SyntaxError as error:
        line = cell.source.splitlines()[(error.lineno or 1) - 1]
        raise AssertionError(f"Write plain Python in cell {cell.id}, no !, %, %% or ?: {line}") from None


def lines_of(cell: NotebookNode) -> list[str]:
    """The lines that count for the limits: blank ones do not."""
    return [line for line in cell.source.splitlines() if line.strip()]


def imports(tree: ast.AST) -> list[ast.stmt]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def record(path: Path) -> dict[str, Any]:
    """What `make notebooks` wrote down about the outputs. Without it there are none to judge, and that is a fault."""
    assert "tutorial" in read(path).metadata, f"{path.name} has no outputs: run make notebooks ARGS={path.name[:2]}."
    return read(path).metadata["tutorial"]


def outputs(path: Path) -> Iterator[tuple[str, NotebookNode]]:
    """Every output, with the id of its cell; fails where there are none."""
    record(path)
    return ((cell.id, output) for cell in code_cells(read(path)) for output in cell.outputs)


def pictures(path: Path) -> list[tuple[str, NotebookNode]]:
    return [(where, output) for where, output in outputs(path) if "image/png" in output.get("data", {})]


# Names and order of the series


@every_notebook
def test_name_is_a_number_and_a_phrase_and_the_title_says_the_same(path: Path) -> None:
    assert re.fullmatch(r"\d\d(_[a-z0-9]+){2,}", path.stem), f"Name {path.name} NN_verb_phrase.ipynb, in small letters."
    titles = headings(path, 1)
    assert len(titles) == 1, f"Give {path.name} one title ('# NN Verb phrase'), not {len(titles)}."
    wanted = path.stem.replace("_", " ")
    assert titles[0].lower() == wanted, f"Let the title of {path.name} be its name: # {wanted}."


def test_numbers_are_contiguous() -> None:
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert numbers == [f"{n:02d}" for n in range(len(NOTEBOOKS))], "Number the notebooks from 00 without a gap."


@every_notebook
def test_it_links_the_one_before_and_the_one_after(path: Path) -> None:
    here = NOTEBOOKS.index(path)
    top = {target for _, _, target in LINK.findall(read(path).cells[0].source)}
    around = {other.name for other in (NOTEBOOKS[here - 1 : here] + NOTEBOOKS[here + 1 : here + 2])}
    assert around <= top, f"Link {', '.join(sorted(around - top))} under the title of {path.name}."
    after = NOTEBOOKS[here + 1 :][:1]
    assert all(other.name in section(path, "Next") for other in after), f"Link {after[0].name} in the last part."


# Anatomy


@every_notebook
def test_parts_come_in_their_order(path: Path) -> None:
    found = headings(path, 2)
    assert found[-len(LAST) :] == LAST, f"End {path.name} with the parts {', '.join(LAST)}."
    assert len(found) > len(LAST), f"Put the steps of {path.name} under headings of their own."
    empty = [name for name in LAST if not section(path, name)]
    assert not empty, f"Write something under {', '.join(empty)} in {path.name}."


@every_notebook
def test_it_says_what_the_reader_will_have_and_learn(path: Path) -> None:
    """The title, a sentence, the neighbours and four bullets: all in the first cell, and short."""
    first, second = read(path).cells[:2]
    under = [line for line in first.source.splitlines()[1:] if line.strip()]
    assert under and not LINK.match(under[0]), f"Say in a line under the title of {path.name} what you have at its end."
    bullets = re.findall(r"^- \*\*(.+?)\*\* (.+)$", first.source, re.MULTILINE)
    assert [name for name, _ in bullets] == FIRST, f"Let four bullets open {path.name}: **{'**, **'.join(FIRST)}**."
    learnt = re.split(r";\s", dict(bullets)["You will learn"])
    assert len(learnt) == 3, f"Name three things to learn in {path.name}, parted by semicolons."
    wrong = [words for words in learnt if not words.startswith("how to ")]
    assert not wrong, f"Begin what is learnt with 'how to': {wrong}."
    words = len(re.sub(r"!?\[[^\]]*\]\([^)]*\)", " ", first.source).split())
    assert words <= 220, f"The opening of {path.name} has {words} words: 220 at most."
    assert second.cell_type == "code" and "##" not in first.source, f"Open {path.name} with one cell, then imports."


@every_notebook
def test_it_starts_from_the_checkouts_root_too(path: Path) -> None:
    """VS Code and PyCharm start a kernel there, make lab in the notebook's own folder."""
    lines = code_cells(read(path))[0].source.splitlines()
    places = ['os.chdir(next(Path().glob("notebooks"), "."))', 'sys.path.insert(0, "../code")']
    missing = [place for place in places if not any(line.startswith(place) for line in lines)]
    assert not missing, f"Let the import cell of {path.name} say {' and '.join(missing)}."


@pytest.mark.slow
def test_an_import_cell_runs_from_the_checkouts_root() -> None:
    cell = code_cells(read(NOTEBOOKS[0]))[0].source
    ran = subprocess.run([sys.executable, "-c", cell], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@every_notebook
def test_imports_and_settings_are_folded_on_the_web_page(path: Path) -> None:
    folded = ["hide-input" in tags(cell) for cell in code_cells(read(path))[:2]]
    assert all(folded), f"Tag the first two code cells of {path.name} hide-input: they are folded on the web page."


@every_notebook
def test_imports_stand_in_the_first_code_cell_alone(path: Path) -> None:
    first, *others = code_cells(read(path))
    for statement in parsed(first).body:
        call = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
        allowed = imports(statement) or (call and ast.unparse(statement.value.func) in SETUP)
        assert allowed, f"Move this out of the import cell of {path.name}: {ast.unparse(statement)}."
    late = [cell.id for cell in others if imports(parsed(cell))]
    assert not late, f"Move the imports of {', '.join(late)} to the first code cell."


@every_notebook
def test_settings_and_data_are_shown_in_the_second_code_cell(path: Path) -> None:
    tree = parsed(code_cells(read(path))[1])
    made = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assert {"settings", "dataset"} <= made, f"Make settings and dataset in the second code cell of {path.name}."
    assert ast.unparse(tree.body[-1]) == "settings", f"End the second code cell of {path.name} with: settings"
    assert "dataset.title" in ast.unparse(tree), f"Print dataset.title in the second code cell of {path.name}."


@every_notebook
def test_the_first_picture_comes_by_the_third_code_cell(path: Path) -> None:
    record(path)
    cells = read(path).cells
    for cell in cells[: cells.index(code_cells(read(path))[2]) + 1]:
        drawn = any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
        linked = cell.cell_type == "markdown" and any(mark for mark, _, _ in LINK.findall(cell.source))
        if drawn or linked or "images" in tags(cell):
            return
    pytest.fail(f"Show something by the third code cell of {path.name}: a plot, or an SVG in the prose.")


@every_notebook
def test_exercise_check_and_solution_are_there_once_in_order(path: Path) -> None:
    cells = read(path).cells
    found = [tag for cell in cells for tag in tags(cell) if tag in ("exercise", "check", "solution")]
    assert found == ["exercise", "check", "solution"], f"Tag one exercise, check and solution in {path.name}: {found}."
    exercise, check, solution = (cell for cell in cells if {"exercise", "check", "solution"} & set(tags(cell)))
    assert exercise.source.rstrip().endswith("answer = None"), f"Leave the exercise of {path.name} open: answer = None."
    assert check.source.startswith("checks."), f"Let the check of {path.name} be one call of checks."
    wanted = r"<details><summary>.+</summary>\n\n```python\n.+\n```\n\n</details>"
    assert solution.cell_type == "markdown", f"Make the solution of {path.name} a markdown cell."
    assert re.fullmatch(wanted, solution.source.strip(), re.DOTALL), f"Fold the solution of {path.name} in <details>."


# Sizes and manners


@every_notebook
def test_it_is_small_enough_to_take_in(path: Path) -> None:
    code = [line for cell in code_cells(read(path))[1:] for line in lines_of(cell)]  # [0] are the imports
    words = re.sub(r"<[^>]+>|\]\([^)]*\)", " ", prose(path)).split()
    assert len(read(path).cells) <= 36, f"{path.name} has {len(read(path).cells)} cells: 36 at most."
    assert len(code) <= 130, f"{path.name} has {len(code)} lines of code: 130 at most."
    assert len(words) <= 1900, f"{path.name} has {len(words)} words of prose: 1,900 at most."


@every_notebook
def test_cells_are_short(path: Path) -> None:
    """The imports are one idea however many they are; 30 lines of them are enough all the same."""
    imports, *others = code_cells(read(path))
    assert len(lines_of(imports)) <= 30, f"Cut the import cell of {path.name} to 30 lines."
    long = [cell.id for cell in others if len(lines_of(cell)) > 15]
    assert not long, f"Cut these cells of {path.name} to 15 lines, one idea each: {', '.join(long)}."
    wide = [cell.id for cell in code_cells(read(path)) if any(len(line) > WIDEST for line in lines_of(cell))]
    assert not wide, f"Cut the lines of {', '.join(wide)} in {path.name} to {WIDEST} characters: more must be scrolled."
    empty = [cell.id for cell in read(path).cells if not cell.source.strip()]
    assert not empty, f"Delete these empty cells of {path.name}: {', '.join(empty)}."


@every_notebook
def test_functions_and_classes_live_in_files(path: Path) -> None:
    for cell in code_cells(read(path)):
        for node in ast.walk(parsed(cell)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and "exercise" not in tags(cell):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 5, f"Move {node.name} ({lines} lines) to a .py file and show it with show.source."


@every_notebook
def test_code_is_plain_python(path: Path) -> None:
    for cell in code_cells(read(path)):
        assert "get_ipython" not in ast.unparse(parsed(cell)), f"Do without get_ipython in cell {cell.id}."


@every_notebook
def test_what_it_links_exists(path: Path) -> None:
    for _, text, target in LINK.findall(prose(path)):
        if not re.match(r"https?://|mailto:|#", target):
            place = path.parent / target.partition("#")[0]
            assert place.exists(), f"{path.name} links {target} ({text}), which does not exist."


@every_notebook
def test_pictures_in_the_prose_have_alt_text(path: Path) -> None:
    text = prose(path)
    assert "<img" not in text, f"Write the pictures of {path.name} as ![alt text](figures/name.svg)."
    assert not any("attachments" in cell for cell in read(path).cells), f"Put the pictures of {path.name} in figures/."
    for mark, alt, target in LINK.findall(text):
        assert not mark or len(alt.split()) >= 5, f"Say in the alt text what {target} shows in {path.name}."


@every_notebook
def test_it_opens_with_the_readers_own_kernel(path: Path) -> None:
    assert read(path).metadata["kernelspec"]["name"] == "python3", f"Choose the kernel python3 for {path.name}."


# Outputs: from one full run, on CIFAR-10 or on a table that comes with scikit-learn; no image of CIFAR-10 among them


@every_notebook
def test_outputs_were_made_from_the_data_and_not_from_what_stands_in_for_them(path: Path) -> None:
    data = record(path)["data"]
    assert data != refresh.FALLBACK, f"Run make notebooks with CIFAR-10: {path.name} ran on the digits."
    assert data == "CIFAR-10" or data.startswith("scikit-learn "), f"{path.name} ran on {data}, which not everyone has."


@every_notebook
def test_outputs_belong_to_the_code(path: Path) -> None:
    again = f"run make notebooks ARGS={path.name[:2]}."
    assert record(path)["code_sha256"] == refresh.code_hash(read(path)), f"The code of {path.name} has changed: {again}"
    fresh = record(path)["called_sha256"] == refresh.called_hash(read(path))
    assert fresh, f"What {path.name} calls in code/ or tutorial_utils/ has changed: {again}"


@every_notebook
def test_source_that_is_shown_is_the_source_that_ships(path: Path) -> None:
    for where, output in outputs(path):
        place, _, text = output.get("data", {}).get("text/plain", "").partition("\n\n")
        name = re.fullmatch(r"((?:code|tutorial_utils|data)/\S+\.py)(?:, lines? [\d to]+)?", place)
        if name:
            wide = max(map(len, text.splitlines()), default=0)
            assert wide <= WIDEST, f"{path.name}, cell {where}: cut the lines of {name[1]} to {WIDEST} characters."
            there = {line.strip() for line in (ROOT / name[1]).read_text(encoding="utf-8").splitlines()}
            old = [line for line in text.splitlines() if line.strip() not in there]
            assert not old, (
                f"{path.name}, cell {where}, shows an older {name[1]}: run make notebooks ARGS={path.name[:2]}."
            )


@every_notebook
def test_cells_were_run_in_order(path: Path) -> None:
    assert list(outputs(path)), f"{path.name} shows nothing: run make notebooks ARGS={path.name[:2]}."
    counts = [cell.execution_count for cell in code_cells(read(path))]
    assert counts == list(range(1, len(counts) + 1)), f"Run the cells of {path.name} in order: make notebooks."


@every_notebook
def test_no_output_is_an_error(path: Path) -> None:
    failed = [where for where, output in outputs(path) if output.output_type == "error"]
    assert not failed, f"These cells of {path.name} end in an error: {', '.join(failed)}."


@every_notebook
def test_no_image_of_the_data_set_is_kept(path: Path) -> None:
    data = record(path)["data"]
    for cell in code_cells(read(path)):
        if "images" in tags(cell):
            shown = [dict(output.get("data", {})) for output in cell.outputs]
            line = refresh.STAND_IN.fullmatch(shown[0].get("text/plain", "")) if shown else None
            assert line and list(map(list, shown)) == [["text/plain"]], f"A line must stand in for all of {cell.id}."
            assert line["data"] == data, f"The line in {cell.id} must name the data, {data}."
    for where, output in outputs(path):
        assert refresh.images_in(output) is None, f"Tag cell {where} of {path.name} images and run make notebooks."
        kinds = {kind for kind in output.get("data", {}) if kind.startswith("image/")}
        assert kinds <= {"image/png"}, f"Show PNGs of plots.py alone, not {kinds}, in cell {where}."
        assert not refresh.hides_a_picture(output), f"Show the picture of cell {where} as a figure, not within HTML."


@every_notebook
def test_plots_are_small_and_their_alt_text_names_the_data(path: Path) -> None:
    for where, output in pictures(path):
        size = len(base64.b64decode(output.data["image/png"]))
        assert size <= refresh.MOST_BYTES, f"The PNG of cell {where} has {size / 1000:.0f} kB: 100 at most."
        alt = refresh.alt_of(output)
        assert record(path)["data"] in alt, f"Let the alt text of cell {where} name the data: {alt!r}."
        assert refresh.is_read_aloud(output), f"Draw the figure of cell {where} with plots.py: its HTML lacks alt text."


@every_notebook
def test_no_output_shows_a_path_of_a_machine(path: Path) -> None:
    for where, output in outputs(path):
        found = [place for text in refresh.output_texts(output) for place in refresh.absolute_paths(text)]
        assert not found, f"Print a relative path in cell {where} of {path.name}, not {found[0]}."


@every_notebook
def test_no_widget_is_kept(path: Path) -> None:
    widgets = [where for where, output in outputs(path) if refresh.WIDGET in output.get("data", {})]
    assert not widgets, f"These cells of {path.name} keep a progress bar: {', '.join(widgets)}; run make notebooks."
    assert "widgets" not in read(path).metadata, f"{path.name} keeps the state of widgets: run make notebooks."


def test_fedavg_by_hand_and_the_federation_print_the_same_sha256() -> None:
    hashes = []
    for path in [path for path in NOTEBOOKS if path.name[:2] in ("03", "06")]:
        texts = [text for _, output in outputs(path) for text in refresh.output_texts(output)]
        hashes.append(set(re.findall(r"\b[0-9a-f]{64}\b", "\n".join(texts))))
    assert len(hashes) == 2 and hashes[0] & hashes[1], "03 and 06 print no SHA-256 in common: run make notebooks."


# Figures and the map


def colours(svg: str) -> set[str]:
    """What an SVG paints with, in attributes and in styles; references to its own parts left out."""
    found = re.findall(r"(?<![\w-])(?:fill|stroke|stop-color|color)\s*[=:]\s*[\"']?\s*([^;\"'}<>]+)", svg)
    return {colour.strip() for colour in found} - {"none", "currentColor", "inherit", "context-stroke", "context-fill"}


def is_grey(colour: str) -> bool:
    return colour[1:3] == colour[3:5] == colour[5:7]


@every_figure
def test_figure_is_whole_small_and_described(path: Path) -> None:
    tree = ElementTree.parse(path).getroot()
    names = {node.tag.rpartition("}")[2]: (node.text or "").strip() for node in tree.iter()}
    assert names.get("title") and names.get("desc"), f"Give {path.name} a <title> and a <desc> that say what it shows."
    assert not {"image", "script", "foreignObject"} & set(names), f"Draw {path.name} with shapes and text alone."
    assert path.stat().st_size < 40_000, f"{path.name} has {path.stat().st_size:,} bytes: stay under 40,000."


@every_figure
def test_figure_has_the_colours_of_the_plots(path: Path) -> None:
    used = {to_hex(colour) for colour in colours(path.read_text(encoding="utf-8")) if not colour.startswith("url(#")}
    other = {colour for colour in used - {to_hex(colour) for colour in PALETTE} if not is_grey(colour)}
    assert not other, f"Paint {path.name} with plots.PALETTE and greys, not {', '.join(sorted(other))}."


@every_figure
def test_figure_is_used(path: Path) -> None:
    readers = [prose(notebook) for notebook in NOTEBOOKS]
    readers += [file.read_text(encoding="utf-8") for file in ROOT.glob("*.md")]
    assert any(f"figures/{path.name}" in text for text in readers), f"No notebook shows {path.name}: delete it."


def test_the_map_in_the_readme_links_every_notebook() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [path.name for path in NOTEBOOKS if f"(notebooks/{path.name})" not in readme]
    assert not missing, f"Link {', '.join(missing)} in the README's map."
