"""Row-level security: the two ways past it, rows that it hides, and users of an app."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, event, make_url, text
from sqlalchemy.exc import ProgrammingError

from scenario_pipeline.records import parse_date
from scenario_pipeline.storage import database
from scenario_pipeline.storage.source import Access, access_of
from scenario_pipeline_tests.support.installation import EXPECTED
from scenario_pipeline_tests.support.people import (
    D,
    Mentor,
    insert_mentors,
    insert_organisation,
    organisation_id,
    ten_mentors,
)
from scenario_pipeline_tests.support.rights import LEDGER, SOURCE
from scenario_pipeline_tests.support.runs import Log, failed_run, make_request, run_invocation
from scenario_pipeline_tests.support.server import SCHEDULERS, as_scheduler


@pytest.mark.parametrize(("way", "access"), [("bypassrls", Access.VIEWS), ("functions", Access.FUNCTIONS)])
def test_both_ways_see_the_whole_community(community_url: str, way: str, access: Access) -> None:
    """A role that may not pass row-level security must dispatch exactly what any other would."""
    engine = database.connect(as_scheduler(community_url, way))
    try:
        with engine.connect() as connection:
            assert access_of(connection) is access
        for evaluation_date, expected in EXPECTED.items():
            date = parse_date(evaluation_date)
            assert date is not None
            report = run_invocation(engine, make_request(date))
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


def test_rows_that_a_policy_hides_are_a_failure_and_not_an_empty_run(engine: Engine, kept_out: Engine) -> None:
    """ "Completed, 0 mentors" would go unnoticed for as long as nobody misses a message."""
    ten_mentors(engine)
    assert failed_run(kept_out).startswith("SQLSTATE 42501 insufficient_privilege: query would be affected by row-")
    # The negative twin: with the policies out of the way the same role evaluates everybody.
    with engine.begin() as connection:
        for table in ("organisations", "peer_mentors", "mentor_activities", "mentor_certifications"):
            connection.execute(text(f"ALTER TABLE scenario.{table} DISABLE ROW LEVEL SECURITY"))
    assert run_invocation(kept_out).stats.total_evaluated == 10


def test_no_option_of_the_url_lets_a_policy_hide_rows(engine: Engine, kept_out: Engine) -> None:
    """`row_security = on` is Postgres' own default, and an option that somebody might set."""
    ten_mentors(engine)
    url = kept_out.url.update_query_dict({"options": "-c row_security=on"}).set(drivername="postgresql")
    hidden = database.connect(url.render_as_string(hide_password=False))
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
        "row_security is on in this session, which was started with off: connect to the server itself"
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
    assert run_invocation(engine).stats.suppressed_by_reason == {"opted_out": 4}


def test_a_policy_that_holds_for_the_owner_as_well_is_a_failure_too(engine: Engine, database_url: str) -> None:
    """FORCE ROW LEVEL SECURITY takes rows from the functions, whose rights are the owner's."""
    ten_mentors(engine)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE scenario.mentor_activities FORCE ROW LEVEL SECURITY"))
    held_back = database.connect(as_scheduler(database_url, "functions"))
    log = Log()
    report = run_invocation(held_back, log=log)
    held_back.dispose()
    assert (report.status, report.remaining) == ("failed", 10)
    assert "query would be affected by row-level security policy" in log.entries[-2]["error_message"]


ROWS_OF = """
    SELECT (SELECT count(*) FROM scenario.organisations), (SELECT count(*) FROM scenario.peer_mentors),
        (SELECT count(*) FROM scenario.mentor_activities), (SELECT count(*) FROM scenario.mentor_certifications),
        (SELECT count(*) FROM scenario.source_mentors)"""


@pytest.fixture
def app_user(engine: Engine) -> Iterator[str]:
    """A role of an app that serves two organisations and was granted all of the source."""
    with engine.begin() as connection:
        for n in (1, 2):
            insert_organisation(connection, n)
        mentors = [
            Mentor(n, organisation=1 if n < 3 else 2, activities=[D] * n, certifications=[("basic", D)])
            for n in range(1, 6)
        ]
        insert_mentors(connection, mentors)
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
    [(organisation_id(1), (1, 2, 3, 2, 2)), (organisation_id(2), (1, 3, 12, 3, 3)), ("", (0, 0, 0, 0, 0))],
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
        connection.execute(text(f"SET LOCAL scenario.organisation_id = '{organisation_id(1)}'"))
        assert connection.execute(text("UPDATE scenario.peer_mentors SET status = 'paused'")).rowcount == 2
        assert connection.execute(text("DELETE FROM scenario.mentor_activities")).rowcount == 3
        with pytest.raises(ProgrammingError, match="new row violates row-level security policy"):
            connection.execute(
                text("UPDATE scenario.peer_mentors SET organisation_id = :other"), {"other": organisation_id(2)}
            )


def test_the_reader_sees_the_names_of_all_organisations(engine: Engine, app_user: str) -> None:
    """A report by organisation needs their names, whatever the session works for."""
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL ROLE scenario_reader; SET LOCAL row_security = on"))
        assert connection.execute(text("SELECT count(*) FROM scenario.source_organisations")).scalar_one() == 2


def test_the_ways_that_the_tests_know_are_those_of_the_code() -> None:
    """A third way would be tested by nobody."""
    assert len(SCHEDULERS) == len(Access)
