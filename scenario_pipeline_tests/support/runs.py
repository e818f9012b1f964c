"""Runs in this process, and the log that they write.

Belongs here: making a request and evaluating it with the project's own code. Does not belong here: judging what came
of it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import pytest
from sqlalchemy import Connection, Engine

from scenario_pipeline.engines import TriggerEngine
from scenario_pipeline.engines.sql import SqlTriggerEngine
from scenario_pipeline.errors import SystemicError
from scenario_pipeline.invocation.run import Invocation
from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.log.stdout import LineSink
from scenario_pipeline.records import DispatchMode, Page, PageResult, RunOrder
from scenario_pipeline.report import Report
from scenario_pipeline.storage.ledger.invocations import open_invocation
from scenario_pipeline.time_budget import TimeBudget
from scenario_pipeline_tests.support.people import D, new_invocation_id
from scenario_pipeline_tests.support.stranger import stranger_accepts

ALL_SCENARIOS = ("certification_expiry", "inactivity", "milestone")


class Log(LineSink):
    """A sink in memory; `entries` are its lines, read back."""

    def __init__(self) -> None:
        super().__init__(-1)
        self.lines: list[bytes] = []
        self._guard = threading.Lock()

    def write(self, line: bytes) -> None:
        """Keep a line."""
        with self._guard:
            self.lines.append(line)

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The entries so far."""
        return [json.loads(line) for line in self.lines]

    def logger(self, invocation_id: str) -> StructuredLogger:
        """Return a logger that writes here, with the common fields of contract section 5."""
        context = {
            "invocation_id": invocation_id,
            "dagster_run_id": invocation_id,
            "dagster_job_name": "scenario_scheduler",
            "dagster_step_key": None,
            "dagster_partition_key": None,
        }
        return StructuredLogger(self, context=context)


def make_request(
    evaluation_date: date = D,
    *,
    scenario_types: Sequence[str] = ALL_SCENARIOS,
    organisation_ids: Sequence[str] = (),
    dispatch_mode: DispatchMode = "live",
    time_budget_seconds: float = 60.0,
    page_size: int | None = None,
    triggered_by: str = "manual",
) -> RunOrder:
    """Return what a run is asked for."""
    return RunOrder(
        evaluation_date,
        tuple(scenario_types),
        tuple(organisation_ids),
        dispatch_mode,
        "sql",
        time_budget_seconds,
        page_size,
        triggered_by,
    )


@dataclass(frozen=True, kw_only=True)
class PageOfRun(Page):
    """A page with the order it is evaluated for."""

    order: RunOrder


def make_page(mentor_ids: Sequence[str], evaluation_date: date = D, *, number: int = 1, **request: Any) -> PageOfRun:
    """Return a page; `request` are the keyword arguments of `make_request`."""
    return PageOfRun(number=number, mentor_ids=tuple(mentor_ids), order=make_request(evaluation_date, **request))


def open_run(connection: Connection, request: RunOrder, invocation_id: str) -> None:
    """Make sure that the ledger has a row for this invocation."""
    open_invocation(connection, request, invocation_id, parent_invocation_id=None)


def run_page(
    engine: Engine,
    page: PageOfRun,
    *,
    invocation_id: str | None = None,
    budget: TimeBudget | None = None,
    log: Log | None = None,
    evaluate_with: Engine | None = None,
) -> PageResult:
    """Evaluate one page with the `sql` engine, in an invocation of its own unless one is named.

    Args:
        engine: where the invocation is opened.
        page: the page.
        invocation_id: the invocation; opened here unless it is open.
        budget: what may be spent; the request's own if None.
        log: where entries go.
        evaluate_with: what the trigger engine connects with, if not `engine`: a broken network, a role without rights.
    """
    invocation_id = invocation_id or new_invocation_id()
    with engine.begin() as connection:
        open_run(connection, page.order, invocation_id)
    budget = budget or TimeBudget.start(page.order.time_budget_seconds)
    logger = (log or Log()).logger(invocation_id)
    return SqlTriggerEngine(evaluate_with or engine).evaluate_page(page.order, page, invocation_id, budget, logger)


def run_invocation(
    engine: Engine,
    request: RunOrder | None = None,
    *,
    invocation_id: str | None = None,
    log: Log | None = None,
    trigger_engine: TriggerEngine | None = None,
) -> Report:
    """Run a whole invocation in this process."""
    invocation_id = invocation_id or new_invocation_id()
    invocation = Invocation(
        request or make_request(),
        invocation_id,
        database=engine,
        trigger_engine=trigger_engine or SqlTriggerEngine(engine),
        logger=(log or Log()).logger(invocation_id),
    )
    invocation.open()
    return invocation.finish([invocation.evaluate(page) for page in invocation.plan()])


def failed_run(engine: Engine) -> str:
    """Run, expect a failure of the whole run with a closed log, and return what it says."""
    log = Log()
    with pytest.raises(SystemicError) as caught:
        run_invocation(engine, log=log)
    assert [entry["event"] for entry in log.entries] == [
        "scheduler_run_started",
        "scheduler_run_failed",
        "scheduler_run_completed",
    ]
    assert log.entries[-1]["completed"] is False
    stranger_accepts("".join(json.dumps(entry) + "\n" for entry in log.entries))
    return caught.value.info.error_message
