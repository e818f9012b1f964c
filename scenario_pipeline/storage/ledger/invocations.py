"""The ledger's row for each invocation: opened, joined, resumed, closed (contract section 4).

Belongs here: statements on `scheduler_runs` and on the configuration's cost columns. Does not belong here: pages
(`storage.ledger.pages`), or deciding when a run is over (`invocation`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import (
    BigInteger,
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

from scenario_pipeline.batch_stats import BatchStats
from scenario_pipeline.errors import SystemicError
from scenario_pipeline.records import RunOrder
from scenario_pipeline.report import Report
from scenario_pipeline.storage import source
from scenario_pipeline.storage.tables import scenario_evaluation_config, scheduler_run_pages, scheduler_runs


def open_invocation(
    connection: Connection,
    order: RunOrder,
    invocation_id: str,
    *,
    parent_invocation_id: str | None,
) -> bool:
    """Insert the invocation's row unless another process of the same invocation has done so.

    A re-execution starts with the mentors whom its parent left unprocessed. Their number is its number of active
    mentors until it reads the list of mentors again.

    Returns:
        Whether this call opened it.
    """
    runs, pages = scheduler_runs, scheduler_run_pages
    of_parent = (
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
            triggered_by=order.triggered_by,
            evaluation_date=order.evaluation_date,
            scenario_types=list(order.scenario_types),
            organisation_ids=list(order.organisation_ids),
            dispatch_mode=order.dispatch_mode,
            engine=order.engine_name,
            time_budget_ms=order.time_budget_ms,
            status="running",
            started_at=func.clock_timestamp(),
            total_active_mentors=func.coalesce(cast(of_parent, Integer), 0),
            resume_after=resume_position(order).scalar_subquery(),
        )
        .on_conflict_do_nothing(index_elements=[runs.c.invocation_id])
        .returning(runs.c.invocation_id)
    )
    return connection.execute(statement).scalar_one_or_none() is not None


def join_invocation(connection: Connection, invocation_id: str) -> tuple[int, float]:
    """Return what a process needs to join an invocation that another process opened.

    Returns:
        The number of active mentors, and the seconds since it was opened. The latter is by the database's clock,
        because monotonic clocks of two machines cannot be compared.
    """
    table = scheduler_runs
    age = func.extract("epoch", func.clock_timestamp() - table.c.started_at)
    statement = select(table.c.total_active_mentors, age).where(table.c.invocation_id == invocation_id)
    total_active_mentors, seconds = connection.execute(statement).one()
    return total_active_mentors, float(seconds)


def resume_position(order: RunOrder) -> Select[tuple[str | None]]:
    """Select the mentor after whom the next run of the same kind starts, or NULL for the first mentor.

    The latest run with the same scenarios, organisations and dispatch mode decides, or the run that is continued. If it
    completed, the result is NULL. If it was closed otherwise, the result is its own `resume_after`. If its process was
    killed, the result is the end of the last page before which all pages were committed.
    """
    runs = scheduler_runs
    same_kind = and_(
        runs.c.scenario_types == list(order.scenario_types),
        runs.c.organisation_ids == list(order.organisation_ids),
        runs.c.dispatch_mode == order.dispatch_mode,
    )
    latest = (
        select(runs.c.invocation_id, runs.c.status, runs.c.resume_after)
        .where(same_kind if order.continues is None else runs.c.invocation_id == order.continues)
        .order_by(runs.c.number.desc())
        .limit(1)
        .cte("latest")
    )
    reached = last_mentor_reached(select(latest.c.invocation_id).scalar_subquery())
    killed = and_(latest.c.status == "running", reached.is_not(None))
    return select(case((killed, reached), else_=latest.c.resume_after)).where(latest.c.status != "completed")


def last_mentor_reached(invocation_id: ColumnElement[str]) -> ScalarSelect[str]:
    """Select the last mentor of the unbroken sequence of committed pages with which an invocation began."""
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


def list_active_mentors(connection: Connection, order: RunOrder, invocation_id: str) -> list[str]:
    """Return the ids of the mentors to evaluate, starting where the previous run stopped; record their number.

    Raises:
        SystemicError: the source has a mentor twice, or one without an id.
    """
    start = select(scheduler_runs.c.resume_after).where(scheduler_runs.c.invocation_id == invocation_id)
    after = connection.execute(start).scalar_one()
    access = source.access_of(connection)
    mentor = source.active_mentors(access, order.evaluation_date, order.organisation_ids)
    ordering = [mentor.c.id] if after is None else [mentor.c.id <= after, mentor.c.id]
    mentor_ids = list(connection.execute(select(mentor.c.id).order_by(*ordering)).scalars())
    if len({*mentor_ids, None}) <= len(mentor_ids):
        raise SystemicError(source.AMBIGUOUS)
    connection.execute(
        update(scheduler_runs)
        .where(scheduler_runs.c.invocation_id == invocation_id)
        .values(total_active_mentors=len(mentor_ids))
    )
    return mentor_ids


@dataclass(frozen=True)
class OpenInvocation:
    """An invocation that nothing has closed yet.

    Attributes:
        order: what it has to do.
        total_active_mentors: mentors it set out to evaluate; 0 or an estimate before it has counted them.
        elapsed_ms: whole milliseconds since it was opened, by the database's clock.
    """

    order: RunOrder
    total_active_mentors: int
    elapsed_ms: int


def lock_open_invocation(connection: Connection, invocation_id: str) -> OpenInvocation | None:
    """Lock an open invocation's row, so that no page is committed for it; None if it is not open.

    This waits for transactions whose pages hold the row (`claim_page`).
    """
    runs = scheduler_runs
    elapsed = func.extract("epoch", func.clock_timestamp() - runs.c.started_at)
    statement = (
        select(runs, cast(elapsed * 1000, BigInteger).label("elapsed_ms"))
        .where(runs.c.invocation_id == invocation_id, runs.c.status == "running")
        .with_for_update(of=runs)
    )
    row = connection.execute(statement).one_or_none()
    if row is None:
        return None
    order = RunOrder(
        evaluation_date=row.evaluation_date,
        scenario_types=tuple(row.scenario_types),
        organisation_ids=tuple(row.organisation_ids),
        dispatch_mode=row.dispatch_mode,
        engine_name=row.engine,
        time_budget_seconds=row.time_budget_ms / 1000,
        page_size=None,
        triggered_by=row.triggered_by,
    )
    return OpenInvocation(order, row.total_active_mentors, max(0, row.elapsed_ms))


def overdue_invocations(connection: Connection, now: datetime, grace_seconds: float) -> list[str]:
    """Return the open invocations whose time budget and grace period ended before `now`."""
    runs = scheduler_runs
    over = runs.c.started_at + (runs.c.time_budget_ms + grace_seconds * 1000) * text("interval '1 millisecond'")
    statement = select(runs.c.invocation_id).where(runs.c.status == "running", over < now)
    return list(connection.execute(statement.order_by(runs.c.started_at)).scalars())


def close_invocation(connection: Connection, invocation_id: str, report: Report, *, skip_after: str | None) -> None:
    """Record how an invocation ended; this transaction has locked its row.

    Args:
        connection: inside the transaction that locked the row.
        invocation_id: which invocation.
        report: its totals.
        skip_after: the last mentor of a page that moves to the end of the queue, so that other mentors do not starve.
            Such a page failed the run, or a whole budget could not finish it. None if there is none.
    """
    runs = scheduler_runs
    reached = last_mentor_reached(literal(invocation_id, runs.c.invocation_id.type))
    inherited = func.coalesce(literal(skip_after, runs.c.resume_after.type), reached, runs.c.resume_after)
    connection.execute(
        update(runs)
        .where(runs.c.invocation_id == invocation_id)
        .values(
            **report.totals(),
            status=report.status,
            finished_at=func.clock_timestamp(),
            remaining_unprocessed_count=report.remaining,
            resume_after=null() if report.status == "completed" else inherited,
        )
    )


def record_evaluations(connection: Connection, order: RunOrder, stats: BatchStats) -> None:
    """Write `last_evaluated_count` and `last_evaluated_at` to the configuration rows that were used.

    The rows are first locked in key order, so that runs which end at the same time do not deadlock.
    """
    table = scenario_evaluation_config
    rows = connection.execute(
        select(table.c.organisation_id, table.c.scenario_type, table.c.enabled)
        .where(table.c.scenario_type.in_(order.scenario_types))
        .order_by(table.c.scenario_type, table.c.organisation_id)
        .with_for_update()
    ).all()
    overridden = {(row.scenario_type, row.organisation_id) for row in rows if row.organisation_id is not None}
    costs = []
    for row in rows:
        if row.organisation_id is not None:
            count = stats.evaluated_by_organisation.get(row.organisation_id, 0)
        else:
            evaluated = stats.evaluated_by_organisation.items()
            count = sum(n for organisation, n in evaluated if (row.scenario_type, organisation) not in overridden)
        if row.enabled:
            costs.append({"of_scenario": row.scenario_type, "of_organisation": row.organisation_id, "count": count})
    if costs:
        connection.execute(
            update(table)
            .where(
                table.c.scenario_type == bindparam("of_scenario"),
                table.c.organisation_id.is_not_distinct_from(bindparam("of_organisation")),
            )
            .values(last_evaluated_count=bindparam("count"), last_evaluated_at=func.clock_timestamp()),
            costs,
        )
