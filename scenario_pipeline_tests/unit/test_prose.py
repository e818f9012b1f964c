"""The English of the README, the changelog and the docs, as far as it can be measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scenario_pipeline_tests.support.project import PROJECT

# The contract is shipped as it was written.
PAGES = [
    PROJECT / "README.md",
    PROJECT / "CHANGELOG.md",
    PROJECT / "PACKAGE.md",
    *sorted(p for p in (PROJECT / "docs").rglob("*.md") if p.name != "contract.md"),
]
MOST_WORDS = 35


def sentences(page: str) -> list[str]:
    """Return the sentences of a page, without code, tables and headings; an item of a list begins a new one."""
    prose = re.sub(r"^ *```.*?^ *```$", "", page, flags=re.M | re.S)
    prose = re.sub(r"^(\||#).*$", "", prose, flags=re.M)
    blocks = re.split(r"\n\s*\n|^ *(?:[-*]|\d+\.) ", prose, flags=re.M)
    return [
        sentence.strip()
        for block in blocks
        for sentence in re.split(r"(?<=[.!?])(?:\*\*)?\s+(?=[A-Z`*\[])", " ".join(block.split()))
        if sentence.strip()
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_no_sentence_is_too_long_to_be_read_once(path: Path) -> None:
    """Somebody reads these pages in a second language, at night, while something is broken."""
    found = sentences(path.read_text(encoding="utf-8"))
    assert found or path.name == "index.md"
    assert [sentence for sentence in found if len(sentence.split()) > MOST_WORDS] == []


def test_a_long_sentence_is_found_wherever_it_stands() -> None:
    """A measure that passes over lists and quotes would be kept and mean nothing."""
    long = " ".join(["word"] * (MOST_WORDS + 1)) + "."
    page = f"# Title\n\nShort. {long.capitalize()}\n\n- {long}\n\n```sh\n{long}\n```\n\n| {long} |\n"
    assert [len(sentence.split()) for sentence in sentences(page)] == [1, MOST_WORDS + 1, MOST_WORDS + 1]
