"""Resources: thin shells around plain objects, one set a process.

Belongs here: handing ops the shared logger and the invocation of their run. Nothing is connected before an op asks:
a resource that fails while it is set up would fail the run without a single event.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from dagster import ConfigurableResource, DagsterExecutionInterruptedError, InitResourceContext, OpExecutionContext
from pydantic import PrivateAttr
from sqlalchemy import Engine

from scenario_pipeline.defs.instance.captured_output import captured_to_the_end
from scenario_pipeline.defs.instance.storage import PATIENCE
from scenario_pipeline.defs.run_metadata import run_tags
from scenario_pipeline.engines import TriggerEngine
from scenario_pipeline.engines.http.client import RemoteOptions
from scenario_pipeline.engines.http.engine import HttpTriggerEngine
from scenario_pipeline.engines.sql import SqlTriggerEngine
from scenario_pipeline.errors import ErrorInfo, ErrorType, classify
from scenario_pipeline.invocation.run import Invocation
from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.records import RunOrder
from scenario_pipeline.settings import Settings
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


class SchedulerResource(ConfigurableResource["SchedulerResource"]):
    """Holds the invocation of the run, for all steps that this process executes."""

    _invocation: Invocation | None = PrivateAttr(default=None)
    _resources: ExitStack = PrivateAttr(default_factory=ExitStack)
    _database: Engine | None = PrivateAttr(default=None)
    _runs_all_steps: bool = PrivateAttr(default=False)

    @contextmanager
    def yield_for_execution(self, context: InitResourceContext) -> Iterator["SchedulerResource"]:
        """Close what no step could close: Dagster delivers a signal that fell between two steps to neither."""
        try:
            yield self
        finally:
            invocation = self._invocation
            if invocation is not None and invocation.report is None and self._runs_all_steps:
                exc = sys.exc_info()[1]
                stopped = isinstance(exc, DagsterExecutionInterruptedError | KeyboardInterrupt)
                with captured_to_the_end(context.instance, invocation.invocation_id):
                    invocation.abandon(None if stopped else _why(exc))
            self._tag_run(context)
            self._resources.close()

    def _tag_run(self, context: InitResourceContext) -> None:
        """Say how the invocation ended where runs are filtered, if this process is the one that closed it."""
        if self._invocation is None or self._invocation.report is None:
            return
        inherited = context.run.tags if context.run is not None else None
        tags = run_tags(self._invocation.order, self._invocation.report, inherited)
        with suppress(Exception):  # Dagster's storage is gone: then nothing about this run can be told there
            if context.instance is not None:
                context.instance.add_run_tags(self._invocation.invocation_id, tags)

    @property
    def database(self) -> Engine:
        """The scheduler's own database; nothing is connected yet."""
        if self._database is None:
            self._database = open_database(Settings.from_environment())
            self._resources.callback(self._database.dispose)
        return self._database

    def invocation(
        self, context: OpExecutionContext, order: RunOrder, structured_logger: StructuredLoggerResource
    ) -> Invocation:
        """Return the invocation of this run; the first step of a process opens or joins it.

        Raises:
            SystemicError: it cannot be opened; its events are written.
        """
        logger = structured_logger.bound_to(context)
        if self._invocation is None:
            # With an executor that starts a process a step, other processes go on with the invocation.
            plan = context.get_step_execution_context().plan_data.execution_plan
            self._runs_all_steps = len(plan.step_keys_to_execute) > 1
            self._invocation = Invocation(
                order,
                context.run_id,
                database=self.database,
                trigger_engine=_trigger_engine(order.engine_name, self.database, self._resources),
                logger=logger,
                parent_invocation_id=context.run.parent_run_id,
                runs_all_pages=self._runs_all_steps,
            )
            PATIENCE.begin_run(order.time_budget_seconds)
            self._invocation.open()
        self._invocation.log_as(logger)
        return self._invocation


def _why(exc: BaseException | None) -> ErrorInfo:
    if isinstance(exc, Exception):
        return classify(exc)
    return ErrorInfo(ErrorType.EVALUATION_LOGIC, "the run ended before its last step")


def _trigger_engine(name: str, database: Engine, resources: ExitStack) -> TriggerEngine:
    if name == "sql":
        return SqlTriggerEngine(database)
    settings = Settings.from_environment()
    options = RemoteOptions(
        settings.engine_url,
        settings.engine_token,
        concurrency=settings.engine_concurrency,
        chunk_size=settings.engine_chunk_size,
        trust_proxy=settings.engine_trust_proxy,
    )
    http = HttpTriggerEngine(database, options)
    resources.callback(http.close)
    return http
