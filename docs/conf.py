"""How Sphinx builds the site out of these pages: `sphinx-build -W -n --keep-going docs docs/_build`.

Belongs here: the builder's settings. Does not belong here: content, which is Markdown that a code host renders as well.
"""

project = "Scenario pipeline"
extensions = ["myst_parser", "sphinxcontrib.mermaid"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = project
# The pages themselves are at hand where the code is.
html_show_sourcelink = False
# Headings get the anchors that code hosts give them, so that one link serves both.
myst_heading_anchors = 3
# Code hosts draw these blocks as well.
myst_fence_as_directive = ["mermaid"]
