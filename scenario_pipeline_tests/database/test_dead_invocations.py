"""Closing what a dead process left open: the log becomes whole, whatever of it had been written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import Engine, text

from scenario_pipeline.engines.sql import SqlTriggerEngine
from scenario_pipeline.invocation.closing import close_dead_invocation
from scenario_pipeline.invocation.run import Invocation
from scenario_pipeline_tests.support.invariants import check_invariants
from scenario_pipeline_tests.support.people import mentor_id, new_invocation_id, ten_mentors
from scenario_pipeline_tests.support.runs import Log, make_request
from scenario_pipeline_tests.support.stranger import stranger_accepts
from scenario_pipeline_tests.support.triggers import refuse_notifications_of


@pytest.fixture
def dead(engine: Engine) -> tuple[str, Log]:
    """An invocation whose process died after the first of two pages, with one mentor's error in it, and its log."""
    ten_mentors(engine)
    refuse_notifications_of(engine, [mentor_id(2)])
    invocation_id, log = new_invocation_id(), Log()
    invocation = Invocation(
        make_request(page_size=5),
        invocation_id,
        database=engine,
        trigger_engine=SqlTriggerEngine(engine),
        logger=log.logger(invocation_id),
    )
    invocation.open()
    invocation.evaluate(invocation.plan()[0])
    return invocation_id, log


@pytest.mark.parametrize("written", [0, 1, 2], ids=["nothing", "the first entry", "all of the first page"])
def test_whatever_was_written_is_completed_to_a_whole_log(engine: Engine, dead: tuple[str, Log], written: int) -> None:
    """The process can die between any two lines."""
    invocation_id, log = dead
    before, after = log.entries[:written], Log()
    assert close_dead_invocation(engine, invocation_id, after.logger(invocation_id), logged=before)
    stranger_accepts("".join(json.dumps(entry) + "\n" for entry in [*before, *after.entries]))
    completed = after.entries[-1]
    assert (completed["total_evaluated"], completed["total_errors"], completed["total_active_mentors"]) == (4, 1, 10)
    with engine.connect() as connection:
        check_invariants(connection)


def closing(invocation: str, *names: str) -> list[dict[str, Any]]:
    completed = len(names) == 1
    return [{"event": name, "invocation_id": invocation, "completed": completed, "duration_ms": 7} for name in names]


@pytest.mark.parametrize(
    ("written", "missing", "status"),
    [
        (["scheduler_run_failed"], ["scheduler_run_completed"], "failed"),
        (["scheduler_run_partial"], ["scheduler_run_completed"], "partial"),
        (["scheduler_run_failed", "scheduler_run_completed"], [], "failed"),
        (["scheduler_run_partial", "scheduler_run_completed"], [], "partial"),
        (["scheduler_run_completed"], [], "completed"),
    ],
)
def test_nothing_is_said_twice_and_the_ledger_ends_as_the_log_does(
    engine: Engine, dead: tuple[str, Log], written: list[str], missing: list[str], status: str
) -> None:
    """The process may have died in the middle of closing, or only the ledger was out of its reach."""
    invocation_id, log = dead
    after = Log()
    logged = [*log.entries, *closing(invocation_id, *written)]
    assert close_dead_invocation(engine, invocation_id, after.logger(invocation_id), logged=logged)
    assert [entry["event"] for entry in after.entries] == missing
    with engine.connect() as connection:
        row = connection.execute(text("SELECT status, duration_ms = 7 FROM scenario.scheduler_runs")).one()
    assert tuple(row) == (status, "scheduler_run_completed" in written)


def test_it_is_closed_once_and_only_if_it_was_opened(engine: Engine, dead: tuple[str, Log]) -> None:
    """Two daemons see the same failure."""
    invocation_id, log = dead
    again = Log()
    assert close_dead_invocation(engine, invocation_id, Log().logger(invocation_id), logged=log.entries)
    assert not close_dead_invocation(engine, invocation_id, again.logger(invocation_id), logged=log.entries)
    stranger = new_invocation_id()
    assert not close_dead_invocation(engine, stranger, again.logger(stranger), logged=[])
    assert again.entries == []
