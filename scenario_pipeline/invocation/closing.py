"""Closes an invocation: the ledger's row and the last entries of its log, exactly once (contract section 5).

Belongs here: writing the end, for a living process and for a dead one. Does not belong here: deciding how a living
run ended (`invocation.run`).
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Engine

from scenario_pipeline.batch_stats import BatchStats
from scenario_pipeline.errors import ErrorInfo, ErrorType
from scenario_pipeline.log.logger import StructuredLogger, utc_now
from scenario_pipeline.log.vocabulary import MentorEvaluationError, RunCompleted, RunFailed, RunPartial, RunStarted
from scenario_pipeline.records import MentorError, RunOrder
from scenario_pipeline.report import Report
from scenario_pipeline.storage.database import limit_statement_time
from scenario_pipeline.storage.ledger.closed import notifications_of
from scenario_pipeline.storage.ledger.invocations import close_invocation, read_request, record_evaluations
from scenario_pipeline.storage.ledger.pages import read_pages

# Closing must reach the ledger even when the budget is spent, and must not hang the end of the run: this much for all
# of its statements, of the two seconds in which a run is closed after its budget.
CLOSING_SECONDS = 1.5
LAST_STATEMENT_SECONDS = 0.2


def record_cost(database: Engine, order: RunOrder, report: Report, now: datetime) -> None:
    """Note at the configuration what each scenario cost; a run is closed with or without that."""
    with suppress(Exception), database.begin() as connection:
        limit_statement_time(connection, LAST_STATEMENT_SECONDS)
        record_evaluations(connection, order, report.stats, now)


CLOSED_BY_ANOTHER = ErrorInfo(ErrorType.EVALUATION_LOGIC, "the invocation was closed before its process had ended")
PROCESS_DIED = ErrorInfo(ErrorType.EVALUATION_LOGIC, "the process of the run ended without closing the invocation")


def close_dead_invocation(
    database: Engine,
    invocation_id: str,
    logger: StructuredLogger,
    *,
    logged: Iterable[Mapping[str, Any]],
    now: Callable[[], datetime] = utc_now,
) -> tuple[RunOrder, Report] | None:
    """Close the invocation of a process that died, with the totals that the ledger holds.

    The entries that the process itself wrote are completed to a whole log: nothing is said twice, nothing is missing.

    Args:
        database: engine on the scheduler's own database.
        invocation_id: the Dagster run id of a run that is over.
        logger: bound to the common fields of that run.
        logged: the entries of this invocation that were written before.
        now: the wall clock.

    Returns:
        What the invocation was to do and how it ended, or None if it was closed before or never opened.
    """
    entries = list(logged)
    written = {entry["event"]: entry for entry in entries}
    reported = {entry.get("peer_mentor_id") for entry in entries}
    with database.begin() as connection:
        limit_statement_time(connection, CLOSING_SECONDS)
        found = read_request(connection, invocation_id)
        if found is None:
            return None
        order, total, started_at = found
        pages = read_pages(connection, invocation_id)
        stats = BatchStats.sum(result.stats for result in pages.values())
        lasted = int((now() - started_at).total_seconds() * 1000)
        report = _as_written(written, Report("failed", total, stats, max(0, lasted), stats.remaining_of(total)))
        if RunCompleted.name not in written:
            # A remote engine that shares the database has acted on pages whose rows the dead process could not write.
            beyond = notifications_of(connection, invocation_id).dispatched_beyond(stats)
            report = replace(report, stats=stats + beyond)
        if not close_invocation(connection, invocation_id, report, stuck_after=None, now=now()):
            return None
        # Before the commit, as in `Invocation`: whoever comes after a death in between finds the log whole.
        if RunStarted.name not in written:
            logger.emit(started_event(order))
        if written.keys().isdisjoint({RunPartial.name, RunFailed.name, RunCompleted.name}):
            for result in pages.values():
                for item in result.errors:
                    if item.peer_mentor_id not in reported:
                        logger.emit(error_event(item))
        for event in report.closing_events():
            if event.name not in written:
                logger.emit(event)
    record_cost(database, order, report, now())
    return order, report


def _as_written(written: Mapping[str, Mapping[str, Any]], report: Report) -> Report:
    """Return how the invocation ended as far as its log says so; `report` is what is known otherwise."""
    completed = written.get(RunCompleted.name, {})
    report = replace(report, duration_ms=completed.get("duration_ms", report.duration_ms))
    if (partial := written.get(RunPartial.name)) is not None:
        return replace(report, status="partial", reason=partial.get("reason"))
    if completed.get("completed") is True:
        return replace(report, status="completed", remaining=0)
    failed = written.get(RunFailed.name, {})
    remaining = failed.get("remaining_unprocessed_count", report.remaining)
    return replace(report, failure=PROCESS_DIED, remaining=remaining)


def started_event(order: RunOrder) -> RunStarted:
    """Return the entry that opens a log."""
    return RunStarted(
        order.triggered_by,  # type: ignore[arg-type]
        order.evaluation_date.isoformat(),
        list(order.scenario_types),
        order.dispatch_mode,
        order.time_budget_ms,
    )


def error_event(item: MentorError) -> MentorEvaluationError:
    """Return the entry for one mentor whose evaluation failed."""
    return MentorEvaluationError(item.peer_mentor_id, item.error.error_type, item.error.error_message)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM, so that an entry and the count of it cannot be torn apart."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
