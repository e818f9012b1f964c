"""Sensors: runs whose process is gone, partial runs, and runs asked for in SQL (contract sections 5 and 8).

Belongs here: noticing, and handing over. Does not belong here: how an invocation is closed or a run evaluated.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from dagster import (
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    DefaultSensorStatus,
    JobDefinition,
    RunFailureSensorContext,
    RunRequest,
    RunsFilter,
    RunStatusSensorContext,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    run_failure_sensor,
    run_status_sensor,
    sensor,
)
from sqlalchemy import Engine

from scenario_pipeline.defs.assets import OWNERS
from scenario_pipeline.defs.instance.captured_output import captured_lines, sink_of_dead_run
from scenario_pipeline.defs.liveness import LOST_AFTER_SECONDS, is_lost, last_sign_of_life, run_configuration_of
from scenario_pipeline.defs.partitions import daily_partitions
from scenario_pipeline.defs.run_configuration import CONTINUES_TAG, TRIGGERED_BY_TAG
from scenario_pipeline.defs.run_metadata import run_tags
from scenario_pipeline.errors import UserError
from scenario_pipeline.invocation.closing import close_dead_invocation
from scenario_pipeline.log.logger import StructuredLogger, utc_now
from scenario_pipeline.scenarios import select_scenarios
from scenario_pipeline.settings import Settings
from scenario_pipeline.storage import run_requests
from scenario_pipeline.storage.database import check_schema
from scenario_pipeline.storage.ledger.closed import closed_invocation
from scenario_pipeline.storage.ledger.invocations import overdue_invocations
from scenario_pipeline.storage.run_requests import SchedulerRunRequest
from scenario_pipeline.upgrade import open_database

# A dead run is to be noticed, and closed, within a minute.
INTERVAL_SECONDS = 15
REQUEST_TAG = "scenario/request_id"
LEFT_TAG = "scenario/left_to_continue"
# Launching a run takes a second; a tick that launches more is cut off by Dagster's time limit.
MAX_REQUESTS_A_TICK = 20


def build_sensors(job: JobDefinition, settings: Settings) -> list[SensorDefinition]:
    """Return all sensors of the installation."""
    return [
        _close_dead_invocations(settings),
        _close_cancelled_invocations(settings),
        _fail_lost_runs(settings),
        _continue_partial_runs(job, settings),
        _pg_cron_requests(job, settings),
    ]


@contextmanager
def _opened(settings: Settings) -> Iterator[Engine]:
    database = open_database(settings)
    try:
        yield database
    finally:
        database.dispose()


def _close_dead_invocations(settings: Settings) -> SensorDefinition:
    @run_failure_sensor(
        name="close_dead_invocations",
        default_status=DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=INTERVAL_SECONDS,
        description="Closes the invocation of a failed run whose process could not do so itself.",
    )
    def close_dead_invocations(context: RunFailureSensorContext) -> None:
        close_invocation_of(context.instance, context.dagster_run, settings)

    return close_dead_invocations


def _close_cancelled_invocations(settings: Settings) -> SensorDefinition:
    @run_status_sensor(
        name="close_cancelled_invocations",
        run_status=DagsterRunStatus.CANCELED,
        default_status=DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=INTERVAL_SECONDS,
        description="Closes the invocation of a cancelled run, as terminated, if its process could not do so itself.",
    )
    def close_cancelled_invocations(context: RunStatusSensorContext) -> None:
        close_invocation_of(context.instance, context.dagster_run, settings)

    return close_cancelled_invocations


def _fail_lost_runs(settings: Settings) -> SensorDefinition:
    @sensor(
        name="fail_lost_runs",
        owners=OWNERS,
        default_status=DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=INTERVAL_SECONDS,
        description="Marks a run as failed whose process must be dead: it is long past its time budget and not over. "
        "Also closes the invocation of a run that was marked as canceled while its process was dead.",
    )
    def fail_lost_runs(context: SensorEvaluationContext) -> SkipReason:
        # Nothing else notices a crash of the whole host, or a killed command line.
        now = utc_now()
        lost = lost_runs(context.instance, now, settings)
        for run in lost:
            context.instance.report_run_failed(run, "The process of this run is gone: its time budget ended long ago.")
        close_overdue_invocations(context.instance, now, settings)
        return SkipReason(f"{len(lost)} lost runs." if lost else "No run is lost.")

    return fail_lost_runs


def lost_runs(instance: DagsterInstance, now: datetime, settings: Settings) -> list[DagsterRun]:
    """Return the runs of the scheduler that are recorded as going on and cannot be at the moment `now`."""
    statuses = [DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTED]
    records = instance.get_run_records(RunsFilter(statuses=statuses))
    return [record.dagster_run for record in records if is_lost(instance, record, now, settings)]


def close_overdue_invocations(instance: DagsterInstance, now: datetime, settings: Settings) -> None:
    """Close what is open in the ledger although its time is up, where Dagster's records show that the run is over."""
    with _opened(settings) as database, database.connect() as connection:
        overdue = overdue_invocations(connection, now, LOST_AFTER_SECONDS)
    for run_id in overdue:
        run = instance.get_run_by_id(run_id)
        is_silent = now.timestamp() >= last_sign_of_life(instance, run_id) + LOST_AFTER_SECONDS
        if run is not None and run.is_finished and is_silent:
            close_invocation_of(instance, run, settings)


