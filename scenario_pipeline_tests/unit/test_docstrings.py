"""The product's English: short sentences and plain words.

Belongs here: what can be measured of docstrings, comments and messages. Does not belong here: the pages of docs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from scenario_pipeline_tests.support.project import PROJECT

PACKAGE = PROJECT / "scenario_pipeline"
MAX_WORDS = 35
MAX_MEDIAN_WORDS = 20
BANNED = re.compile(r"\b(?:whoever|in hand|to be had|mend(?:s|ed|ing)?)\b", re.IGNORECASE)
# These lists are read entry by entry, and an entry is often a list itself.
_SECTION = re.compile(r"(?:Args|Attributes|Raises|Returns|Yields):$")
_END = re.compile(r"(?<=[.!?])[)\"]?\s+")
# A released migration keeps its text: a test compares it with its hash.
RELEASED = PACKAGE / "storage" / "migrations" / "versions"
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != RELEASED]


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def sentences(docstring: str) -> Iterator[str]:
    """Yield the sentences of the paragraphs, without lists of arguments and without code blocks."""
    for paragraph in docstring.split("\n\n"):
        if _SECTION.match(paragraph.partition("\n")[0]) or paragraph.startswith(" "):
            continue
        yield from _END.split(" ".join(paragraph.split()))


def lengths() -> dict[tuple[str, str], int]:
    """Return the number of words of each sentence, by file and sentence."""
    return {
        (path.relative_to(PROJECT).as_posix(), sentence): len(sentence.split())
        for path in FILES
        for text in docstrings(path)
        for sentence in sentences(text)
        if sentence
    }


def test_every_sentence_of_a_docstring_is_short_enough_to_be_read_once() -> None:
    """A reader who has to start a sentence again stops reading docstrings."""
    assert {place: n for place, n in lengths().items() if n > MAX_WORDS} == {}


def test_most_sentences_of_the_docstrings_are_short() -> None:
    """Long sentences one after the other tire a reader, even if each of them is allowed."""
    assert median(lengths().values()) < MAX_MEDIAN_WORDS


def test_docstrings_comments_and_messages_use_the_plain_word() -> None:
    """A volunteer at a keyboard knows "fix", but has to look up "mend"."""
    found = {
        (path.relative_to(PROJECT).as_posix(), number): line
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if BANNED.search(line)
    }
    assert found == {}


def test_a_long_sentence_is_found_between_short_ones() -> None:
    """A measure that splits too often would pass any text."""
    long = "It" + " goes on" * 18 + "."
    text = f"Short.\n\n{long} Version 1.2 of `a.b.c` is one sentence.\n\nArgs:\n    x: {long}\n"
    assert [len(sentence.split()) for sentence in sentences(text)] == [1, 37, 7]
