"""Resources: thin shells around plain objects, one set a process.

Belongs here: handing ops the shared logger and the invocation of their run. Nothing is connected before an op asks:
a resource that fails while it is set up would fail the run without a single event.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

from dagster import (
    ConfigurableResource,
    DagsterExecutionInterruptedError,
    InitResourceContext,
    OpExecutionContext,
    resource,
)
from sqlalchemy import Engine

from scenario_pipeline.defs.instance.captured_output import captured_to_the_end
from scenario_pipeline.defs.instance.storage import PATIENCE
from scenario_pipeline.defs.outputs import handed_on_outputs
from scenario_pipeline.defs.run_metadata import run_tags
from scenario_pipeline.engines import TriggerEngine
from scenario_pipeline.engines.http.client import RemoteOptions
from scenario_pipeline.engines.http.engine import HttpTriggerEngine
from scenario_pipeline.engines.sql import SqlTriggerEngine
from scenario_pipeline.errors import ErrorInfo, ErrorType, UserError, classify
from scenario_pipeline.invocation.run import Invocation
from scenario_pipeline.limits import DISPLAY_SECONDS, LAST_STATEMENT_SECONDS
from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.records import RunOrder
from scenario_pipeline.settings import Settings
from scenario_pipeline.time_budget import TimeBudget
from scenario_pipeline.upgrade import open_database


class StructuredLoggerResource(ConfigurableResource["StructuredLoggerResource"]):
    """The shared JSON logger, bound to the run that asks."""

    def bound_to(self, context: OpExecutionContext) -> StructuredLogger:
        """Return the logger with the common fields of contract section 5 for the step of `context`."""
        return StructuredLogger().bind(
            invocation_id=context.run_id,
            dagster_run_id=context.run_id,
            dagster_job_name=context.job_name,
            dagster_step_key=context.get_step_execution_context().step.key,
            dagster_partition_key=context.partition_key if context.has_partition_key else None,
        )


class Scheduler:
    """Holds the invocation of a run, for all steps that this process executes.

    Args:
        settings: the installation's.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._invocation: Invocation | None = None
        self._database: Engine | None = None
        self._display: TimeBudget | None = None
        self._runs_all_steps = False
        self._closed_with_run = ExitStack()

    @property
    def database(self) -> Engine:
        """Connections to the scheduler's own database; none is made yet."""
        if self._database is None:
            self._database = open_database(self.settings)
            self._closed_with_run.callback(self._database.dispose)
        return self._database

    @property
    def display_seconds(self) -> float:
        """Seconds that one more statement may take for what is shown of a closed run; counted from the first call."""
        self._display = self._display or TimeBudget.start(DISPLAY_SECONDS)
        return max(self._display.remaining_seconds, LAST_STATEMENT_SECONDS)

    def open_or_join(
        self, context: OpExecutionContext, order: RunOrder, structured_logger: StructuredLoggerResource
    ) -> Invocation:
        """Return the invocation of this run; the first step of a process opens it, or joins it if another has.

        Raises:
            SystemicError: it cannot be opened; its events are written.
            UserError: the run's executor starts other processes.
        """
        logger = structured_logger.bound_to(context)
        if self._invocation is None:
            _check_executor(context)
            plan = context.get_step_execution_context().plan_data.execution_plan
            self._runs_all_steps = len(plan.step_keys_to_execute) > 1
            self._invocation = Invocation(
                order,
                context.run_id,
                database=self.database,
                trigger_engine=self._trigger_engine(order.engine_name),
                logger=logger,
                parent_invocation_id=context.run.parent_run_id,
                runs_all_pages=self._runs_all_steps,
            )
            PATIENCE.begin_run(order.time_budget_seconds)
            self._invocation.open()
        self._invocation.log_as(logger)
        return self._invocation

    def _trigger_engine(self, name: str) -> TriggerEngine:
        if name == "sql":
            return SqlTriggerEngine(self.database)
        options = RemoteOptions(
            self.settings.engine_url,
            self.settings.engine_token,
            concurrency=self.settings.engine_concurrency,
            chunk_size=self.settings.engine_chunk_size,
            trust_proxy=self.settings.engine_trust_proxy,
        )
        http = HttpTriggerEngine(self.database, options)
        self._closed_with_run.callback(http.close)
        return http

    def close(self, context: InitResourceContext) -> None:
        """Close what no step could close: Dagster delivers a signal that fell between two steps to neither."""
        invocation = self._invocation
        if invocation is not None and invocation.report is None and self._runs_all_steps:
            exc = sys.exc_info()[1]
            stopped = isinstance(exc, DagsterExecutionInterruptedError | KeyboardInterrupt)
            with captured_to_the_end(context.instance, invocation.invocation_id):
                invocation.abandon(None if stopped else _why(exc))
        self._tag_run(context)
        PATIENCE.end_run()
        self._closed_with_run.close()

    def _tag_run(self, context: InitResourceContext) -> None:
        """Show how the invocation ended where runs are filtered, if this process is the one that closed it."""
        if self._invocation is None or self._invocation.report is None:
            return
        inherited = context.run.tags if context.run is not None else None
        tags = run_tags(self._invocation.order, self._invocation.report, inherited)
        with suppress(Exception):  # Dagster's storage is gone: then nothing about this run can be shown there
            if context.instance is not None:
                context.instance.add_run_tags(self._invocation.invocation_id, tags)


def _check_executor(context: OpExecutionContext) -> None:
    """Refuse step executors over processes: an invocation has one log, one budget and one process (contract section 8).

    Raises:
        UserError: with a sentence, before anything is decided.
    """
    name = context.job_def.executor_def.name
    if name not in ("in_process", "execute_in_process_executor"):
        raise UserError(
            f"The executor {name} is refused, since a run is one process: use in_process_executor, "
            "and one run for each organisation to use more machines."
        )


def run_resources(settings: Settings) -> dict[str, Any]:
    """Return the resources of ops and checks, by name."""

    @resource(description="The invocation of a run, and the database it works on.")
    def scheduler(context: InitResourceContext) -> Iterator[Scheduler]:
        PATIENCE.enter_run()
        found = Scheduler(settings)
        try:
            yield found
        finally:
            found.close(context)

    return {
        "scheduler": scheduler,
        "structured_logger": StructuredLoggerResource(),
        "io_manager": handed_on_outputs,
    }


def _why(exc: BaseException | None) -> ErrorInfo:
    if isinstance(exc, Exception):
        return classify(exc)
    return ErrorInfo(ErrorType.EVALUATION_LOGIC, "the run ended before its last step")
