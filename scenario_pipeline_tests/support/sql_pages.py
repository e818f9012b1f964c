"""Pages of the `sql` engine over quiet mentors, and what they come to.

Belongs here: what several files about the `sql` engine share. Does not belong here: a promise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from scenario_pipeline.batch_stats import BatchStats
from scenario_pipeline.engines.sql import Evaluation
from scenario_pipeline.errors import ErrorInfo, SystemicError
from scenario_pipeline.records import PageResult
from scenario_pipeline.storage.ledger.pages import claim_page, complete_page
from scenario_pipeline.time_budget import TimeBudget
from scenario_pipeline_tests.support.invariants import Notification, number_of_pages, sent
from scenario_pipeline_tests.support.people import DAY, FIRST_WINDOW, D, new_invocation_id, organisation_id
from scenario_pipeline_tests.support.runs import Log, PageOfRun, open_run, run_page

QUIET = D - 30 * DAY
"""A last activity so long ago that `inactivity` is due on D, with the threshold 30."""
INACTIVITY = ["inactivity"]


def outcomes(engine: Engine, page: PageOfRun, **options: Any) -> dict[str, int]:
    """Run a page; return its matches by outcome."""
    stats = run_page(engine, page, **options).stats
    return {**stats.suppressed_by_reason, **({"dispatched": stats.total_dispatched} if stats.total_dispatched else {})}


def dispatched_on_d(mentor: str) -> Notification:
    """Return the notification that a mentor of `quiet_mentors` gets on D."""
    return (mentor, "inactivity", D, FIRST_WINDOW, "2024-03-01:30", 30, D)


def all_dispatched(n: int) -> PageResult:
    """Return what a page of `quiet_mentors` comes to."""
    return PageResult(
        BatchStats({organisation_id(): n}, {(organisation_id(), "inactivity", "dispatched"): n}, pages_processed=1)
    )


@contextlib.contextmanager
def held_open(engine: Engine, page: PageOfRun) -> Iterator[None]:
    """Evaluate a page and hold its transaction open for as long as the block runs, then commit."""
    invocation_id = new_invocation_id()
    with engine.begin() as connection:
        open_run(connection, page.order, invocation_id)
    with engine.begin() as connection:
        assert claim_page(connection, page, invocation_id) is None
        result = Evaluation(connection, page.order, page.mentor_ids, invocation_id, TimeBudget.start(60)).run()
        complete_page(connection, page, invocation_id, result)
        yield


@contextlib.contextmanager
def locked(engine: Engine, table: str = "mentor_activities") -> Iterator[None]:
    """Hold a table so that nobody else can read it."""
    with engine.begin() as connection:
        connection.execute(text(f"LOCK TABLE scenario.{table} IN ACCESS EXCLUSIVE MODE"))
        yield


def make_poisonous(connection: Connection, mentors: Sequence[str], *, errcode: str = "P0001") -> None:
    """Let the database refuse notifications of these mentors, with a message that quotes the row."""
    connection.execute(text("CREATE TABLE scenario.poison (user_id uuid PRIMARY KEY)"))
    for mentor in mentors:
        connection.execute(text("INSERT INTO scenario.poison VALUES (:id)"), {"id": mentor})
    connection.exec_driver_sql(
        f"""
        CREATE FUNCTION scenario.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF EXISTS (SELECT FROM scenario.poison p WHERE p.user_id = NEW.user_id) THEN
                RAISE EXCEPTION USING ERRCODE = '{errcode}', MESSAGE = 'refused: ' || NEW.user_id,
                    DETAIL = NEW.user_id, HINT = NEW.dedup_key;
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON scenario.scenario_notifications
            FOR EACH ROW EXECUTE FUNCTION scenario.refuse();
        """
    )


def refused(engine: Engine, page: PageOfRun, **options: Any) -> ErrorInfo:
    """Run a page that must fail as a whole; check that nothing of it was committed, and return the failure."""
    before = sent(engine)
    with pytest.raises(SystemicError) as caught:
        run_page(engine, page, **options)
    assert sent(engine) == before
    assert number_of_pages(engine) == 0
    return caught.value.info


def retries(log: Log) -> list[tuple[int, int, str]]:
    """Return page, attempt and type of every entry about a repeated page."""
    assert {entry["event"] for entry in log.entries} <= {"trigger_engine_page_retried"}
    return [(entry["page_number"], entry["attempt"], entry["error_type"]) for entry in log.entries]
