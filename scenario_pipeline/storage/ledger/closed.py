"""Closed invocations, as the ledger and the notifications record them.

Belongs here: the values that asset checks and sensors compare. Does not belong here: the comparison (`defs.reconcile`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select

from scenario_pipeline.batch_stats import DISPATCHED, BatchStats
from scenario_pipeline.report import Report
from scenario_pipeline.storage.ledger.pages import read_pages
from scenario_pipeline.storage.tables import scenario_notifications, scheduler_runs


@dataclass(frozen=True)
class ClosedInvocation:
    """An invocation in the ledger, in the three places that must agree.

    Attributes:
        invocation_id: the Dagster run id.
        evaluation_date: the date for which it evaluated.
        dispatch_mode: `live` or `dry_run`.
        engine: which trigger engine evaluated, `sql` or `http`.
        status: `completed`, `partial` or `failed`.
        remaining: unprocessed mentors, or None if their number is unknown.
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
    """Return a closed invocation, or None if it is open or was never opened."""
    found = _closed(connection, scheduler_runs.c.invocation_id == invocation_id)
    return found[0] if found else None


def closed_invocations(connection: Connection, *evaluation_dates: date) -> list[ClosedInvocation]:
    """Return the invocations of these dates that are over, in the order in which they were opened."""
    return _closed(connection, scheduler_runs.c.evaluation_date.in_(evaluation_dates))


def _closed(connection: Connection, condition: ColumnElement[bool]) -> list[ClosedInvocation]:
    runs, sent = scheduler_runs, scenario_notifications
    of_run = select(func.count()).where(sent.c.invocation_id == runs.c.invocation_id).scalar_subquery()
    rows = connection.execute(
        select(runs, of_run.label("notifications")).where(condition, runs.c.status != "running").order_by(runs.c.number)
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
    """Return what an invocation dispatched, according to its notifications."""
    sent = scenario_notifications
    rows = connection.execute(
        select(sent.c.organisation_id, sent.c.scenario_type, func.count().label("n"))
        .where(sent.c.invocation_id == invocation_id)
        .group_by(sent.c.organisation_id, sent.c.scenario_type)
    )
    return BatchStats(outcomes={(row.organisation_id, row.scenario_type, DISPATCHED): row.n for row in rows})
