"""The `http` trigger engine: asks a remote engine about a page, and writes the page's row (contract section 6).

Belongs here: the page's transaction around the calls. Does not belong here: the calls (`engines.http.page_calls`), or
what a reply means (`engines.api`).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from scenario_pipeline.engines.http.client import RemoteEngine, RemoteOptions, unusable
from scenario_pipeline.engines.http.page_calls import PageCalls
from scenario_pipeline.engines.sql import MAX_ATTEMPTS, is_budgets_own
from scenario_pipeline.errors import BudgetSpentError, SystemicError, classify
from scenario_pipeline.limits import LAST_ASK_SECONDS, LAST_STATEMENT_SECONDS
from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.log.vocabulary import PageRetried
from scenario_pipeline.records import Page, PageResult, RunOrder
from scenario_pipeline.signals import uninterrupted
from scenario_pipeline.storage.database import limit_statement_time
from scenario_pipeline.storage.ledger.pages import claim_page, complete_page, read_page
from scenario_pipeline.storage.source import organisations_of
from scenario_pipeline.time_budget import Pauses, TimeBudget


@dataclass(frozen=True)
class HttpTriggerEngine:
    """Evaluates pages by asking a remote engine; the page's row in the ledger is written here.

    Attributes:
        database: pool of connections to the scheduler's own database.
        options: where the remote engine is and how it is called.
    """

    database: Engine
    options: RemoteOptions
    _remote: RemoteEngine = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_remote", RemoteEngine(self.options))

    def evaluate_page(
        self, order: RunOrder, page: Page, invocation_id: str, budget: TimeBudget, logger: StructuredLogger
    ) -> PageResult:
        """Evaluate and commit a page, as far as the budget allows; see `TriggerEngine.evaluate_page`.

        No transaction is open during the calls. If a page is repeated, it gets the first replies again.
        """
        if self.options.url is None:
            sentence = "SCENARIO_ENGINE_URL is not set: the http engine needs the address of the trigger engine"
            raise SystemicError(unusable(sentence))
        try:
            with self.database.connect() as connection, connection.begin():
                limit_statement_time(connection, max(budget.overtime_seconds, LAST_STATEMENT_SECONDS))
                committed = read_page(connection, page.number, invocation_id)
                organisations = organisations_of(connection, page.mentor_ids)
        except SQLAlchemyError as exc:
            failure = classify(exc)
        else:
            if committed is not None:
                return committed
            return self._ask(PageCalls(self._remote, order, page, invocation_id, organisations, logger), budget, logger)
        if is_budgets_own(failure, budget):
            raise BudgetSpentError
        raise SystemicError(failure)

    def _ask(self, calls: PageCalls, budget: TimeBudget, logger: StructuredLogger) -> PageResult:
        if budget.is_spent:
            raise BudgetSpentError
        # The final attempt is part of the overtime, even if the budget is spent.
        seconds = min(budget.remaining_seconds, budget.overtime_seconds - LAST_ASK_SECONDS)
        running = self._remote.start(calls.run(max(seconds, 0.0)))
        try:
            result = running.result()
        except Exception:
            raise
        except BaseException:
            # On termination, as at the end of a budget, requests in flight get one final attempt, and their replies
            # count.
            self._remote.call(calls.stop)
            with contextlib.suppress(Exception), uninterrupted():
                result = running.result(2 * LAST_ASK_SECONDS)
                if result.unprocessed != calls.page.mentor_ids:
                    # The process was told to stop: nothing waits for a budget.
                    self._commit(calls, result, TimeBudget.start(0.0), logger)
            raise
        if result.unprocessed == calls.page.mentor_ids:
            raise BudgetSpentError if result.failure is None else SystemicError(result.failure)
        return self._commit(calls, result, budget, logger)

    def _commit(self, calls: PageCalls, result: PageResult, budget: TimeBudget, logger: StructuredLogger) -> PageResult:
        """Write the page's row, unless another process or a commit whose reply was lost has done so."""
        page, invocation_id, pauses, attempt = calls.page, calls.invocation_id, Pauses(), 1
        while True:
            try:
                with self.database.begin() as connection:
                    limit_statement_time(connection, max(budget.overtime_seconds, LAST_STATEMENT_SECONDS))
                    committed = claim_page(connection, page, invocation_id)
                    if committed is None:
                        complete_page(connection, page, invocation_id, result)
            except SQLAlchemyError as exc:
                failure = classify(exc)
            else:
                return result if committed is None else committed
            if failure.is_worth_waiting_for:
                if not pauses.wait(budget.overtime_seconds):
                    raise SystemicError(failure)
            elif not (failure.is_worth_a_retry and attempt < MAX_ATTEMPTS):
                raise SystemicError(failure)
            logger.emit(PageRetried(page.number, attempt, failure.error_type, failure.error_message))
            attempt += 1

    def close(self) -> None:
        """Close the connections; this takes about `CLIENT_CLOSING_SECONDS` at most."""
        self._remote.close()
