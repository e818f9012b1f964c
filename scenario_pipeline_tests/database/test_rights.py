"""What each of the three roles may do, and to whom the schema belongs."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psycopg
import pytest
from alembic import command
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import ProgrammingError

from scenario_pipeline.scenarios import registry
from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline.storage.source import function_name
from scenario_pipeline.upgrade import upgrade
from scenario_pipeline_tests.support.people import configure, insert_mentor, insert_organisation, ten_mentors
from scenario_pipeline_tests.support.rights import LEDGER, SOURCE
from scenario_pipeline_tests.support.runs import failed_run, run_invocation
from scenario_pipeline_tests.support.server import as_scheduler

PERSONAL = {"full_name", "email", "phone"}


def rights_of(engine: Engine, role: str) -> dict[str, set[str]]:
    """Return what a role may do with each table and view; a right on some columns only names them."""
    with engine.connect() as connection:
        rows = connection.execute(
            text("""
            SELECT c.relname, p.privilege, has_table_privilege(:role, c.oid, p.privilege) AS is_whole,
                (SELECT string_agg(a.attname, ',' ORDER BY a.attname) FROM pg_attribute a
                 WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND p.is_of_columns
                 AND has_column_privilege(:role, c.oid, a.attnum, p.privilege)) AS columns
            FROM pg_class c, (VALUES ('SELECT', true), ('INSERT', true), ('UPDATE', true), ('REFERENCES', true),
                ('DELETE', false), ('TRUNCATE', false), ('TRIGGER', false)) AS p (privilege, is_of_columns)
            WHERE c.relnamespace = 'scenario'::regnamespace AND c.relkind IN ('r', 'v')"""),
            {"role": role},
        ).all()
    found: dict[str, set[str]] = {}
    for row in rows:
        if row.is_whole:
            found.setdefault(row.relname, set()).add(row.privilege)
        elif row.columns:
            found.setdefault(row.relname, set()).add(f"{row.privilege}({row.columns})")
    return found


OWNERS_FUNCTIONS = [
    "active_mentors",
    "activities_plan",
    "mentors_of",
    "mentors_summary",
    "organisations_of",
    "remove_old_replies",
]
REPORTS = {
    "scenario_notifications",
    "scheduler_runs",
    "scheduler_run_pages",
    "scheduler_run_requests",
    "scenario_evaluation_config",
    "organisations",
    "source_organisations",
    "alembic_version",
}


def test_the_scheduler_may_read_what_it_evaluates_and_write_what_it_did_and_nothing_else(engine: Engine) -> None:
    """A break-in through the scheduler must find nothing to delete and nobody's address to read."""
    assert rights_of(engine, "scenario_scheduler") == SOURCE | LEDGER
    assert rights_of(engine, "held_back") == SOURCE | LEDGER


def test_the_reader_may_read_reports_and_nothing_else(engine: Engine) -> None:
    """A person who reads the numbers needs no names."""
    assert rights_of(engine, "scenario_reader") == {name: {"SELECT"} for name in REPORTS}


@pytest.mark.parametrize("role", ["scenario_scheduler", "scenario_reader"])
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE scenario.mine (id int)",
        "ALTER TABLE scenario.scheduler_runs ADD COLUMN mine int",
        "DROP TABLE scenario.scenario_notifications",
        "TRUNCATE scenario.scenario_notifications",
        "DELETE FROM scenario.scenario_notifications",
        "DELETE FROM scenario.scheduler_runs",
        "UPDATE scenario.scenario_notifications SET dedup_key = 'another'",
        "UPDATE scenario.scenario_evaluation_config SET cooldown_days = 1",
        "INSERT INTO scenario.scheduler_run_requests SELECT * FROM scenario.scheduler_run_requests",
        "SELECT email FROM scenario.peer_mentors",
        "SELECT * FROM scenario.peer_mentors",
        "SELECT scenario.request_scheduler_run()",
        "CREATE SCHEMA mine",
        "CREATE ROLE mine",
    ],
)
def test_what_is_not_granted_is_refused(engine: Engine, role: str, statement: str) -> None:
    """The rights as they work, not as a catalog tells them."""
    with engine.connect() as connection:
        connection.execute(text(f"SET ROLE {role}"))
        with pytest.raises(ProgrammingError, match="InsufficientPrivilege"):
            connection.execute(text(statement))


def test_everything_belongs_to_the_owner_who_is_no_administrator(engine: Engine) -> None:
    """Functions with their owner's rights must not have those of a superuser."""
    with engine.connect() as connection:
        owners = connection.execute(text("""
            SELECT DISTINCT owner::regrole::text, rolsuper, rolbypassrls, rolcreaterole FROM (
                SELECT nspowner AS owner FROM pg_namespace WHERE nspname = 'scenario'
                UNION SELECT relowner FROM pg_class WHERE relnamespace = 'scenario'::regnamespace
                UNION SELECT proowner FROM pg_proc WHERE pronamespace = 'scenario'::regnamespace
            ) AS o JOIN pg_roles r ON r.oid = o.owner"""))  # fmt: skip
        assert [tuple(row) for row in owners] == [("scenario_owner", False, False, False)]


