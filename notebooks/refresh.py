"""Run the notebooks at full size and keep their outputs:  make notebooks  or  make notebooks ARGS="03 06".

What stays of a run is what everyone may see and anyone could have made: no image of the data set, no progress bar,
no path of this machine. The notebook's metadata says what it ran on, the hash of its code cells, and the hash of the
modules that they call, by which the tests tell that the outputs belong to the code.
"""

from __future__ import annotations

import argparse
import base64
import copy
import json
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from fingerprint import called_hash, code_cells, code_hash, tags

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
PATIENCE = 3600  # seconds for one cell
MOST_BYTES = 100_000  # of one PNG
STAND_IN = re.compile(r"(\d+ )?(?P<data>\S.*) images?: run this cell to see (them|it)")
FALLBACK = "scikit-learn digits"  # what stands in for CIFAR-10 where that cannot be had: never in what is committed
PIXELS = re.compile(r"(?<=;base64,)[A-Za-z0-9+/]+=*")  # of a picture in HTML: letters and slashes, and no path
WIDGET = "application/vnd.jupyter.widget-view+json"
# What tqdm writes to a terminal: "rounds:  40%|####      | 2/5 [00:08<00:12,  4.1s/it]" or "12it [00:03, 4.0it/s]"
PROGRESS = re.compile(r"\d+%\||\[\d+:\d\d[^\]]*(?:it/s|s/it|B/s)[^\]]*\]")
# A slash that begins a path: "/home/ann/x" or "C:\", not the one in "and/or", "../x", "https://x/y" or "</b>".
ABSOLUTE = re.compile(r"(?<![\w.</:~*)}\]-])(?:/[A-Za-z][\w.+-]*(?:/[\w.+-]+)+|/(?:home|root|tmp|Users)\b)|\b[A-Z]:\\")
# Asked in the kernel after the last cell, and not kept.
PROBE = """
import json
print(json.dumps({"data": dataset.title, "test_images": dataset.counts["test"]} if "dataset" in globals() else {}))
"""
log = logging.getLogger(__name__)


class RefreshError(Exception):
    """Outputs that cannot be had or must not be kept. One plain sentence; the notebook is as it was."""


class ThisPython(KernelSpecManager):
    """Knows one kernel, the Python that runs this file, whatever kernels are installed beside it."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


def output_texts(output: NotebookNode) -> Iterator[str]:
    """All that can be read in an output: streams, tracebacks, text, HTML, JSON and the alt texts of pictures."""
    yield output.get("text", "")
    yield "\n".join([output.get("evalue", ""), *output.get("traceback", [])])
    for mime, value in output.get("data", {}).items():
        if mime != "image/png":
            yield value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    yield json.dumps(output.get("metadata", {}), ensure_ascii=False)


def absolute_paths(text: str) -> list[str]:
    """Absolute paths in a text: any that looks like one, and this machine's own places, however they look."""
    text = PIXELS.sub("", text)
    places = {ROOT, Path.home(), Path(tempfile.gettempdir()), Path(sys.prefix)}
    places |= {place.resolve() for place in places}
    known = [str(place) for place in places if len(place.parts) > 1]  # "/" is the home of some containers
    found = [place for place in known if re.search(rf"(?<![\w.]){re.escape(place)}(?![\w-])", text)]
    return found + ABSOLUTE.findall(text)


def alt_of(output: NotebookNode) -> str:
    return output.get("metadata", {}).get("image/png", {}).get("alt", "")


def is_read_aloud(output: NotebookNode) -> bool:
    """Whether the HTML beside a PNG shows that PNG with its alt text: what nbconvert, JupyterLab and the site show."""
    picture, html = output.data["image/png"].strip(), output.data.get("text/html", "")
    return f'alt="{escape(alt_of(output))}"' in html and picture in html


