"""The ledger's row for each page: claimed, completed, read (contract section 4).

Belongs here: statements on `scheduler_run_pages`. Does not belong here: the page's own statement
(`engines.statement`).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, literal, select, update
from sqlalchemy.dialects.postgresql import insert

from scenario_pipeline.batch_stats import BatchStats
from scenario_pipeline.errors import ErrorInfo, ErrorType, SystemicError
from scenario_pipeline.records import MentorError, Page, PageResult
from scenario_pipeline.storage.tables import scheduler_run_pages, scheduler_runs

CLOSED_MEANWHILE = ErrorInfo(ErrorType.EVALUATION_LOGIC, "the invocation was closed while its process still worked")


def claim_page(connection: Connection, page: Page, invocation_id: str) -> PageResult | None:
    """Begin a page: insert its row, or return its result if it was committed before.

    A claim requires an open invocation, and prevents its closing until this transaction ends. The insert waits for any
    other transaction that holds the same row. So a second claim shows the outcome of a commit whose reply was lost.
    Either its row exists, or the commit never happened and this transaction takes its place.

    Raises:
        SystemicError: the invocation is closed.
    """
    runs, pages = scheduler_runs, scheduler_run_pages
    is_open = (
        select(runs.c.invocation_id)
        .where(runs.c.invocation_id == invocation_id, runs.c.status == "running")
        .with_for_update(read=True)
        .cte("is_open")
    )
    statement = (
        insert(pages)
        .from_select(
            [pages.c.invocation_id, pages.c.page_number, pages.c.last_mentor_id],
            select(
                is_open.c.invocation_id,
                literal(page.number),
                literal(page.mentor_ids[-1], pages.c.last_mentor_id.type),
            ),
        )
        .on_conflict_do_nothing()
        .returning(pages.c.page_number)
    )
    if connection.execute(statement).scalar_one_or_none() is not None:
        return None
    committed = read_page(connection, page.number, invocation_id)
    if committed is None:
        raise SystemicError(CLOSED_MEANWHILE)
    return committed


def read_page(connection: Connection, page_number: int, invocation_id: str | None) -> PageResult | None:
    """Return the result of a committed page, or None if there is none."""
    table = scheduler_run_pages
    row = connection.execute(
        select(table).where(table.c.invocation_id == invocation_id, table.c.page_number == page_number)
    ).one_or_none()
    return None if row is None else _result_of(row)


def complete_page(connection: Connection, page: Page, invocation_id: str, result: PageResult) -> None:
    """Write a page's totals, in the page's own transaction.

    The next run starts with the first unprocessed mentor. If that is the first mentor of the page, the mentor goes last
    instead, because the previous mentor is on another page.
    """
    stats = result.stats
    settled = page.mentor_ids.index(result.unprocessed[0]) if result.unprocessed else len(page.mentor_ids)
    connection.execute(
        update(scheduler_run_pages)
        .where(scheduler_run_pages.c.invocation_id == invocation_id, scheduler_run_pages.c.page_number == page.number)
        .values(
            **stats.totals(),
            last_mentor_id=page.mentor_ids[max(settled, 1) - 1],
            left_mentor_ids=list(result.unprocessed),
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
    """Return the results of the committed pages of an invocation, by page number."""
    table = scheduler_run_pages
    rows = connection.execute(select(table).where(table.c.invocation_id == invocation_id).order_by(table.c.page_number))
    return {row.page_number: _result_of(row) for row in rows}


def _result_of(row: Any) -> PageResult:
    return PageResult(_stats_of(row), _errors_of(row), tuple(row.left_mentor_ids))


def _stats_of(row: Any) -> BatchStats:
    outcomes = {(organisation, scenario, outcome): n for organisation, scenario, outcome, n in row.outcomes}
    return BatchStats(row.evaluated_by_organisation, outcomes, row.total_errors, pages_processed=1)


def _errors_of(row: Any) -> tuple[MentorError, ...]:
    return tuple(
        MentorError(e["peer_mentor_id"], ErrorInfo(ErrorType(e["error_type"]), e["error_message"])) for e in row.errors
    )
