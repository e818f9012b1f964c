"""Migrations: frozen once they are released, and every released state of a database becomes today's."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from scenario_pipeline.storage import columns, database, roles
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline.storage.tables import metadata
from scenario_pipeline.upgrade import upgrade
from scenario_pipeline_tests.support.invariants import sent
from scenario_pipeline_tests.support.people import (
    DAY,
    D,
    insert_notification,
    mentor_id,
    organisation_id,
    ten_mentors,
)
from scenario_pipeline_tests.support.runs import failed_run, run_invocation

VERSIONS = Path(database.__file__).parent / "migrations" / "versions"
# SHA-256 of each migration. A new one adds its line; a line that is here never changes.
RELEASED = {
    "0001_foundation.py": "a7b78c5b3c55ab2ed594f44378bcb96a403dd0942f4b52550a932fbd3a881bca",
    "0002_run_requests.py": "46b2c1c81c1767697c7ad298ffbaa9429324628b66fb3ee3d9fcad97d16d4bfb",
    "0003_trigger_engine.py": "985836a59235165a469dc717a0a39457cf3a05d80bda69ad0e8acee99f33c90b",
    "0004_roles_and_views.py": "dfe5aa2611f6ff5cc286028a1e13ab60971ddc97df62d204ceb2ee8fe269801f",
    "0005_order_of_invocations.py": "3aac92d6f1c5b2f9ab7f9475e1296da0f9fe9df314ab7fc409ce1dd808bf43ca",
    "0006_comments.py": "319aede2e16af35cbc42cbda5d7f58b4d1ff35c5fb6bccb3848060c4c8ed1387",
    "0007_bounded_requests.py": "074adf40f9c8b6246eb53913dad704c2e3ff13a237b89ac32f95f3cd7ee89b85",
}
REVISIONS = [name[:4] for name in RELEASED]
OLD_RUN = "cccccccc-0000-4000-8000-000000000001"


def test_a_released_migration_is_never_edited() -> None:
    """A database that the old text made would keep its version, look well, and fail in the middle of a run."""
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VERSIONS.glob("*.py")}
    assert found == RELEASED, "add a migration; a released one keeps its text, and a new one adds its line here"


def test_every_migration_is_of_one_chain() -> None:
    """Two heads would leave it to chance which tables a database gets."""
    scripts = ScriptDirectory.from_config(database._alembic_config())
    assert [script.revision for script in scripts.walk_revisions()] == REVISIONS[::-1]


@pytest.fixture
def released(server: EmbeddedPostgres, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """A database as the release left it whose newest migration is the parameter, in use: people, a run, a request."""
    name = f"released_{uuid.uuid4().hex}"
    database.create_database(server.url("postgres"), name)
    engine = database.connect(server.url(name))
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA scenario"))
        if request.param >= "0004":
            # Since then there are roles, and everything belongs to one of them.
            roles.become_owner(connection)
        config = database._alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, request.param)
    ten_mentors(engine)
    with engine.begin() as connection:
        insert_notification(connection, mentor_id(1), D - 40 * DAY, invocation_id=OLD_RUN)
        connection.execute(
            text(
                "INSERT INTO scenario.scheduler_runs (invocation_id, triggered_by, evaluation_date, scenario_types, "
                "dispatch_mode, time_budget_ms, status, started_at, finished_at, total_evaluated) "
                "VALUES (:id, 'manual', :day, '{inactivity}', 'live', 30000, 'completed', now(), now(), 1)"
            ),
            {"id": OLD_RUN, "day": D - 40 * DAY},
        )
        connection.execute(
            text(
                "INSERT INTO scenario.scheduler_run_pages (invocation_id, page_number, last_mentor_id, total_evaluated)"
                " VALUES (:id, 1, :mentor, 1)"
            ),
            {"id": OLD_RUN, "mentor": mentor_id(1)},
        )
        if request.param >= "0002":
            connection.execute(text("SELECT scenario.request_scheduler_run()"))
    yield engine
    engine.dispose()
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def rows_of(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    """Return all rows of all tables, by table."""
    with engine.connect() as connection:
        names = list(
            connection.execute(
                text("SELECT relname FROM pg_class WHERE relnamespace = 'scenario'::regnamespace AND relkind = 'r'")
            ).scalars()
        )
        return {
            name: list(
                connection.execute(text(f"SELECT to_jsonb(t) FROM scenario.{name} t ORDER BY t::text")).scalars()
            )
            for name in names
            if name != "alembic_version"
        }


def catalog(engine: Engine) -> list[tuple[str, ...]]:
    """Return all that a schema consists of: columns in any order, constraints, indexes, views, functions, rights."""
    with engine.connect() as connection:
        connection.execute(text("SET search_path = pg_catalog"))
        rows = connection.execute(text("""
            SELECT 'column' AS kind, format('%s.%s', attrelid::regclass, attname) AS name,
                format('%s %s %s %s', format_type(atttypid, atttypmod), attnotnull, attidentity,
                    pg_get_expr(adbin, adrelid)) AS definition
            FROM pg_attribute JOIN pg_class c ON c.oid = attrelid LEFT JOIN pg_attrdef ON adrelid = attrelid
                AND adnum = attnum
            WHERE relnamespace = 'scenario'::regnamespace AND relkind IN ('r', 'v') AND attnum > 0 AND NOT attisdropped
            UNION ALL SELECT 'constraint', format('%s.%s', conrelid::regclass, conname), pg_get_constraintdef(oid)
                FROM pg_constraint WHERE connamespace = 'scenario'::regnamespace
            UNION ALL SELECT 'index', indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index
                JOIN pg_class c ON c.oid = indexrelid WHERE relnamespace = 'scenario'::regnamespace
            UNION ALL SELECT 'view', viewname, definition FROM pg_views WHERE schemaname = 'scenario'
            UNION ALL SELECT 'policy', tablename || policyname, format('%s %s', roles, qual) FROM pg_policies
                WHERE schemaname = 'scenario'
            UNION ALL SELECT 'function', oid::regprocedure::text, format('%s %s', pg_get_functiondef(oid), proacl)
                FROM pg_proc WHERE pronamespace = 'scenario'::regnamespace
            UNION ALL SELECT 'relation', oid::regclass::text, format('%s %s %s %s', relowner::regrole, relacl,
                reloptions, relrowsecurity) FROM pg_class WHERE relnamespace = 'scenario'::regnamespace
                AND relkind IN ('r', 'v')
            ORDER BY 1, 2"""))  # fmt: skip
        return [tuple(row) for row in rows]


@pytest.mark.parametrize("released", REVISIONS[:-1], indirect=True)
def test_a_database_of_each_release_becomes_what_a_new_one_is_and_keeps_its_rows(
    released: Engine, engine: Engine
) -> None:
    """Somebody who skips three releases must lose nothing, and be told nothing twice."""
    before = rows_of(released)
    upgrade(released)

    assert catalog(released) == catalog(engine)
    after = rows_of(released)
    for name, rows in before.items():
        kept = [{key: row[key] for key in rows[0]} for row in after[name]] if rows else []
        assert [row for row in rows if row not in kept] == []
    with released.connect() as connection:
        assert list(columns.misfits(connection, metadata.tables.values(), "table")) == []
    report = run_invocation(released)
    assert (report.status, report.stats.total_evaluated, report.stats.total_errors) == ("completed", 10, 0)
    assert len(sent(released)) == len(before["scenario_notifications"]) + report.stats.total_dispatched
    assert before["organisations"][0]["id"] == organisation_id()


@pytest.mark.parametrize("released", ["0002", "0005"], indirect=True)
def test_whoever_could_ask_for_runs_before_an_upgrade_still_can(released: Engine) -> None:
    """An entry of pg_cron that fails from the day of an upgrade on is noticed a day late."""
    role = f"clock_{uuid.uuid4().hex}"
    with released.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role}"))
        connection.execute(text(f"GRANT USAGE ON SCHEMA scenario TO {role}"))
        connection.execute(text(f"GRANT EXECUTE ON FUNCTION scenario.request_scheduler_run TO {role}"))
    upgrade(released)
    with released.begin() as connection:
        connection.execute(text(f"SET LOCAL ROLE {role}"))
        connection.execute(text("SELECT scenario.request_scheduler_run('2026-08-01')"))
        connection.execute(text("RESET ROLE"))
        connection.execute(text(f"DROP OWNED BY {role}"))
        connection.execute(text(f"DROP ROLE {role}"))


DAMAGED = [
    (
        "ALTER TABLE scenario.scheduler_run_pages DROP COLUMN left_mentor_ids",
        "the table scenario.scheduler_run_pages has no column left_mentor_ids, which must be uuid[]",
    ),
    (
        "ALTER TABLE scenario.scheduler_runs ALTER COLUMN duration_ms TYPE bigint",
        "the column duration_ms of the table scenario.scheduler_runs is bigint, and must be integer",
    ),
    (
        "ALTER TABLE scenario.trigger_engine_replies RENAME TO replies",
        "the table scenario.trigger_engine_replies does not exist",
    ),
    (
        "ALTER TABLE scenario.scheduler_run_requests RENAME COLUMN refusal TO refused",
        "the table scenario.scheduler_run_requests has no column refusal, which must be text",
    ),
]


@pytest.mark.parametrize(("damage", "sentence"), DAMAGED)
def test_a_run_over_tables_of_another_edition_says_which_column_it_is(
    engine: Engine, damage: str, sentence: str
) -> None:
    """What an earlier text of a migration made has today's version, and fails wherever its column is used."""
    ten_mentors(engine)
    with engine.begin() as connection:
        connection.execute(text(damage))
    upgrade(engine)
    assert failed_run(engine) == f"{sentence}: {columns.TABLES_REMEDY}"


def test_columns_of_ones_own_and_tables_that_nobody_reads_stop_no_run(engine: Engine) -> None:
    """Who keeps people in tables of their own has no need of ours."""
    ten_mentors(engine)
    with engine.begin() as connection:
        for statement in (
            "ALTER TABLE scenario.scheduler_runs ADD COLUMN note text",
            "CREATE TABLE scenario.mine AS SELECT user_id, certification_type, expires_on "
            "FROM scenario.mentor_certifications",
            "CREATE OR REPLACE VIEW scenario.source_certifications WITH (security_invoker = true) AS "
            "SELECT user_id, certification_type, expires_on FROM scenario.mine",
            "DROP TABLE scenario.mentor_certifications",
        ):
            connection.execute(text(statement))
    assert run_invocation(engine).status == "completed"