def hides_a_picture(output: NotebookNode) -> bool:
    """Whether HTML or text holds a picture that is not the one beside it, which was looked at."""
    beside = output.get("data", {}).get("image/png", "").strip()
    looked_at = f"data:image/png;base64,{beside}" if beside else "data:image/png: there is none"
    return any("data:image/" in text.replace(looked_at, "") for text in output_texts(output))


def images_in(output: NotebookNode) -> int | None:
    """How many images of the data set a picture shows, None if it shows none: plots.images names each in its alt."""
    named = re.search(r"The classes, row by row: (.+)\.$", alt_of(output))
    return len(named[1].split(", ")) if named else None


def clean(notebook: NotebookNode, data: str) -> None:
    """Take out what must not be kept: images of the data set, widgets with their state, progress bars."""
    notebook.metadata.pop("widgets", None)
    for cell in code_cells(notebook):
        if "images" in tags(cell):
            cell.outputs = [_stand_in(cell, data)]
        else:
            cell.outputs = [kept for output in cell.outputs if (kept := _without_progress(output))]


def _stand_in(cell: NotebookNode, data: str) -> NotebookNode:
    pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
    if not pictures:
        raise RefreshError(f"{_name(cell)} is tagged images and shows none: let the figure be its last line.")
    counts = [images_in(output) for output in pictures]
    if counts == [1]:
        line = f"1 {data} image: run this cell to see it"
    else:
        number = "" if None in counts else f"{sum(counts)} "
        line = f"{number}{data} images: run this cell to see them"
    return nbformat.v4.new_output("display_data", {"text/plain": line})


def _without_progress(output: NotebookNode) -> NotebookNode | None:
    if WIDGET in output.get("data", {}):
        return None
    if output.output_type == "stream" and output.name == "stderr":
        lines = [line for line in re.split(r"[\r\n]+", output.text) if line.strip() and not PROGRESS.search(line)]
        output.text = "".join(f"{line}\n" for line in lines)
    return None if output.output_type == "stream" and not output.text else output


def faults(notebook: NotebookNode) -> Iterator[str]:
    """Why these outputs must not be committed, one sentence each."""
    cells = code_cells(notebook)
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        yield "not every code cell was run, in order: delete the empty ones."
    for cell in cells:
        for output in cell.outputs:
            yield from (f"{_name(cell)} {fault}" for fault in _output_faults(output))


def _output_faults(output: NotebookNode) -> Iterator[str]:
    kinds = [mime for mime in output.get("data", {}) if mime.startswith("image/")]
    if other := [mime for mime in kinds if mime != "image/png"]:
        yield f"shows {other[0]}: only a PNG that plots.py made is known to hold no image of the data set."
    if hides_a_picture(output):
        yield "hides a picture in its HTML: show it as a figure of its own."
    if "image/png" in kinds and not (alt_of(output) and is_read_aloud(output)):
        yield "shows a picture without alt text: draw it with plots.py."
    if images_in(output) is not None:
        yield "shows images of the data set, which must not be passed on: tag the cell images."
    if "image/png" in kinds and (size := len(base64.b64decode(output.data["image/png"]))) > MOST_BYTES:
        yield f"shows a PNG of {size / 1000:.0f} kB: make it smaller than {MOST_BYTES / 1000:.0f} kB."
    if output.output_type == "error":
        yield "ends in an error: catch what is meant to fail and print it."
    for path in [path for text in output_texts(output) for path in absolute_paths(text)][:1]:
        yield f"prints a path of this machine ({path}): print a relative one."


def _name(cell: NotebookNode) -> str:
    return f"cell {cell.get('id', '?')} ({cell.source.strip().partition(chr(10))[0][:50]})"


