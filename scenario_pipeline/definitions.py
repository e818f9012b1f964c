"""What Dagster loads: jobs, schedules and resources. Loading it needs no database, no network and no variable."""

from dagster import Definitions, in_process_executor

from scenario_pipeline.defs.resources import SchedulerResource, StructuredLoggerResource
from scenario_pipeline.defs.scheduler import scenario_scheduler, scenario_scheduler_schedule

defs = Definitions(
    jobs=[scenario_scheduler],
    schedules=[scenario_scheduler_schedule],
    resources={"scheduler": SchedulerResource(), "structured_logger": StructuredLoggerResource()},
    # A process a step would cost a second each: the budget of a run is 30.
    executor=in_process_executor,
)
