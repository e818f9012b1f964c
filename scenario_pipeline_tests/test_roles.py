"""Who may do what in the database: three roles, row-level security, and the two ways past it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from alembic import command
from sqlalchemy import (
    ColumnElement,
    Date,
    Engine,
    FromClause,
    Integer,
    PickleType,
    Text,
    cast,
    event,
    func,
    literal,
    literal_column,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import ProgrammingError

from scenario_pipeline.engines.statement import function_name
from scenario_pipeline.errors import SystemicError
from scenario_pipeline.installation import upgrade
from scenario_pipeline.records import parse_date
from scenario_pipeline.scenarios import MatchesOf, Scenario, registry
from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline.storage.source import Access, access_of
from scenario_pipeline_tests import world
from scenario_pipeline_tests.conftest import SCHEDULERS, as_scheduler
from scenario_pipeline_tests.test_cli import EXPECTED
from scenario_pipeline_tests.test_scheduler_job import stranger_accepts, ten_mentors
from scenario_pipeline_tests.world import D, Log

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


LEDGER = {
    "scheduler_runs": {"SELECT", "INSERT", "UPDATE"},
    "scheduler_run_pages": {"SELECT", "INSERT", "UPDATE"},
    "trigger_engine_replies": {"SELECT", "INSERT", "UPDATE"},
    "scenario_notifications": {"SELECT", "INSERT"},
    "scheduler_run_requests": {"SELECT", "UPDATE(invocation_id,refusal)"},
    "scenario_evaluation_config": {"SELECT", "UPDATE(last_evaluated_at,last_evaluated_count)"},
    "alembic_version": {"SELECT"},
}
SOURCE = {
    "source_organisations": {"SELECT"},
    "source_mentors": {"SELECT"},
    "source_activities": {"SELECT"},
    "source_certifications": {"SELECT"},
    "organisations": {"SELECT"},
    "peer_mentors": {"SELECT(chapter_id,id,joined_on,locale,notifications_opt_out,organisation_id,status)"},
    "mentor_activities": {"SELECT"},
    "mentor_certifications": {"SELECT"},
}
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
    """Whoever looks at numbers needs no people."""
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


def test_an_operator_of_the_callers_does_not_decide_what_a_function_reads(engine: Engine) -> None:
    """`id = ANY (...)` means the equality of Postgres, whatever the session of the caller looks up first."""
    mentor_ids = ten_mentors(engine)
    with engine.begin() as connection:
        for statement in (
            "CREATE SCHEMA evil",
            "CREATE FUNCTION evil.yes(uuid, uuid) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true'",
            "CREATE OPERATOR evil.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = evil.yes)",
            "GRANT USAGE ON SCHEMA evil TO PUBLIC",
        ):
            connection.execute(text(statement))
    asked = text("SELECT count(*) FROM scenario.mentors_of(CAST(:ids AS uuid[]))")
    counted = []
    for unpin in (None, "ALTER FUNCTION scenario.mentors_of RESET search_path"):
        with engine.begin() as connection:
            if unpin is not None:
                connection.execute(text(unpin))
            connection.execute(text("SET LOCAL ROLE held_back"))
            connection.execute(text("SET LOCAL search_path = evil, pg_catalog"))
            counted.append(connection.execute(asked, {"ids": mentor_ids[:1]}).scalar_one())
    # The negative twin: without the pin it reads all thirteen.
    assert counted == [1, 13]


@pytest.mark.parametrize(("way", "access"), [("bypassrls", Access.VIEWS), ("functions", Access.FUNCTIONS)])
def test_both_ways_see_the_whole_community(community_url: str, way: str, access: Access) -> None:
    """Whoever may not pass row-level security must dispatch exactly what everybody else would."""
    engine = database.connect(as_scheduler(community_url, way))
    try:
        with engine.connect() as connection:
            assert access_of(connection) is access
        for evaluation_date, expected in EXPECTED.items():
            date = parse_date(evaluation_date)
            assert date is not None
            report = world.run_invocation(engine, world.make_request(date))
            stats = report.stats
            found = (report.total_active_mentors, stats.dispatched_by_scenario, stats.suppressed_by_reason)
            assert found == expected
    finally:
        engine.dispose()


@pytest.fixture
def kept_out(engine: Engine, database_url: str) -> Iterator[Engine]:
    """A role with every grant of the scheduler, that neither passes policies nor may call the functions."""
    role = f"kept_out_{uuid.uuid4().hex[:8]}"
    with engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'"))
        connection.execute(text(f"GRANT USAGE ON SCHEMA scenario TO {role}"))
        for relation, rights in (SOURCE | LEDGER).items():
            for right in rights:
                connection.execute(text(f"GRANT {right} ON scenario.{relation} TO {role}"))
    url = make_url(database_url).set(username=role, password="secret").render_as_string(hide_password=False)
    limited = database.connect(url)
    yield limited
    limited.dispose()
    with engine.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role}; DROP ROLE {role}"))


def failed_run(engine: Engine) -> str:
    """Run, expect a failure of the whole run with a closed log, and return what it says."""
    log = Log()
    with pytest.raises(SystemicError) as caught:
        world.run_invocation(engine, log=log)
    assert [entry["event"] for entry in log.entries] == [
        "scheduler_run_started",
        "scheduler_run_failed",
        "scheduler_run_completed",
    ]
    assert log.entries[-1]["completed"] is False
    stranger_accepts("".join(json.dumps(entry) + "\n" for entry in log.entries))
    return caught.value.info.error_message


def test_rows_that_a_policy_hides_are_a_failure_and_not_an_empty_run(engine: Engine, kept_out: Engine) -> None:
    """ "Completed, 0 mentors" would go unnoticed for as long as nobody misses a message."""
    ten_mentors(engine)
    assert failed_run(kept_out).startswith("SQLSTATE 42501 insufficient_privilege: query would be affected by row-")
    # The negative twin: with the policies out of the way the same role evaluates everybody.
    with engine.begin() as connection:
        for table in ("organisations", "peer_mentors", "mentor_activities", "mentor_certifications"):
            connection.execute(text(f"ALTER TABLE scenario.{table} DISABLE ROW LEVEL SECURITY"))
    assert world.run_invocation(kept_out).stats.total_evaluated == 10


def test_no_option_of_the_url_lets_a_policy_hide_rows(engine: Engine, kept_out: Engine) -> None:
    """`row_security = on` is Postgres' own default, and an option that somebody might set."""
    ten_mentors(engine)
    url = kept_out.url.set(drivername="postgresql").render_as_string(hide_password=False)
    hidden = database.connect(f"{url}?options=-c%20row_security%3Don")
    assert failed_run(hidden).startswith("SQLSTATE 42501 insufficient_privilege: query would be affected by row-")
    hidden.dispose()


