"""Schedules: when the job runs by itself (contract section 8).

Belongs here: cron expressions, the date a tick asks for, and when a tick is skipped. Does not belong here: the job, or
whether a run is alive (`defs.liveness`).
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from dagster import (
    DefaultScheduleStatus,
    JobDefinition,
    RunRequest,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SkipReason,
    schedule,
)

from scenario_pipeline.defs.assets import OWNERS
from scenario_pipeline.defs.dagster_private import get_latest_completed_cron_tick, is_valid_cron_string
from scenario_pipeline.defs.liveness import LOST_AFTER_SECONDS, running_invocation
from scenario_pipeline.errors import UserError
from scenario_pipeline.scenarios import Scenario, registry
from scenario_pipeline.settings import Settings


def checked_cron(cron: str, name: str = "SCENARIO_CRON") -> str:
    """Return a cron expression that Dagster understands; `name` says whose it is.

    Raises:
        UserError: it does not.
    """
    if not is_valid_cron_string(cron):
        raise UserError(f"{name} must be a cron expression of five fields such as 0 * * * *.")
    return cron


def last_due(settings: Settings, now: datetime) -> datetime:
    """Return when the schedule of all scenarios last asked for a run that should be over by `now`.

    Raises:
        UserError: `SCENARIO_CRON` is no cron expression.
    """
    allowed = timedelta(seconds=settings.time_budget_seconds + LOST_AFTER_SECONDS)
    return get_latest_completed_cron_tick(checked_cron(settings.cron), now - allowed, settings.timezone.key)


def _scheduled(
    job: JobDefinition,
    settings: Settings,
    name: str,
    cron: str,
    scenario_types: Sequence[str],
    *,
    on: bool,
    description: str,
) -> ScheduleDefinition:
    @schedule(
        name=name,
        job=job,
        cron_schedule=cron,
        execution_timezone=settings.timezone.key,
        default_status=DefaultScheduleStatus.RUNNING if on else DefaultScheduleStatus.STOPPED,
        description=description,
        owners=OWNERS,
    )
    def tick(context: ScheduleEvaluationContext) -> RunRequest | SkipReason:
        moment = context.scheduled_execution_time
        running = running_invocation(context.instance, scenario_types, moment, settings)
        if running is not None:
            return SkipReason(f"The run {running} of the same scenarios is still in progress.")
        config = {"ops": {"fetch_active_mentors": {"config": {"scenario_types": list(scenario_types)}}}}
        return RunRequest(partition_key=settings.today(moment).isoformat(), run_config=config)

    return tick


def build_schedules(job: JobDefinition, settings: Settings) -> list[ScheduleDefinition]:
    """Return the schedule of all scenarios, and one for each scenario, for those that need to run alone.

    Raises:
        UserError: `SCENARIO_CRON` is no cron expression.
    """
    everything = _scheduled(
        job,
        settings,
        "scenario_scheduler_schedule",
        checked_cron(settings.cron),
        (),
        on=True,
        description="Evaluates all scenarios for the current date.",
    )
    return [everything, *(_alone(job, settings, scenario) for scenario in registry().values())]


def _alone(job: JobDefinition, settings: Settings, scenario: Scenario) -> ScheduleDefinition:
    """Return the contingency for a scenario that costs more than the others: by itself, at an hour of its own."""
    scenario_type = scenario.scenario_type
    return _scheduled(
        job,
        settings,
        f"{scenario_type}_schedule",
        checked_cron(scenario.cron or settings.cron, f"The cron of the scenario {scenario_type}"),
        (scenario_type,),
        on=False,
        description=f"Evaluates {scenario_type} alone; meant for use instead of the schedule of all scenarios.",
    )
