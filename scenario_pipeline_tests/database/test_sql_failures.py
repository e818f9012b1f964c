"""Failures of a whole page of the `sql` engine: which fail the run, and which are worth another try."""

from __future__ import annotations

import socket
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.engine import make_url

from scenario_pipeline.engines.sql import MAX_ATTEMPTS
from scenario_pipeline.errors import ErrorInfo, ErrorType, SystemicError
from scenario_pipeline.storage import database
from scenario_pipeline.storage.ledger.pages import claim_page
from scenario_pipeline.time_budget import TimeBudget
from scenario_pipeline_tests.support.invariants import consistent, number_of_pages, sent
from scenario_pipeline_tests.support.people import D, insert_notification, new_invocation_id, quiet_mentors
from scenario_pipeline_tests.support.runs import Log, make_page, open_run, run_page
from scenario_pipeline_tests.support.sql_pages import all_dispatched, dispatched_on_d, locked, refused, retries
from scenario_pipeline_tests.support.waiting import wait_until_blocked


@pytest.mark.parametrize(
    ("damage", "state"),
    [
        ("ALTER VIEW scenario.source_activities RENAME TO gone", "42P01 undefined_table"),
        ("ALTER TABLE scenario.scenario_notifications RENAME TO gone", "42P01 undefined_table"),
        ("ALTER VIEW scenario.source_activities RENAME COLUMN activity_date TO gone", "42703 undefined_column"),
    ],
)
def test_a_missing_table_or_column_fails_the_run_and_no_mentor(engine: Engine, damage: str, state: str) -> None:
    """A thousand mentor errors would hide that one migration is missing."""
    mentors = quiet_mentors(engine, 3, opted_out=())
    with engine.begin() as connection:
        connection.execute(text(damage))
        before = connection.execute(text("SELECT count(*) FROM scenario.scheduler_run_pages")).scalar_one()

    with pytest.raises(SystemicError) as caught:
        run_page(engine, make_page(mentors))

    assert caught.value.info.error_type is ErrorType.DATABASE
    assert caught.value.info.error_message.startswith(f"SQLSTATE {state}: ")
    assert number_of_pages(engine) == before == 0


@pytest.mark.parametrize("kept", ["SELECT", "SELECT, INSERT"])
def test_a_missing_permission_fails_the_run_and_no_mentor(engine: Engine, database_url: str, kept: str) -> None:
    """The negative twin is the second case: with the permission the same role evaluates the page."""
    mentors = quiet_mentors(engine, 3, opted_out=())
    role = f"limited_{uuid.uuid4().hex}"
    with engine.begin() as connection:
        for statement in (
            f"CREATE ROLE {role} LOGIN BYPASSRLS PASSWORD 'secret'",
            f"GRANT USAGE ON SCHEMA scenario TO {role}",
            f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA scenario TO {role}",
            f"REVOKE INSERT, UPDATE ON scenario.scenario_notifications FROM {role}",
            f"GRANT {kept} ON scenario.scenario_notifications TO {role}",
        ):
            connection.execute(text(statement))
    url = make_url(database_url).set(username=role, password="secret").render_as_string(hide_password=False)
    limited = database.connect(url)
    try:
        if kept == "SELECT":
            failure = refused(engine, make_page(mentors), evaluate_with=limited)
            assert failure == ErrorInfo(
                ErrorType.DATABASE,
                "SQLSTATE 42501 insufficient_privilege: permission denied for table scenario_notifications",
                "42501",
            )
        else:
            assert run_page(engine, make_page(mentors), evaluate_with=limited) == all_dispatched(3)
    finally:
        limited.dispose()
        with engine.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))


def test_a_statement_that_an_operator_cancels_fails_the_run_and_commits_nothing(
    engine: Engine, database_url: str
) -> None:
    """It is neither a mentor's fault nor the end of the budget."""
    mentors = quiet_mentors(engine, 3, opted_out=())
    other = database.connect(database_url)
    with ThreadPoolExecutor(1) as pool:
        with locked(engine):
            future = pool.submit(run_page, other, make_page(mentors))
            (pid,) = wait_until_blocked(other)
            with other.connect() as connection:
                connection.execute(text("SELECT pg_cancel_backend(:pid)"), {"pid": pid})
            error = future.exception(timeout=60)
        assert isinstance(error, SystemicError)
        assert (error.info.error_type, error.info.sqlstate) == (ErrorType.TIMEOUT, "57014")
        assert (sent(engine), number_of_pages(engine)) == ([], 0)
        assert run_page(other, make_page(mentors)) == all_dispatched(3)
    other.dispose()
    consistent(engine)


