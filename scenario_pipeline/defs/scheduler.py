"""The graph of the scheduler, and the job and the asset made from it (contract section 8).

Belongs here: the three ops, their run configuration, the job and the asset. An op fetches, calls and emits; what
can be wrong is decided in `invocation`.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from enum import Enum
from typing import Any

from dagster import (
    AssetKey,
    AssetMaterialization,
    AssetsDefinition,
    Config,
    DagsterRun,
    DailyPartitionsDefinition,
    DynamicOut,
    DynamicOutput,
    Failure,
    In,
    MetadataValue,
    Nothing,
    OpExecutionContext,
    Out,
    Output,
    graph,
    in_process_executor,
    op,
)
from pydantic import Field

from scenario_pipeline.defs.resources import SchedulerResource, StructuredLoggerResource
from scenario_pipeline.errors import SystemicError, UserError, classify
from scenario_pipeline.events import Report
from scenario_pipeline.records import RunRequest, resolve_dispatch_mode
from scenario_pipeline.scenarios import registry, select_scenarios
from scenario_pipeline.settings import MAX_PAGE_SIZE, MAX_TIME_BUDGET_SECONDS, Settings
from scenario_pipeline.structured_logger import utc_now

JOB_NAME = "scenario_scheduler"
ASSET_KEY = "mentor_scenario_evaluations"
# Says who asked where Dagster's own tags cannot: a continuation and a pg_cron request are both sensor runs.
TRIGGERED_BY_TAG = "scenario/triggered_by"
FIRST_PARTITION = "2024-01-01"

ScenarioType = Enum("ScenarioType", {name: name for name in registry()})  # type: ignore[misc]


class DispatchModeChoice(Enum):
    """What becomes of a match."""

    auto = "auto"
    live = "live"
    dry_run = "dry_run"


class EngineChoice(Enum):
    """Which trigger engine evaluates."""

    sql = "sql"
    http = "http"


class RunConfiguration(Config):
    """What can be chosen for one run; everything left out is taken from the environment."""

    evaluation_date: str | None = Field(
        None,
        pattern=r"^\d{4}-\d\d-\d\d$",
        description="The date to evaluate, YYYY-MM-DD. Default: the partition, else today in the configured time zone.",
    )
    scenario_types: list[ScenarioType] = Field(default=[], description="Scenarios to evaluate. Default: all installed.")
    organisation_ids: list[str] = Field(default=[], description="Ids of organisations to evaluate. Default: all.")
    dispatch_mode: DispatchModeChoice = Field(
        DispatchModeChoice.auto,
        description="live writes notifications, dry_run rolls them back, auto is live up to three days back.",
    )
    engine: EngineChoice | None = Field(None, description="Trigger engine. Default: SCENARIO_ENGINE.")
    time_budget_seconds: float | None = Field(
        None,
        gt=0,
        le=MAX_TIME_BUDGET_SECONDS,
        description="How long the run may evaluate, in seconds. Default: SCENARIO_TIME_BUDGET_SECONDS.",
    )
    page_size: int | None = Field(
        None, ge=1, le=MAX_PAGE_SIZE, description="Mentors a page. Default: SCENARIO_PAGE_SIZE, else by their number."
    )


def request_from(context: OpExecutionContext, config: RunConfiguration, settings: Settings) -> RunRequest:
    """Complete the run configuration from the partition and the settings.

    Raises:
        UserError: a date that does not exist, or a scenario that is not installed.
    """
    today = settings.today(utc_now())
    if config.evaluation_date is not None:
        try:
            evaluation_date = date.fromisoformat(config.evaluation_date)
        except ValueError:
            raise UserError(f"There is no date {config.evaluation_date}.") from None
    else:
        evaluation_date = date.fromisoformat(context.partition_key) if context.has_partition_key else today
    return RunRequest(
        evaluation_date=evaluation_date,
        scenario_types=select_scenarios(choice.value for choice in config.scenario_types),
        organisation_ids=tuple(sorted(set(config.organisation_ids))),
        dispatch_mode=resolve_dispatch_mode(config.dispatch_mode.value, evaluation_date, today),
        engine=settings.engine if config.engine is None else config.engine.value,
        time_budget_seconds=config.time_budget_seconds or settings.time_budget_seconds,
        page_size=config.page_size or settings.page_size,
        triggered_by=triggered_by(context.run),
    )


def triggered_by(run: DagsterRun) -> str:
    """Tell from a run's parent and tags who asked for it; web UI, command line and API are all `manual`."""
    if run.parent_run_id is not None:
        return "retry"
    match run.tags:
        case {"scenario/triggered_by": asked}:
            return asked
        case {"dagster/backfill": _}:
            return "backfill"
        case {"dagster/schedule_name": _}:
            return "dagster_schedule"
        case {"dagster/sensor_name": _}:
            return "sensor"
        case _:
            return "manual"


