"""The package of the documented example, as an author would lay it out."""

from __future__ import annotations

import re
from pathlib import Path

import scenario_pipeline

PROJECT = Path(scenario_pipeline.__file__).resolve().parent.parent


def example(containing: str) -> str:
    """Return the documentation's Python block in which this text stands."""
    pages = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
    blocks = [
        block
        for page in pages
        for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        if containing in block
    ]
    [block] = blocks
    return str(block)


def packaged(folder: Path) -> None:
    """Make the documentation's package in a folder, with the documentation's test beside it."""
    (folder / "acme_scenarios").mkdir()
    (folder / "acme_scenarios" / "__init__.py").touch()
    (folder / "acme_scenarios" / "anniversary.py").write_text(example("SCENARIO = Scenario("), encoding="utf-8")
    (folder / "test_anniversary.py").write_text(example("assert_due("), encoding="utf-8")
