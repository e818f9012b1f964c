"""Every output of the sanitiser is made of words of its lexicon, and the lexicon names nobody."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenario_pipeline.sanitiser import MAX_OUTPUT, sanitise
from scenario_pipeline_tests.support.names import FRAGMENTS, LABELS, LEXICON, NAME_WORDS, NAMES, SEARCHED

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=700)
COLLIDING_TEXT = st.lists(st.sampled_from(FRAGMENTS), max_size=60).map("".join)

# The stranger's reading of the same promise, copied from the checker of published events on purpose.
UUID_SHAPE = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", re.IGNORECASE)
TRACE_SHAPE = re.compile(r"Traceback|File \"|\n|psycopg\.|sqlalchemy\.|DETAIL:|\[SQL:|\[parameters:")
TOKEN = re.compile(r"\[[a-z]+\]|(?<![A-Za-z0-9])(?=[A-Z]*\d)[0-9A-Z]{5}(?![A-Za-z0-9])|[A-Za-z]+|[0-9]+|.", re.DOTALL)
CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def _is_allowed(token: str) -> bool:
    if token.isalpha() and token.isascii():
        return token.lower() in LEXICON or {word.lower() for word in CAMEL.findall(token)} <= LEXICON
    if token.isdigit() and token.isascii():
        return len(token) <= 6
    return token in LABELS or re.fullmatch(r"[0-9A-Z]{5}|[ -~]", token) is not None


@SEARCHED
@given(ANY_TEXT | COLLIDING_TEXT)
def test_every_output_is_one_line_of_known_words_and_stays_as_it_is(message: str) -> None:
    """A log reader that splits lines, or a second sanitiser in the way, would change what was said."""
    output = sanitise(message)
    assert 1 <= len(output) <= MAX_OUTPUT
    assert output.isascii()
    assert output.isprintable()
    assert [token for token in TOKEN.findall(output) if not _is_allowed(token)] == []
    assert UUID_SHAPE.search(output) is None
    assert TRACE_SHAPE.search(output) is None
    assert sanitise(output) == output


@pytest.mark.parametrize(
    "make",
    [
        str.upper,
        str.title,
        lambda text: text.replace(":", " :"),
        lambda text: text.replace("[", "[ "),
        lambda text: f"\\u005b{text}".replace("\\u005b[", "\\u005b"),
        lambda text: "\u200b".join(text),
    ],
)
def test_a_stack_trace_in_disguise_is_still_no_stack_trace(make: Callable[[str], str]) -> None:
    """The checker of published events would refuse the line, and a row would stand in it."""
    for text in (
        "Traceback (most recent",
        'File "open',
        "psycopg.open",
        "DETAIL: open",
        "[SQL: open",
        "[parameters: open",
    ):
        output = sanitise(f"failed {make(text)}")
        assert TRACE_SHAPE.search(output) is None


def test_the_lexicon_names_nobody_and_is_sorted() -> None:
    """A hand-made addition could let a name pass everywhere."""
    lines = resources.files("scenario_pipeline").joinpath("lexicon.txt").read_text("utf-8").split("\n")
    words = [line.removeprefix("~") for line in lines if line and not line.startswith("#")]
    assert words == sorted(set(words))
    assert all(re.fullmatch("[a-z]+", word) for word in words)
    assert {"traceback", "psycopg", "sqlalchemy", "detail", "details"}.isdisjoint(words)
    assert {name.lower() for name in NAMES} & (set(words) - NAME_WORDS) == set()