@op(
    out={"request": Out(Any), "pages": DynamicOut(Any)},
    description="Opens the invocation, reads the active mentors and cuts them into pages.",
)
def fetch_active_mentors(
    context: OpExecutionContext,
    config: RunConfiguration,
    scheduler: SchedulerResource,
    structured_logger: StructuredLoggerResource,
) -> Iterator[Output[RunRequest] | DynamicOutput[Any]]:
    """Yield the completed request once, and each page under its own mapping key."""
    failure = None
    try:
        request = request_from(context, config, Settings.from_environment())
        pages = scheduler.invocation(context, request, structured_logger).plan()
    except (SystemicError, UserError) as exc:
        failure = classify(exc)
    if failure is not None:
        # Outside the handler: Dagster stores the text of every chained exception.
        raise Failure(failure.error_message, metadata={"error_type": failure.error_type.value}, allow_retries=False)
    yield Output(request, output_name="request")
    for page in pages:
        yield DynamicOutput(page, mapping_key=f"page_{page.number:05d}", output_name="pages")


@op(ins={"page": In(Any)}, out=Out(Any), description="Evaluates one page of mentors in one transaction.")
def evaluate_mentor(
    context: OpExecutionContext,
    page: Any,
    scheduler: SchedulerResource,
    structured_logger: StructuredLoggerResource,
) -> Any:
    """Return what became of the page; a failure is a value, so that `summarize_run` still runs."""
    request = replace(page.request, triggered_by=triggered_by(context.run))
    return scheduler.invocation(context, request, structured_logger).evaluate(page)


@op(
    ins={"request": In(Any), "outcomes": In(Any)},
    out=Out(Nothing),
    description="Closes the invocation: sums up the pages, writes the last events and the run's metadata.",
)
def summarize_run(
    context: OpExecutionContext,
    request: Any,
    outcomes: Any,
    scheduler: SchedulerResource,
    structured_logger: StructuredLoggerResource,
) -> None:
    """Show the totals as metadata; a failed invocation fails the run, a partial one warns and is tagged."""
    request = replace(request, triggered_by=triggered_by(context.run))
    report = scheduler.invocation(context, request, structured_logger).finish(outcomes)
    metadata = report_metadata(request, report)
    context.instance.add_run_tags(context.run_id, _run_tags(request, report))
    if report.status == "failed" and report.failure is not None:
        raise Failure(report.failure.error_message, metadata=metadata, allow_retries=False)
    if report.status == "partial":
        context.log.warning(f"Partial: {report.remaining} mentors are left to the next run.")
    context.add_output_metadata(metadata)
    # The asset's own run records its partition by itself; any other run of the date is shown there as well.
    partition = request.evaluation_date.isoformat()
    if not context.has_assets_def and partitions.has_partition_key(partition):
        context.log_event(AssetMaterialization(ASSET_KEY, partition=partition, metadata=metadata))


def report_metadata(request: RunRequest, report: Report) -> dict[str, MetadataValue]:
    """Return the totals as numbers that Dagster plots, and what was asked for."""
    totals = report.totals()
    numbers = {name: MetadataValue.int(value) for name, value in totals.items() if isinstance(value, int)}
    settled = report.stats.total_settled
    return {
        **numbers,
        "remaining_unprocessed_count": MetadataValue.int(report.remaining or 0),
        "error_rate": MetadataValue.float(report.stats.total_errors / settled if settled else 0.0),
        "suppressed_by_reason": MetadataValue.json(totals["suppressed_by_reason"]),
        "dispatched_by_scenario": MetadataValue.json(totals["dispatched_by_scenario"]),
        "status": MetadataValue.text(report.status),
        "evaluation_date": MetadataValue.text(request.evaluation_date.isoformat()),
        "dispatch_mode": MetadataValue.text(request.dispatch_mode),
        "triggered_by": MetadataValue.text(request.triggered_by),
    }


def _run_tags(request: RunRequest, report: Report) -> dict[str, str]:
    tags = {
        "evaluation_date": request.evaluation_date.isoformat(),
        "triggered_by": request.triggered_by,
        "outcome": report.status,
    }
    return tags | ({"partial": report.reason} if report.reason else {})


@graph(description="Evaluates every active mentor page by page and dispatches one notification per crossing.")
def scheduler_graph() -> Any:
    """Fetch, evaluate each page, sum up."""
    request, pages = fetch_active_mentors()
    return summarize_run(request, pages.map(evaluate_mentor).collect())


def daily_partitions() -> DailyPartitionsDefinition:
    """Return one partition a day, today's included, in the configured time zone."""
    timezone = Settings.from_environment().timezone
    return DailyPartitionsDefinition(start_date=FIRST_PARTITION, timezone=timezone.key, end_offset=1)


partitions = daily_partitions()

scenario_scheduler = scheduler_graph.to_job(
    name=JOB_NAME,
    partitions_def=partitions,
    executor_def=in_process_executor,
    description="One run evaluates one date; without a partition it evaluates today.",
)

mentor_scenario_evaluations = AssetsDefinition.from_graph(
    scheduler_graph,
    keys_by_output_name={"result": AssetKey(ASSET_KEY)},
    partitions_def=partitions,
    group_name="scenario_pipeline",
)