def test_a_session_whose_row_security_is_on_all_the_same_is_refused(engine: Engine, kept_out: Engine) -> None:
    """A pooler that drops the options of a session would bring the empty run back."""
    ten_mentors(engine)

    def as_a_pooler_would(connection: psycopg.Connection[Any], _record: object) -> None:
        connection.execute("SET row_security = on")
        connection.commit()

    event.listen(kept_out, "connect", as_a_pooler_would)
    assert failed_run(kept_out) == (
        "row_security is on in this session, which was started with off: where a pooler has dropped the options of a "
        "session, run ALTER ROLE ... SET row_security = off"
    )


@pytest.mark.parametrize("way", SCHEDULERS)
@pytest.mark.parametrize(
    "more", ["JOIN generate_series(1, 2) ON true", "UNION ALL SELECT NULL, NULL, 'active', '2000-01-01', false"]
)
def test_a_view_that_has_a_mentor_twice_or_without_id_is_refused(
    engine: Engine, database_url: str, way: str, more: str
) -> None:
    """Counted twice and told once: the numbers would be wrong, and nothing would say so."""
    ten_mentors(engine)
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE OR REPLACE VIEW scenario.source_mentors WITH (security_invoker = true) AS SELECT id, "
                f"organisation_id, status, joined_on, notifications_opt_out FROM scenario.peer_mentors {more}"
            )
        )
    scheduler = database.connect(as_scheduler(database_url, way))
    assert failed_run(scheduler) == (
        "the view scenario.source_mentors has a mentor twice or without id: define the view again"
    )
    scheduler.dispose()


