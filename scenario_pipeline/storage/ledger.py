"""The ledger: one row an invocation, one row a page, and the order in which mentors are taken.

Belongs here: every statement on `scheduler_runs`, `scheduler_run_pages` and the list of active mentors. Does not
belong here: deciding what is due (`engines.sql`) or when a run is over (`invocation`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    ScalarSelect,
    Select,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal,
    null,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from scenario_pipeline.batch_stats import DISPATCHED, BatchStats
from scenario_pipeline.errors import ErrorInfo, ErrorType, SystemicError
from scenario_pipeline.events import Report
from scenario_pipeline.records import MentorError, Page, PageResult, RunRequest
from scenario_pipeline.storage import source
from scenario_pipeline.storage.tables import (
    scenario_evaluation_config,
    scenario_notifications,
    scheduler_run_pages,
    scheduler_runs,
)


def open_invocation(
    connection: Connection,
    request: RunRequest,
    invocation_id: str,
    *,
    started_at: datetime,
    parent_invocation_id: str | None,
) -> bool:
    """Insert the invocation's row unless another process of the same invocation has done so.

    A re-execution sets out to evaluate what its parent left, so that is its number of active mentors until the
    list of mentors is read anew.

    Returns:
        Whether this call opened it.
    """
    runs, pages = scheduler_runs, scheduler_run_pages
    parent_left = (
        select(
            runs.c.total_active_mentors
            - func.coalesce(
                select(func.sum(pages.c.total_evaluated + pages.c.total_errors))
                .where(pages.c.invocation_id == parent_invocation_id)
                .scalar_subquery(),
                0,
            )
        )
        .where(runs.c.invocation_id == parent_invocation_id)
        .scalar_subquery()
    )
    statement = (
        insert(runs)
        .values(
            invocation_id=invocation_id,
            triggered_by=request.triggered_by,
            evaluation_date=request.evaluation_date,
            scenario_types=list(request.scenario_types),
            organisation_ids=list(request.organisation_ids),
            dispatch_mode=request.dispatch_mode,
            engine=request.engine,
            time_budget_ms=request.time_budget_ms,
            status="running",
            started_at=started_at,
            total_active_mentors=func.coalesce(cast(parent_left, Integer), 0),
            resume_after=resume_position(request).scalar_subquery(),
        )
        .on_conflict_do_nothing(index_elements=[runs.c.invocation_id])
        .returning(runs.c.invocation_id)
    )
    return connection.execute(statement).scalar_one_or_none() is not None


def join_invocation(connection: Connection, invocation_id: str) -> tuple[int, float]:
    """Return what a process needs that joins an invocation which another one opened.

    Returns:
        The number of active mentors, and the seconds since it was opened by the database's clock: monotonic clocks
        of two machines cannot be compared.
    """
    table = scheduler_runs
    age = func.extract("epoch", func.clock_timestamp() - table.c.started_at)
    statement = select(table.c.total_active_mentors, age).where(table.c.invocation_id == invocation_id)
    total_active_mentors, seconds = connection.execute(statement).one()
    return total_active_mentors, float(seconds)


def resume_position(request: RunRequest) -> Select[tuple[str | None]]:
    """Select the mentor after whom the next run of the same kind starts, or NULL to start at the beginning.

    The latest run of the same scenario set, organisations and dispatch mode decides, or the one that is continued:
    nothing if it completed; where it was closed, what it left; where its process was killed, the last page up to which
    all pages were committed.
    """
    runs = scheduler_runs
    same_kind = and_(
        runs.c.scenario_types == list(request.scenario_types),
        runs.c.organisation_ids == list(request.organisation_ids),
        runs.c.dispatch_mode == request.dispatch_mode,
    )
    latest = (
        select(runs.c.invocation_id, runs.c.status, runs.c.resume_after)
        .where(same_kind if request.continues is None else runs.c.invocation_id == request.continues)
        .order_by(runs.c.started_at.desc(), runs.c.invocation_id)
        .limit(1)
        .cte("latest")
    )
    reached = _last_mentor_reached(select(latest.c.invocation_id).scalar_subquery())
    killed = and_(latest.c.status == "running", reached.is_not(None))
    return select(case((killed, reached), else_=latest.c.resume_after)).where(latest.c.status != "completed")


def _last_mentor_reached(invocation_id: ColumnElement[str]) -> ScalarSelect[str]:
    """Select the last mentor of the last page up to which all pages of an invocation were committed."""
    pages = scheduler_run_pages
    numbered = (
        select(
            pages.c.page_number,
            pages.c.last_mentor_id,
            func.row_number().over(order_by=pages.c.page_number).label("position"),
        )
        .where(pages.c.invocation_id == invocation_id)
        .subquery("numbered")
    )
    return (
        select(numbered.c.last_mentor_id)
        .where(numbered.c.page_number == numbered.c.position)
        .order_by(numbered.c.page_number.desc())
        .limit(1)
        .scalar_subquery()
    )


def active_mentors(connection: Connection, request: RunRequest, invocation_id: str) -> list[str]:
    """Return the ids of the mentors to evaluate, those left over by the previous run first, and note their number.

    Raises:
        SystemicError: the source has a mentor twice, or one without an id.
    """
    start = select(scheduler_runs.c.resume_after).where(scheduler_runs.c.invocation_id == invocation_id)
    after = connection.execute(start).scalar_one()
    access = source.access_of(connection)
    mentor = source.active_mentors(access, request.evaluation_date, request.organisation_ids)
    order = [mentor.c.id] if after is None else [mentor.c.id <= after, mentor.c.id]
    mentor_ids = list(connection.execute(select(mentor.c.id).order_by(*order)).scalars())
    if len({*mentor_ids, None}) <= len(mentor_ids):
        raise SystemicError(source.AMBIGUOUS)
    connection.execute(
        update(scheduler_runs)
        .where(scheduler_runs.c.invocation_id == invocation_id)
        .values(total_active_mentors=len(mentor_ids))
    )
    return mentor_ids


def unknown_organisations(connection: Connection, organisation_ids: tuple[str, ...]) -> list[str]:
    """Return those of the ids that are no organisation."""
    return sorted(set(organisation_ids) - organisation_names(connection, organisation_ids).keys())


def organisations_of(connection: Connection, mentor_ids: Sequence[str]) -> dict[str, str]:
    """Return the organisation of each of these mentors who is active."""
    asked = source.keys(mentor_ids)
    mentor = source.mentors(source.access_of(connection), asked)
    statement = select(mentor.c.id, mentor.c.organisation_id).where(
        mentor.c.id == func.any(asked), mentor.c.status == "active"
    )
    return {row.id: row.organisation_id for row in connection.execute(statement)}


def claim_page(connection: Connection, page: Page, invocation_id: str) -> PageResult | None:
    """Begin a page: insert its row, or return what it came to if it was committed before.

    The insert waits for another transaction that holds the same row, so a commit whose answer was lost is settled by
    asking again: either its row is there, or it never happened and this transaction takes its place.
    """
    statement = (
        insert(scheduler_run_pages)
        .values(invocation_id=invocation_id, page_number=page.number, last_mentor_id=page.mentor_ids[-1])
        .on_conflict_do_nothing()
        .returning(scheduler_run_pages.c.page_number)
    )
    if connection.execute(statement).scalar_one_or_none() is not None:
        return None
    return read_page(connection, page.number, invocation_id)


def read_page(connection: Connection, page_number: int, invocation_id: str | None) -> PageResult | None:
    """Return what a committed page came to, or None if there is none."""
    table = scheduler_run_pages
    row = connection.execute(
        select(table).where(table.c.invocation_id == invocation_id, table.c.page_number == page_number)
    ).one_or_none()
    return None if row is None else _result_of(row)


def complete_page(connection: Connection, page: Page, invocation_id: str, result: PageResult) -> None:
    """Write a page's totals, in the page's own transaction.

    The next run starts with the first mentor that is left. Where that is the first of the page, it comes last: the
    mentor before it stands on another page.
    """
    stats = result.stats
    settled = page.mentor_ids.index(result.left[0]) if result.left else len(page.mentor_ids)
    connection.execute(
        update(scheduler_run_pages)
        .where(scheduler_run_pages.c.invocation_id == invocation_id, scheduler_run_pages.c.page_number == page.number)
        .values(
            **stats.totals(),
            last_mentor_id=page.mentor_ids[max(settled, 1) - 1],
            left_mentor_ids=list(result.left),
            evaluated_by_organisation=stats.evaluated_by_organisation,
            outcomes=stats.outcome_rows(),
            errors=[
                {
                    "peer_mentor_id": e.peer_mentor_id,
                    "error_type": e.error.error_type,
                    "error_message": e.error.error_message,
                }
                for e in result.errors
            ],
        )
    )


def read_pages(connection: Connection, invocation_id: str) -> dict[int, PageResult]:
    """Return what the committed pages of an invocation came to, by page number."""
    table = scheduler_run_pages
    rows = connection.execute(select(table).where(table.c.invocation_id == invocation_id).order_by(table.c.page_number))
    return {row.page_number: _result_of(row) for row in rows}


def read_request(connection: Connection, invocation_id: str) -> tuple[RunRequest, int, datetime] | None:
    """Return what an invocation was to do, its number of active mentors and when it started; None if it is closed."""
    row = connection.execute(
        select(scheduler_runs).where(
            scheduler_runs.c.invocation_id == invocation_id, scheduler_runs.c.status == "running"
        )
    ).one_or_none()
    if row is None:
        return None
    request = RunRequest(
        evaluation_date=row.evaluation_date,
        scenario_types=tuple(row.scenario_types),
        organisation_ids=tuple(row.organisation_ids),
        dispatch_mode=row.dispatch_mode,
        engine=row.engine,
        time_budget_seconds=row.time_budget_ms / 1000,
        page_size=None,
        triggered_by=row.triggered_by,
    )
    return request, row.total_active_mentors, row.started_at


@dataclass(frozen=True)
class ClosedInvocation:
    """An invocation as the ledger has it, in the three places that must agree.

    Attributes:
        invocation_id: the Dagster run id.
        evaluation_date: the date it evaluated.
        dispatch_mode: `live` or `dry_run`.
        engine: which trigger engine evaluated, `sql` or `http`.
        status: `completed`, `partial` or `failed`.
        remaining: mentors left unprocessed, or None where that is unknown.
        totals: its row in `scheduler_runs`, under the names of `scheduler_run_completed`.
        pages: the sum of its rows in `scheduler_run_pages`.
        notifications: the number of its rows in `scenario_notifications`.
    """

    invocation_id: str
    evaluation_date: date
    dispatch_mode: str
    engine: str
    status: str
    remaining: int | None
    totals: Mapping[str, Any]
    pages: BatchStats
    notifications: int


def closed_invocation(connection: Connection, invocation_id: str) -> ClosedInvocation | None:
    """Return an invocation that is over, or None if it is not or was never opened."""
    found = _closed(connection, scheduler_runs.c.invocation_id == invocation_id)
    return found[0] if found else None


def closed_invocations(connection: Connection, evaluation_date: date) -> list[ClosedInvocation]:
    """Return the invocations of a date that are over, the oldest first."""
    return _closed(connection, scheduler_runs.c.evaluation_date == evaluation_date)


def _closed(connection: Connection, condition: ColumnElement[bool]) -> list[ClosedInvocation]:
    runs, sent = scheduler_runs, scenario_notifications
    of_run = select(func.count()).where(sent.c.invocation_id == runs.c.invocation_id).scalar_subquery()
    rows = connection.execute(
        select(runs, of_run.label("notifications"))
        .where(condition, runs.c.status != "running")
        .order_by(runs.c.started_at, runs.c.invocation_id)
    ).all()
    names = Report("completed", 0, BatchStats(), 0).totals()
    return [
        ClosedInvocation(
            row.invocation_id,
            row.evaluation_date,
            row.dispatch_mode,
            row.engine,
            row.status,
            row.remaining_unprocessed_count,
            {name: getattr(row, name) for name in names},
            BatchStats.sum(page.stats for page in read_pages(connection, row.invocation_id).values()),
            row.notifications,
        )
        for row in rows
    ]


def notifications_of(connection: Connection, invocation_id: str) -> BatchStats:
    """Return what an invocation dispatched, as its notifications have it."""
    sent = scenario_notifications
    rows = connection.execute(
        select(sent.c.organisation_id, sent.c.scenario_type, func.count().label("n"))
        .where(sent.c.invocation_id == invocation_id)
        .group_by(sent.c.organisation_id, sent.c.scenario_type)
    )
    return BatchStats(outcomes={(row.organisation_id, row.scenario_type, DISPATCHED): row.n for row in rows})


def latest_evaluation_date(connection: Connection) -> date | None:
    """Return the date of the invocation that was closed last, or None if there is none."""
    runs = scheduler_runs
    statement = select(runs.c.evaluation_date).where(runs.c.status != "running").order_by(runs.c.finished_at.desc())
    return connection.execute(statement.limit(1)).scalar_one_or_none()


def overdue_invocations(connection: Connection, now: datetime, grace_seconds: float) -> list[str]:
    """Return the invocations that are open although their time budget and the grace were over before `now`."""
    runs = scheduler_runs
    over = runs.c.started_at + (runs.c.time_budget_ms + grace_seconds * 1000) * text("interval '1 millisecond'")
    statement = select(runs.c.invocation_id).where(runs.c.status == "running", over < now)
    return list(connection.execute(statement.order_by(runs.c.started_at)).scalars())


def organisation_names(connection: Connection, organisation_ids: Collection[str]) -> dict[str, str]:
    """Return the names of organisations by id."""
    table = source.organisations(source.access_of(connection), organisation_ids)
    rows = connection.execute(select(table.c.id, table.c.name).where(table.c.id.in_(organisation_ids)))
    return {row.id: row.name for row in rows}


def _result_of(row: Any) -> PageResult:
    return PageResult(_stats_of(row), _errors_of(row), tuple(row.left_mentor_ids))


def _stats_of(row: Any) -> BatchStats:
    outcomes = {(organisation, scenario, outcome): n for organisation, scenario, outcome, n in row.outcomes}
    return BatchStats(row.evaluated_by_organisation, outcomes, row.total_errors, pages_processed=1)


def _errors_of(row: Any) -> tuple[MentorError, ...]:
    return tuple(
        MentorError(e["peer_mentor_id"], ErrorInfo(ErrorType(e["error_type"]), e["error_message"])) for e in row.errors
    )


def close_invocation(
    connection: Connection,
    invocation_id: str,
    report: Report,
    *,
    stuck_after: str | None,
    now: datetime,
) -> bool:
    """Write how the invocation ended, unless it is closed already.

    Args:
        connection: inside a transaction.
        invocation_id: which invocation.
        report: its totals.
        stuck_after: the last mentor of the page that a whole budget could not finish, which goes to the end of the
            queue so that nobody else starves; else None.
        now: the moment of closing.

    Returns:
        Whether this call closed it; only then may the closing events be emitted.
    """
    runs = scheduler_runs
    reached = _last_mentor_reached(literal(invocation_id, runs.c.invocation_id.type))
    inherited = func.coalesce(reached, literal(stuck_after, runs.c.resume_after.type), runs.c.resume_after)
    resume_after = null() if report.status == "completed" else inherited
    statement = (
        update(runs)
        .where(runs.c.invocation_id == invocation_id, runs.c.status == "running")
        .values(
            **report.totals(),
            status=report.status,
            finished_at=now,
            remaining_unprocessed_count=report.remaining,
            resume_after=resume_after,
        )
        .returning(runs.c.invocation_id)
    )
    return connection.execute(statement).scalar_one_or_none() is not None


def note_evaluations(connection: Connection, request: RunRequest, stats: BatchStats, now: datetime) -> None:
    """Write `last_evaluated_count` and `last_evaluated_at` to the configuration rows that took part.

    In a transaction of its own: whoever has locked a row of the configuration must not keep a run from being closed.
    The rows are locked in key order first, so that runs that end together do not deadlock.
    """
    table = scenario_evaluation_config
    rows = connection.execute(
        select(table.c.organisation_id, table.c.scenario_type, table.c.enabled)
        .where(table.c.scenario_type.in_(request.scenario_types))
        .order_by(table.c.scenario_type, table.c.organisation_id)
        .with_for_update()
    ).all()
    overridden = {(row.scenario_type, row.organisation_id) for row in rows if row.organisation_id is not None}
    notes = []
    for row in rows:
        if row.organisation_id is not None:
            count = stats.evaluated_by_organisation.get(row.organisation_id, 0)
        else:
            evaluated = stats.evaluated_by_organisation.items()
            count = sum(n for organisation, n in evaluated if (row.scenario_type, organisation) not in overridden)
        if row.enabled:
            notes.append({"of_scenario": row.scenario_type, "of_organisation": row.organisation_id, "count": count})
    if notes:
        connection.execute(
            update(table)
            .where(
                table.c.scenario_type == bindparam("of_scenario"),
                table.c.organisation_id.is_not_distinct_from(bindparam("of_organisation")),
            )
            .values(last_evaluated_count=bindparam("count"), last_evaluated_at=now),
            notes,
        )


def limit_statement_time(connection: Connection, seconds: float) -> None:
    """Let no statement of this transaction, nor any wait for a lock, last longer than `seconds`."""
    milliseconds = max(1, int(seconds * 1000))
    connection.execute(
        text("SELECT set_config('statement_timeout', :ms, true), set_config('lock_timeout', :ms, true)"),
        {"ms": str(milliseconds)},
    )
