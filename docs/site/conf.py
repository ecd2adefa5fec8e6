"""Sphinx's configuration of the site; `make docs` builds it into docs/_build/html.

The pages are docs/*.md as they stand, with links that also work where the repository is browsed. Three things are made at build time:
the navigation, from the lists in docs/index.md; a page for each command, from the program itself (`commands.py`); and the Python pages,
from docstrings (`python_pages.py`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOCS = HERE.parent
sys.path.insert(0, str(HERE))

import commands  # noqa: E402
import navigation  # noqa: E402
import python_pages  # noqa: E402
import reading  # noqa: E402

import xmafast  # noqa: E402

project = "xmafast"
author = "the xmafast contributors"
version = release = xmafast.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "site"]
root_doc = "index"

myst_heading_anchors = 4  # links to headings are checked, also from page to page
highlight_language = "text"  # reading.py finds the language of an indented block

smartquotes = False  # --data is an option, not a dash
default_role = "code"  # docstrings write `xmafast eval` for a command
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
add_module_names = False

linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_anchors = False

html_theme = "furo"
html_title = f"xmafast {version}"
html_static_path = ["static"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False


def setup(app: Any) -> None:
    commands.write(DOCS / "commands")
    python_pages.write(DOCS / "api")
    app.connect("source-read", navigation.add)
    app.connect("doctree-read", reading.find_languages)
    app.connect("autodoc-process-docstring", reading.docstring)
