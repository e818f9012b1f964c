"""What Dagster loads: jobs, schedules and resources. Loading it needs no database, no network and no variable."""

from dagster import Definitions, in_process_executor

from scenario_pipeline.defs.resources import SchedulerResource, StructuredLoggerResource
from scenario_pipeline.defs.scheduler import mentor_scenario_evaluations, scenario_scheduler
from scenario_pipeline.defs.schedules import schedules
from scenario_pipeline.defs.sensors import close_dead_invocations, fail_lost_runs

defs = Definitions(
    assets=[mentor_scenario_evaluations],
    jobs=[scenario_scheduler],
    schedules=schedules,
    sensors=[close_dead_invocations, fail_lost_runs],
    resources={"scheduler": SchedulerResource(), "structured_logger": StructuredLoggerResource()},
    # A process a step would cost a second each: the budget of a run is 30.
    executor=in_process_executor,
)
