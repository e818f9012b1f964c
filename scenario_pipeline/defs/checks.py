"""Asset checks: whether invocations add up, whom they reached, and how many mentors had an error (contract section 8).

Belongs here: which dates are checked, and what is found there. Does not belong here: the comparison of the places
that record an invocation (`defs.reconcile`).

Dagster shows the latest evaluation of a check, whatever its partition is. So each evaluation looks at the newest dates
as well: a failed check of today is not covered by a backfill of last spring.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from dagster import (
    AssetCheckEvaluation,
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetCheckSeverity,
    DagsterInstance,
    MetadataValue,
    ResourceParam,
    TableColumn,
    TableRecord,
    TableSchema,
    asset_check,
)
from sqlalchemy import Connection

from scenario_pipeline.defs.assets import EVALUATIONS
from scenario_pipeline.defs.instance.captured_output import captured_lines
from scenario_pipeline.defs.reconcile import disagreements, is_log_at_hand
from scenario_pipeline.defs.resources import Scheduler
from scenario_pipeline.defs.run_metadata import recorded_totals
from scenario_pipeline.log.logger import utc_now
from scenario_pipeline.storage.database import check_schema, limit_statement_time
from scenario_pipeline.storage.ledger.closed import ClosedInvocation, closed_invocations
from scenario_pipeline.storage.ledger.dates import DatedRun, newest_dates, not_made_up_for, runs_of_dates, unfinished

# Beside the date of the run: today, and what may have gone wrong since the day before yesterday.
NEWEST_DATES = 3
# What is shown of many disagreements: the first ones say where to look.
MAX_SHOWN = 20


@dataclass(frozen=True)
class Evidence:
    """What the checks look at.

    Attributes:
        dates: the dates, the oldest first.
        invocations: their invocations that are over, with their pages.
        runs: the same, as their rows have it.
    """

    dates: Sequence[date]
    invocations: Sequence[ClosedInvocation]
    runs: Sequence[DatedRun]

    @property
    def shown_dates(self) -> list[str]:
        """The dates as text."""
        return [evaluation_date.isoformat() for evaluation_date in self.dates]


def read_evidence(connection: Connection, own_date: date | None, today: date) -> Evidence:
    """Read the invocations of the newest dates up to today, and of the date that is evaluated."""
    dates = sorted({*newest_dates(connection, today, NEWEST_DATES), *([own_date] if own_date else [])})
    return Evidence(dates, closed_invocations(connection, *dates), runs_of_dates(connection, dates))


def events_match_ledger_result(
    instance: DagsterInstance, evidence: Evidence, *, known_totals: Mapping[str, Mapping[str, Any] | None] | None = None
) -> AssetCheckResult:
    """Compare log, ledger, notifications and Dagster's metadata of invocations.

    Args:
        instance: whose runs and captured logs are read.
        evidence: the invocations.
        known_totals: totals that the metadata show, by run id. Then only the logs of these runs are read: the others
            were read by their own runs. None to read all of them.
    """
    found: list[str] = []
    without_log = 0
    for invocation in evidence.invocations:
        run_id = invocation.invocation_id
        lines: list[bytes] = []
        metadata: Mapping[str, Any] | None = None
        if known_totals is None or run_id in known_totals:
            lines = list(captured_lines(instance, run_id))
            if not is_log_at_hand(lines):
                lines, without_log = [], without_log + 1
            metadata = recorded_totals(instance, run_id) if known_totals is None else known_totals[run_id]
        found += [f"{run_id}: {sentence}" for sentence in disagreements(invocation, lines, metadata)]
    if found:
        description = f"{len(found)} disagreements between log, ledger, notifications and metadata."
    elif without_log:
        description = f"The logs of {without_log} invocations could not be read; everything else agrees."
    else:
        description = "Log, ledger, notifications and metadata agree."
    return AssetCheckResult(
        passed=not found and not without_log,
        check_name="events_match_ledger",
        asset_key=EVALUATIONS,
        severity=AssetCheckSeverity.ERROR if found else AssetCheckSeverity.WARN,
        description=description,
        metadata={
            "evaluation_dates": evidence.shown_dates,
            "invocations": len(evidence.invocations),
            "invocations_without_log": without_log,
            "disagreements": len(found),
            **({"first_disagreements": found[:MAX_SHOWN]} if found else {}),
        },
    )


def error_rate_result(evidence: Evidence, own_date: date | None, max_error_rate: float) -> AssetCheckResult:
    """Warn if the share of mentors with an error is above `max_error_rate` on the newest date, or on the run's own.

    Of each date the invocations count that no later one of it makes up for: a run for one organisation says nothing
    of the others.
    """
    looked_at = sorted({*evidence.dates[-1:], *([own_date] if own_date else [])})
    rates = [run.error_rate for day in looked_at for run in not_made_up_for(_of_date(evidence.runs, day))]
    error_rate = max(rates, default=0.0)
    passed = error_rate <= max_error_rate
    return AssetCheckResult(
        passed=passed,
        check_name="error_rate",
        asset_key=EVALUATIONS,
        severity=AssetCheckSeverity.WARN,
        description=f"{error_rate:.2%} of the mentors had an error; "
        f"{'at most' if passed else 'more than'} {max_error_rate:.2%} is allowed by SCENARIO_MAX_ERROR_RATE.",
        metadata={
            "evaluation_dates": [day.isoformat() for day in looked_at],
            "error_rate": error_rate,
            "max_error_rate": max_error_rate,
        },
    )


def _of_date(runs: Sequence[DatedRun], day: date) -> list[DatedRun]:
    return [run for run in runs if run.evaluation_date == day]


_UNFINISHED_SCHEMA = TableSchema(
    columns=[
        TableColumn("invocation_id", "string"),
        TableColumn("evaluation_date", "string"),
        TableColumn("status", "string"),
        TableColumn("remaining", "string", description="Mentors left unprocessed."),
    ]
)


def everyone_evaluated_result(evidence: Evidence) -> AssetCheckResult:
    """Fail if an invocation did not reach everybody and no later one makes up for it.

    A partial one is a warning, since the next run begins where it stopped; a failed one is an error.
    """
    left = unfinished(evidence.runs)
    metadata: dict[str, Any] = {"evaluation_dates": evidence.shown_dates, "unfinished_invocations": len(left)}
    description = "Everybody was evaluated, by the invocations of these dates or by later ones."
    if left:
        latest = left[-1]
        whom = "an unknown number of" if latest.remaining is None else f"{latest.remaining:,}"
        description = (
            f"The {latest.status} invocation {latest.invocation_id} of {latest.evaluation_date} left {whom} mentors "
            "unprocessed, and no later one makes up for it."
        )
        metadata["remaining_unprocessed_count"] = latest.remaining or 0
        metadata["unfinished"] = MetadataValue.table(list(_rows(left[-MAX_SHOWN:])), _UNFINISHED_SCHEMA)
    return AssetCheckResult(
        passed=not left,
        check_name="everyone_evaluated",
        asset_key=EVALUATIONS,
        severity=AssetCheckSeverity.ERROR if any(run.status == "failed" for run in left) else AssetCheckSeverity.WARN,
        description=description,
        metadata=metadata,
    )


def _rows(runs: Sequence[DatedRun]) -> Iterator[TableRecord]:
    for run in runs:
        yield TableRecord(
            {
                "invocation_id": run.invocation_id,
                "evaluation_date": run.evaluation_date.isoformat(),
                "status": run.status,
                "remaining": "unknown" if run.remaining is None else str(run.remaining),
            }
        )


def evaluate_checks(
    instance: DagsterInstance, scheduler: Scheduler, own_date: date, *, known_totals: Mapping[str, Mapping[str, Any]]
) -> list[AssetCheckEvaluation]:
    """Evaluate all checks for a run of the job, which Dagster does by itself for runs of the asset only."""
    with scheduler.database.begin() as connection:
        limit_statement_time(connection, scheduler.display_seconds)
        evidence = read_evidence(connection, own_date, scheduler.settings.today(utc_now()))
    return [
        AssetCheckEvaluation(
            asset_key=EVALUATIONS,
            check_name=result.check_name or "",
            passed=result.passed,
            metadata=result.metadata,
            severity=result.severity,
            description=result.description,
        )
        for result in (
            events_match_ledger_result(instance, evidence, known_totals=known_totals),
            everyone_evaluated_result(evidence),
            error_rate_result(evidence, own_date, scheduler.settings.max_error_rate),
        )
    ]


@asset_check(
    asset=EVALUATIONS,
    description="Log, ledger, notification rows and Dagster's metadata of the invocations say the same, on the run's "
    f"date and on the newest {NEWEST_DATES} dates that were evaluated.",
)
def events_match_ledger(context: AssetCheckExecutionContext, scheduler: ResourceParam[Scheduler]) -> AssetCheckResult:
    """Compare the places that record an invocation; see `reconcile.disagreements`."""
    own_date, evidence = _evidence_of(context, scheduler)
    known_totals: dict[str, Mapping[str, Any] | None] | None = None
    if own_date is not None:
        ours = [i.invocation_id for i in evidence.invocations if i.evaluation_date == own_date]
        known_totals = {run_id: recorded_totals(context.instance, run_id) for run_id in ours}
    return events_match_ledger_result(context.instance, evidence, known_totals=known_totals)


@asset_check(
    asset=EVALUATIONS,
    description="No invocation of the run's date or of the newest "
    f"{NEWEST_DATES} dates was partial or failed without a later one that makes up for it.",
)
def everyone_evaluated(context: AssetCheckExecutionContext, scheduler: ResourceParam[Scheduler]) -> AssetCheckResult:
    """Check whether any mentor was left unprocessed."""
    return everyone_evaluated_result(_evidence_of(context, scheduler)[1])


@asset_check(
    asset=EVALUATIONS,
    description="Warns if more mentors than SCENARIO_MAX_ERROR_RATE (a share of 1) had an error on the run's date or "
    "on the newest date that was evaluated.",
)
def error_rate(context: AssetCheckExecutionContext, scheduler: ResourceParam[Scheduler]) -> AssetCheckResult:
    """Compare the share of errors with the configured one."""
    own_date, evidence = _evidence_of(context, scheduler)
    return error_rate_result(evidence, own_date, scheduler.settings.max_error_rate)


ASSET_CHECKS = [events_match_ledger, everyone_evaluated, error_rate]


def _evidence_of(context: AssetCheckExecutionContext, scheduler: Scheduler) -> tuple[date | None, Evidence]:
    key = context.run.tags.get("dagster/partition")
    own_date = date.fromisoformat(key) if key else None
    with scheduler.database.connect() as connection:
        check_schema(connection)
        return own_date, read_evidence(connection, own_date, scheduler.settings.today(utc_now()))
