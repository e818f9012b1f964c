"""The `sql` trigger engine: one set-based statement decides and dispatches a page inside Postgres.

Belongs here: the statement of contract section 4, its repetition after lost races, bisection of poison mentors, and
the page's transaction. Does not belong here: what makes a scenario due (`scenarios`) or the run as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Any

from sqlalchemy import (
    ARRAY,
    Connection,
    Date,
    Engine,
    Executable,
    Text,
    Uuid,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal,
    null,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from scenario_pipeline.batch_stats import DISPATCHED, NO_ORGANISATION, BatchStats, OutcomeKey
from scenario_pipeline.errors import BudgetSpentError, ErrorInfo, ErrorType, SystemicError, classify
from scenario_pipeline.events import PageRetried
from scenario_pipeline.records import MentorError, Page, PageResult
from scenario_pipeline.scenarios import registry
from scenario_pipeline.storage import ledger
from scenario_pipeline.storage.tables import peer_mentors, scenario_evaluation_config, scenario_notifications
from scenario_pipeline.structured_logger import StructuredLogger
from scenario_pipeline.time_budget import TimeBudget

# How often a page's transaction is begun before a deadlock, or a commit without an answer, fails the run.
MAX_ATTEMPTS = 4
# How long it may take to learn what became of a commit.
SETTLING_SECONDS = 2.0
# A match can lose a race to each of a few writers; one that loses again and again meets no writer but an old row.
MAX_LOST_RACES = 5
# The cooldown window of a mentor's first notification starts here (contract section 4).
FIRST_WINDOW = date(1970, 1, 1)
_LOST_RACE = "lost_race"
_EVALUATED = "evaluated"
# A timeout this close to the deadline is the budget's own, despite the rounding to milliseconds.
_ROUNDING_SECONDS = 0.05


class _WindowTakenError(Exception):
    """A match conflicts with a notification that is no reason to suppress it: see `_WINDOW_TAKEN`."""


# Possible only with rows that were not written by this statement, such as a history imported with other windows.
_WINDOW_TAKEN = ErrorInfo(
    ErrorType.EVALUATION_LOGIC, "an earlier notification of this mentor has a cooldown window that is not its own"
)


@dataclass(frozen=True)
class SqlTriggerEngine:
    """Evaluates pages in the database that holds the mentors.

    Attributes:
        database: engine on the scheduler's own database.
    """

    database: Engine

    def evaluate_page(self, page: Page, invocation_id: str, budget: TimeBudget, logger: StructuredLogger) -> PageResult:
        """Evaluate and commit a page; see `TriggerEngine.evaluate_page`."""
        uncertain = False
        for attempt in range(1, MAX_ATTEMPTS + 1):
            committing = False
            # Whether a page was committed is asked even when there is no time left to evaluate it again.
            if budget.is_spent and not uncertain:
                raise BudgetSpentError
            try:
                with self.database.connect() as connection, connection.begin() as transaction:
                    result = self._evaluate_in(connection, page, invocation_id, budget)
                    committing = True
                    transaction.commit()
                return result
            except SQLAlchemyError as exc:
                failure = classify(exc)
                # A lost connection during the commit leaves its outcome open: asking again settles it.
                uncertain = committing and isinstance(exc, DBAPIError) and exc.connection_invalidated
            if is_budgets_own(failure, budget):
                raise BudgetSpentError
            if attempt == MAX_ATTEMPTS or not (uncertain or failure.is_worth_a_retry):
                raise SystemicError(failure)
            logger.emit(PageRetried(page.number, attempt, failure.error_type, failure.error_message))
        raise AssertionError("the last attempt returns or raises")

    def _evaluate_in(self, connection: Connection, page: Page, invocation_id: str, budget: TimeBudget) -> PageResult:
        ledger.limit_statement_time(connection, max(budget.remaining_seconds, SETTLING_SECONDS))
        committed = ledger.claim_page(connection, page, invocation_id)
        if committed is not None:
            return committed
        if budget.is_spent:
            raise BudgetSpentError
        evaluation = Evaluation(connection, page, invocation_id, budget)
        with connection.begin_nested() as savepoint:
            result = evaluation.run()
            if page.request.dispatch_mode == "dry_run":
                savepoint.rollback()
        ledger.complete_page(connection, page, invocation_id, result)
        return result


def is_budgets_own(failure: ErrorInfo, budget: TimeBudget) -> bool:
    """Whether a statement was cancelled because the budget ended, and not by an operator or another limit."""
    return failure.sqlstate in {"57014", "55P03"} and budget.remaining_seconds <= _ROUNDING_SECONDS


@dataclass(frozen=True)
class Evaluation:
    """The decision statement, run over one page inside the caller's transaction.

    Attributes:
        connection: inside a transaction.
        page: the mentors, and what they are evaluated for.
        invocation_id: which invocation the notifications belong to.
        budget: ends the statements.
        by_mentor: count by mentor instead of by organisation, for a caller who needs each one's outcome.
    """

    connection: Connection
    page: Page
    invocation_id: str
    budget: TimeBudget
    by_mentor: bool = False

    def run(self) -> PageResult:
        """Evaluate all mentors of the page; those that the database refuses become errors, one by one.

        Raises:
            SQLAlchemyError: the failure is systemic; the caller's transaction is to be rolled back.
        """
        parts, errors = [], []
        for outcome in self._bisect(self.page.mentor_ids):
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
                stats = self._decide(mentor_ids, self.page.request.scenario_types)
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
        """Run the statement, and again for matches that lost a race: their reason is what holds after it."""
        if self.budget.is_spent:
            raise BudgetSpentError
        if lost_races > MAX_LOST_RACES:
            raise _WindowTakenError
        ledger.limit_statement_time(self.connection, self.budget.remaining_seconds)
        rows = self.connection.execute(
            decision_statement(scenario_types, self.by_mentor),
            {
                "mentor_ids": list(mentor_ids),
                "evaluation_date": self.page.request.evaluation_date,
                "invocation_id": self.invocation_id,
            },
        ).all()
        evaluated = {row.counted_for or NO_ORGANISATION: row.n for row in rows if row.outcome == _EVALUATED}
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
        # The mentors of a repetition are counted already; only what became of their matches is new.
        return BatchStats(evaluated, outcomes) + BatchStats(outcomes=again.outcomes)


@cache
def decision_statement(scenario_types: tuple[str, ...], by_mentor: bool = False) -> Executable:
    """Build the statement that decides and dispatches for a list of mentors.

    Parameters of the statement: `mentor_ids` (uuid[]), `evaluation_date`, `invocation_id`. It returns rows
    (`counted_for`, `scenario_type`, `outcome`, `n`, `mentor_ids`): one a group of matches with the same outcome, with
    the mentors listed where the outcome is a lost race, and one a group with the mentors evaluated. The groups are
    organisations, or mentors where `by_mentor` asks for it.
    """
    evaluation_date = cast(bindparam("evaluation_date"), Date)
    mentor, config, sent = peer_mentors, scenario_evaluation_config, scenario_notifications

    key = Uuid(as_uuid=False)
    asked = select(func.unnest(cast(bindparam("mentor_ids"), ARRAY(key)), type_=key).label("user_id")).subquery("asked")
    # Left join: a mentor who left since the list was made is evaluated, and matches nothing.
    page = (
        select(asked.c.user_id, mentor.c.organisation_id, mentor.c.joined_on, mentor.c.notifications_opt_out)
        .select_from(asked)
        .join(mentor, (mentor.c.id == asked.c.user_id) & (mentor.c.status == "active"), isouter=True)
        .cte("page")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    members = select(page.c.organisation_id).distinct().subquery("members")
    # An organisation's row overrides the default row as a whole: NULLs sort last, so its own row comes first.
    configuration = (
        select(
            members.c.organisation_id,
            config.c.scenario_type,
            config.c.enabled,
            config.c.thresholds,
            config.c.lookback_days,
            config.c.cooldown_days,
        )
        .join(config, or_(config.c.organisation_id == members.c.organisation_id, config.c.organisation_id.is_(None)))
        .where(config.c.scenario_type.in_(scenario_types), members.c.organisation_id.is_not(None))
        .ext(distinct_on(members.c.organisation_id, config.c.scenario_type))
        .order_by(members.c.organisation_id, config.c.scenario_type, config.c.organisation_id.nulls_last())
        .cte("configuration")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    due = union_all(*(_due(name, page, configuration, evaluation_date) for name in scenario_types)).cte("due")
    previous = (
        select(func.max(sent.c.evaluation_date).label("on"))
        .where(sent.c.user_id == due.c.user_id, sent.c.scenario_type == due.c.scenario_type)
        .lateral("previous")
    )
    is_duplicate = exists().where(
        sent.c.user_id == due.c.user_id,
        sent.c.scenario_type == due.c.scenario_type,
        or_(sent.c.dedup_key == due.c.dedup_key, sent.c.evaluation_date == evaluation_date),
    )
    reason = case(
        (page.c.notifications_opt_out, "opted_out"),
        (is_duplicate, "duplicate"),
        # A notification dated after the evaluation date holds as well: the distance is negative.
        (previous.c.on > evaluation_date - due.c.cooldown_days, "cooldown"),
    )
    decided = (
        select(due, page.c.organisation_id, previous.c.on.label("previous"), reason.label("reason"))
        .select_from(due)
        .join(page, page.c.user_id == due.c.user_id)
        .join(previous, true())
        .cte("decided")
    )
    dispatched = (
        insert(sent)
        .from_select(
            [
                sent.c.id,
                sent.c.user_id,
                sent.c.organisation_id,
                sent.c.scenario_type,
                sent.c.evaluation_date,
                sent.c.cooldown_window_start,
                sent.c.dedup_key,
                sent.c.threshold,
                sent.c.crossed_on,
                sent.c.invocation_id,
            ],
            select(
                func.gen_random_uuid(),
                decided.c.user_id,
                decided.c.organisation_id,
                decided.c.scenario_type,
                evaluation_date,
                func.coalesce(decided.c.previous, literal(FIRST_WINDOW, Date)),
                decided.c.dedup_key,
                decided.c.threshold,
                decided.c.crossed_on,
                cast(bindparam("invocation_id"), Uuid(as_uuid=False)),
            )
            .where(decided.c.reason.is_(None))
            # One order for all writers: without it two overlapping pages deadlock.
            .order_by(decided.c.user_id, decided.c.scenario_type),
        )
        .on_conflict_do_nothing()
        .returning(sent.c.user_id, sent.c.scenario_type)
        .cte("dispatched")
    )
    outcome = case(
        (decided.c.reason.is_not(None), decided.c.reason),
        (dispatched.c.user_id.is_not(None), DISPATCHED),
        else_=_LOST_RACE,
    )
    matches = (
        select(
            decided.c.user_id,
            (decided.c.user_id if by_mentor else decided.c.organisation_id).label("counted_for"),
            decided.c.scenario_type,
            outcome.label("outcome"),
        )
        .select_from(decided)
        .join(
            dispatched,
            (dispatched.c.user_id == decided.c.user_id) & (dispatched.c.scenario_type == decided.c.scenario_type),
            isouter=True,
        )
        .subquery("matches")
    )
    evaluated_for = page.c.user_id if by_mentor else page.c.organisation_id
    return union_all(
        select(
            evaluated_for.label("counted_for"),
            cast(null(), Text).label("scenario_type"),
            literal(_EVALUATED).label("outcome"),
            func.count().label("n"),
            cast(null(), ARRAY(Uuid(as_uuid=False))).label("mentor_ids"),
        ).group_by(evaluated_for),
        select(
            matches.c.counted_for,
            matches.c.scenario_type,
            matches.c.outcome,
            func.count(),
            func.array_agg(matches.c.user_id, type_=ARRAY(Uuid(as_uuid=False))).filter(matches.c.outcome == _LOST_RACE),
        ).group_by(matches.c.counted_for, matches.c.scenario_type, matches.c.outcome),
    )


def _due(name: str, page: Any, configuration: Any, evaluation_date: Any) -> Any:
    """Select the matches of one scenario with the name and the cooldown that apply to them."""
    own = (
        select(
            configuration.c.organisation_id,
            configuration.c.thresholds,
            configuration.c.lookback_days,
            configuration.c.cooldown_days,
        )
        .where(configuration.c.scenario_type == name, configuration.c.enabled)
        .subquery(f"{name}_configuration")
    )
    found = registry()[name].matches(page, own, evaluation_date).subquery(name)
    return (
        select(
            found.c.user_id,
            literal(name).label("scenario_type"),
            found.c.threshold,
            found.c.crossed_on,
            found.c.dedup_key,
            own.c.cooldown_days,
        )
        .select_from(found)
        .join(page, page.c.user_id == found.c.user_id)
        .join(own, own.c.organisation_id == page.c.organisation_id)
    )
