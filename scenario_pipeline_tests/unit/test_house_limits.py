"""Limits of the house: how long a file or a function may be, and what a test file may import.

Belongs here: limits that hold for every file. Does not belong here: who may import what in the product
(`test_house_rules`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from scenario_pipeline_tests.support.project import PROJECT
from scenario_pipeline_tests.support.stranger import CHECKER

PRODUCT = sorted((PROJECT / "scenario_pipeline").rglob("*.py"))
TESTS = sorted(path for path in (PROJECT / "scenario_pipeline_tests").rglob("*.py") if path != CHECKER)
# One statement decides for a page: cut in two, neither half could be read by itself.
DECISION = ("statement.py", "decision_statement")


def name_of(path: Path) -> str:
    return str(path.relative_to(PROJECT))


@pytest.mark.parametrize(("files", "limit"), [(PRODUCT, 450), (TESTS, 400)], ids=["product", "tests"])
def test_a_file_is_short_enough_to_be_read_in_one_go(files: list[Path], limit: int) -> None:
    """A file that grows past the limit has more than one reason to exist: split it along its sections."""
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: n for name, n in lines.items() if n > limit} == {}


def functions_of(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_a_function_is_short_enough_to_be_seen_at_once() -> None:
    """A function of more than sixty lines is read by nobody to its end."""
    too_long = {
        f"{name_of(path)}: {name}": lines
        for path in PRODUCT
        for name, lines in functions_of(path)
        if lines > 60 and (path.name, name) != DECISION
    }
    assert too_long == {}


def test_no_test_file_imports_from_another() -> None:
    """A test file that others import from is a library: its author cannot see whom a change breaks."""
    imported = [
        f"{name_of(path)} imports {node.module}"
        for path in TESTS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        and node.module
        and any(part.startswith("test_") for part in [*node.module.split("."), *(alias.name for alias in node.names)])
        and node.module.split(".")[0] == "scenario_pipeline_tests"
    ]
    assert imported == []
