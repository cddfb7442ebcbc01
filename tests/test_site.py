"""The web edition as its readers have it: in a browser, at the width of a laptop and of a phone, by keyboard and ear.

`make test-site` builds it and runs this. Without Sphinx, without Chromium or without axe-core a test says so and is
skipped; `.ci/run` installs all three.
"""

from __future__ import annotations

import functools
import http.server
import importlib.util
import itertools
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import nbformat
import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).parents[1]
HTML = ROOT / "build/site/html"
AXE = ROOT / "build/npm/node_modules/axe-core/axe.min.js"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
FLAGS = (  # headless, as root, and without a word to Google's hosts
    *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
    *("disable-component-update", "disable-sync", "disable-dev-shm-usage"),
)
LAPTOP, PHONE = 1280, 390
WAIT = 20  # seconds for a search

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def site() -> Path:
    """The site, built anew; a warning of Sphinx fails it."""
    if not importlib.util.find_spec("myst_nb"):
        pytest.skip("Sphinx is not installed: run make test-site, which installs it.")
    built = subprocess.run([sys.executable, ROOT / "docs/build.py"], capture_output=True, text=True)
    assert built.returncode == 0, f"make site failed:\n{built.stdout}\n{built.stderr}"
    return HTML


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver and importlib.util.find_spec("selenium")):
        pytest.skip(
            "There is no browser, or no selenium: apt-get install chromium chromium-driver, then make test-site."
        )
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(f"--{flag}")
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def pages() -> list[str]:
    return sorted(path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html"))


def see(browser: Any, url: str, width: int) -> None:
    """Open a page in a window of this width, and let its scripts end."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(url)


@functools.cache
def parsed(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


# What is done to a page as it is read


@pytest.fixture(scope="session")
def edition() -> Any:
    pytest.importorskip("sphinx", reason="Sphinx is not installed: run make test-site, which installs it.")
    sys.path.insert(0, str(ROOT / "docs"))
    import edition

    return edition


def test_a_term_becomes_a_link_once_and_never_in_code_links_headings_or_tables(edition: Any) -> None:
    link = edition.linker(["site", "cross-site matrix", "FLARE"])
    before = "# The site\n\n`site` and [site](x.md)\n\n| site |\n\n"
    after = link(before + "Two sites, a site; a Cross-Site Matrix, websites.")
    assert (
        after == before + "Two {term}`sites <site>`, a site; a {term}`Cross-Site Matrix <cross-site matrix>`, websites."
    )
    assert link("FLARE and a site") == "{term}`FLARE <FLARE>` and a site", "once in all the texts that it is handed"


def test_every_term_of_the_glossary_has_its_meaning(edition: Any) -> None:
    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    terms = edition.glossary_terms(text)
    assert len(terms) > 30 and terms == sorted(terms, key=str.lower) and len(set(terms)) == len(terms)


def test_a_plain_docstring_becomes_text_and_literal_blocks(edition: Any) -> None:
    lines = [
        "Adds *args and name_ to `x_`.",
        "",
        "It writes:",
        "    one() -> int: see",
        "        below",
        "",
        "Args:",
        "    a: b",
    ]
    edition.plain_docstring(None, "function", "f", None, None, lines)
    assert lines[0] == r"Adds \*args and name\_ to `x_`."
    assert lines[2:8] == ["It writes:", "", "::", "", "    one() -> int: see", "        below"]
    assert lines[-3:] == ["Args:", "    a: b", ""]


# What can be read without a browser


def test_every_notebook_and_every_public_module_is_a_page(site: Path) -> None:
    assert all((site / f"notebooks/{path.stem}.html").is_file() for path in NOTEBOOKS)
    modules = [path for path in (ROOT / "tutorial_utils").glob("*.py") if not path.name.startswith("_")]
    assert all((site / f"api/tutorial_utils.{path.stem}.html").is_file() for path in modules)
    captions = [node.get_text() for node in parsed(site / "index.html").select(".bd-sidebar-primary .caption-text")]
    assert captions == ["The core, one hour", "All of it, in order", "Beyond"]


def test_links_and_anchors_within_the_site_resolve(site: Path) -> None:
    dead = []
    for name in pages():
        for link in parsed(site / name).select("a[href], img[src], link[href], script[src]"):
            target, anchor = urldefrag(unquote(link.get("href") or link.get("src")))
            if re.match(r"[a-z]+:|//", target):
                continue
            target = target.partition("?")[0]
            file = (site / name).parent / target if target else site / name
            ids = {"id": anchor} if anchor else {}
            if not file.is_file() or (ids and file.suffix == ".html" and not parsed(file.resolve()).find(attrs=ids)):
                dead.append(f"{name}: {target}#{anchor}")
    assert not dead, "These links lead nowhere:\n" + "\n".join(dead)


def test_a_notebook_leads_to_the_ones_beside_it(site: Path) -> None:
    for before, after in itertools.pairwise(NOTEBOOKS):
        following = parsed(site / f"notebooks/{before.stem}.html").select_one("a.right-next")
        assert following["href"] == f"{after.stem}.html", before.name
        assert parsed(site / f"notebooks/{after.stem}.html").select_one("a.left-prev")["href"] == f"{before.stem}.html"


def test_a_term_is_linked_where_a_notebook_first_uses_it(site: Path) -> None:
    for path in NOTEBOOKS:
        links = [
            node["href"] for node in parsed(site / f"notebooks/{path.stem}.html").select("article a:has(.std-term)")
        ]
        assert len(links) >= 5 and len(links) == len(set(links)), path.name
        assert all("docs/glossary.html#term-" in link for link in links)


def test_the_front_page_tells_what_is_reached_and_every_page_how_long_it_takes(site: Path) -> None:
    assert parsed(site / "docs/results.html").find(string=re.compile("two sites that differ, 10 rounds"))
    for name in pages():
        text = parsed(site / name).select_one("main").get_text()
        if not name.startswith("api/") and name not in (
            "index.html",
            "genindex.html",
            "search.html",
            "py-modindex.html",
        ):
            assert re.search(r"It takes|\d+ min to read", text), f"{name} does not say how long it takes."


@pytest.mark.parametrize("template", ["lab", "classic"])
def test_every_figure_is_read_aloud_in_what_nbconvert_makes(template: str) -> None:
    from nbconvert import HTMLExporter

    for path in NOTEBOOKS:
        html, _ = HTMLExporter(template_name=template, embed_images=True).from_filename(str(path))
        images = BeautifulSoup(html, "html.parser").select("img")
        silent = [image for image in images if not silent_free(image.get("alt"))]
        assert len(images) >= count_figures(path) and not silent, f"{path.name}: {len(silent)} of {len(images)}."


def silent_free(alt: str | None) -> bool:
    """Whether it is a text of somebody's, and not the one that nbconvert puts where there is none."""
    return bool(alt and len(alt.split()) >= 5 and "No description has been provided" not in alt)


def count_figures(path: Path) -> int:
    notebook = nbformat.read(path, as_version=4)
    shown = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    linked = [
        cell for cell in notebook.cells if cell.cell_type == "markdown" and re.search(r"!\[[^\]]+\]\(", cell.source)
    ]
    return len(shown) + len(linked)


# What only a browser can tell


def test_every_page_opens_without_an_error_and_its_pictures_have_words(browser: Any, address: str) -> None:
    faults = []
    for name in pages():
        see(browser, f"{address}/{name}", LAPTOP)
        faults += [f"{name}: {entry['message']}" for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        images = browser.execute_script(
            "return [...document.images].map(i => [i.currentSrc.slice(0, 60), i.alt, i.complete && i.naturalWidth > 0])"
        )
        faults += [f"{name}: {src} has no alt text" for src, alt, _ in images if not silent_free(alt)]
        faults += [f"{name}: {src} is not shown" for src, _, drawn in images if not drawn]
    assert not faults, "\n".join(faults)


def test_the_figures_of_the_notebooks_are_in_the_pages(browser: Any, address: str) -> None:
    for path in NOTEBOOKS:
        see(browser, f"{address}/notebooks/{path.stem}.html", LAPTOP)
        shown = browser.execute_script("return document.querySelectorAll('article img').length")
        assert shown == count_figures(path), path.name


@pytest.mark.parametrize("width", [LAPTOP, PHONE])
def test_nothing_is_wider_than_the_window(browser: Any, address: str, width: int) -> None:
    faults = []
    for name in pages():
        see(browser, f"{address}/{name}", width)
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        faults += [f"{name}: {wide} pixels"] if wide > width else []
        if width == LAPTOP:  # a phone scrolls code within its box
            code = "[...document.querySelectorAll('article pre')].filter(e => e.scrollWidth > e.clientWidth + 1)"
            cut = browser.execute_script(f"return {code}.map(e => e.textContent.slice(0, 60))")
            faults += [f"{name}: must be scrolled: {text!r}" for text in cut]
    assert not faults, "\n".join(faults)


def test_search_finds_the_cross_site_matrix(browser: Any, address: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    see(browser, f"{address}/search.html?q=cross-site+matrix", LAPTOP)
    found = "return [...document.querySelectorAll('#search-results li a')].map(a => a.textContent)"
    WebDriverWait(browser, WAIT).until(
        lambda page: any("06 Run and judge" in text for text in page.execute_script(found))
    )


def test_axe_finds_nothing_serious(browser: Any, address: str) -> None:
    """Contrast, names, order, focus: all that axe-core calls serious or critical, with every fold open."""
    if not AXE.is_file():
        pytest.skip("axe-core is not there: npm install --prefix build/npm axe-core, then make test-site.")
    faults = []
    for name in pages():
        see(browser, f"{address}/{name}", LAPTOP)
        browser.execute_script(AXE.read_text(encoding="utf-8"))
        result = browser.execute_async_script(
            "const done = arguments[0];"
            "for (const fold of document.querySelectorAll('details')) fold.open = true;"
            "axe.run('main', {resultTypes: ['violations']}).then(done, error => done({error: String(error)}))"
        )
        assert "error" not in result, f"{name}: {result.get('error')}"
        for violation in result["violations"]:
            if violation["impact"] in ("serious", "critical"):
                first, number = violation["nodes"][0], len(violation["nodes"])
                faults.append(f"{name}: {violation['id']}, {number} times, as in {first['html'][:200]}")
                faults.append(first["failureSummary"][:300])
    assert not faults, "\n".join(faults)
