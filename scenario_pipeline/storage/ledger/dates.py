"""Dates as the ledger and the notifications record them, however many invocations a date had (contract section 12).

Belongs here: the numbers of a date, and whether its invocations reached everybody. Does not belong here: the numbers of
one invocation (`storage.ledger.closed`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select

from scenario_pipeline.storage.tables import scenario_notifications, scheduler_runs


@dataclass(frozen=True)
class DatedRun:
    """The row of an invocation that is over, without its pages.

    Attributes:
        invocation_id: the Dagster run id.
        number: its place in the order of opening.
        evaluation_date: the date it evaluated.
        started_at: when it was opened, by the database's clock.
        scenario_types: what it evaluated.
        organisation_ids: whom it evaluated; empty for all.
        dispatch_mode: `live` or `dry_run`.
        status: `completed`, `partial` or `failed`.
        remaining: mentors left unprocessed, or None where that is unknown.
        total_active_mentors: mentors it set out to evaluate.
        total_evaluated: mentors evaluated without an error.
        total_errors: mentors whose evaluation failed.
    """

    invocation_id: str
    number: int
    evaluation_date: date
    started_at: datetime
    scenario_types: frozenset[str]
    organisation_ids: frozenset[str]
    dispatch_mode: str
    status: str
    remaining: int | None
    total_active_mentors: int
    total_evaluated: int
    total_errors: int

    @property
    def error_rate(self) -> float:
        """Share of the settled mentors who had an error, 0 to 1; 0 where there were none."""
        settled = self.total_evaluated + self.total_errors
        return self.total_errors / settled if settled else 0.0

    @property
    def kind(self) -> tuple[frozenset[str], frozenset[str], str]:
        """What invocations have in common of which one goes on where the other stopped."""
        return self.scenario_types, self.organisation_ids, self.dispatch_mode

    def makes_up_for(self, earlier: DatedRun) -> bool:
        """Whether this one evaluated everybody whom `earlier` had to: later, for its date or a later one.

        A dry run makes up for dry runs only.
        """
        return (
            self.status == "completed"
            and self.number > earlier.number
            and self.evaluation_date >= earlier.evaluation_date
            and self.dispatch_mode in ("live", earlier.dispatch_mode)
            and self.scenario_types >= earlier.scenario_types
            # No organisations mean all.
            and (not self.organisation_ids or frozenset() < earlier.organisation_ids <= self.organisation_ids)
        )


def runs_of_dates(connection: Connection, dates: Collection[date]) -> list[DatedRun]:
    """Return the invocations of some dates that are over, in the order in which they were opened."""
    return _runs(connection, scheduler_runs.c.evaluation_date.in_(dates))


def newest_completed_live_run(connection: Connection) -> DatedRun | None:
    """Return the completed live invocation that was opened last, or None if there is none."""
    return _newest(connection, scheduler_runs.c.dispatch_mode == "live", scheduler_runs.c.status == "completed")


def newest_run(connection: Connection) -> DatedRun | None:
    """Return the invocation that was opened last and is over, or None if there is none."""
    return _newest(connection, scheduler_runs.c.status != "running")


def _newest(connection: Connection, *conditions: ColumnElement[bool]) -> DatedRun | None:
    number = select(func.max(scheduler_runs.c.number)).where(*conditions).scalar_subquery()
    found = _runs(connection, scheduler_runs.c.number == number)
    return found[0] if found else None


def _runs(connection: Connection, condition: ColumnElement[bool]) -> list[DatedRun]:
    runs = scheduler_runs
    rows = connection.execute(select(runs).where(condition, runs.c.status != "running").order_by(runs.c.number))
    return [
        DatedRun(
            row.invocation_id,
            row.number,
            row.evaluation_date,
            row.started_at,
            frozenset(row.scenario_types),
            frozenset(row.organisation_ids),
            row.dispatch_mode,
            row.status,
            row.remaining_unprocessed_count,
            row.total_active_mentors,
            row.total_evaluated,
            row.total_errors,
        )
        for row in rows
    ]


def newest_dates(connection: Connection, up_to: date, limit: int) -> list[date]:
    """Return the newest dates that were evaluated, at most `limit` and none after `up_to`, the newest first."""
    runs = scheduler_runs
    statement = (
        select(runs.c.evaluation_date)
        .where(runs.c.status != "running", runs.c.evaluation_date <= up_to)
        .distinct()
        .order_by(runs.c.evaluation_date.desc())
        .limit(limit)
    )
    return list(connection.execute(statement).scalars())


def not_made_up_for(runs: Sequence[DatedRun]) -> list[DatedRun]:
    """Return the invocations for whose mentors and scenarios no later one of `runs` speaks."""
    return [run for run in runs if not any(later.makes_up_for(run) for later in runs)]


def unfinished(runs: Sequence[DatedRun]) -> list[DatedRun]:
    """Return the invocations that did not reach everybody, and that no later ones of `runs` make up for."""
    return [run for run in not_made_up_for(runs) if run.status != "completed" and not _was_gone_round(run, runs)]


def _was_gone_round(run: DatedRun, runs: Sequence[DatedRun]) -> bool:
    """Whether those whom a partial invocation left had their turn in the partial ones after it.

    Each of them begins with the mentors that the one before it left, if it is of the same kind.
    """
    if run.status != "partial" or run.remaining is None:
        return False
    settled = 0
    for later in runs:
        if later.number > run.number and later.kind == run.kind:
            if later.status == "failed" or later.evaluation_date < run.evaluation_date:
                return False
            settled += later.total_evaluated + later.total_errors
            if settled >= run.remaining:
                return True
    return False


@dataclass(frozen=True)
class DateNumbers:
    """What a date has come to.

    Attributes:
        notifications: notifications of the date by scenario type; scenarios with none do not appear.
        runs: invocations of the date that are over, dry runs included.
        latest: the latest of them over all organisations, or the latest of all where there is none.
    """

    notifications: Mapping[str, int]
    runs: int
    latest: DatedRun | None


def numbers_of_date(connection: Connection, evaluation_date: date) -> DateNumbers:
    """Read the numbers of a date.

    Notifications are counted in their table. Those of a remote engine that keeps them elsewhere are as the ledger has
    them.
    """
    runs, sent = scheduler_runs, scenario_notifications
    of_date = (runs.c.evaluation_date == evaluation_date, runs.c.dispatch_mode == "live", runs.c.status != "running")
    # By invocation, since the notifications have an index on it and none on their date.
    rows = connection.execute(
        select(sent.c.invocation_id, sent.c.scenario_type, func.count().label("n"))
        .where(sent.c.invocation_id.in_(select(runs.c.invocation_id).where(*of_date)))
        .group_by(sent.c.invocation_id, sent.c.scenario_type)
    ).all()
    elsewhere = connection.execute(
        select(runs.c.dispatched_by_scenario).where(
            *of_date, runs.c.engine == "http", runs.c.invocation_id.not_in({row.invocation_id for row in rows})
        )
    ).scalars()
    found: dict[str, int] = {}
    counted: list[tuple[str, Any]] = [(row.scenario_type, row.n) for row in rows]
    for scenario, n in [*counted, *(pair for by_scenario in elsewhere for pair in by_scenario.items())]:
        found[scenario] = found.get(scenario, 0) + n
    over = runs_of_dates(connection, [evaluation_date])
    whole = [run for run in over if not run.organisation_ids] or over
    return DateNumbers(dict(sorted(found.items())), len(over), whole[-1] if whole else None)
