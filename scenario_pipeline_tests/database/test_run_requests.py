"""Runs asked for in SQL, within bounds: a clock gone wild holds nobody up."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine

from scenario_pipeline_tests.support.people import insert_organisation, organisation_id
from scenario_pipeline_tests.support.waiting import wait_until_blocked

FIRST_TOMORROW = "(now() AT TIME ZONE 'UTC' + interval '14 hours')::date"


def ask(connection: psycopg.Connection[Any], arguments: str = "") -> str:
    row = connection.execute(f"SELECT scenario.request_scheduler_run({arguments})::text".encode()).fetchone()
    assert row is not None
    return str(row[0])


def requests(connection: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT scenario_types, organisation_ids::text[] FROM scenario.scheduler_run_requests ORDER BY requested_at"
    ).fetchall()


def test_a_clock_that_asks_without_end_asks_once(database_url: str) -> None:
    """A loop in somebody's cron entry must not keep every other run of the day waiting."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SELECT scenario.request_scheduler_run('2026-08-01') FROM generate_series(1, 20000)")
        assert requests(connection) == [([], [])]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("'2026-08-01'", "'2026-08-01', '{}', '{}', 'auto'"),
        ("scenario_types => '{milestone,inactivity}'", "scenario_types => '{inactivity,milestone,inactivity}'"),
        (
            f"organisation_ids => '{{{organisation_id(1)},{organisation_id(2)}}}'",
            f"organisation_ids => '[5:7]={{{organisation_id(2)},{organisation_id(1)},{organisation_id(1)}}}'",
        ),
    ],
)
def test_an_equal_request_that_waits_is_returned(database_url: str, engine: Engine, first: str, second: str) -> None:
    """Whoever asked gets an id that a run will come of, and nobody's run is made twice."""
    with engine.begin() as connection:
        insert_organisation(connection, 1)
        insert_organisation(connection, 2)
    with psycopg.connect(database_url, autocommit=True) as clock:
        assert ask(clock, first) == ask(clock, second)


@pytest.mark.parametrize(
    "other",
    [
        "'2026-08-02', '{inactivity}', dispatch_mode => 'dry_run'",
        "'2026-08-01', '{milestone}', dispatch_mode => 'dry_run'",
        "'2026-08-01', '{inactivity}', dispatch_mode => 'auto'",
        f"'2026-08-01', '{{inactivity}}', '{{{organisation_id()}}}', 'dry_run'",
        "NULL, '{inactivity}', dispatch_mode => 'dry_run'",
    ],
)
def test_a_request_that_differs_is_a_request_of_its_own(database_url: str, engine: Engine, other: str) -> None:
    """The negative twin: nobody's request may be swallowed by another's."""
    with engine.begin() as connection:
        insert_organisation(connection)
    with psycopg.connect(database_url, autocommit=True) as clock:
        assert ask(clock, "'2026-08-01', '{inactivity}', dispatch_mode => 'dry_run'") != ask(clock, other)


@pytest.mark.parametrize("closed", ["invocation_id = gen_random_uuid()", "refusal = 'no'"])
def test_a_request_that_had_its_run_is_not_returned_again(database_url: str, closed: str) -> None:
    """The clock of the next hour means the next hour's run."""
    with psycopg.connect(database_url, autocommit=True) as clock:
        first = ask(clock, "'2026-08-01'")
        clock.execute(f"UPDATE scenario.scheduler_run_requests SET {closed}".encode())
        assert ask(clock, "'2026-08-01'") != first


def test_requests_without_a_date_are_equal_within_a_quarter_of_an_hour(database_url: str) -> None:
    """The server does not know in which time zone a day begins, but none begins within one."""
    with psycopg.connect(database_url, autocommit=True) as clock:
        # Three moments are in two quarters at most.
        assert len({ask(clock) for _ in range(3)}) <= 2


def test_yesterdays_request_without_a_date_is_not_todays(database_url: str) -> None:
    """It means the date on which it was made, and both days' runs are owed."""
    with psycopg.connect(database_url, autocommit=True) as clock:
        first = ask(clock)
        clock.execute("UPDATE scenario.scheduler_run_requests SET requested_at = requested_at - interval '15 minutes'")
        assert ask(clock) != first


def test_two_sessions_that_ask_for_the_same_at_once_get_one_request(database_url: str, engine: Engine) -> None:
    """Two servers with the same entry are the usual way to have two clocks."""
    asked: list[str] = []
    with psycopg.connect(database_url) as first, psycopg.connect(database_url) as second:
        asked.append(ask(first, "'2026-08-01'"))
        thread = threading.Thread(target=lambda: asked.append(ask(second, "'2026-08-01'")))
        thread.start()
        with psycopg.connect(database_url, autocommit=True) as other:
            # Another question waits for nobody.
            ask(other, "'2026-08-02'")
            wait_until_blocked(engine)
        first.commit()
        thread.join()
        second.commit()
        assert len(set(asked)) == 1
        assert len(requests(first)) == 2


