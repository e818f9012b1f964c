"""Our own sentences come out as they were written, and nobody else's text is among them.

Belongs here: the texts of `UserError` and `ErrorInfo`, as the source has them. Does not belong here: what the sanitiser
does to foreign text.
"""

from __future__ import annotations

import ast
import json
import os
import uuid
from collections.abc import Iterator

import pytest

from scenario_pipeline.errors import ErrorInfo, ErrorType, SystemicError, UserError, classify
from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.log.stdout import LineSink
from scenario_pipeline.log.vocabulary import MentorEvaluationError
from scenario_pipeline_tests.support.project import PROJECT

PACKAGE = PROJECT / "scenario_pipeline"
TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
# What makes an `ErrorInfo` of a sentence, and which argument the sentence is.
MAKERS = {"UserError": 0, "ErrorInfo": 1, "unreachable": 0, "timed_out": 0, "unusable": 0}
# Names from closed sources: registry, catalog, variables, hosts. None of them is in the lexicon.
FILLING = [
    "anniversary",
    "vaktliste_nord",
    "bare_fem_vakter",
    "SCENARIO_CRON",
    "db.frivillig.no",
    "Europe/Oslo",
    "54321",
]
# Where the text of an exception may be read that is no `UserError`, and why.
READ = {
    ("errors.py", "str(exc)"): "of a UserError, matched by its class",
    ("errors.py", "str(orig)"): "to tell a server out of reach from one that says no; it is not passed on",
    ("storage/refusals.py", "str(exc)"): "libpq's text is compared with known beginnings; it is not passed on",
}


def as_written(node: ast.expr, fillings: Iterator[str]) -> str | None:
    """The sentence with a name in each of its fields; None where it is put together elsewhere."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else next(fillings) for part in parts)
    return None


def _sentences() -> Iterator[str]:
    for tree in TREES.values():
        for node in ast.walk(tree):
            # Sentences that get a name first, then go into an ErrorInfo, are f-strings and constants of their module.
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in MAKERS:
                at = MAKERS[ast.unparse(node.func).rpartition(".")[2]]
                arguments = node.args[at : at + 1]
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("sentence", "advice", "reason"):
                arguments = [node.value]
            else:
                continue
            for argument in arguments:
                for part in ast.walk(argument):
                    text = as_written(part, iter(FILLING * 2)) if isinstance(part, ast.expr) else None
                    if text and " " in text.strip() and part is argument:
                        yield " ".join(text.split())


SENTENCES = sorted(set(_sentences()))


def logged(info: ErrorInfo) -> str:
    """What stands in the log entry about this failure."""
    reader, writer = os.pipe()
    try:
        StructuredLogger(LineSink(writer)).emit(
            MentorEvaluationError(str(uuid.uuid4()), info.error_type, info.error_message)
        )
        return str(json.loads(os.read(reader, 65_536))["error_message"])
    finally:
        os.close(reader)
        os.close(writer)


def test_the_sentences_are_found() -> None:
    assert len(SENTENCES) > 80
    assert "a cron expression of five fields such as 0 * * * *." in " ".join(SENTENCES)


@pytest.mark.parametrize("sentence", SENTENCES)
def test_every_sentence_of_ours_comes_out_whole(sentence: str) -> None:
    """The person on call would read "the scenario [word] has no default configuration"."""
    whole = sentence[:500].strip()
    of_user, of_run = classify(UserError(sentence)), ErrorInfo(ErrorType.DATABASE, sentence)
    assert of_user.error_message == of_run.error_message == whole
    assert str(SystemicError(of_run)) == classify(SystemicError(of_run)).error_message == whole
    assert logged(of_user) == whole


def test_what_is_no_sentence_of_ours_is_still_sanitised_by_the_logger() -> None:
    """Whatever reaches the logger as a plain text may have come from anywhere."""
    reader, writer = os.pipe()
    try:
        StructuredLogger(LineSink(writer)).emit(
            MentorEvaluationError(str(uuid.uuid4()), ErrorType.DATABASE, "mentor Kari Nordmann not found")
        )
        assert json.loads(os.read(reader, 65_536))["error_message"] == "mentor [word] not found"
    finally:
        os.close(reader)
        os.close(writer)


def _readings(tree: ast.AST) -> Iterator[str]:
    """Where the text of an exception is read, unless it was caught as a `UserError`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is not None and ast.unparse(node.type) == "UserError":
            for inner in ast.walk(node):
                inner.of_ours = True  # type: ignore[attr-defined]
    caught = {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name}
    caught |= {"exc", "orig", "error", "cause"}
    for node in ast.walk(tree):
        if getattr(node, "of_ours", False):
            continue
        match node:
            case ast.Call(func=ast.Name(id="str" | "repr"), args=[ast.Name(id=name)]) if name in caught:
                yield ast.unparse(node)
            case ast.FormattedValue(value=ast.Name(id=name)) if name in caught:
                yield f"{{{name}}}"
            case ast.Attribute(value=ast.Name(id=name), attr="args" | "__notes__") if name in caught:
                yield ast.unparse(node)


def test_nobody_reads_the_text_of_a_foreign_exception() -> None:
    """It may quote a row, a path or a password, and our own sentences are no longer sanitised."""
    assert {(name, text) for name, tree in TREES.items() for text in _readings(tree)} == set(READ)
