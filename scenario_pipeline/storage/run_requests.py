"""Runs requested through `scenario.request_scheduler_run` (contract section 8).

Belongs here: reading open requests, and recording their outcome. Does not belong here: launching (`defs.sensors`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime

from sqlalchemy import Connection, select, update

from scenario_pipeline.storage.tables import scheduler_run_requests


@dataclass(frozen=True)
class SchedulerRunRequest:
    """One request that has no run yet.

    Attributes:
        id: the id of its row.
        requested_at: when it was made; without `evaluation_date`, the date of this moment is evaluated.
        evaluation_date: the date to evaluate, or None.
        scenario_types: scenarios to evaluate; empty for all installed.
        organisation_ids: organisations to evaluate; empty for all.
        dispatch_mode: `auto`, `live` or `dry_run`.
    """

    id: str
    requested_at: datetime
    evaluation_date: date | None
    scenario_types: tuple[str, ...]
    organisation_ids: tuple[str, ...]
    dispatch_mode: str


def open_requests(connection: Connection, limit: int) -> list[SchedulerRunRequest]:
    """Return the oldest requests without a run, at most `limit` of them."""
    table = scheduler_run_requests
    rows = connection.execute(
        select(table)
        .where(table.c.invocation_id.is_(None), table.c.refusal.is_(None))
        .order_by(table.c.requested_at, table.c.id)
        .limit(limit)
    )
    return [
        SchedulerRunRequest(
            row.id,
            row.requested_at,
            row.evaluation_date,
            tuple(row.scenario_types),
            tuple(row.organisation_ids),
            row.dispatch_mode,
        )
        for row in rows
    ]


def close_request(connection: Connection, request_id: str, *, invocation_id: str | None, refusal: str | None) -> None:
    """Record the outcome of a request: the run launched for it, or why there will be none."""
    table = scheduler_run_requests
    connection.execute(
        update(table).where(table.c.id == request_id).values(invocation_id=invocation_id, refusal=refusal)
    )
