"""Asset checks: whether a date's invocations add up, and whether too many mentors had an error (contract section 8).

Belongs here: reading what is compared, and what a difference means. Does not belong here: the comparison (`audit`).
"""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from dagster import (
    AssetCheckEvaluation,
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetCheckSeverity,
    DagsterInstance,
    ResourceParam,
    asset_check,
)
from sqlalchemy import Engine

from scenario_pipeline.defs.assets import EVALUATIONS
from scenario_pipeline.defs.instance.captured_output import captured_lines
from scenario_pipeline.defs.reconcile import disagreements
from scenario_pipeline.defs.resources import Scheduler
from scenario_pipeline.defs.run_metadata import recorded_totals
from scenario_pipeline.log.logger import utc_now
from scenario_pipeline.storage.database import check_schema, limit_statement_time
from scenario_pipeline.storage.ledger.closed import ClosedInvocation, closed_invocations, latest_evaluation_date

# What is shown of many disagreements: the first ones say where to look.
MAX_SHOWN = 20
# A run is over when its last step makes the checks: a lock that a migration holds for minutes must not keep it.
CHECK_SECONDS = 1.0


def events_match_ledger_result(
    instance: DagsterInstance,
    evaluation_date: date,
    invocations: Sequence[ClosedInvocation],
    *,
    in_hand: Mapping[str, Mapping[str, Any]] | None = None,
) -> AssetCheckResult:
    """Compare log, ledger, notifications and Dagster's metadata of a date's invocations.

    Args:
        instance: whose runs and captured logs are read.
        evaluation_date: the date, for display.
        invocations: those of the date that are over.
        in_hand: metadata, by run id, of a run that Dagster has not stored yet; then only its log is read, as those of
            the others were read by their own runs.
    """
    found: list[str] = []
    without_log = 0
    for invocation in invocations:
        run_id = invocation.invocation_id
        lines: list[bytes] = []
        metadata: Mapping[str, Any] | None = None
        if in_hand is None or run_id in in_hand:
            lines = list(captured_lines(instance, run_id))
            without_log += not lines
            metadata = recorded_totals(instance, run_id) if in_hand is None else in_hand[run_id]
        found += [f"{run_id}: {sentence}" for sentence in disagreements(invocation, lines, metadata)]
    if found:
        description = f"{len(found)} disagreements between log, ledger, notifications and metadata."
    elif without_log:
        description = f"The log of {without_log} invocations is not to be had; all else agrees."
    else:
        description = "Log, ledger, notifications and metadata agree."
    return AssetCheckResult(
        passed=not found and not without_log,
        check_name="events_match_ledger",
        asset_key=EVALUATIONS,
        severity=AssetCheckSeverity.ERROR if found else AssetCheckSeverity.WARN,
        description=description,
        metadata={
            "evaluation_date": evaluation_date.isoformat(),
            "invocations": len(invocations),
            "invocations_without_log": without_log,
            "disagreements": len(found),
            **({"first_disagreements": found[:MAX_SHOWN]} if found else {}),
        },
    )


def error_rate_result(
    evaluation_date: date, invocations: Sequence[ClosedInvocation], max_error_rate: float
) -> AssetCheckResult:
    """Warn if the share of mentors with an error in the date's latest invocation is above `max_error_rate`."""
    error_rate = invocations[-1].pages.error_rate if invocations else 0.0
    passed = error_rate <= max_error_rate
    return AssetCheckResult(
        passed=passed,
        check_name="error_rate",
        asset_key=EVALUATIONS,
        severity=AssetCheckSeverity.WARN,
        description=f"{error_rate:.2%} of the mentors had an error; "
        f"{'at most' if passed else 'more than'} {max_error_rate:.2%} is allowed by SCENARIO_MAX_ERROR_RATE.",
        metadata={
            "evaluation_date": evaluation_date.isoformat(),
            "error_rate": error_rate,
            "max_error_rate": max_error_rate,
        },
    )


def evaluate_checks(
    instance: DagsterInstance,
    database: Engine,
    evaluation_date: date,
    max_error_rate: float,
    *,
    in_hand: Mapping[str, Mapping[str, Any]],
) -> list[AssetCheckEvaluation]:
    """Evaluate both checks for a run of the job, which Dagster does by itself for runs of the asset only."""
    with database.begin() as connection:
        limit_statement_time(connection, CHECK_SECONDS)
        invocations = closed_invocations(connection, evaluation_date)
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
            events_match_ledger_result(instance, evaluation_date, invocations, in_hand=in_hand),
            error_rate_result(evaluation_date, invocations, max_error_rate),
        )
    ]


@asset_check(
    asset=EVALUATIONS,
    description="Log, ledger, notification rows and Dagster's metadata of the date's invocations say the same. "
    "Without a partition it looks at the date that was evaluated last.",
)
def events_match_ledger(context: AssetCheckExecutionContext, scheduler: ResourceParam[Scheduler]) -> AssetCheckResult:
    """Compare the places that record the invocations of a date; see `reconcile.disagreements`."""
    evaluation_date, invocations = _invocations_of(context, scheduler)
    return events_match_ledger_result(context.instance, evaluation_date, invocations)


@asset_check(
    asset=EVALUATIONS,
    description="Warns if more mentors than SCENARIO_MAX_ERROR_RATE (a share of 1) had an error in the date's latest "
    "invocation. Without a partition it looks at the date that was evaluated last.",
)
def error_rate(context: AssetCheckExecutionContext, scheduler: ResourceParam[Scheduler]) -> AssetCheckResult:
    """Hold the share of errors against the configured one."""
    evaluation_date, invocations = _invocations_of(context, scheduler)
    return error_rate_result(evaluation_date, invocations, scheduler.settings.max_error_rate)


def _invocations_of(context: AssetCheckExecutionContext, scheduler: Scheduler) -> tuple[date, list[ClosedInvocation]]:
    with scheduler.database.connect() as connection:
        check_schema(connection)
        key = context.run.tags.get("dagster/partition")
        latest = date.fromisoformat(key) if key else latest_evaluation_date(connection)
        evaluation_date = latest or scheduler.settings.today(utc_now())
        return evaluation_date, closed_invocations(connection, evaluation_date)
