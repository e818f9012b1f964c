"""Whether a recorded run can still be alive, and which run evaluates the same scenarios.

Belongs here: signs of life in Dagster's records. Does not belong here: what follows from them (`defs.schedules`,
`defs.sensors`).
"""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunRecord, RunsFilter

from scenario_pipeline.defs.assets import EVALUATIONS
from scenario_pipeline.defs.job import JOB_NAME
from scenario_pipeline.records import parse_date
from scenario_pipeline.scenarios import registry
from scenario_pipeline.settings import Settings

_WAITING = [DagsterRunStatus.QUEUED, DagsterRunStatus.STARTING]
# What a process does while it lives, and stops doing when it is killed.
_GOING_ON = [DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
# A process that lives writes an entry to Dagster's event log with each step; none takes longer than the time budget.
LOST_AFTER_SECONDS = 60.0


def running_invocation(
    instance: DagsterInstance, scenario_types: Sequence[str], now: datetime, settings: Settings
) -> str | None:
    """Return the id of a live run for the same scenarios, all organisations and today that can still be alive.

    A backfill of other dates, or a dry run, keeps no tick back.

    Args:
        instance: whose runs are read, runs of backfills and of the asset included.
        scenario_types: the set; empty for all installed ones.
        now: the present moment.
        settings: for the time budget of runs that name none.
    """
    wanted, today = set(scenario_types) or set(registry()), settings.today(now)
    for record in instance.get_run_records(RunsFilter(statuses=[*_WAITING, *_GOING_ON])):
        config = run_configuration_of(record.dagster_run)
        if config is None or config.get("organisation_ids") or config.get("dispatch_mode") == "dry_run":
            continue
        if _evaluation_date(record, config, settings) != today:
            continue
        if set(config.get("scenario_types") or registry()) == wanted and not is_lost(instance, record, now, settings):
            return record.dagster_run.run_id
    return None


def _evaluation_date(record: RunRecord, config: Mapping[str, Any], settings: Settings) -> date | None:
    """Return the date that a run evaluates; without one of its own, that of the moment it was created."""
    named = config.get("evaluation_date") or record.dagster_run.tags.get("dagster/partition")
    return parse_date(named) if named else settings.today(record.create_timestamp)


def is_lost(instance: DagsterInstance, record: RunRecord, now: datetime, settings: Settings) -> bool:
    """Whether a run of the scheduler goes on in the records only: its time is up, and it gives no sign of life."""
    run = record.dagster_run
    config = run_configuration_of(run)
    if config is None or run.status not in _GOING_ON:
        return False
    budget = float(config.get("time_budget_seconds") or settings.time_budget_seconds)
    began = record.start_time or record.create_timestamp.timestamp()
    time_is_up = run.status is DagsterRunStatus.NOT_STARTED or now.timestamp() >= began + budget + LOST_AFTER_SECONDS
    return time_is_up and now.timestamp() >= max(began, last_sign_of_life(instance, run.run_id)) + LOST_AFTER_SECONDS


def last_sign_of_life(instance: DagsterInstance, run_id: str) -> float:
    """Return when the newest entry of a run was written to Dagster's event log, in seconds since 1970; 0 for never."""
    newest = instance.get_records_for_run(run_id, limit=1, ascending=False).records
    return newest[0].timestamp if newest else 0.0


def run_configuration_of(run: DagsterRun) -> dict[str, Any] | None:
    """Return the configuration of `fetch_active_mentors` in a run of the job or of the asset, or None for others."""
    ops: Any = run.run_config.get("ops", {})
    if run.job_name != JOB_NAME:
        if EVALUATIONS not in (run.asset_selection or ()):
            return None
        ops = ops.get("scheduler_graph", {}).get("ops", {})
    config: dict[str, Any] = ops.get("fetch_active_mentors", {}).get("config", {})
    return config
