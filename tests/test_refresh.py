"""What `make notebooks` keeps of a run, and what it must not keep."""

from __future__ import annotations

import base64
import os
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "notebooks"))

import refresh

import fingerprint

IMAGES_ALT = "CIFAR-10: images and their classes. The classes, row by row: cat, dog, cat."


def picture(alt: str = "CIFAR-10: a curve.", size: int = 10) -> NotebookNode:
    png = base64.b64encode(b"x" * size).decode()
    html = f'<img alt="{alt}" src="data:image/png;base64,{png}">'
    data = {"image/png": png, "text/plain": alt} | ({"text/html": html} if alt else {})
    return new_output("display_data", data, metadata={"image/png": {"alt": alt}} if alt else {})


def picture_without_html() -> NotebookNode:
    """As other libraries draw: the alt text is in the metadata, which JupyterLab and nbconvert do not read aloud."""
    output = picture()
    del output.data["text/html"]
    return output


def picture_with_another() -> NotebookNode:
    output = picture()
    output.data["text/html"] += '<img alt="CIFAR-10: a curve." src="data:image/png;base64,eHl6">'
    return output


def stream(text: str, name: str = "stdout") -> NotebookNode:
    return new_output("stream", name=name, text=text)


def book(*outputs: NotebookNode, tags: list[str] | None = None) -> NotebookNode:
    cell = new_code_cell("show()", execution_count=1, outputs=list(outputs), metadata={"tags": tags or []})
    return new_notebook(cells=[new_markdown_cell("# 00 Title"), cell])


def cleaned(*outputs: NotebookNode, tags: list[str] | None = None) -> list[NotebookNode]:
    notebook = book(*outputs, tags=tags)
    refresh.clean(notebook, "CIFAR-10")
    return notebook.cells[1].outputs


def fault(output: NotebookNode) -> str:
    return " ".join(refresh.faults(book(output)))


def test_a_line_stands_in_for_images() -> None:
    (output,) = cleaned(stream("three of them"), picture(IMAGES_ALT), tags=["images"])
    assert output.data == {"text/plain": "3 CIFAR-10 images: run this cell to see them"}
    assert refresh.STAND_IN.fullmatch(output.data["text/plain"])["data"] == "CIFAR-10"


@pytest.mark.parametrize(
    ("alts", "line"),
    [
        ([IMAGES_ALT, IMAGES_ALT], "6 CIFAR-10 images: run this cell to see them"),
        (
            ["CIFAR-10: images and their classes. The classes, row by row: cat."],
            "1 CIFAR-10 image: run this cell to see it",
        ),
        (["CIFAR-10: what the net sees."], "CIFAR-10 images: run this cell to see them"),
    ],
)
def test_the_line_counts_what_it_can(alts: list[str], line: str) -> None:
    (output,) = cleaned(*[picture(alt) for alt in alts], tags=["images"])
    assert output.data["text/plain"] == line
    assert refresh.STAND_IN.fullmatch(line)


def test_the_count_reads_the_alt_text_that_plots_writes() -> None:
    import numpy as np

    from tutorial_utils import plots

    figure = plots.images(np.zeros((5, 3, 32, 32), np.uint8), [0, 1, 1, 0, 1], ["cat", "dog"], "CIFAR-10")
    assert refresh.images_in(picture(figure.alt)) == 5
    assert refresh.images_in(picture("CIFAR-10: a curve.")) is None


def test_a_cell_tagged_images_without_any_is_a_mistake() -> None:
    with pytest.raises(refresh.RefreshError, match="tagged images and shows none"):
        cleaned(stream("nothing"), tags=["images"])


def test_widgets_and_their_state_are_dropped() -> None:
    notebook = book(new_output("display_data", {refresh.WIDGET: {"model_id": "1"}, "text/plain": "bar"}), picture())
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}
    refresh.clean(notebook, "CIFAR-10")
    assert "widgets" not in notebook.metadata
    (kept,) = notebook.cells[1].outputs
    assert set(kept.data) == {"image/png", "text/html", "text/plain"}