def test_functions_with_the_owners_rights_are_closed_and_look_names_up_in_one_place(engine: Engine) -> None:
    """Everybody may call a new function unless that is taken away, and a caller's search_path decides what it reads."""
    with engine.connect() as connection:
        rows = connection.execute(text("""
            SELECT proname, proconfig, coalesce((SELECT string_agg(a.grantee::regrole::text, ',' ORDER BY 1)
                FROM aclexplode(proacl) a WHERE a.grantee <> proowner), '')
            FROM pg_proc WHERE pronamespace = 'scenario'::regnamespace AND prosecdef"""))  # fmt: skip
        found = {name: (config[0], callers) for name, config, callers in rows}
    pinned = "search_path=pg_catalog, pg_temp"
    ours = [*OWNERS_FUNCTIONS, *map(function_name, registry())]
    assert found == {
        **dict.fromkeys(ours, (pinned, "scenario_scheduler")),
        "request_scheduler_run": (pinned, ""),
    }


@pytest.fixture
def old_database(server: EmbeddedPostgres) -> Iterator[str]:
    """The administrator's URL of a database that an earlier release left, owned by a role without any rights."""
    name, role = f"old_{uuid.uuid4().hex}", f"old_owner_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
        connection.execute(f"CREATE DATABASE {name} OWNER {role}")
    engine = database.connect(server.url(name))
    with engine.begin() as connection:
        connection.execute(text(f"SET ROLE {role}"))
        connection.execute(text("CREATE SCHEMA scenario"))
        config = database._alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        insert_organisation(connection)
        insert_mentor(connection)
    engine.dispose()
    yield server.url(name)
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        connection.execute(f"DROP ROLE {role}")


def owner_of(engine: Engine) -> str:
    with engine.connect() as connection:
        statement = "SELECT relowner::regrole::text FROM pg_class WHERE oid = 'scenario.peer_mentors'::regclass"
        return str(connection.execute(text(statement)).scalar_one())


def test_whoever_made_the_schema_may_upgrade_it_and_stays_its_owner(old_database: str) -> None:
    """An installation without an administrator must not be stuck with an old release."""
    administrator = database.connect(old_database)
    owner = owner_of(administrator)
    url = make_url(old_database).set(username=owner, password="secret").render_as_string(hide_password=False)
    engine = database.connect(url)
    for _ in range(2):
        upgrade(engine)
        assert owner_of(administrator) == owner
        assert run_invocation(engine).stats.total_evaluated == 1
    assert run_invocation(administrator).stats.total_evaluated == 1
    administrator.dispose()
    engine.dispose()


def test_an_administrator_who_made_the_schema_hands_it_to_the_owner(
    server: EmbeddedPostgres, old_database: str
) -> None:
    """What a superuser made in an earlier release must not keep a superuser's rights."""
    administrator = database.connect(old_database)
    with administrator.begin() as connection:
        connection.execute(text(f"REASSIGN OWNED BY {owner_of(administrator)} TO scenario"))
    upgrade(administrator)
    assert owner_of(administrator) == "scenario_owner"
    scheduler = database.connect(as_scheduler(old_database, "functions"))
    assert run_invocation(scheduler).stats.total_evaluated == 1
    administrator.dispose()
    scheduler.dispose()


def test_a_configuration_may_be_for_an_organisation_of_a_users_own_table(engine: Engine) -> None:
    """An organisation that defines the views over its own tables has no rows in ours."""
    with engine.begin() as connection:
        configure(connection, "milestone", organisation=7)


def test_an_upgrade_with_nothing_to_do_waits_for_nobody(engine: Engine) -> None:
    """The embedded database is upgraded before each run: a load or a report that is open must not hold it up."""
    with engine.begin() as other:
        for table in (name for name in SOURCE | LEDGER if not name.startswith("source_")):
            other.execute(text(f"LOCK TABLE scenario.{table} IN ROW EXCLUSIVE MODE"))
        other.execute(text("UPDATE scenario.scenario_evaluation_config SET enabled = enabled"))
        # What it waited for would end it after ten seconds.
        upgrade(engine)


@pytest.mark.parametrize(
    "damage",
    [
        "ALTER VIEW scenario.source_certifications RENAME COLUMN expires_on TO expiry",
        "DROP VIEW scenario.source_certifications",
    ],
)
def test_a_view_that_does_not_fit_keeps_nobody_from_upgrading(engine: Engine, damage: str) -> None:
    """The run says which view it is; an upgrade that failed first would say something else."""
    ten_mentors(engine)
    with engine.begin() as connection:
        connection.execute(text(damage))
    upgrade(engine)
    assert failed_run(engine).startswith("the view scenario.source_certifications ")
