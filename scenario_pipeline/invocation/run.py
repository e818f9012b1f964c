"""One invocation from its first event to its last, as one process sees it (contract sections 4, 5).

Belongs here: opening, planning, evaluating, and the end of a living run. Does not belong here: Dagster (`defs`),
deciding what is due (`engines`), SQL (`storage.ledger`), or writing the end (`invocation.closing`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from typing import Literal

from sqlalchemy import Connection, Engine

from scenario_pipeline.batch_stats import BatchStats
from scenario_pipeline.engines import TriggerEngine
from scenario_pipeline.engines.source_check import check_source
from scenario_pipeline.errors import BudgetSpentError, ErrorInfo, ErrorType, SystemicError, classify
from scenario_pipeline.invocation.closing import (
    CLOSED_BY_ANOTHER,
    CLOSING_SECONDS,
    LAST_STATEMENT_SECONDS,
    error_event,
    record_cost,
    started_event,
    uninterrupted,
)
from scenario_pipeline.log.logger import StructuredLogger, utc_now
from scenario_pipeline.records import Page, PageEvaluated, PageOutcome, PageResult, PageUnprocessed, RunOrder, paginate
from scenario_pipeline.report import Report
from scenario_pipeline.scenarios import check_configured
from scenario_pipeline.storage.database import check_schema, limit_statement_time
from scenario_pipeline.storage.ledger.invocations import (
    close_invocation,
    join_invocation,
    list_active_mentors,
    open_invocation,
)
from scenario_pipeline.storage.ledger.pages import read_page, read_pages
from scenario_pipeline.storage.source import unknown_organisations
from scenario_pipeline.time_budget import TimeBudget

# What the first page may take although the budget is spent, so that each run gets on.
FIRST_PAGE_SECONDS = 1.0


class Invocation:
    """One run of the scheduler, as seen by one process.

    Args:
        order: what it is to do.
        invocation_id: the Dagster run id.
        database: engine on the scheduler's own database.
        trigger_engine: what evaluates pages.
        logger: bound to the common fields of contract section 5.
        parent_invocation_id: the run that this one re-executes, if any.
        runs_all_pages: whether this process evaluates all pages, so that it knows when none will be evaluated any more.
        now: the wall clock, for what is recorded.
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
        now: Callable[[], datetime] = utc_now,
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
        self._now = now
        self._clock = clock
        self._budget = TimeBudget.start(order.time_budget_seconds, clock=clock)
        self._closing: TimeBudget | None = None
        self._is_in_ledger = False
        self._has_begun = False
        self._total_active_mentors = 0
        self._has_list = False
        self._pages: dict[int, PageResult] = {}
        self._failure: ErrorInfo | None = None
        self._stuck_after: str | None = None

    def log_as(self, logger: StructuredLogger) -> None:
        """Use `logger` from now on: each step has its own key among the common fields."""
        self._logger = logger

    def open(self) -> None:
        """Open the invocation, or join it if another process of the same run has opened it.

        Raises:
            SystemicError: it cannot be opened; it is closed again, with all its events.
        """
        try:
            with self._database.connect() as connection, connection.begin() as transaction:
                limit_statement_time(connection, max(self._budget.remaining_seconds, CLOSING_SECONDS))
                check_schema(connection)
                check_configured(connection, self.order.scenario_types)
                check_source(connection, self.order.scenario_types)
                self._check_organisations(connection)
                opened = open_invocation(
                    connection,
                    self.order,
                    self.invocation_id,
                    started_at=self._now(),
                    parent_invocation_id=self._parent_invocation_id,
                )
                if not opened or self._parent_invocation_id is not None:
                    self._total_active_mentors, spent = join_invocation(connection, self.invocation_id)
                    self._has_list = True
                    self._budget = TimeBudget.start(
                        self.order.time_budget_seconds, already_spent=spent, clock=self._clock
                    )
                # Whoever tells the process to stop finds the invocation either opened and announced, or neither.
                with uninterrupted():
                    transaction.commit()
                    self._is_in_ledger = True
                    self._begin(announced=not opened)
        except Exception as exc:  # noqa: BLE001 - the boundary of the run: every failure to begin is its failure
            failure = classify(exc)
        else:
            return
        self._begin()
        self.fail(failure)
        raise SystemicError(failure)

    def _begin(self, *, announced: bool = False) -> None:
        """Announce the invocation, unless another process has: from now on there is something to close."""
        with uninterrupted():
            self._has_begun = True
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
        self._has_list = False
        try:
            with self._database.begin() as connection:
                limit_statement_time(connection, max(self._budget.remaining_seconds, CLOSING_SECONDS))
                mentor_ids = list_active_mentors(connection, self.order, self.invocation_id)
        except Exception as exc:  # noqa: BLE001 - the boundary of the run: without a list there is no batch
            failure = classify(exc)
        else:
            self._total_active_mentors = len(mentor_ids)
            self._has_list = True
            return [replace(page, planned_by=self.invocation_id) for page in paginate(mentor_ids, self.order)]
        self.fail(failure)
        raise SystemicError(failure)

    def evaluate(self, page: Page) -> PageOutcome:
        """Evaluate one page; a failure of the run or a spent budget is an outcome, not an exception.

        Where no page after this one will be evaluated, the invocation is closed here: until the last step, Dagster
        stores entries for dozens of pages, and if its database is what failed, it waits for that.

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
            # A budget that is spent before the first page would leave everybody to a next run that fares no better.
            budget = TimeBudget.start(FIRST_PAGE_SECONDS, clock=self._clock)
        if self.report is not None or budget.is_spent:
            return PageUnprocessed(self.invocation_id, page)
        try:
            done = self._evaluated_by_parent(page)
            if done is not None:
                if not done.unprocessed:
                    return PageEvaluated(self._parent_invocation_id or "", page.number, done.stats)
                page = replace(page, mentor_ids=done.unprocessed)
            result = self._trigger_engine.evaluate_page(page, self.invocation_id, budget, self._logger)
        except BudgetSpentError:
            if not self._pages:
                self._stuck_after = page.mentor_ids[-1]
            return PageUnprocessed(self.invocation_id, page)
        except Exception as exc:  # noqa: BLE001 - the boundary of the batch: the failure goes on as a value
            self._failure = classify(exc)
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
        """Return what the re-executed run committed of a page, also where its process died before the step ended."""
        # Numbers of pages mean nothing across lists: a re-execution of all steps has made its own.
        if self._parent_invocation_id is None or page.planned_by == self.invocation_id:
            return None
        with self._database.connect() as connection:
            return read_page(connection, page.number, self._parent_invocation_id)

    def _record(self, page_number: int, result: PageResult) -> None:
        """Take a committed page into the totals and report its errors, both or neither."""
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
        settled = [
            self.evaluate(o.page) if isinstance(o, PageUnprocessed) and o.invocation_id != self.invocation_id else o
            for o in outcomes
        ]
        for outcome in settled:
            if isinstance(outcome, PageEvaluated) and outcome.invocation_id == self.invocation_id:
                # Another process may have evaluated the page; it has reported the errors, too.
                self._pages.setdefault(outcome.page_number, PageResult(outcome.stats))
        unprocessed = [o for o in settled if isinstance(o, PageUnprocessed)]
        failure = next((o.failure for o in unprocessed if o.failure is not None), None)
        # A page that was called left may have been committed all the same, if the answer was lost for good.
        stats = self._committed() if unprocessed else BatchStats.sum(result.stats for result in self._pages.values())
        remaining = sum(len(self._unprocessed_of(o.page)) for o in unprocessed)
        total = stats.total_settled + remaining
        if failure is not None:
            report = Report("failed", total, stats, self._budget.elapsed_ms, remaining, failure=failure)
        elif remaining:
            report = Report("partial", total, stats, self._budget.elapsed_ms, remaining, reason="time_budget")
        else:
            report = Report("completed", total, stats, self._budget.elapsed_ms)
        return self._close(report)

    def _unprocessed_of(self, page: Page) -> tuple[str, ...]:
        committed = self._pages.get(page.number)
        return page.mentor_ids if committed is None else committed.unprocessed

    def fail(self, failure: ErrorInfo) -> Report:
        """Close the invocation as failed; how many remain is unknown where the list of mentors was never read."""
        stats = self._committed()
        total = self._total_active_mentors if self._has_list else stats.total_settled
        remaining = stats.remaining_of(total) if self._has_list else None
        return self._close(Report("failed", total, stats, self._budget.elapsed_ms, remaining, failure=failure))

    def terminate(self) -> Report:
        """Close the invocation because its process was told to stop; the page in hand was rolled back."""
        return self._stop("terminated")

    def _stop(self, reason: Literal["time_budget", "terminated"]) -> Report:
        stats = self._committed()
        total = self._total_active_mentors if self._has_list else self._count_active_mentors()
        remaining = stats.remaining_of(total)
        if self._has_list and remaining == 0:
            return self._close(Report("completed", total, stats, self._budget.elapsed_ms))
        return self._close(Report("partial", total, stats, self._budget.elapsed_ms, remaining, reason=reason))

    def _count_active_mentors(self) -> int:
        """Count whom the invocation would have evaluated, as it was stopped before it read their list."""
        if not self._is_in_ledger:
            return 0
        try:
            with self._database.begin() as connection:
                self._limit_closing(connection)
                return len(list_active_mentors(connection, self.order, self.invocation_id))
        except Exception:  # noqa: BLE001 - the log is to be closed all the same
            return 0

    def abandon(self, failure: ErrorInfo | None) -> None:
        """Close the invocation if it was begun and nothing has closed it: the backstop of the process that ran it.

        Args:
            failure: why it ended, or None if the process was told to stop.
        """
        if self.report is not None or not self._has_begun:
            return
        failure = self._failure or failure
        if failure is None:
            self.terminate()
        else:
            self.fail(failure)

    def _committed(self) -> BatchStats:
        """Return the sum of the pages committed so far, as the ledger has it where it can be asked.

        An interrupt may fall between a page's commit and its being noted here.
        """
        if self._is_in_ledger:
            try:
                with self._database.begin() as connection:
                    self._limit_closing(connection)
                    pages = read_pages(connection, self.invocation_id)
            except Exception:  # noqa: BLE001, S110 - the database may be what failed; then memory has to do
                pass
            else:
                for number, result in pages.items():
                    self._record(number, result)
        return BatchStats.sum(result.stats for result in self._pages.values())

    def _limit_closing(self, connection: Connection) -> None:
        self._closing = self._closing or TimeBudget.start(CLOSING_SECONDS, clock=self._clock)
        seconds = max(self._closing.remaining_seconds, LAST_STATEMENT_SECONDS)
        limit_statement_time(connection, seconds)

    def _close(self, report: Report) -> Report:
        """Write the end to the ledger and to the log; exactly once, whoever comes first."""
        with uninterrupted():
            if self.report is not None:
                return self.report
            closed_here, is_logged = True, False
            if self._is_in_ledger:
                try:
                    with self._database.begin() as connection:
                        self._limit_closing(connection)
                        closed_here = close_invocation(
                            connection, self.invocation_id, report, stuck_after=self._stuck_after, now=self._now()
                        )
                        if closed_here:
                            # Before the commit: a process that dies in between leaves a whole log and an open row, and
                            # whoever closes that reads in the log how it ended. The other way round the row would be
                            # closed, and the log would lack its end for ever.
                            is_logged = True
                            self._emit_closing(report)
                except Exception as exc:  # noqa: BLE001 - the log must be closed even if the ledger cannot be
                    if report.status != "failed" and not is_logged:
                        report = Report(
                            "failed",
                            report.total_active_mentors,
                            report.stats,
                            report.duration_ms,
                            report.remaining,
                            failure=classify(exc),
                        )
            if not closed_here:
                report = replace(report, status="failed", reason=None, failure=CLOSED_BY_ANOTHER)
            self.report = report
            if closed_here and not is_logged:
                self._emit_closing(report)
            if closed_here and self._is_in_ledger:
                record_cost(self._database, self.order, report, self._now())
            return report

    def _emit_closing(self, report: Report) -> None:
        for event in report.closing_events():
            self._logger.emit(event)
