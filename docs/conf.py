"""How Sphinx builds the site out of these pages: `sphinx-build -W -n --keep-going docs docs/_build`.

Belongs here: the builder's settings. Does not belong here: content, which is Markdown that a code host renders as well.
"""

from __future__ import annotations

import re

from pygments.lexers import PostgresLexer
from sphinx.application import Sphinx

project = "Scenario pipeline"
extensions = ["myst_parser", "sphinxcontrib.mermaid"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = project
html_show_sourcelink = False
# Headings get the anchors that code hosts give them, so that one link serves both.
myst_heading_anchors = 3
# Code hosts draw these blocks as well.
myst_fence_as_directive = ["mermaid"]


def navigation(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Make the sidebar of the lists on the first page: a directive in the page would be seen on a code host.

    A page that the lists leave out is a warning, and so fails the build.
    """
    if docname == "index":
        for title, links in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", source[0], flags=re.M | re.S):
            pages = "\n".join(re.findall(r"\]\(([^)]+)\.md\)", links))
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{pages}\n```\n"


def setup(app: Sphinx) -> None:
    """Connect the above, and read SQL as Postgres does: the general lexer stumbles over a dollar quote."""
    app.add_lexer("sql", PostgresLexer)
    app.connect("source-read", navigation)
