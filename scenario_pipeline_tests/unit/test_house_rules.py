"""Rules of the house that a reviewer would otherwise have to remember."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from scenario_pipeline.log.vocabulary import VOCABULARY
from scenario_pipeline.settings import Settings
from scenario_pipeline_tests.support.project import PROJECT

PACKAGE = PROJECT / "scenario_pipeline"
REFERENCE = PROJECT / "docs" / "reference"

# Imports run one way: a module may import from its own layer and those before it. A name stands for a module, or for a
# package with all modules that no longer name stands for.
LAYERS = [
    {"limits", "signals", "sqlstates", "sanitiser", "failures", "errors"},
    {"conninfo", "settings", "batch_stats", "time_budget", "records"},
    {"log"},
    {"report", "log.logger"},
    {"storage"},
    {"scenarios"},
    {"storage.ledger", "storage.run_requests"},
    {"engines"},
    {"engines.http", "engines.service"},
    {"invocation", "loading", "testing", "upgrade"},
    {"doctor"},
    {"defs", "defs.instance"},
    {"defs.resources"},
    {"defs.checks"},
    {"defs.job"},
    {"defs.liveness"},
    {"defs.schedules", "defs.sensors", "defs.retention"},
    {"defs.build"},
    {"definitions", "defs.local_run", "defs.dev_server"},
    {"cli", "__main__"},
]


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if "migrations" not in parts:
            yield ".".join(part for part in parts if part != "__init__"), path


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def layer_of(module: str) -> int | None:
    """Return the number of the layer that a module is in, by the longest name that stands for it."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        for number, layer in enumerate(LAYERS):
            if name in layer:
                return number
    return None


def test_imports_run_one_way() -> None:
    """A store that knows the command line, or a rule that knows Dagster, cannot be used without them."""
    known = {module for module, _ in modules()}
    for module, path in modules():
        own = layer_of(module)
        assert own is not None or not module, f"scenario_pipeline.{module} is in no layer: add it to LAYERS"
        for imported in imports_of(path):
            target = imported.removeprefix("scenario_pipeline.")
            if own is not None and imported.startswith("scenario_pipeline.") and target in known:
                assert (layer_of(target) or 0) <= own, (
                    f"{module} imports {target}, which stands above it: move the shared part down, or pass it in"
                )


@pytest.mark.parametrize(
    ("library", "drawers"),
    [
        ("dagster", ("defs", "definitions")),
        ("dagster_postgres", ("defs",)),
        ("structlog", ("log",)),
        ("alembic", ("storage",)),
        ("click", ("cli",)),
        ("httpx", ("engines.http.client",)),
        ("psutil", ("doctor.environment", "storage.postgres_tools")),
        ("fastapi", ("engines.service.app",)),
        ("uvicorn", ("engines.service.connections",)),
    ],
)
def test_a_library_is_imported_in_its_drawer_only(library: str, drawers: tuple[str, ...]) -> None:
    """A person who replaces a library should have to look in one place only."""
    for module, path in modules():
        if not {module, module.split(".")[0]} & set(drawers):
            used = [name for name in imports_of(path) if name.split(".")[0] == library]
            assert not used, f"{module} imports {used[0]}: only {' and '.join(drawers)} may"


def test_nothing_prints_or_logs_past_the_shared_logger() -> None:
    """A stray line on stdout breaks the promise that it holds nothing but events."""
    for module, path in modules():
        calls = [node.func for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
        names = {ast.unparse(call) for call in calls}
        assert not names & {"print", "logging.getLogger", "logging.info", "traceback.print_exc"}, module


def test_every_module_says_what_it_is_for() -> None:
    for module, path in modules():
        assert ast.get_docstring(tree_of(path)), module


def test_the_events_page_lists_the_events_as_the_code_has_them() -> None:
    """Its table is what people build their dashboards on."""
    page = (REFERENCE / "events.md").read_text(encoding="utf-8").partition("## All events")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([a-z, ]+) \| (.+) \|$", page, flags=re.M)
    told = {name: (levels, set(re.findall(r"`(\w+)`", further))) for name, levels, further in rows}
    assert told == {kind.name: (", ".join(kind.levels), {field.name for field in fields(kind)}) for kind in VOCABULARY}


def test_the_settings_page_names_every_variable() -> None:
    """A setting nobody can find is no setting."""
    used = set(re.findall(r'get\("(SCENARIO_\w+)"\)', Path(PACKAGE / "settings.py").read_text(encoding="utf-8")))
    told = set(re.findall(r"SCENARIO_[A-Z_]+", (REFERENCE / "settings.md").read_text(encoding="utf-8")))
    assert told == used
    assert len(used) >= len(fields(Settings))
