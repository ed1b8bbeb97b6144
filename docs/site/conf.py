"""Configuration of the documentation site; `make docs` builds it (`tools/make-docs`)."""

from __future__ import annotations

from importlib.metadata import version as installed
from typing import Any

project = "Flux Endpoint"
author = "the Flux Endpoint developers"
release = version = installed("flux-endpoint")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_heading_anchors = 4
highlight_language = "default"  # blocks are shell, Python, YAML and output
suppress_warnings = ["misc.highlighting_failure"]
default_role = "code"  # docstrings have Markdown's backticks
autodoc_member_order = "bysource"
autodoc_typehints = "description"
add_module_names = False
exclude_patterns = ["_build"]

# The theme loads nothing from other hosts: the site works on a cluster without a network.
html_theme = "furo"
html_title = f"Flux Endpoint {release}"
html_copy_source = False
html_theme_options = {"top_of_page_buttons": []}


def setup(app: Any) -> None:
    """Show the examples of docstrings as code."""

    def as_code(*event: Any) -> None:
        lines = event[-1]
        code = {"Example:": ["Example::", ""]}
        lines[:] = [each for line in lines for each in code.get(line, [line])]

    app.connect("autodoc-process-docstring", as_code, priority=400)  # before napoleon
