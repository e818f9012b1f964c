"""The `sql` trigger engine: one set-based statement decides and dispatches a page inside Postgres.

Belongs here: running the statement, repeating it after lost races, bisecting for poison mentors, and the page's
transaction. Does not belong here: the statement itself (`engines.statement`), or the run as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from scenario_pipeline.batch_stats import NO_ORGANISATION, BatchStats, OutcomeKey
from scenario_pipeline.engines.statement import EVALUATED, decision_statement
from scenario_pipeline.errors import BudgetSpentError, ErrorInfo, ErrorType, SystemicError, classify
from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.log.vocabulary import PageRetried
from scenario_pipeline.records import MentorError, Page, PageResult, RunOrder
from scenario_pipeline.storage import source
from scenario_pipeline.storage.database import limit_statement_time
from scenario_pipeline.storage.ledger.pages import claim_page, complete_page
from scenario_pipeline.time_budget import Pauses, TimeBudget

# How often a page's transaction is started before a deadlock fails the run.
MAX_ATTEMPTS = 4
# A page that breaks its connection this often, while the server accepts a new one each time, fails the run.
MAX_LOSSES = 5
# A match can lose a race to each of a few writers. One that keeps losing conflicts with an old row, not a writer.
MAX_LOST_RACES = 5
# A timeout this close to the deadline is due to the budget; the margin covers rounding to milliseconds.
_ROUNDING_SECONDS = 0.05


class _WindowTakenError(Exception):
    """A match conflicts with a notification that is no reason to suppress it; see `_WINDOW_TAKEN`."""


# This is possible only with rows that this statement did not write, such as a history imported with other windows.
_WINDOW_TAKEN = ErrorInfo(
    ErrorType.EVALUATION_LOGIC, "an earlier notification of this mentor has a cooldown window that is not its own"
)


@dataclass(frozen=True)
class SqlTriggerEngine:
    """Evaluates pages in the database that holds the mentors.

    Attributes:
        database: connection pool of the scheduler's own database.
    """

    database: Engine

    def evaluate_page(
        self, order: RunOrder, page: Page, invocation_id: str, budget: TimeBudget, logger: StructuredLogger
    ) -> PageResult:
        """Evaluate and commit a page; see `TriggerEngine.evaluate_page`.

        A lost connection does not end a run: the page is started again until the budget is spent.
        """
        uncertain, pauses, attempt, losses = False, Pauses(), 1, 0
        while True:
            connected = committing = False
            # Whether the page was committed is checked even if there is no time to evaluate it again.
            if budget.is_spent and not uncertain:
                raise BudgetSpentError
            try:
                with self.database.connect() as connection, connection.begin() as transaction:
                    connected = True
                    limit_statement_time(connection, budget.overtime_seconds if uncertain else budget.remaining_seconds)
                    result = self._evaluate_in(connection, order, page, invocation_id, budget)
                    committing = True
                    transaction.commit()
                return result
            except SQLAlchemyError as exc:
                failure = classify(exc)
                # After a connection is lost during the commit, the outcome is unknown until the next claim shows it.
                uncertain = uncertain or (committing and isinstance(exc, DBAPIError) and exc.connection_invalidated)
            if is_budgets_own(failure, budget):
                raise BudgetSpentError
            losses += connected and failure.is_worth_waiting_for
            if failure.is_worth_waiting_for and losses < MAX_LOSSES:
                if not pauses.wait(budget.overtime_seconds if uncertain else budget.remaining_seconds):
                    raise SystemicError(failure)
            elif not (failure.is_worth_a_retry and attempt < MAX_ATTEMPTS):
                raise SystemicError(failure)
            logger.emit(PageRetried(page.number, attempt, failure.error_type, failure.error_message))
            attempt += 1

    def _evaluate_in(
        self, connection: Connection, order: RunOrder, page: Page, invocation_id: str, budget: TimeBudget
    ) -> PageResult:
        committed = claim_page(connection, page, invocation_id)
        if committed is not None:
            return committed
        if budget.is_spent:
            raise BudgetSpentError
        evaluation = Evaluation(connection, order, page.mentor_ids, invocation_id, budget)
        with connection.begin_nested() as savepoint:
            result = evaluation.run()
            if order.dispatch_mode == "dry_run":
                savepoint.rollback()
        complete_page(connection, page, invocation_id, result)
        return result


def is_budgets_own(failure: ErrorInfo, budget: TimeBudget) -> bool:
    """Whether a statement was cancelled because the budget ended, and not by an operator or another limit."""
    return failure.sqlstate in {"57014", "55P03"} and budget.remaining_seconds <= _ROUNDING_SECONDS


@dataclass(frozen=True)
class Evaluation:
    """The decision statement, run over one page inside the caller's transaction.

    Attributes:
        connection: inside a transaction.
        order: the order for which they are evaluated.
        mentor_ids: the mentors.
        invocation_id: the invocation to which the notifications belong.
        budget: limits the statements.
        by_mentor: whether to count by mentor instead of by organisation, for a caller that needs each outcome.
    """

    connection: Connection
    order: RunOrder
    mentor_ids: Sequence[str]
    invocation_id: str
    budget: TimeBudget
    by_mentor: bool = False

    def run(self) -> PageResult:
        """Evaluate all mentors of the page; each mentor whom the database refuses becomes an error.

        Raises:
            SQLAlchemyError: the failure is systemic; the caller must roll back its transaction.
        """
        # A deferred constraint would otherwise fail the whole page at its commit, instead of the mentor here.
        self.connection.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
        parts, errors = [], []
        for outcome in self._bisect(self.mentor_ids):
            if isinstance(outcome, MentorError):
                errors.append(outcome)
            else:
                parts.append(outcome)
        stats = BatchStats.sum(parts)
        counted = BatchStats(stats.evaluated_by_organisation, stats.outcomes, len(errors), pages_processed=1)
        return PageResult(counted, tuple(errors))

    def _bisect(self, mentor_ids: Sequence[str]) -> Iterator[BatchStats | MentorError]:
        try:
            with self.connection.begin_nested():
                stats = self._decide(mentor_ids, self.order.scenario_types)
            yield stats
            return
        except _WindowTakenError:
            failure = _WINDOW_TAKEN
        except DBAPIError as exc:
            failure = classify(exc)
            if not failure.is_about_a_row:
                raise
        if len(mentor_ids) == 1:
            yield MentorError(mentor_ids[0], failure)
            return
        middle = len(mentor_ids) // 2
        yield from self._bisect(mentor_ids[:middle])
        yield from self._bisect(mentor_ids[middle:])

    def _decide(self, mentor_ids: Sequence[str], scenario_types: tuple[str, ...], lost_races: int = 0) -> BatchStats:
        """Run the statement, and repeat it for matches that lost a race; the last result counts."""
        if self.budget.is_spent:
            raise BudgetSpentError
        if lost_races > MAX_LOST_RACES:
            raise _WindowTakenError
        limit_statement_time(self.connection, self.budget.remaining_seconds)
        rows = self.connection.execute(
            decision_statement(scenario_types, source.access_of(self.connection), self.by_mentor),
            {
                "mentor_ids": list(mentor_ids),
                "evaluation_date": self.order.evaluation_date,
                "invocation_id": self.invocation_id,
            },
        ).all()
        evaluated = {row.counted_for or NO_ORGANISATION: row.n for row in rows if row.outcome == EVALUATED}
        outcomes: Counter[OutcomeKey] = Counter()
        again = BatchStats()
        for row in rows:
            match row.outcome:
                case "evaluated":
                    pass
                case "lost_race":
                    again += self._decide(row.mentor_ids, (row.scenario_type,), lost_races + 1)
                case _:
                    outcomes[(row.counted_for, row.scenario_type, row.outcome)] += row.n
        # The mentors of a repetition are already counted; only the outcomes of their matches are new.
        return BatchStats(evaluated, outcomes) + BatchStats(outcomes=again.outcomes)