def test_progress_bars_are_dropped_and_other_words_on_stderr_stay() -> None:
    bars = "rounds:  40%|####      | 2/5 [00:08<00:12,  4.1s/it]\rrounds: 100%|##########| 5/5 [00:20<00:00]\r   \r"
    assert cleaned(stream(bars, "stderr")) == []
    (output,) = cleaned(stream(f"{bars}a warning\n12it [00:03,  4.00it/s]\n", "stderr"))
    assert output.text == "a warning\n"
    assert cleaned(stream("50%| is said on purpose\n"))[0].text == "50%| is said on purpose\n"


def test_the_pixels_of_a_picture_in_html_are_no_path() -> None:
    """Letters with slashes in between: seen in the first figure of 00."""
    src = "data:image/png;base64,iVBOR/v78/Pz5+fn29vbz8/Pw8PDt7e3r6+vj/home/x+="
    output = new_output("execute_result", {"text/html": f'<img alt="a" src="{src}">'})
    assert not [path for text in refresh.output_texts(output) for path in refresh.absolute_paths(text)]
    output = new_output("execute_result", {"text/html": f'<img alt="in /home/ann" src="{src}">'})
    assert [path for text in refresh.output_texts(output) for path in refresh.absolute_paths(text)] == ["/home/ann"]


@pytest.mark.parametrize(
    "text",
    [
        str(ROOT / "data"),
        str(Path.home() / "x"),
        tempfile.gettempdir(),
        'File "/usr/lib/python3.12/json/decoder.py", line 3',
        "<pre>/Users/ann/modellearner</pre>",
        "in /home/ann",
        r"C:\Users\ann",
    ],
)
def test_paths_of_a_machine_are_found_in_every_kind_of_output(text: str) -> None:
    outputs = [
        stream(text),
        stream(text, "stderr"),
        picture(text),
        new_output("execute_result", {"text/html": text}),
        new_output("execute_result", {"application/json": {"deep": [text]}}),
    ]
    for output in outputs:
        assert "path of this machine" in fault(output), output


@pytest.mark.parametrize(
    "text",
    ["and/or", "../data/cifar10", "runs/00-see", "https://arxiv.org/abs/1905.12022", "<b>x</b><br/>", "$DATA/site-1/x",
     "{folder}/site-1/a", "~/cifar", "3.1s/it", "./a/b", "loss / accuracy", "code/dl/train.py, line 1"],
)  # fmt: skip
def test_other_slashes_are_no_paths_of_a_machine(text: str) -> None:
    assert fault(stream(text)) == ""


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (picture(""), "without alt text"),
        (picture_without_html(), "without alt text"),
        (picture(size=100_001), "100 kB"),
        (picture(IMAGES_ALT), "tag the cell images"),
        (new_output("display_data", {"image/jpeg": "x"}), "image/jpeg"),
        (new_output("display_data", {"text/html": '<img src="data:image/png;base64,x">'}), "hides a picture"),
        (picture_with_another(), "hides a picture"),
        (new_output("error", ename="E", evalue="e", traceback=["E"]), "ends in an error"),
    ],
)
def test_what_must_not_be_committed_is_refused(output: NotebookNode, words: str) -> None:
    assert words in fault(output)


def test_cells_that_did_not_run_in_order_are_refused() -> None:
    notebook = book(picture())
    notebook.cells[1].execution_count = 2
    assert "in order" in " ".join(refresh.faults(notebook))
    assert fault(picture(size=100_000)) == ""


def test_the_hash_follows_the_code_alone() -> None:
    one, other = book(picture()), book(stream("other outputs"), tags=["check"])
    other.cells[0].source = "# 00 Other prose"
    assert refresh.code_hash(one) == refresh.code_hash(other)
    other.cells[1].source += " "
    assert refresh.code_hash(one) != refresh.code_hash(other)