def test_requests_that_nobody_launches_come_to_an_end(database_url: str) -> None:
    """A sensor that is off must be noticed by whoever asks, and a queue without end delays what comes later."""
    with psycopg.connect(database_url, autocommit=True) as clock:
        ask_for_days = "SELECT scenario.request_scheduler_run('2020-01-01'::date + n) FROM generate_series(1, %s) AS n"
        clock.execute(ask_for_days, [1000])
        with pytest.raises(psycopg.errors.ConfigurationLimitExceeded) as caught:
            ask(clock, "'2026-08-01'")
        assert caught.value.diag.message_primary == "1000 requests wait for their runs, and no more are taken"
        assert "pg_cron_requests" in str(caught.value.diag.message_hint)
        # What is asked for already may be asked for again.
        clock.execute(ask_for_days, [1000])
        clock.execute("UPDATE scenario.scheduler_run_requests SET refusal = 'no' WHERE evaluation_date = '2020-01-02'")
        ask(clock, "'2026-08-01'")
        assert len(requests(clock)) == 1001


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("scenario_types => array_fill('inactivity'::text, '{200000}')", "scenario_types has 200000 entries and may"),
        ("scenario_types => array_fill('inactivity'::text, '{65}')", "scenario_types has 65 entries and may have 64:"),
        (
            "organisation_ids => array_fill(gen_random_uuid(), '{1001}')",
            "organisation_ids has 1001 entries and may have 1000:",
        ),
        (f"{FIRST_TOMORROW} + 1, dispatch_mode => 'live'", "which is after today, is refused: ask for auto or dry_run"),
        ("'9999-12-31', dispatch_mode => 'live'", "a live run for 9999-12-31, which is after today, is refused"),
        ("'1970-01-01', dispatch_mode => 'live'", "a live run for a date up to 1970-01-01 is refused"),
        ("'0001-01-01', dispatch_mode => 'live'", "a live run for a date up to 1970-01-01 is refused"),
    ],
)
def test_what_is_out_of_bounds_is_refused_where_it_is_asked_for(
    database_url: str, arguments: str, sentence: str
) -> None:
    """pg_cron shows the sentence in its own table; nothing is kept of such a request."""
    with psycopg.connect(database_url, autocommit=True) as clock:
        with pytest.raises(psycopg.Error, match=sentence):
            ask(clock, arguments)
        assert requests(clock) == []


def test_a_refusal_quotes_no_more_than_a_line_of_what_was_asked_for(database_url: str) -> None:
    """A megabyte of nonsense must not stand in the server's log."""
    with psycopg.connect(database_url, autocommit=True) as clock, pytest.raises(psycopg.Error) as caught:
        ask(clock, "scenario_types => ARRAY[repeat('x', 1000000)]")
    assert len(str(caught.value.diag.message_primary)) < 250


@pytest.mark.parametrize(
    "arguments",
    [
        f"{FIRST_TOMORROW}, dispatch_mode => 'live'",
        f"{FIRST_TOMORROW} + 1, dispatch_mode => 'dry_run'",
        "'1970-01-02', dispatch_mode => 'live'",
        "'1970-01-01', dispatch_mode => 'auto'",
        "scenario_types => array_fill('inactivity'::text, '{64}')",
        f"organisation_ids => array_fill('{organisation_id()}'::uuid, '{{1000}}')",
    ],
)
def test_what_is_just_within_bounds_is_taken(database_url: str, engine: Engine, arguments: str) -> None:
    """The negative twin; repeats are not kept."""
    with engine.begin() as connection:
        insert_organisation(connection)
    with psycopg.connect(database_url, autocommit=True) as clock:
        ask(clock, arguments)
        [(scenario_types, organisation_ids)] = requests(clock)
    assert (len(scenario_types) <= 1, len(organisation_ids) <= 1) == (True, True)


def test_a_clock_that_never_commits_keeps_others_waiting_for_seconds_only(database_url: str) -> None:
    """A session left open in somebody's editor must not stop the clock in silence."""
    with psycopg.connect(database_url) as connection:
        row = connection.execute(
            "SELECT proconfig FROM pg_proc WHERE oid = 'scenario.request_scheduler_run'::regproc"
        ).fetchone()
    assert row == (["search_path=pg_catalog, pg_temp", "row_security=off", "lock_timeout=10s"],)
