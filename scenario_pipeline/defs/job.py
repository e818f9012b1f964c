"""The graph of the scheduler, and the job and the asset made from it (contract section 8).

Belongs here: the three ops, the job and the asset. An op fetches, calls and emits; what can be wrong is decided in
`invocation`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dagster import (
    AssetMaterialization,
    AssetsDefinition,
    DailyPartitionsDefinition,
    DynamicOut,
    DynamicOutput,
    Failure,
    In,
    JobDefinition,
    MetadataValue,
    Nothing,
    OpExecutionContext,
    Out,
    Output,
    ResourceParam,
    graph,
    in_process_executor,
    op,
)

from scenario_pipeline.batch_stats import NO_ORGANISATION
from scenario_pipeline.defs.assets import EVALUATIONS, GROUP, NOTIFICATIONS, OWNERS, source_tables
from scenario_pipeline.defs.checks import evaluate_checks
from scenario_pipeline.defs.partitions import daily_partitions
from scenario_pipeline.defs.resources import Scheduler, StructuredLoggerResource
from scenario_pipeline.defs.run_configuration import CONFIG_SCHEMA, order_from, triggered_by
from scenario_pipeline.defs.run_metadata import (
    date_metadata,
    events_url,
    notification_metadata,
    report_metadata,
    totals_shown,
)
from scenario_pipeline.defs.sources import observations
from scenario_pipeline.errors import SystemicError, UserError, classify
from scenario_pipeline.log.logger import utc_now
from scenario_pipeline.records import MentorError, RunOrder, resolve_dispatch_mode
from scenario_pipeline.report import Report
from scenario_pipeline.storage.database import limit_statement_time
from scenario_pipeline.storage.ledger.dates import numbers_of_date
from scenario_pipeline.storage.source import organisation_names

Metadata = Mapping[str, MetadataValue[Any]]
JOB_NAME = "scenario_scheduler"


@op(
    config_schema=CONFIG_SCHEMA,
    out={"order": Out(Any), "pages": DynamicOut(Any)},
    description="Opens the invocation, reads the active mentors and cuts them into pages.",
)
def fetch_active_mentors(
    context: OpExecutionContext,
    scheduler: ResourceParam[Scheduler],
    structured_logger: StructuredLoggerResource,
) -> Iterator[Output[RunOrder] | DynamicOutput[Any]]:
    """Yield the completed order once, and each page under its own mapping key."""
    failure = None
    try:
        order = order_from(context, scheduler.settings)
        pages = scheduler.open_or_join(context, order, structured_logger).plan()
    except (SystemicError, UserError) as exc:
        failure = classify(exc)
    if failure is not None:
        # Outside the handler: Dagster stores the text of every chained exception.
        raise Failure(failure.error_message, metadata={"error_type": failure.error_type.value}, allow_retries=False)
    yield Output(order, output_name="order")
    for page in pages:
        yield DynamicOutput(page, mapping_key=f"page_{page.number:05d}", output_name="pages")


@op(
    ins={"order": In(Any), "page": In(Any)},
    out=Out(Any),
    description="Evaluates one page of mentors in one transaction.",
)
def evaluate_mentor(
    context: OpExecutionContext,
    order: Any,
    page: Any,
    scheduler: ResourceParam[Scheduler],
    structured_logger: StructuredLoggerResource,
) -> Any:
    """Return what became of the page; a failure is a value, so that `summarize_run` still runs."""
    order = replace(order, triggered_by=triggered_by(context.run))
    return scheduler.open_or_join(context, order, structured_logger).evaluate(page)


@op(
    ins={"order": In(Any), "outcomes": In(Any)},
    out=Out(Nothing),
    description="Closes the invocation: sums up the pages, writes the last events and the run's metadata.",
)
def summarize_run(
    context: OpExecutionContext,
    order: Any,
    outcomes: Any,
    scheduler: ResourceParam[Scheduler],
    structured_logger: StructuredLoggerResource,
) -> None:
    """Show the totals as metadata; a failed invocation fails the run, a partial one warns and is tagged."""
    order = replace(order, triggered_by=triggered_by(context.run))
    invocation = scheduler.open_or_join(context, order, structured_logger)
    report = invocation.finish(outcomes)
    metadata = _metadata(context, scheduler, order, report, invocation.errors)
    if report.status == "failed" and report.failure is not None:
        # A database that is gone is not asked again: the log is closed, and the process should end.
        if not report.failure.is_worth_waiting_for:
            _evaluate_checks(context, scheduler, order, metadata)
        raise Failure(report.failure.error_message, metadata=metadata, allow_retries=False)
    if report.status == "partial":
        context.log.warning(f"Partial: {report.remaining} mentors are left to the next run.")
    shown = _show_date(context, scheduler, order, metadata)
    context.add_output_metadata(shown if context.has_assets_def else metadata)
    # The asset's own run makes its checks by itself; any other run of the date shows them as well.
    if not context.has_assets_def:
        _evaluate_checks(context, scheduler, order, metadata)
    _observe_sources(context, scheduler)


def _show_date(context: OpExecutionContext, scheduler: Scheduler, order: RunOrder, metadata: Metadata) -> Metadata:
    """Show the numbers of the date on the partitions of both assets, and return those of the evaluations."""
    partition = order.evaluation_date.isoformat()
    if not daily_partitions(scheduler.settings.timezone).has_partition_key(partition):
        return metadata
    try:
        with scheduler.database.begin() as connection:
            limit_statement_time(connection, scheduler.display_seconds)
            numbers = numbers_of_date(connection, order.evaluation_date)
    except Exception as exc:  # noqa: BLE001 - the invocation is closed: a date without numbers must not fail its run
        context.log.warning(f"The numbers of the date could not be read: {classify(exc).error_message}.")
        shown, sent = metadata, {}
    else:
        shown, sent = date_metadata(numbers, metadata), notification_metadata(numbers)
    if order.dispatch_mode == "live":
        context.log_event(AssetMaterialization(NOTIFICATIONS, partition=partition, metadata=sent))
    # The asset's own run records its partition by itself.
    if not context.has_assets_def:
        context.log_event(AssetMaterialization(EVALUATIONS, partition=partition, metadata=shown))
    return shown


def _metadata(
    context: OpExecutionContext,
    scheduler: Scheduler,
    order: RunOrder,
    report: Report,
    errors: Sequence[MentorError],
) -> Metadata:
    names: dict[str, str] = {}
    # A failed run is often one whose database is gone: then its ids have to do.
    if report.status != "failed":
        try:
            with scheduler.database.begin() as connection:
                limit_statement_time(connection, scheduler.display_seconds)
                evaluated = report.stats.evaluated_by_organisation
                names = organisation_names(connection, [i for i in evaluated if i != NO_ORGANISATION])
        except Exception as exc:  # noqa: BLE001 - the invocation is closed: a table without names must not fail its run
            context.log.warning(f"The names of organisations could not be read: {classify(exc).error_message}.")
    today = scheduler.settings.today(utc_now())
    usual = resolve_dispatch_mode("auto", order.evaluation_date, today)
    return report_metadata(
        order,
        report,
        organisation_names=names,
        errors=errors,
        events_url=events_url(context.instance, context.run_id),
        live_on_request=order.dispatch_mode == "live" != usual,
    )


def _evaluate_checks(context: OpExecutionContext, scheduler: Scheduler, order: RunOrder, metadata: Metadata) -> None:
    known_totals = {context.run_id: totals_shown(metadata)}
    try:
        evaluations = evaluate_checks(context.instance, scheduler, order.evaluation_date, known_totals=known_totals)
    except Exception as exc:  # noqa: BLE001 - the invocation is closed: a check that cannot be made must not fail its run
        context.log.warning(f"The asset checks could not be made: {classify(exc).error_message}.")
        return
    for evaluation in evaluations:
        context.log_event(evaluation)  # type: ignore[arg-type]  # taken, and missing in its annotation


def _observe_sources(context: OpExecutionContext, scheduler: Scheduler) -> None:
    try:
        for observation in observations(scheduler.database, lambda: scheduler.display_seconds):
            context.log_event(observation)
    except Exception as exc:  # noqa: BLE001 - the invocation is closed: what its source looks like must not fail its run
        context.log.warning(f"The sources could not be checked: {classify(exc).error_message}.")


@graph(description="Evaluates every active mentor page by page and dispatches one notification per crossing.")
def scheduler_graph() -> Any:
    """Fetch, evaluate each page, sum up."""
    order, pages = fetch_active_mentors()
    return summarize_run(order, pages.map(lambda page: evaluate_mentor(order, page)).collect())


def scheduler_job(partitions: DailyPartitionsDefinition) -> JobDefinition:
    """Return the job `scenario_scheduler`, whose runs can be backfilled by date."""
    return scheduler_graph.to_job(
        name=JOB_NAME,
        partitions_def=partitions,
        executor_def=in_process_executor,
        owners=OWNERS,
        description="One run evaluates one date; without a partition it evaluates today.",
    )


def evaluations_asset(partitions: DailyPartitionsDefinition) -> AssetsDefinition:
    """Return the asset `mentor_scenario_evaluations`, made from the same graph."""
    return AssetsDefinition.from_graph(
        scheduler_graph,
        keys_by_output_name={"result": EVALUATIONS},
        # Not arguments of the graph: the statement of a page reads them where they are.
        internal_asset_deps={"result": {spec.key for spec in source_tables}},
        partitions_def=partitions,
        group_name=GROUP,
        descriptions_by_output_name={"result": "What became of every active mentor on each date, by whichever run."},
        tags_by_output_name={"result": {"dagster/kind/python": "", "dagster/kind/postgres": ""}},
        owners_by_output_name={"result": OWNERS},
    )