def test_the_hash_of_what_is_called_follows_code_and_not_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "ROOT", tmp_path)
    monkeypatch.setattr(fingerprint, "ROOTS", (tmp_path / "code", tmp_path))
    (tmp_path / "code/dl").mkdir(parents=True)
    (tmp_path / "tutorial_utils").mkdir()
    deep, near = tmp_path / "tutorial_utils/deep.py", tmp_path / "code/dl/near.py"
    near.write_text("from tutorial_utils import deep\n")
    deep.write_text('"""Words."""\ndef act():\n    """Words."""\n    return 1\n')
    notebook = new_notebook(cells=[new_code_cell("import numpy\nfrom dl.near import deep")])
    before = refresh.called_hash(notebook)
    deep.write_text('"""Other words."""\n# a comment\ndef act():\n    return 1\n')
    assert refresh.called_hash(notebook) == before
    deep.write_text("def act():\n    return 2\n")
    assert refresh.called_hash(notebook) != before


def test_notebooks_are_named_by_their_numbers(tmp_path: Path) -> None:
    for name in ("00_a_b.ipynb", "03_c_d.ipynb", "06_e_f.ipynb", ".03_c_d.ipynb.part"):
        (tmp_path / name).touch()
    assert [path.name[:2] for path in refresh.find_notebooks([], tmp_path)] == ["00", "03", "06"]
    assert [path.name[:2] for path in refresh.find_notebooks(["06", "notebooks/03_c_d.ipynb"], tmp_path)] == [
        "03",
        "06",
    ]
    with pytest.raises(refresh.RefreshError, match="begins with 07"):
        refresh.find_notebooks(["07"], tmp_path)


def test_a_notebook_is_run_cleaned_and_written_or_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR10_SOURCE", os.path.relpath(tmp_path / "copy"))
    path = tmp_path / "00_a_b.ipynb"
    copy = str((tmp_path / "copy").resolve())
    code = f"""
import os, sys
from types import SimpleNamespace
assert (sys.executable, os.environ["CIFAR10_SOURCE"]) == ({sys.executable!r}, {copy!r})
dataset = SimpleNamespace(title="CIFAR-10", counts={{"test": 7}})
print(os.environ["TUTORIAL_FAST"])
"""
    notebook = new_notebook(cells=[new_code_cell(code), new_markdown_cell("words"), new_code_cell("1 / dataset.zero")])
    nbformat.write(notebook, path)
    before = path.read_bytes()
    with pytest.raises(
        refresh.RefreshError, match=r"^00_a_b.ipynb stays as it was: cell \w+ \(1 / dataset.zero\) failed: "
    ):
        refresh.refresh(path)
    assert path.read_bytes() == before

    notebook.cells[2].source = "dataset.title = 'scikit-learn digits'"
    nbformat.write(notebook, path)
    before = path.read_bytes()
    with pytest.raises(refresh.RefreshError, match="it ran on scikit-learn digits"):
        refresh.refresh(path)
    assert path.read_bytes() == before
    refresh.refresh(path, allow_digits=True)

    written = nbformat.read(path, as_version=4)
    assert [cell.execution_count for cell in refresh.code_cells(written)] == [1, 2]
    assert written.cells[0].outputs[0].text == "0\n"
    record = written.metadata["tutorial"]
    assert (record["data"], record["test_images"]) == ("scikit-learn digits", 7)
    assert record["code_sha256"] == refresh.code_hash(written)
    assert record["called_sha256"] == refresh.called_hash(written)
    assert set(record) == {
        "data",
        "test_images",
        "code_sha256",
        "called_sha256",
        "nvflare",
        "torch",
        "seconds",
        "cores",
    }
    assert list(tmp_path.iterdir()) == [path], "no half-written file stays"

    notebook.cells[2].source = "dataset.title = 'scikit-learn wine'"
    nbformat.write(notebook, path)
    assert refresh.refresh(path)["data"] == "scikit-learn wine", "what a notebook is about is no stand-in"
