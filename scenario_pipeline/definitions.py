"""What Dagster loads: jobs, assets, checks, schedules and sensors. Needs no database, no network and no variable."""

from dagster import Definitions, in_process_executor

from scenario_pipeline.defs.assets import scenario_notifications, source_tables
from scenario_pipeline.defs.checks import error_rate, events_match_ledger
from scenario_pipeline.defs.job import mentor_scenario_evaluations, scenario_scheduler
from scenario_pipeline.defs.resources import SchedulerResource, StructuredLoggerResource
from scenario_pipeline.defs.schedules import schedules
from scenario_pipeline.defs.sensors import (
    close_dead_invocations,
    continue_partial_runs,
    fail_lost_runs,
    pg_cron_requests,
)

defs = Definitions(
    assets=[*source_tables, mentor_scenario_evaluations, scenario_notifications],
    asset_checks=[events_match_ledger, error_rate],
    jobs=[scenario_scheduler],
    schedules=schedules,
    sensors=[close_dead_invocations, fail_lost_runs, continue_partial_runs, pg_cron_requests],
    resources={"scheduler": SchedulerResource(), "structured_logger": StructuredLoggerResource()},
    # A process a step would cost a second each: the budget of a run is 30.
    executor=in_process_executor,
)
