"""Closes an invocation: the ledger's row and the last entries of its log, exactly once (contract section 5).

Belongs here: writing the end, for a living process and for a dead one. Does not belong here: deciding how a living
run ended (`invocation.run`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Engine

from scenario_pipeline.batch_stats import BatchStats
from scenario_pipeline.errors import ErrorInfo, ErrorType
from scenario_pipeline.limits import CLOSING_SECONDS, LAST_STATEMENT_SECONDS
from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.log.vocabulary import MentorEvaluationError, RunCompleted, RunFailed, RunPartial, RunStarted
from scenario_pipeline.records import MentorError, RunOrder
from scenario_pipeline.report import Report
from scenario_pipeline.storage.database import limit_statement_time
from scenario_pipeline.storage.ledger.closed import notifications_of
from scenario_pipeline.storage.ledger.invocations import (
    OpenInvocation,
    close_invocation,
    lock_open_invocation,
    record_evaluations,
)
from scenario_pipeline.storage.ledger.pages import read_pages

PROCESS_DIED = ErrorInfo(ErrorType.EVALUATION_LOGIC, "the process of the run ended without closing the invocation")


def close(
    database: Engine,
    invocation_id: str,
    decide: Callable[[Connection, OpenInvocation], Report],
    emit: Callable[[Report], None],
    *,
    limit: Callable[[Connection], None],
    skip_after: str | None = None,
) -> Report | None:
    """Close an open invocation: lock its row, decide how it ended, write the ledger, then the log, then commit.

    The lock waits for pages that are being committed, and keeps later ones out, so what `decide` counts is final. The
    log is written before the commit: a process that dies in between leaves a whole log and an open row, and the log
    shows how to close that. The other way round, the row would be closed and the log would never get its end.

    Args:
        database: connections to the scheduler's own database.
        invocation_id: the invocation to close.
        decide: reads what is needed in the closing transaction and returns how the invocation ended.
        emit: writes the last entries of the log.
        limit: bounds the statements of the closing transaction.
        skip_after: the last mentor of a page that goes to the end of the queue, if there is one.

    Returns:
        How it ended, or None if it was closed before or never opened.

    Raises:
        SQLAlchemyError: the ledger could not be written; `emit` may have been called.
    """
    with database.begin() as connection:
        limit(connection)
        opened = lock_open_invocation(connection, invocation_id)
        if opened is None:
            return None
        report = decide(connection, opened)
        close_invocation(connection, invocation_id, report, skip_after=skip_after)
        emit(report)
    # In a transaction of its own: a locked row of the configuration must not keep a run from being closed.
    with suppress(Exception), database.begin() as connection:
        limit_statement_time(connection, LAST_STATEMENT_SECONDS)
        record_evaluations(connection, opened.order, report.stats)
    return report


def close_dead_invocation(
    database: Engine,
    invocation_id: str,
    logger: StructuredLogger,
    *,
    logged: Iterable[Mapping[str, Any]],
    terminated: bool = False,
) -> tuple[RunOrder, Report] | None:
    """Close the invocation of a process that died, with the totals that the ledger holds.

    The entries that the process itself wrote are completed to a whole log: nothing is repeated, nothing is missing.

    Args:
        database: connections to the scheduler's own database.
        invocation_id: the Dagster run id of a run that is over.
        logger: bound to the common fields of that run.
        logged: the entries of this invocation that were written before.
        terminated: whether the run was told to stop, which is no failure.

    Returns:
        What the invocation was to do and how it ended, or None if it was closed before or never opened.
    """
    entries = list(logged)
    written = {entry["event"]: entry for entry in entries}
    reported = {entry.get("peer_mentor_id") for entry in entries}
    orders: list[RunOrder] = []
    errors: list[MentorError] = []

    def decide(connection: Connection, opened: OpenInvocation) -> Report:
        orders.append(opened.order)
        pages = read_pages(connection, invocation_id).values()
        errors.extend(item for result in pages for item in result.errors if item.peer_mentor_id not in reported)
        stats = BatchStats.sum(result.stats for result in pages)
        total = opened.total_active_mentors
        remaining = stats.remaining_of(total)
        report = Report("failed", total, stats, opened.elapsed_ms, remaining, failure=PROCESS_DIED)
        if terminated and remaining:
            report = replace(report, status="partial", reason="terminated", failure=None)
        report = _as_written(written, report)
        if RunCompleted.name in written:
            return report
        # A remote engine that shares the database has acted on pages whose rows the dead process could not write.
        return replace(report, stats=stats + notifications_of(connection, invocation_id).dispatched_beyond(stats))

    def emit(report: Report) -> None:
        if RunStarted.name not in written:
            logger.emit(started_event(orders[0]))
        if written.keys().isdisjoint({RunPartial.name, RunFailed.name, RunCompleted.name}):
            for item in errors:
                logger.emit(error_event(item))
        for event in report.closing_events():
            if event.name not in written:
                logger.emit(event)

    report = close(database, invocation_id, decide, emit, limit=_limit)
    return None if report is None else (orders[0], report)


def _limit(connection: Connection) -> None:
    limit_statement_time(connection, CLOSING_SECONDS)


def _as_written(written: Mapping[str, Mapping[str, Any]], report: Report) -> Report:
    """Return how the invocation ended as far as its log says so; `report` is what is known otherwise."""
    completed = written.get(RunCompleted.name, {})
    report = replace(report, duration_ms=completed.get("duration_ms", report.duration_ms))
    if (partial := written.get(RunPartial.name)) is not None:
        return replace(report, status="partial", reason=partial.get("reason"), failure=None)
    if completed.get("completed") is True:
        return replace(report, status="completed", remaining=0, reason=None, failure=None)
    if (failed := written.get(RunFailed.name)) is not None:
        remaining = failed.get("remaining_unprocessed_count")
        return replace(report, status="failed", remaining=remaining, reason=None, failure=PROCESS_DIED)
    return report


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
