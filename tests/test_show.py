"""Code and files shown from where they live, and plain sentences where they cannot be."""

from __future__ import annotations

import json
import json.decoder
import re
import sys
from html import unescape
from json import JSONDecoder
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tutorial_utils import settings, show
from tutorial_utils.errors import TutorialError


class Lamp:
    """A lamp."""

    @property
    def lit(self) -> bool:
        return True

    def switch(self, on: bool) -> bool:
        # A "quoted" <tag> & an ampersand.
        return not on


def words(html: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", html))


def line_of(text: str) -> int:
    return Path(__file__).read_text(encoding="utf-8").splitlines().index(text) + 1


def test_source_of_a_method_is_dedented_and_names_its_place() -> None:
    shown = show.source(Lamp.switch)
    assert shown.place == f"tests/test_show.py, line {line_of('    def switch(self, on: bool) -> bool:')}"
    assert shown.text.startswith("def switch(self, on: bool) -> bool:\n    # A ")
    assert shown.text.endswith("return not on")
    assert show.source(Lamp().switch) == shown


def test_source_of_a_class_a_property_a_function_and_a_module() -> None:
    assert show.source(Lamp).text.startswith("class Lamp:")
    assert "def lit(self)" in show.source(Lamp.lit).text
    assert show.source(settings.current).place.startswith("tutorial_utils/settings.py, line ")
    assert show.source(settings).place == "tutorial_utils/settings.py, line 1"


def test_source_of_an_installed_package_is_named_as_it_is_imported() -> None:
    assert show.source(nbformat.read).place.startswith("nbformat/__init__.py, line ")
    assert show.source(json.dumps).place.startswith("json/__init__.py, line ")


def test_source_is_coloured_and_loses_no_character() -> None:
    shown = show.source(Lamp.switch)
    html = shown._repr_html_()
    assert 'style="color:' in html
    assert "<style" not in html
    assert words(html).strip() == f"{shown.place}\n{shown.text}"
    assert repr(shown) == f"{shown.place}\n\n{shown.text}"


@pytest.mark.parametrize("thing", [len, 3, Lamp()])
def test_source_of_a_thing_without_a_file_gets_a_plain_sentence(thing: object) -> None:
    with pytest.raises(TutorialError, match=r"no source file for .*written in a \.py file"):
        show.source(thing)


def test_diff_marks_what_goes_and_what_comes(tmp_path: Path) -> None:
    old, new = tmp_path / "old.py", tmp_path / "new.py"
    old.write_text("a = 1\nb = 2\nc = 3\n", encoding="utf-8")
    new.write_text("a = 1\nb = 5\nc = 3\n", encoding="utf-8")
    shown = show.diff(old, new)
    assert shown.place == "- old.py   + new.py"
    assert shown.text.splitlines()[1:] == [" a = 1", "-b = 2", "+b = 5", " c = 3"]
    assert show.diff(old, new, context=0).text.splitlines()[1:] == ["-b = 2", "+b = 5"]
    assert show.diff(old, old).text == "(no difference)"
    assert "-b = 2" in words(shown._repr_html_())


def test_diff_of_two_pieces_of_code_names_both_places() -> None:
    shown = show.diff(Lamp.switch, settings.current)
    assert "tests/test_show.py, line" in shown.place
    assert "tutorial_utils/settings.py, line" in shown.place
    assert "-def switch(self, on: bool) -> bool:" in shown.text


def test_file_shows_all_or_the_lines_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{\n  "a": 1,\n  "b": 2\n}\n', encoding="utf-8")
    assert show.file(path).text == '{\n  "a": 1,\n  "b": 2\n}'
    part = show.file(str(path), 2, 3)
    assert (part.place, part.text) == ("config.json, lines 2 to 3", '  "a": 1,\n  "b": 2')
    assert part.language == "json"
    assert '  "a": 1,\n  "b": 2' in words(part._repr_html_())
    assert show.file(path, end=99).place == "config.json, lines 1 to 4"


def test_file_that_cannot_be_shown_gets_a_plain_sentence(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"\x80\xff\x00")
    (tmp_path / "two.txt").write_text("1\n2\n", encoding="utf-8")
    for path in (tmp_path / "none.txt", tmp_path, tmp_path / "net.pt"):
        with pytest.raises(TutorialError, match="text file that exists"):
            show.file(path)
    for start, end in ((3, None), (2, 1), (-1, 2)):
        with pytest.raises(TutorialError, match="lines 1 to 2"):
            show.file(tmp_path / "two.txt", start, end)


def test_tree_draws_folders_and_hides_the_hidden(tmp_path: Path) -> None:
    for name in ("dl/train.py", "dl/__pycache__/x.pyc", "fl/job/meta.json", ".git/config", "readme.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")
    assert show.tree(tmp_path).text.splitlines() == [
        "├── dl/",
        "│   └── train.py",
        "├── fl/",
        "│   └── job/",
        "│       └── meta.json",
        "└── readme.txt",
    ]
    assert show.tree(tmp_path, most=2).text.splitlines()[-1] == "... and 4 more"
    assert show.tree(Path(show.__file__).parent).place == "tutorial_utils/"
    with pytest.raises(TutorialError, match="is not a folder"):
        show.tree(tmp_path / "readme.txt")


class Mild(json.JSONEncoder):
    """Looks like much."""

    def default(self, o: object) -> str:
        # a comment, and a call of its parent
        return self.encode(json.loads("1"))

    def read(self, decoder: JSONDecoder, other: Lamp) -> object:

        return decoder.decode("[]"), other.decode, self.other.encode, self.read


def test_count_lines_counts_code_alone() -> None:
    assert show.count_lines(Mild) == 5
    assert show.count_lines(Mild.default) == 2
    assert show.count_lines(json.decoder) < len(show.source(json.decoder).text.splitlines())


def test_names_from_finds_what_is_used_of_a_package_and_no_namesake() -> None:
    assert show.names_from("json", Mild) == ["JSONDecoder", "decode", "default", "encode", "json", "loads"]
    assert show.names_from("json", Mild.read) == ["JSONDecoder", "decode"]
    assert show.names_from("pytest", Mild) == []
    whole = show.names_from("json", sys.modules[__name__])
    assert set(whole) >= {"JSONDecoder", "decode", "default", "encode", "json", "loads"}


def test_no_path_of_this_machine_is_shown(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    shown = [show.file(tmp_path / "a.txt"), show.tree(tmp_path), show.source(Lamp), show.source(json.dumps)]
    assert not any(one.place.startswith("/") or str(Path.home()) in one.place for one in shown)


def test_in_a_notebook_code_shows_once_and_a_class_typed_there_is_explained() -> None:
    cells = [
        "from tutorial_utils import settings, show\nshow.source(settings.current)",
        "def twice(x):\n    return 2 * x\nshow.source(twice)",
        "class Typed:\n    pass\ntry:\n    show.source(Typed)\n"
        "except settings.TutorialError as error:\n    print(error)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    (shown,), (typed,), (sentence,) = (cell.outputs for cell in notebook.cells)
    assert shown.data["text/plain"].startswith("tutorial_utils/settings.py, line ")
    assert words(shown.data["text/html"]).startswith("tutorial_utils/settings.py, line ")
    assert typed.data["text/plain"] == "this notebook, line 1\n\ndef twice(x):\n    return 2 * x"
    assert "a class typed in a notebook cell" in sentence.text