def test_who_may_have_opted_out_is_not_sent_anything(engine: Engine) -> None:
    """A view may not know; then silence is the answer that hurts nobody."""
    ten_mentors(engine)
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE OR REPLACE VIEW scenario.source_mentors WITH (security_invoker = true) AS SELECT id, "
                "organisation_id, status, joined_on, NULL::boolean AS notifications_opt_out FROM scenario.peer_mentors"
            )
        )
    assert world.run_invocation(engine).stats.suppressed_by_reason == {"opted_out": 4}


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


def test_a_policy_that_holds_for_the_owner_as_well_is_a_failure_too(engine: Engine, database_url: str) -> None:
    """FORCE ROW LEVEL SECURITY takes rows from the functions, whose rights are the owner's."""
    ten_mentors(engine)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE scenario.mentor_activities FORCE ROW LEVEL SECURITY"))
    held_back = database.connect(as_scheduler(database_url, "functions"))
    log = Log()
    report = world.run_invocation(held_back, log=log)
    held_back.dispose()
    assert (report.status, report.remaining) == ("failed", 10)
    assert "query would be affected by row-level security policy" in log.entries[-2]["error_message"]


def test_a_function_that_could_leave_out_rows_is_refused(engine: Engine, database_url: str) -> None:
    """Whoever changes it opens the way to an empty run that nobody notices."""
    ten_mentors(engine)
    with engine.begin() as connection:
        connection.execute(text("ALTER FUNCTION scenario.active_mentors SET row_security = on"))
    held_back = database.connect(as_scheduler(database_url, "functions"))
    sentence = "the function scenario.active_mentors has row_security on: run scenario-pipeline doctor"
    assert failed_run(held_back) == sentence
    held_back.dispose()


def test_a_function_of_another_release_is_refused_before_anything_is_evaluated(
    engine: Engine, database_url: str
) -> None:
    """A rule that was changed in the code and not in the database would go on deciding by the old one."""
    ten_mentors(engine)
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE OR REPLACE FUNCTION scenario.due_milestone(mentor_ids uuid[], evaluation_date date) "
                "RETURNS TABLE (user_id uuid, threshold int, crossed_on date, dedup_key text) LANGUAGE sql STABLE "
                "SECURITY DEFINER SET search_path = pg_catalog, pg_temp "
                "AS 'SELECT NULL::uuid, 1, NULL::date, NULL WHERE false'"
            )
        )
    held_back = database.connect(as_scheduler(database_url, "functions"))
    sentence = "the function of the scenario milestone is not this release's: run scenario-pipeline db upgrade"
    assert failed_run(held_back) == sentence
    upgrade(engine)
    assert world.run_invocation(held_back).status == "completed"
    held_back.dispose()


ROWS_OF = """
    SELECT (SELECT count(*) FROM scenario.organisations), (SELECT count(*) FROM scenario.peer_mentors),
        (SELECT count(*) FROM scenario.mentor_activities), (SELECT count(*) FROM scenario.mentor_certifications),
        (SELECT count(*) FROM scenario.source_mentors)"""


