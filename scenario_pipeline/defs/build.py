"""Everything that Dagster loads, built from the settings.

Belongs here: which jobs, assets, checks, schedules and sensors there are. Does not belong here: what they do.
"""

from dagster import Definitions, in_process_executor

from scenario_pipeline.defs.assets import scenario_notifications, source_tables
from scenario_pipeline.defs.checks import ASSET_CHECKS
from scenario_pipeline.defs.job import evaluations_asset, scheduler_job
from scenario_pipeline.defs.partitions import daily_partitions
from scenario_pipeline.defs.resources import run_resources
from scenario_pipeline.defs.retention import forget_old_runs_sensor
from scenario_pipeline.defs.schedules import build_schedules
from scenario_pipeline.defs.sensors import build_sensors
from scenario_pipeline.settings import Settings


def build_definitions(settings: Settings) -> Definitions:
    """Return the definitions of one installation.

    Raises:
        UserError: a setting cannot work.
    """
    partitions = daily_partitions(settings.timezone)
    job = scheduler_job(partitions)
    return Definitions(
        assets=[*source_tables, evaluations_asset(partitions), scenario_notifications],
        asset_checks=ASSET_CHECKS,
        jobs=[job],
        schedules=build_schedules(job, settings),
        sensors=[*build_sensors(job, settings), forget_old_runs_sensor()],
        resources=run_resources(settings),
        # A process a step would cost a second each: the budget of a run is 30.
        executor=in_process_executor,
    )
