"""Rules of the house that a reviewer would otherwise have to remember."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from scenario_pipeline.defs.schedules import checked_cron
from scenario_pipeline.errors import UserError
from scenario_pipeline.log.vocabulary import VOCABULARY
from scenario_pipeline.settings import Settings

PROJECT = Path(__file__).resolve().parent.parent
PACKAGE = PROJECT / "scenario_pipeline"
README = (PROJECT / "README.md").read_text(encoding="utf-8")

# Imports run one way: a module may import from its own layer and those before it.
LAYERS = [
    {"sanitiser", "errors"},
    {"settings", "batch_stats", "time_budget", "records"},
    {"log", "log.vocabulary", "log.schema", "log.validation", "log.stdout"},
    {"report", "log.logger"},
    {"storage.tables", "storage.embedded", "storage.roles", "storage.source", "storage.database", "storage"},
    {"scenarios", "scenarios.inactivity", "scenarios.milestone", "scenarios.certification_expiry"},
    {
        "storage.ledger",
        "storage.ledger.pages",
        "storage.ledger.closed",
        "storage.ledger.invocations",
        "storage.run_requests",
    },
    {"engines", "engines.statement", "engines.functions", "engines.source_check", "engines.sql", "engines.api"},
    {
        "engines.http",
        "engines.http.breaker",
        "engines.http.client",
        "engines.http.tally",
        "engines.http.page_calls",
        "engines.http.engine",
        "engines.service",
        "engines.service.replies",
        "engines.service.app",
        "engines.service.connections",
        "engines.service.server",
    },
    {
        "invocation",
        "invocation.closing",
        "invocation.run",
        "loading",
        "loading.bulk",
        "loading.csv_files",
        "loading.merge",
        "loading.demo",
        "upgrade",
    },
    {"doctor", "doctor.findings", "doctor.rights", "doctor.environment"},
    {"doctor.database"},
    {
        "defs",
        "defs.instance",
        "defs.instance.home",
        "defs.instance.storage",
        "defs.instance.captured_output",
        "defs.instance.examination",
        "defs.partitions",
        "defs.assets",
        "defs.run_configuration",
        "defs.run_metadata",
        "defs.reconcile",
    },
    {"defs.resources", "defs.checks"},
    {"defs.job"},
    {"defs.liveness"},
    {"defs.schedules"},
    {"defs.sensors"},
    {"definitions", "defs.local_run", "defs.dev_server", "cli", "__main__"},
]


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if "migrations" not in parts:
            yield ".".join(part for part in parts if part != "__init__"), path


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def layer_of(module: str) -> int:
    found = [n for n, layer in enumerate(LAYERS) if module in layer]
    assert found, f"scenario_pipeline.{module} is in no layer: add it to LAYERS in {Path(__file__).name}"
    return found[0]


def test_imports_run_one_way() -> None:
    """A store that knows the command line, or a rule that knows Dagster, cannot be used without them."""
    known = set().union(*LAYERS)
    for module, path in modules():
        for imported in imports_of(path):
            target = imported.removeprefix("scenario_pipeline.")
            if module and imported.startswith("scenario_pipeline.") and target in known:
                assert layer_of(target) <= layer_of(module), (
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
        ("psutil", ("doctor.environment",)),
        ("fastapi", ("engines.service.app",)),
        ("uvicorn", ("engines.service.connections",)),
    ],
)
def test_a_library_is_imported_in_its_drawer_only(library: str, drawers: tuple[str, ...]) -> None:
    """Whoever replaces a library should have to look in one place."""
    for module, path in modules():
        if not {module, module.split(".")[0]} & set(drawers):
            used = [name for name in imports_of(path) if name.split(".")[0] == library]
            assert not used, f"{module} imports {used[0]}: only {' and '.join(drawers)} may"


def test_nothing_prints_or_logs_past_the_shared_logger() -> None:
    """A stray line on stdout breaks the promise that it holds nothing but events."""
    for module, path in modules():
        calls = [
            node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
        ]
        names = {ast.unparse(call) for call in calls}
        assert not names & {"print", "logging.getLogger", "logging.info", "traceback.print_exc"}, module


def test_every_module_says_what_it_is_for() -> None:
    for module, path in modules():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), module


def test_the_readme_tells_the_events_as_the_code_has_them() -> None:
    """The table in the README is what people build their dashboards on."""
    rows = re.findall(r"^\| `(\w+)` \| ([a-z, ]+) \| (.+) \|$", README, flags=re.M)
    told = {name: (levels, set(re.findall(r"`(\w+)`", further))) for name, levels, further in rows}
    assert told == {kind.name: (", ".join(kind.levels), {field.name for field in fields(kind)}) for kind in VOCABULARY}


def test_the_readme_names_every_variable() -> None:
    """A setting nobody can find is no setting."""
    used = set(re.findall(r'get\("(SCENARIO_\w+)"\)', Path(PACKAGE / "settings.py").read_text(encoding="utf-8")))
    told = set(re.findall(r"SCENARIO_[A-Z_]+", README))
    assert told == used
    assert len(used) >= len(fields(Settings))


def test_the_code_location_loads_without_a_variable_a_database_or_noise() -> None:
    """Dagster imports it in every process: it must neither connect nor print."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "import scenario_pipeline.definitions"],
        env={"PATH": "", "PYTHONPATH": str(PROJECT), "SCENARIO_DATABASE_URL": "postgresql://127.0.0.1:1/none"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("cron", ["every hour", "61 * * * *", "0 * * *"])
def test_a_cron_expression_that_cannot_work_is_one_sentence(cron: str) -> None:
    """A schedule that never ticks would go unnoticed for as long as nobody misses a message."""
    with pytest.raises(UserError, match=r"^SCENARIO_CRON "):
        checked_cron(cron)