@pytest.fixture
def app_user(engine: Engine) -> Iterator[str]:
    """A role of an app that serves two organisations and was granted all of the source."""
    with engine.begin() as connection:
        for n in (1, 2):
            world.insert_organisation(connection, n)
        mentors = [
            world.Mentor(n, organisation=1 if n < 3 else 2, activities=[D] * n, certifications=[("basic", D)])
            for n in range(1, 6)
        ]
        world.insert_mentors(connection, mentors)
        role = f"app_{uuid.uuid4().hex[:8]}"
        connection.execute(text(f"CREATE ROLE {role}"))
        connection.execute(text(f"GRANT USAGE ON SCHEMA scenario TO {role}"))
        tables = "organisations, peer_mentors, mentor_activities, mentor_certifications, source_mentors"
        for table in tables.split(", "):
            connection.execute(text(f"GRANT SELECT, INSERT, UPDATE, DELETE ON scenario.{table} TO {role}"))
    yield role
    with engine.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role}; DROP ROLE {role}"))


@pytest.mark.parametrize(
    ("organisation", "rows"),
    [(world.organisation_id(1), (1, 2, 3, 2, 2)), (world.organisation_id(2), (1, 3, 12, 3, 3)), ("", (0, 0, 0, 0, 0))],
    ids=["the first", "the second", "none"],
)
def test_a_user_of_an_app_sees_one_organisation(
    engine: Engine, app_user: str, organisation: str, rows: tuple[int, ...]
) -> None:
    """One organisation's volunteers are nobody else's business, nor is the view a way around it."""
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL ROLE {app_user}; SET LOCAL row_security = on"))
        connection.execute(text("SELECT set_config('scenario.organisation_id', :id, true)"), {"id": organisation})
        assert tuple(connection.execute(text(ROWS_OF)).one()) == rows


def test_a_user_of_an_app_changes_one_organisation_only(engine: Engine, app_user: str) -> None:
    """What cannot be seen cannot be changed, and nobody is moved to another organisation."""
    with engine.connect() as connection:
        connection.execute(text(f"SET LOCAL ROLE {app_user}; SET LOCAL row_security = on"))
        connection.execute(text(f"SET LOCAL scenario.organisation_id = '{world.organisation_id(1)}'"))
        assert connection.execute(text("UPDATE scenario.peer_mentors SET status = 'paused'")).rowcount == 2
        assert connection.execute(text("DELETE FROM scenario.mentor_activities")).rowcount == 3
        with pytest.raises(ProgrammingError, match="new row violates row-level security policy"):
            connection.execute(
                text("UPDATE scenario.peer_mentors SET organisation_id = :other"), {"other": world.organisation_id(2)}
            )


def test_the_reader_sees_the_names_of_all_organisations(engine: Engine, app_user: str) -> None:
    """A report by organisation needs their names, whatever the session works for."""
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL ROLE scenario_reader; SET LOCAL row_security = on"))
        assert connection.execute(text("SELECT count(*) FROM scenario.source_organisations")).scalar_one() == 2


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
        world.insert_organisation(connection)
        world.insert_mentor(connection)
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
        assert world.run_invocation(engine).stats.total_evaluated == 1
    assert world.run_invocation(administrator).stats.total_evaluated == 1
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
    assert world.run_invocation(scheduler).stats.total_evaluated == 1
    administrator.dispose()
    scheduler.dispose()


def test_a_configuration_may_be_for_an_organisation_of_a_users_own_table(engine: Engine) -> None:
    """Whoever defines the views over tables of their own has no rows in ours."""
    with engine.begin() as connection:
        world.configure(connection, "milestone", organisation=7)


def odd(threshold: Any) -> MatchesOf:
    """Return a rule whose SQL is full of signs that mean something to a driver, or to the text of a function."""

    def matches(page: FromClause, configuration: FromClause, evaluation_date: Any) -> Any:
        says: ColumnElement[str] = literal_column("'a':: text || '%(x)s' || ':name' || $q$%$q$ || '\\d' || chr(39)")
        due = func.mod(func.length(says), 2) >= 0
        return (
            select(
                page.c.user_id,
                threshold.label("threshold"),
                cast(evaluation_date, Date).label("crossed_on"),
                cast(literal("100 % :sure"), Text).label("dedup_key"),
            )
            .join(configuration, configuration.c.organisation_id == page.c.organisation_id)
            .where(due)
        )

    return matches


