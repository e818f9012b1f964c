"""The database goes away when everybody is evaluated and only the end of the run is to be written."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection, Engine, event

from scenario_pipeline.engines.sql import SqlTriggerEngine
from scenario_pipeline.errors import ErrorInfo, ErrorType, NoConnectionError
from scenario_pipeline.invocation.run import Invocation
from scenario_pipeline.limits import CLOSING_SECONDS
from scenario_pipeline.report import Report
from scenario_pipeline.storage import database
from scenario_pipeline_tests.faults import small_world
from scenario_pipeline_tests.support.invariants import consistent
from scenario_pipeline_tests.support.people import new_invocation_id
from scenario_pipeline_tests.support.runs import Log, make_request

pytestmark = pytest.mark.faults

# With pauses that double from a tenth of a second, this takes longer than a closing may after the budget.
ATTEMPTS_IN_VAIN = 6


@pytest.fixture
def owner(small_url: str) -> Iterator[Engine]:
    engine = database.connect(small_url)
    yield engine
    engine.dispose()


def ended_without_a_database(owner: Engine, on_refusal: Callable[[], object], attempts: int) -> Report:
    """Evaluate everybody, then let so many attempts to connect fail, and return how the run ended."""
    invocation_id = new_invocation_id()
    invocation = Invocation(
        make_request(page_size=small_world.PAGE_SIZE),
        invocation_id,
        database=owner,
        trigger_engine=SqlTriggerEngine(owner),
        logger=Log().logger(invocation_id),
    )
    invocation.open()
    outcomes = [invocation.evaluate(page) for page in invocation.plan()]
    left = iter(range(attempts))

    def refuse(_connection: Connection) -> None:
        if next(left, None) is not None:
            on_refusal()
            raise NoConnectionError(ErrorInfo(ErrorType.NETWORK, "nobody answers"), "")

    event.listen(owner, "engine_connect", refuse)
    return invocation.finish(outcomes)


def test_a_run_waits_for_its_end_as_long_as_its_budget_lasts(owner: Engine) -> None:
    """A server restarts within seconds: a run that has evaluated everybody must not be called a failure for that."""
    report = ended_without_a_database(owner, lambda: None, ATTEMPTS_IN_VAIN)
    assert (report.status, report.remaining) == ("completed", 0)
    assert report.duration_ms > 1000 * CLOSING_SECONDS
    consistent(owner)


def test_a_run_that_is_told_to_stop_while_it_waits_does_not_wait_for_long(owner: Engine) -> None:
    """A container gets seconds to end: its log must be closed before it is killed."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    stop = lambda: signal.pthread_kill(threading.main_thread().ident or os.getpid(), signal.SIGTERM)  # noqa: E731
    try:
        report = ended_without_a_database(owner, stop, 1000)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (report.status, report.duration_ms < 10_000) == ("failed", True)
