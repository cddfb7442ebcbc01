"""The web edition: Sphinx over the committed notebooks, nothing is run (see build.py, for `make site`)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
for folder in (DOCS, DOCS.parent / "code", DOCS.parent):
    sys.path.insert(0, str(folder))

project = "ModelLearner, from a script to a federation"
author = "the maintainers of the series"
project_copyright = f"{author}, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "edition"]
exclude_patterns = ["docs/README.md"]
nitpicky = False

nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_use_unqualified_type_names = True

default_role = "code"  # docstrings are written with single backticks

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = [str(DOCS / "_static")]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_context = {"default_mode": "light"}  # the figures are drawn on white
html_favicon = str(DOCS / "_static/icon.svg")
html_use_index = html_domain_indices = False  # the search is better
html_show_sourcelink = False
html_sidebars = {"**": ["navbar-logo.html", "icon-links.html", "search-button-field.html", "sbt-sidebar-nav.html"]}
html_theme_options = {
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_fullscreen_button": False,
    "use_download_button": True,
    "navigation_with_keys": False,
    "navbar_start": [],
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],
}
if repository := os.environ.get("GITHUB_REPOSITORY"):  # on GitHub a page can lead to its own file, and open it there
    html_theme_options |= {
        "repository_url": f"https://github.com/{repository}",
        "repository_branch": "main",
        "use_repository_button": True,
        "icon_links": [
            {
                "name": "Open in Codespaces",
                "url": f"https://codespaces.new/{repository}",
                "icon": "fa-solid fa-code",
            }
        ],
    }