def test_a_page_whose_connection_an_operator_ends_is_begun_again(engine: Engine, database_url: str) -> None:
    """One lost connection used to end the run, with most of its budget left."""
    mentors = quiet_mentors(engine, 3)
    other, log = database.connect(database_url), Log()
    with ThreadPoolExecutor(1) as pool:
        with locked(engine):
            future = pool.submit(run_page, other, make_page(mentors), log=log)
            (pid,) = wait_until_blocked(other)
            with other.connect() as connection:
                connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        assert future.result(timeout=60) == all_dispatched(3)
    [retried] = log.entries
    assert (retried["event"], retried["error_type"]) == ("trigger_engine_page_retried", "network_error")
    other.dispose()
    consistent(engine)


def test_a_server_that_cannot_be_reached_fails_the_run(engine: Engine) -> None:
    """The closing events name the network and not the mentors."""
    mentors = quiet_mentors(engine, 1, opted_out=())
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    unreachable = database.connect(f"postgresql://scenario@127.0.0.1:{port}/scenario")

    failure = refused(engine, make_page(mentors), evaluate_with=unreachable, budget=TimeBudget.start(1))

    assert failure == ErrorInfo(ErrorType.NETWORK, "the connection to the database was refused or lost")


def fail_the_first(connection: Connection, times: int, errcode: str) -> None:
    """Let the first notifications fail; a sequence counts them, since it is not rolled back."""
    connection.exec_driver_sql(
        f"""
        CREATE SEQUENCE scenario.attempts;
        CREATE FUNCTION scenario.fail() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF nextval('scenario.attempts') <= {times} THEN
                RAISE EXCEPTION USING ERRCODE = '{errcode}', MESSAGE = 'try again';
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER fail BEFORE INSERT ON scenario.scenario_notifications
            FOR EACH ROW EXECUTE FUNCTION scenario.fail();
        """
    )


@pytest.mark.parametrize(("errcode", "name"), [("40P01", "deadlock_detected"), ("40001", "serialization_failure")])
@pytest.mark.parametrize("times", [1, MAX_ATTEMPTS - 1, MAX_ATTEMPTS])
def test_a_page_is_repeated_after_a_deadlock_or_serialization_failure_but_not_for_ever(
    engine: Engine, errcode: str, name: str, times: int
) -> None:
    """The victim of a deadlock did nothing wrong; a database that always answers so is broken."""
    mentors = quiet_mentors(engine, 3, opted_out=())
    with engine.begin() as connection:
        fail_the_first(connection, times, errcode)
    log, page = Log(), make_page(mentors, number=5)

    if times < MAX_ATTEMPTS:
        assert run_page(engine, page, log=log) == all_dispatched(3)
        assert sent(engine) == [dispatched_on_d(mentor) for mentor in mentors]
    else:
        failure = refused(engine, page, log=log)
        assert failure == ErrorInfo(ErrorType.DATABASE, f"SQLSTATE {errcode} {name}: try again", errcode)

    attempts = range(1, min(times, MAX_ATTEMPTS - 1) + 1)
    assert retries(log) == [(5, attempt, "database_error") for attempt in attempts]
    consistent(engine)


def test_a_real_deadlock_is_survived(engine: Engine, database_url: str) -> None:
    """Another program that writes in another order must not end the run."""
    (mentor,) = quiet_mentors(engine, 1, opted_out=())
    page, invocation_id, log = make_page([mentor]), new_invocation_id(), Log()
    with engine.begin() as connection:
        open_run(connection, page.order, invocation_id)
        # The page's backend looks for a deadlock at once, the stranger's never: so the page is the victim.
        connection.execute(text(f"ALTER DATABASE {make_url(database_url).database} SET deadlock_timeout = 1"))
    victim, stranger = database.connect(database_url), database.connect(database_url)
    with ThreadPoolExecutor(2) as pool, stranger.connect() as connection:
        connection.execute(text("SET deadlock_timeout = '1h'"))
        insert_notification(connection, mentor, D)
        with locked(engine):
            running = pool.submit(run_page, victim, page, invocation_id=invocation_id, log=log)
            wait_until_blocked(victim)
            # The page holds its row in the ledger and waits for the activities.
            claim = pool.submit(claim_page, connection, page, invocation_id)
            wait_until_blocked(victim, 2)
        assert claim.result(timeout=60) is None
        connection.rollback()
        result = running.result(timeout=60)
    victim.dispose()
    stranger.dispose()

    assert result == all_dispatched(1)
    # The page may be back before the stranger has woken up, and meet it once more.
    repeated = retries(log)
    assert repeated == [(1, attempt, "database_error") for attempt in range(1, len(repeated) + 1)] != []
    assert sent(engine) == [dispatched_on_d(mentor)]
    consistent(engine)
