"""Dagster's private names: an upgrade that moves one must be told so, and not fail somewhere."""

from __future__ import annotations

import ast
import importlib
from importlib.metadata import version
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "scenario_pipeline" / "defs" / "dagster_private.py"
NAMES = [
    (node.module, alias.name)
    for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom) and node.module is not None
    for alias in node.names
]


@pytest.mark.parametrize(("module", "name"), NAMES, ids=lambda value: value)
def test_a_private_name_of_dagster_is_where_it_was(module: str, name: str) -> None:
    """Whoever raises Dagster's version learns which name moved, and where it is used."""
    moved = f"Dagster {version('dagster')} has no {module}.{name}: find its new place, and edit defs/dagster_private.py"
    try:
        found = hasattr(importlib.import_module(module), name)
    except ImportError:
        found = False
    assert found, moved


def test_no_other_module_imports_private_names_of_dagster() -> None:
    """Scattered over the modules they would be found one failure at a time."""
    for path in SOURCE.parent.parent.rglob("*.py"):
        if path != SOURCE:
            assert "from dagster._" not in path.read_text(encoding="utf-8"), f"{path.name}: use defs/dagster_private.py"