def close_invocation_of(instance: DagsterInstance, run: DagsterRun, settings: Settings) -> bool:
    """Close the invocation of a run that is over, if nothing has; return whether this call did.

    The entries that are missing are written to this process's stdout and to the end of the captured log.
    """
    with _opened(settings) as database, sink_of_dead_run(instance, run.run_id) as sink:
        logger = StructuredLogger(sink).bind(
            invocation_id=run.run_id,
            dagster_run_id=run.run_id,
            dagster_job_name=run.job_name,
            dagster_step_key=None,
            dagster_partition_key=run.tags.get("dagster/partition"),
        )
        closed = close_dead_invocation(
            database,
            run.run_id,
            logger,
            logged=entries_of(instance, run.run_id),
            terminated=run.status is DagsterRunStatus.CANCELED,
        )
    if closed is not None:
        instance.add_run_tags(run.run_id, run_tags(*closed))
    return closed is not None


def entries_of(instance: DagsterInstance, run_id: str) -> list[dict[str, Any]]:
    """Return the entries that a run's own processes wrote, from Dagster's capture of their stdout."""
    return [json.loads(line) for line in captured_lines(instance, run_id)]


def _continue_partial_runs(job: JobDefinition, settings: Settings) -> SensorDefinition:
    @run_status_sensor(
        name="continue_partial_runs",
        run_status=DagsterRunStatus.SUCCESS,
        request_job=job,
        default_status=DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=INTERVAL_SECONDS,
        description="Launches another run for the mentors left over when a run's time budget was spent, for the same "
        "date, until everybody was evaluated or a run gets nowhere.",
    )
    def continue_partial_runs(context: RunStatusSensorContext) -> RunRequest | None:
        # No SkipReason: with one, Dagster looks at one run a tick, and a backfill has hundreds.
        return continuation_of(context.dagster_run, settings)

    return continue_partial_runs


def continuation_of(run: DagsterRun, settings: Settings) -> RunRequest | None:
    """Return the next run of a chain of partial runs, or None; a run that was terminated is not continued."""
    config = run_configuration_of(run)
    if config is None:
        return None
    with _opened(settings) as database, database.connect() as connection:
        entry = closed_invocation(connection, run.run_id)
    if entry is None or entry.status != "partial":
        return None
    # A run starts with the mentors left over and then goes round: the chain ends because it counts down.
    settled = entry.pages.total_settled
    left = int(run.tags[LEFT_TAG]) - settled if LEFT_TAG in run.tags else entry.remaining or 0
    if left <= 0 or settled == 0:
        return None
    tags = {TRIGGERED_BY_TAG: "continuation", CONTINUES_TAG: run.run_id, LEFT_TAG: str(left)}
    # What the run was: "auto" could mean something else by now.
    config = config | {"dispatch_mode": entry.dispatch_mode}
    return _run_request(f"continuation-of-{run.run_id}", config, entry.evaluation_date.isoformat(), tags, settings)


def _pg_cron_requests(job: JobDefinition, settings: Settings) -> SensorDefinition:
    @sensor(
        name="pg_cron_requests",
        owners=OWNERS,
        job=job,
        default_status=DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=INTERVAL_SECONDS,
        description="Launches exactly one run for each SELECT scenario.request_scheduler_run(...), so that an existing "
        "pg_cron entry stays the clock.",
    )
    def pg_cron_requests(context: SensorEvaluationContext) -> SensorResult | SkipReason:
        launched = requested_runs(context.instance, settings)
        return SensorResult(run_requests=launched) if launched else SkipReason("No run was asked for.")

    return pg_cron_requests


def requested_runs(instance: DagsterInstance, settings: Settings) -> list[RunRequest]:
    """Return the runs asked for in SQL since the last tick, and record which run was launched for a request.

    A request stays open until its run is found among Dagster's runs: whatever is killed in between, Dagster's run key
    keeps a second run from being launched for it.
    """
    launched: list[RunRequest] = []
    with _opened(settings) as database:
        with database.connect() as connection:
            check_schema(connection)
            waiting = run_requests.open_requests(connection, MAX_REQUESTS_A_TICK)
        for request in waiting:
            run_ids = instance.get_run_ids(RunsFilter(tags={REQUEST_TAG: request.id}), limit=1)
            refusal = None if run_ids else _refusal(request)
            if not run_ids and refusal is None:
                launched.append(_requested(request, settings))
                continue
            with database.begin() as connection:
                run_requests.close_request(
                    connection, request.id, invocation_id=next(iter(run_ids), None), refusal=refusal
                )
    return launched


def _refusal(request: SchedulerRunRequest) -> str | None:
    """Say why no run can be launched: the function checked the request, but a scenario may be gone since."""
    try:
        select_scenarios(request.scenario_types)
    except UserError as exc:
        return str(exc)
    return None


def _requested(request: SchedulerRunRequest, settings: Settings) -> RunRequest:
    config = {
        "scenario_types": list(request.scenario_types),
        "organisation_ids": list(request.organisation_ids),
        "dispatch_mode": request.dispatch_mode,
    }
    # The clock's date and not the sensor's: a request may wait over midnight.
    evaluation_date = request.evaluation_date or settings.today(request.requested_at)
    tags = {TRIGGERED_BY_TAG: "pg_cron", REQUEST_TAG: request.id}
    return _run_request(f"request-{request.id}", config, evaluation_date.isoformat(), tags, settings)


def _run_request(
    run_key: str, config: dict[str, Any], evaluation_date: str, tags: dict[str, str], settings: Settings
) -> RunRequest:
    """Ask for a run of the job for a date, as its partition where there is one."""
    has_partition = daily_partitions(settings.timezone).has_partition_key(evaluation_date)
    config = {key: value for key, value in config.items() if key != "evaluation_date"}
    if not has_partition:
        config["evaluation_date"] = evaluation_date
    return RunRequest(
        run_key=run_key,
        run_config={"ops": {"fetch_active_mentors": {"config": config}}},
        partition_key=evaluation_date if has_partition else None,
        tags=tags,
    )