def execute(notebook: NotebookNode, folder: Path) -> dict[str, Any]:
    """Run the code cells in a fresh kernel; their outputs land in `notebook`. Returns what the probe found.

    RefreshError names the cell that failed, and its error.
    """
    whole = copy.deepcopy(notebook)  # the client writes into the metadata too
    whole.cells.append(nbformat.v4.new_code_cell(PROBE))
    started = []
    client = NotebookClient(
        whole,
        km=AsyncKernelManager(kernel_spec_manager=ThisPython()),
        timeout=PATIENCE,
        record_timing=False,
        coalesce_streams=True,
        force_raise_errors=True,
        store_widget_state=False,
        on_cell_start=lambda cell, cell_index: started.append(cell),
    )
    try:
        client.execute(env=_environment(), cwd=str(folder), cleanup_kc=True)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        name = type(error).__name__
        what = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else f"{name}: {error}"
        raise RefreshError(f"{_name(started[-1])} failed: {what.splitlines()[0]}") from error
    probe = whole.cells.pop()
    notebook.cells = whole.cells
    return json.loads(probe.outputs[0].text)


def _environment() -> dict[str, str]:
    changes = {"TUTORIAL_FAST": "0", "CUDA_VISIBLE_DEVICES": ""}  # the same bits come from a CPU only
    if source := os.environ.get("CIFAR10_SOURCE"):
        changes["CIFAR10_SOURCE"] = str(Path(source).expanduser().resolve())  # the kernel starts in notebooks/
    return os.environ | changes


def refresh(path: Path, allow_digits: bool = False) -> dict[str, Any]:
    """Run one notebook, write it with its outputs in one step, and return the record in its metadata.

    RefreshError: a cell failed, or what it shows must not be kept. The file is as it was.
    """
    before = path.read_bytes()
    notebook = nbformat.reads(before.decode(), as_version=4)
    start = time.monotonic()
    try:
        about = execute(notebook, path.parent)
        if not about:
            raise RefreshError(
                "there is no variable named dataset to tell what it ran on: make one, as notebook 00 does."
            )
        if about["data"] == FALLBACK and not allow_digits:
            raise RefreshError(
                f"it ran on {about['data']}: set CIFAR10_SOURCE to a copy of CIFAR-10 (or --allow-digits)."
            )
        clean(notebook, about["data"])
        for fault in faults(notebook):
            raise RefreshError(fault)
        about |= {"code_sha256": code_hash(notebook), "called_sha256": called_hash(notebook)}
        about |= {"nvflare": version("nvflare"), "torch": version("torch")}
        about |= {"seconds": round(time.monotonic() - start), "cores": os.cpu_count()}
        notebook.metadata["tutorial"] = about
        _write(notebook, path, before)
    except RefreshError as error:
        raise RefreshError(f"{path.name} stays as it was: {error}") from error
    return about


def _write(notebook: NotebookNode, path: Path, before: bytes) -> None:
    nbformat.validate(notebook)
    part = path.with_name(f".{path.name}.part")
    try:
        nbformat.write(notebook, part)
        if path.read_bytes() != before:
            raise RefreshError("it was edited while it ran: run it again.")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def find_notebooks(names: Sequence[str], folder: Path = FOLDER) -> list[Path]:
    """The notebooks whose names begin so ("03"), in order; all of them if nothing is named."""
    paths = sorted(folder.glob("[0-9]*.ipynb"))
    wanted = [Path(name).name for name in names]
    for name in wanted:
        if not any(path.name.startswith(name) for path in paths):
            raise RefreshError(f"No notebook begins with {name}: name some by their numbers, such as 03.")
    return [path for path in paths if not wanted or path.name.startswith(tuple(wanted))]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Run notebooks at full size and keep their outputs.")
    parser.add_argument("names", nargs="*", help="numbers of notebooks, such as 03 06; all by default")
    parser.add_argument("--allow-digits", action="store_true", help="keep outputs made from the digits; not to commit")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    try:
        for path in find_notebooks(args.names):
            log.info("%s ...", path.name)
            about = refresh(path, args.allow_digits)
            log.info("%s: %s seconds on %s", path.name, about["seconds"], about["data"])
    except RefreshError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