@pytest.mark.parametrize("name", ["page", "a" * 63, "user"])
@pytest.mark.parametrize("way", SCHEDULERS)
def test_any_name_of_a_scenario_is_its_own(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch, way: str, name: str
) -> None:
    """A scenario may be called as a part of the statement is, or as long as it is allowed to be."""
    scenario = Scenario(name, "Odd.", (1,), 7, 1, odd(cast(literal(7), Integer)))
    monkeypatch.setattr("scenario_pipeline.engines.statement.registry", lambda: {name: scenario})
    monkeypatch.setattr("scenario_pipeline.installation.registry", lambda: {name: scenario})
    ten_mentors(engine)
    upgrade(engine)
    scheduler = database.connect(as_scheduler(database_url, way))
    report = world.run_invocation(scheduler, world.make_request(scenario_types=[name]))
    scheduler.dispose()
    assert report.stats.dispatched_by_scenario == {name: 9}


@pytest.mark.parametrize("way", SCHEDULERS)
def test_any_sql_of_a_scenario_is_the_same_in_a_function(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A rule from another package must not depend on how the scheduler gets past row-level security."""
    scenario = Scenario("odd", "Odd.", (1,), 7, 1, odd(cast(literal(7), Integer)))
    monkeypatch.setattr("scenario_pipeline.engines.statement.registry", lambda: {"odd": scenario})
    monkeypatch.setattr("scenario_pipeline.installation.registry", lambda: {"odd": scenario})
    ten_mentors(engine)
    upgrade(engine)
    scheduler = database.connect(as_scheduler(database_url, way))
    report = world.run_invocation(scheduler, world.make_request(scenario_types=["odd"]))
    scheduler.dispose()
    assert (report.status, report.stats.dispatched_by_scenario) == ("completed", {"odd": 9})
    assert {(row[4], row[5]) for row in world.sent(engine)} == {("100 % :sure", 7)}


def test_a_scenario_that_cannot_be_a_function_needs_a_role_that_passes_policies(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not keep anybody from upgrading, and says what it needs where it is needed."""
    # A value of this kind has no literal in SQL.
    value = cast(func.octet_length(literal("seven", PickleType)), Integer)
    scenario = Scenario("odd", "Odd.", (1,), 7, 1, odd(value))
    monkeypatch.setattr("scenario_pipeline.engines.statement.registry", lambda: {"odd": scenario})
    monkeypatch.setattr("scenario_pipeline.installation.registry", lambda: {"odd": scenario})
    ten_mentors(engine)
    upgrade(engine)
    request = world.make_request(scenario_types=["odd"])
    held_back, scheduler = (database.connect(as_scheduler(database_url, way)) for way in ("functions", "bypassrls"))
    with pytest.raises(SystemicError) as caught:
        world.run_invocation(held_back, request)
    assert caught.value.info.error_message == (
        "the scenario odd cannot be a function: run ALTER ROLE scenario_scheduler BYPASSRLS"
    )
    assert world.run_invocation(scheduler, request).stats.dispatched_by_scenario == {"odd": 9}
    held_back.dispose()
    scheduler.dispose()


def test_a_name_too_long_for_postgres_is_shortened_to_one_of_its_own() -> None:
    """Two scenarios whose functions had one name would decide for each other."""
    names = [f"{'a' * 62}{last}" for last in "bc"]
    shortened = [function_name(name) for name in names]
    assert len({*shortened}) == 2
    assert all(len(name) == 63 for name in shortened)
    assert function_name("milestone") == "due_milestone"


def test_the_ways_that_the_tests_know_are_those_of_the_code() -> None:
    """A third way would be tested by nobody."""
    assert len(SCHEDULERS) == len(Access)
