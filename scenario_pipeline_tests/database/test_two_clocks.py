"""Machines whose clocks are wrong: what two processes compare, and who comes next, is the database's to say."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, tzinfo
from typing import Any

import pytest
from sqlalchemy import Engine, text

from scenario_pipeline.invocation import closing, run
from scenario_pipeline.log import logger
from scenario_pipeline.storage.ledger import invocations
from scenario_pipeline.storage.ledger.invocations import join_invocation, resume_position
from scenario_pipeline_tests.support.people import mentor_id, new_invocation_id, ten_mentors
from scenario_pipeline_tests.support.runs import Log, make_request, open_run, run_invocation

CLOCK = text("SELECT clock_timestamp()")


@pytest.fixture(params=[-45, 45], ids=["behind", "ahead"])
def _wrong_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moves this process's wall clock, wherever the package reads it."""
    there = time.time

    class Moved(datetime):
        """A clock that is wrong."""

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Moved:
            return cls.fromtimestamp(time.time(), tz)

    monkeypatch.setattr(time, "time", lambda: there() + request.param)
    for module in (logger, invocations, run, closing):
        monkeypatch.setattr(module, "datetime", Moved, raising=False)


@pytest.mark.usefixtures("_wrong_clock")
def test_the_ledger_has_the_databases_time_whatever_the_machine_shows(engine: Engine) -> None:
    """A machine 45 s ahead wrote runs that ended before they began, and one behind reported a minute for a second."""
    ten_mentors(engine)
    log = Log()
    with engine.connect() as connection:
        before = connection.execute(CLOCK).scalar_one()
    report = run_invocation(engine, log=log)
    with engine.connect() as connection:
        after = connection.execute(CLOCK).scalar_one()
        started, finished = connection.execute(
            text("SELECT started_at, finished_at FROM scenario.scheduler_runs")
        ).one()
    assert report.status == "completed"
    assert before <= started <= finished <= after
    # The log shows the wrong clock, so the fixture moved it.
    stamped = datetime.fromisoformat(log.entries[0]["timestamp"])
    assert not before - timedelta(seconds=20) < stamped < after + timedelta(seconds=20)


@pytest.mark.usefixtures("_wrong_clock")
def test_whoever_joins_an_invocation_has_spent_what_the_database_counted(engine: Engine) -> None:
    """Otherwise a budget of thirty seconds is spent before it begins, or never ends."""
    ten_mentors(engine)
    order, invocation_id = make_request(), new_invocation_id()
    with engine.connect() as connection:
        before = connection.execute(CLOCK).scalar_one()
    with engine.begin() as connection:
        open_run(connection, order, invocation_id)
    with engine.begin() as connection:
        _, spent = join_invocation(connection, invocation_id)
        after = connection.execute(CLOCK).scalar_one()
    assert 0 <= spent <= (after - before).total_seconds()


def test_a_run_from_tomorrow_does_not_decide_who_comes_next(engine: Engine) -> None:
    """After a clock had been a day ahead, six runs evaluated the same mentors, and the others waited for a day."""
    ten_mentors(engine)
    order = make_request()

    def leave(after: int, age: str) -> None:
        """Let the latest invocation have left the mentors after one of them, as if it had begun at another time."""
        with engine.begin() as connection:
            connection.execute(
                text(
                    "UPDATE scenario.scheduler_runs SET status = 'partial', remaining_unprocessed_count = 1, "
                    f"resume_after = :mentor, started_at = now() + interval '{age}' "
                    "WHERE number = (SELECT max(number) FROM scenario.scheduler_runs)"
                ),
                {"mentor": mentor_id(after)},
            )

    def next_after() -> Any:
        with engine.connect() as connection:
            row = connection.execute(resume_position(order)).first()
        return None if row is None else row[0]

    run_invocation(engine, order)
    leave(5, age="1 day")
    assert next_after() == mentor_id(5)
    run_invocation(engine, order)
    leave(8, age="0 s")
    assert next_after() == mentor_id(8)
    run_invocation(engine, order)
    assert next_after() is None
