"""One invocation from its first event to its last, as one process sees it (contract sections 4 and 5).

Belongs here: opening, planning, evaluating, and how a living run ends. Does not belong here: Dagster (`defs`), deciding
what is due (`engines`), SQL (`storage.ledger`), or writing the end (`invocation.closing`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Literal, TypeVar

from sqlalchemy import Connection, Engine

from scenario_pipeline.batch_stats import BatchStats
from scenario_pipeline.engines import TriggerEngine
from scenario_pipeline.engines.source_check import check_source
from scenario_pipeline.errors import BudgetSpentError, ErrorInfo, ErrorType, SystemicError, classify
from scenario_pipeline.invocation.closing import (
    close,
    error_event,
    started_event,
)
from scenario_pipeline.invocation.state import State
from scenario_pipeline.limits import CLOSING_SECONDS, LAST_STATEMENT_SECONDS, OVERTIME_SECONDS
from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.records import (
    MentorError,
    Page,
    PageEvaluated,
    PageOutcome,
    PageResult,
    PageUnprocessed,
    RunOrder,
    paginate,
)
from scenario_pipeline.report import Report
from scenario_pipeline.scenarios import check_configured
from scenario_pipeline.signals import is_told_to_stop, uninterrupted
from scenario_pipeline.storage.columns import check_tables
from scenario_pipeline.storage.database import check_schema, limit_statement_time
from scenario_pipeline.storage.ledger.closed import notifications_of
from scenario_pipeline.storage.ledger.invocations import (
    OpenInvocation,
    join_invocation,
    list_active_mentors,
    open_invocation,
)
from scenario_pipeline.storage.ledger.pages import CLOSED_MEANWHILE, read_page, read_pages
from scenario_pipeline.storage.source import unknown_organisations
from scenario_pipeline.time_budget import Pauses, TimeBudget

T = TypeVar("T")


class Invocation:
    """One run of the scheduler, as seen by one process.

    Args:
        order: what it is to do.
        invocation_id: the Dagster run id.
        database: connections to the scheduler's own database.
        trigger_engine: what evaluates pages.
        logger: bound to the common fields of contract section 5.
        parent_invocation_id: the run that this one re-executes, if any.
        runs_all_pages: whether this process evaluates all pages, so that it knows when no further page will follow.
        clock: the monotonic clock, for what is measured.
    """

    def __init__(
        self,
        order: RunOrder,
        invocation_id: str,
        *,
        database: Engine,
        trigger_engine: TriggerEngine,
        logger: StructuredLogger,
        parent_invocation_id: str | None = None,
        runs_all_pages: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.order = order
        self.invocation_id = invocation_id
        self.report: Report | None = None
        self._database = database
        self._trigger_engine = trigger_engine
        self._logger = logger
        self._parent_invocation_id = parent_invocation_id
        self._runs_all_pages = runs_all_pages
        self._clock = clock
        self._budget = TimeBudget.start(order.time_budget_seconds, clock=clock)
        self._closing = self._budget
        self._is_stopping = False
        self._state = State.NEW
        self._may_have_opened = False
        self._total_active_mentors = 0
        self._pages: dict[int, PageResult] = {}
        self._failure: ErrorInfo | None = None
        self._skip_after: str | None = None
        self._logged: list[Report] = []

    @property
    def errors(self) -> list[MentorError]:
        """Mentors whose evaluation failed, page by page, as far as this process knows."""
        return [item for number in sorted(self._pages) for item in self._pages[number].errors]

    def log_as(self, logger: StructuredLogger) -> None:
        """Use `logger` from now on: each step has its own key among the common fields."""
        self._logger = logger

    def open(self) -> None:
        """Open the invocation, or join it if another process of the same run has opened it.

        Raises:
            SystemicError: it cannot be opened; it is closed again, with all its events.
        """
        try:
            self._until_reachable(self._open_once)
        except Exception as exc:  # noqa: BLE001 - the boundary of the run: every failure to begin is its failure
            failure = classify(exc)
        else:
            return
        self._failure = failure
        if self._state is State.NEW:
            self._begin(State.UNRECORDED, announced=False)
        self.fail(failure)
        raise SystemicError(failure)

    def _open_once(self) -> None:
        with self._database.connect() as connection, connection.begin() as transaction:
            limit_statement_time(connection, max(self._budget.remaining_seconds, CLOSING_SECONDS))
            check_schema(connection)
            check_tables(connection)
            check_configured(connection, self.order.scenario_types)
            check_source(connection, self.order.scenario_types)
            self._check_organisations(connection)
            opened = open_invocation(
                connection, self.order, self.invocation_id, parent_invocation_id=self._parent_invocation_id
            )
            # A row that is there after a commit of ours without an answer is ours.
            opened = opened or self._may_have_opened
            state = State.OPEN
            if not opened or self._parent_invocation_id is not None:
                self._total_active_mentors, spent = join_invocation(connection, self.invocation_id)
                self._budget = TimeBudget.start(self.order.time_budget_seconds, already_spent=spent, clock=self._clock)
                state = State.LISTED
            # A signal finds the invocation either opened and announced, or neither.
            with uninterrupted():
                self._may_have_opened = opened
                transaction.commit()
                self._begin(state, announced=not opened)

    def _until_reachable(self, attempt: Callable[[], T]) -> T:
        """Return what `attempt` returns, repeated while the database is out of reach and the budget lasts."""
        pauses = Pauses()
        while True:
            try:
                return attempt()
            except Exception as exc:
                failure = classify(exc)
                if not failure.is_worth_waiting_for or not pauses.wait(self._budget.remaining_seconds):
                    raise

    def _begin(self, state: State, *, announced: bool) -> None:
        """Announce the invocation, unless another process has: from now on there is something to close."""
        with uninterrupted():
            self._state = state
            if not announced:
                self._logger.emit(started_event(self.order))

    def _check_organisations(self, connection: Connection) -> None:
        unknown = unknown_organisations(connection, self.order.organisation_ids)
        if unknown:
            sentence = f"{len(unknown)} of the organisations asked for do not exist: check the ids of --organisation"
            raise SystemicError(ErrorInfo(ErrorType.EVALUATION_LOGIC, sentence))

    def plan(self) -> list[Page]:
        """Read the active mentors and cut them into pages, those left over by the previous run first.

        Raises:
            SystemicError: the list cannot be read; the invocation is closed.
        """
        self._state = State.OPEN
        try:
            mentor_ids = self._until_reachable(self._list_once)
        except Exception as exc:  # noqa: BLE001 - the boundary of the run: without a list there is no batch
            failure = classify(exc)
        else:
            self._total_active_mentors = len(mentor_ids)
            self._state = State.LISTED
            return paginate(mentor_ids, self.order.page_size, planned_by=self.invocation_id)
        self.fail(failure)
        raise SystemicError(failure)

    def _list_once(self) -> list[str]:
        with self._database.begin() as connection:
            limit_statement_time(connection, max(self._budget.remaining_seconds, CLOSING_SECONDS))
            return list_active_mentors(connection, self.order, self.invocation_id)

    def evaluate(self, page: Page) -> PageOutcome:
        """Evaluate one page; a failure of the run or a spent budget is an outcome, not an exception.

        Where no further page will be evaluated, the invocation is closed here. Until the last step Dagster stores
        entries for dozens of pages, and if its own database is what failed, each of them is waited for.

        Raises:
            BaseException: only what interrupts the process (a signal); the invocation is closed as terminated first.
        """
        outcome = self._evaluate(page)
        if self._runs_all_pages and self.report is None and isinstance(outcome, PageUnprocessed):
            if outcome.failure is None:
                self._stop("time_budget")
            else:
                self.fail(outcome.failure)
        return outcome

    def _evaluate(self, page: Page) -> PageOutcome:
        if self._failure is not None:
            return PageUnprocessed(self.invocation_id, page, self._failure)
        budget = self._budget
        if budget.is_spent and page.number == 1:
            # Without this, a budget spent before the first page would leave everybody to a run that does no better.
            budget = TimeBudget(self._clock(), OVERTIME_SECONDS, self._clock, overtime=0.0)
        if self.report is not None or budget.is_spent:
            return PageUnprocessed(self.invocation_id, page)
        try:
            done = self._evaluated_by_parent(page)
            if done is not None:
                if not done.unprocessed:
                    return PageEvaluated(self._parent_invocation_id or "", page.number, done.stats)
                page = replace(page, mentor_ids=done.unprocessed)
            result = self._trigger_engine.evaluate_page(self.order, page, self.invocation_id, budget, self._logger)
        except BudgetSpentError:
            if not self._pages:
                self._skip_after = page.mentor_ids[-1]
            return PageUnprocessed(self.invocation_id, page)
        except Exception as exc:  # noqa: BLE001 - the boundary of the batch: the failure goes on as a value
            self._failure = classify(exc)
            # Whatever the cause, a page that failed a run never stands before those that would not fail.
            self._skip_after = page.mentor_ids[-1]
            return PageUnprocessed(self.invocation_id, page, self._failure)
        except BaseException:
            self.terminate()
            raise
        self._record(page.number, result)
        if result.unprocessed:
            self._failure = result.failure
            return PageUnprocessed(self.invocation_id, replace(page, mentor_ids=result.unprocessed), result.failure)
        return PageEvaluated(self.invocation_id, page.number, result.stats)

    def _evaluated_by_parent(self, page: Page) -> PageResult | None:
        """Return what the re-executed run committed of a page, also if its process died before the step ended."""
        parent = self._parent_invocation_id
        # Page numbers mean nothing across lists: a re-execution of all steps has cut its own pages.
        if parent is None or page.planned_by == self.invocation_id:
            return None

        def read() -> PageResult | None:
            with self._database.begin() as connection:
                limit_statement_time(connection, max(self._budget.overtime_seconds, LAST_STATEMENT_SECONDS))
                return read_page(connection, page.number, parent)

        return self._until_reachable(read)

    def _record(self, page_number: int, result: PageResult) -> None:
        """Add a committed page to the totals and report its errors: both or neither."""
        with uninterrupted():
            if page_number in self._pages:
                return
            self._pages[page_number] = result
            for item in result.errors:
                self._logger.emit(error_event(item))

    def finish(self, outcomes: Iterable[PageOutcome]) -> Report:
        """Close the invocation with the sum of its pages.

        In a re-execution the pages that the parent left are evaluated first, here, since their steps succeeded.

        Returns:
            How it ended; a failed run is a report too.
        """
        final = [
            self.evaluate(o.page) if isinstance(o, PageUnprocessed) and o.invocation_id != self.invocation_id else o
            for o in outcomes
        ]
        for outcome in final:
            if isinstance(outcome, PageEvaluated) and outcome.invocation_id == self.invocation_id:
                # Another process may have evaluated the page; it has reported the errors, too.
                self._pages.setdefault(outcome.page_number, PageResult(outcome.stats))
        unprocessed = [o for o in final if isinstance(o, PageUnprocessed)]
        failure = next((o.failure for o in unprocessed if o.failure is not None), None)

        def report(_connection: Connection | None) -> Report:
            stats = self._stats()
            # A page reported as unprocessed may have been committed all the same, if the reply was lost for good.
            remaining = sum(len(self._unprocessed_of(o.page)) for o in unprocessed)
            total = stats.total_settled + remaining
            if failure is not None:
                return Report("failed", total, stats, self._budget.elapsed_ms, remaining, failure=failure)
            if remaining:
                return Report("partial", total, stats, self._budget.elapsed_ms, remaining, reason="time_budget")
            return Report("completed", total, stats, self._budget.elapsed_ms)

        return self._close(report)

    def _unprocessed_of(self, page: Page) -> tuple[str, ...]:
        committed = self._pages.get(page.number)
        return page.mentor_ids if committed is None else committed.unprocessed

    def fail(self, failure: ErrorInfo) -> Report:
        """Close the invocation as failed; how many remain is unknown if the list of mentors was never read."""
        is_listed = self._state is State.LISTED

        def report(_connection: Connection | None) -> Report:
            stats = self._stats()
            total = self._total_active_mentors if is_listed else stats.total_settled
            remaining = stats.remaining_of(total) if is_listed else None
            return Report("failed", total, stats, self._budget.elapsed_ms, remaining, failure=failure)

        return self._close(report)

    def terminate(self) -> Report:
        """Close the invocation because its process was told to stop; the current page was rolled back."""
        self._is_stopping = True
        return self._stop("terminated")

    def _stop(self, reason: Literal["time_budget", "terminated"]) -> Report:
        is_listed = self._state is State.LISTED

        def report(connection: Connection | None) -> Report:
            stats = self._stats()
            total = self._total_active_mentors if is_listed else self._count_active_mentors(connection)
            remaining = stats.remaining_of(total)
            if is_listed and remaining == 0:
                return Report("completed", total, stats, self._budget.elapsed_ms)
            return Report("partial", total, stats, self._budget.elapsed_ms, remaining, reason=reason)

        return self._close(report)

    def _count_active_mentors(self, connection: Connection | None) -> int:
        """Count the mentors of an invocation that was stopped before it read their list."""
        if connection is None:
            return 0
        try:
            with connection.begin_nested():
                return len(list_active_mentors(connection, self.order, self.invocation_id))
        except Exception:  # noqa: BLE001 - the log is to be closed all the same
            return 0

    def abandon(self, failure: ErrorInfo | None) -> None:
        """Close the invocation if it was begun and nothing has closed it: the backstop of the process that ran it.

        Args:
            failure: why it ended, or None if the process was told to stop.
        """
        if self._state in (State.NEW, State.CLOSED):
            return
        failure = self._failure or failure
        if failure is None:
            self.terminate()
        else:
            self.fail(failure)

    def _stats(self) -> BatchStats:
        return BatchStats.sum(result.stats for result in self._pages.values())

    def _limit_closing(self, connection: Connection) -> None:
        limit_statement_time(connection, max(self._closing.remaining_seconds, LAST_STATEMENT_SECONDS))

    def _close(self, report_of: Callable[[Connection | None], Report]) -> Report:
        """Write the end to the ledger and to the log, exactly once, whichever caller comes first.

        `report_of` makes the report of all pages known by then; it is given the transaction that closes the ledger's
        row, or None if the ledger cannot be used.
        """
        logged, is_listed = self._logged, self._state is State.LISTED

        def decide(connection: Connection, _opened: OpenInvocation) -> Report:
            if logged:
                return logged[0]
            # An interrupt may fall between a page's commit and its being recorded here.
            for number, result in read_pages(connection, self.invocation_id).items():
                self._record(number, result)
            self._limit_closing(connection)
            report = report_of(connection)
            if self.order.engine_name == "http":
                # An engine that shares the database may have dispatched for pages whose replies were lost.
                found = notifications_of(connection, self.invocation_id)
                report = replace(report, stats=report.stats + found.dispatched_beyond(report.stats))
            return report

        def emit(report: Report) -> None:
            if not logged:
                logged.append(report)
                for event in report.closing_events():
                    self._logger.emit(event)

        with uninterrupted():
            if self.report is not None:
                return self.report
            if self._state is not State.UNRECORDED:
                try:
                    self._close_in_ledger(decide, emit)
                except Exception as exc:  # noqa: BLE001 - the log must be closed even if the ledger cannot be
                    report = report_of(None)
                    if report.status != "failed":
                        remaining = report.remaining if is_listed else None
                        failure = classify(exc)
                        report = replace(report, status="failed", remaining=remaining, reason=None, failure=failure)
                    emit(report)
                if not logged:
                    # Another process has written the end of the log.
                    logged.append(replace(report_of(None), status="failed", reason=None, failure=CLOSED_MEANWHILE))
            if not logged:
                emit(report_of(None))
            self.report, self._state = logged[0], State.CLOSED
            return self.report

    def _close_in_ledger(
        self, decide: Callable[[Connection, OpenInvocation], Report], emit: Callable[[Report], None]
    ) -> None:
        """Close the ledger's row; a database that is out of reach is waited for as long as the run may last.

        A process that was told to stop has no more than the time for closing.
        """
        pauses = Pauses()
        patience = TimeBudget.start(self._budget.remaining_seconds + CLOSING_SECONDS, clock=self._clock)
        while True:
            self._closing = TimeBudget.start(min(CLOSING_SECONDS, patience.remaining_seconds), clock=self._clock)
            if self._is_stopping or is_told_to_stop():
                patience = self._closing
            try:
                close(
                    self._database,
                    self.invocation_id,
                    decide,
                    emit,
                    limit=self._limit_closing,
                    skip_after=self._skip_after,
                )
            except Exception as exc:
                if not classify(exc).is_worth_waiting_for or not pauses.wait(patience.remaining_seconds):
                    raise
            else:
                return
