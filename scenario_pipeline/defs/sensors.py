"""Sensors: what is done about runs whose process is gone (contract sections 5 and 8).

Belongs here: noticing such runs, and handing their invocations to be closed. Does not belong here: how one is closed.
"""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from dagster import (
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    DefaultSensorStatus,
    RunFailureSensorContext,
    RunsFilter,
    SensorEvaluationContext,
    SkipReason,
    run_failure_sensor,
    sensor,
)

from scenario_pipeline.defs.schedules import time_is_up
from scenario_pipeline.invocation import close_dead_invocation
from scenario_pipeline.settings import Settings
from scenario_pipeline.storage import database
from scenario_pipeline.structured_logger import StructuredLogger, utc_now

# A dead run is to be noticed, and closed, within a minute.
INTERVAL_SECONDS = 15


@run_failure_sensor(
    name="close_dead_invocations",
    default_status=DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=INTERVAL_SECONDS,
    description="Closes the invocation of a failed run whose process could not do so itself.",
)
def close_dead_invocations(context: RunFailureSensorContext) -> None:
    """Write the events that are missing to this process's stdout, and close the ledger's row."""
    close_invocation_of(context.instance, context.dagster_run)


@sensor(
    name="fail_lost_runs",
    default_status=DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=INTERVAL_SECONDS,
    description="Marks a run as failed whose process must be dead: it is long past its time budget and not over.",
)
def fail_lost_runs(context: SensorEvaluationContext) -> SkipReason:
    """Notice what nothing else notices: a crash of the whole host, or a killed command line."""
    lost = lost_runs(context.instance, utc_now())
    for run in lost:
        context.instance.report_run_failed(run, "The process of this run is gone: its time budget ended long ago.")
    return SkipReason(f"{len(lost)} lost runs." if lost else "No run is lost.")


def lost_runs(instance: DagsterInstance, now: datetime) -> list[DagsterRun]:
    """Return the runs of the scheduler that are recorded as going on and cannot be at the moment `now`."""
    settings = Settings.from_environment()
    records = instance.get_run_records(RunsFilter(statuses=[DagsterRunStatus.STARTED]))
    return [record.dagster_run for record in records if time_is_up(record, now, settings)]


def close_invocation_of(instance: DagsterInstance, run: DagsterRun) -> bool:
    """Close the invocation of a run that is over, if nothing has; return whether this call did."""
    engine = database.connect(database.locate(Settings.from_environment()).scenario)
    logger = StructuredLogger().bind(
        invocation_id=run.run_id,
        dagster_run_id=run.run_id,
        dagster_job_name=run.job_name,
        dagster_step_key=None,
        dagster_partition_key=run.tags.get("dagster/partition"),
    )
    try:
        return close_dead_invocation(engine, run.run_id, logger, logged=entries_of(instance, run.run_id))
    finally:
        engine.dispose()


def entries_of(instance: DagsterInstance, run_id: str) -> Iterator[dict[str, Any]]:
    """Yield the entries that a run's own processes wrote, from Dagster's capture of their stdout."""
    for record in instance.all_logs(run_id, of_type=DagsterEventType.LOGS_CAPTURED):
        if record.dagster_event is None:
            continue
        file_key = record.dagster_event.logs_captured_data.file_key
        log_key = instance.compute_log_manager.build_log_key_for_run(run_id, file_key)
        stdout = instance.compute_log_manager.get_log_data(log_key).stdout or b""
        for line in stdout.split(b"\n"):
            try:
                entry = json.loads(line)
            except ValueError:  # a line torn by the kill
                continue
            if isinstance(entry, dict) and entry.get("invocation_id") == run_id:
                yield entry
