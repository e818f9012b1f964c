"""How long Dagster's records of runs are kept: the runs, their events, what was captured of them, their step outputs.

Belongs here: removing what is old. Does not belong here: the scheduler's own ledger and notifications, which a person
removes with SQL (docs/how-to/retention.md), or ticks (`dagster.yaml`).
"""

import shutil
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path

from dagster import (
    DagsterInstance,
    DagsterRunStatus,
    DefaultSensorStatus,
    RunsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SkipReason,
    sensor,
)

from scenario_pipeline.defs.assets import OWNERS
from scenario_pipeline.log.logger import utc_now

# As long as dagster.yaml keeps ticks that launched something: a tick without its run explains little.
KEEP_DAYS = 90
# A tick that takes a minute is cut off by Dagster; an hour makes as many runs as a backfill of years within a day.
INTERVAL_SECONDS = 3600
MAX_RUNS_A_TICK = 200
TICK_SECONDS = 20.0
_OVER = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]


def forget_old_runs_sensor() -> SensorDefinition:
    """Return the sensor that keeps Dagster's records from growing for ever; it is on unless a person turns it off."""

    @sensor(
        name="forget_old_runs",
        owners=OWNERS,
        default_status=DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=INTERVAL_SECONDS,
        description=f"Deletes runs that were created {KEEP_DAYS} days ago or earlier and are over: their events, their "
        "captured logs and their step outputs. The scheduler's ledger is left alone.",
    )
    def forget_old_runs(context: SensorEvaluationContext) -> SkipReason:
        runs, folders = forget(context.instance, utc_now() - timedelta(days=KEEP_DAYS))
        if not runs and not folders:
            return SkipReason(f"Nothing is older than {KEEP_DAYS} days.")
        return SkipReason(f"Deleted {runs} runs, and {folders} folders of runs that were deleted before.")

    return forget_old_runs


def forget(instance: DagsterInstance, before: datetime) -> tuple[int, int]:
    """Delete runs that are over and were created before a moment, the oldest first, as many as one tick may.

    Args:
        instance: whose runs and files.
        before: the moment.

    Returns:
        How many runs were deleted, and how many folders of runs that Dagster no longer has (`dagster run delete`
        leaves them).
    """
    ends_at = time.monotonic() + TICK_SECONDS
    filters = RunsFilter(statuses=_OVER, created_before=before)
    runs = folders = 0
    for record in instance.get_run_records(filters, limit=MAX_RUNS_A_TICK, ascending=True):
        if time.monotonic() > ends_at:
            break
        run_id = record.dagster_run.run_id
        # Files first: a tick that is cut off in between finds the run again.
        _delete_files(instance, run_id)
        instance.delete_run(run_id)
        runs += 1
    for folder in islice(_old_folders(instance, before), MAX_RUNS_A_TICK):
        if time.monotonic() > ends_at:
            break
        if instance.get_run_by_id(folder.name) is None:
            _delete_files(instance, folder.name)
            folders += 1
    return runs, folders


def _delete_files(instance: DagsterInstance, run_id: str) -> None:
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    shutil.rmtree(Path(instance.storage_directory()) / run_id, ignore_errors=True)


def _old_folders(instance: DagsterInstance, before: datetime) -> Iterator[Path]:
    """Yield the folders of runs that nothing was written to since a moment."""
    storage = Path(instance.storage_directory())
    for folder in storage.iterdir() if storage.is_dir() else ():
        try:
            uuid.UUID(folder.name)
            is_old = folder.stat().st_mtime < before.timestamp()
        except (ValueError, OSError):  # no folder of a run; deleted meanwhile
            continue
        if is_old:
            yield folder
