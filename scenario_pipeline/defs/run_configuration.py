"""The run configuration: the form in the Launchpad, its checks, and the request that it makes (contract sections 7, 8).

Belongs here: what can be chosen for one run, and how the rest is completed. Does not belong here: settings of the
installation (`settings`).
"""

import uuid
from collections.abc import Mapping
from datetime import date, timedelta, timezone
from enum import Enum
from typing import Any

from dagster import Config, DagsterRun, OpExecutionContext
from pydantic import Field, ValidationError, field_validator

from scenario_pipeline.defs.checked_config import checked_schema
from scenario_pipeline.errors import UserError
from scenario_pipeline.log.logger import utc_now
from scenario_pipeline.log.vocabulary import TRIGGERED_BY
from scenario_pipeline.records import DISPATCH_MODES, RunOrder, check_live_date, parse_date, resolve_dispatch_mode
from scenario_pipeline.scenarios import registry, select_scenarios
from scenario_pipeline.settings import ENGINES, MAX_PAGE_SIZE, MAX_TIME_BUDGET_SECONDS, Settings

# Says who asked where Dagster's own tags cannot: a continuation and a pg_cron request are both sensor runs.
TRIGGERED_BY_TAG = "scenario/triggered_by"
# Which partial run a continuation begins where it stopped.
CONTINUES_TAG = "scenario/continues"

ScenarioType = Enum("ScenarioType", {name: name for name in registry()})  # type: ignore[misc]
DispatchModeChoice = Enum("DispatchModeChoice", {mode: mode for mode in DISPATCH_MODES})  # type: ignore[misc]
EngineChoice = Enum("EngineChoice", {name: name for name in ENGINES})  # type: ignore[misc]


class RunConfiguration(Config):
    """What can be chosen for one run; everything left out is taken from the environment."""

    evaluation_date: str | None = Field(
        None,
        description="The date to evaluate, YYYY-MM-DD. Default: the partition, else today in the configured time zone.",
    )
    scenario_types: list[ScenarioType] = Field(default=[], description="Scenarios to evaluate. Default: all installed.")
    organisation_ids: list[str] = Field(
        default=[], description="Ids (UUID) of organisations to evaluate. Default: all."
    )
    dispatch_mode: DispatchModeChoice = Field(
        DispatchModeChoice("auto"),
        description="live writes notifications, dry_run rolls them back, auto is live up to three days back.",
    )
    engine: EngineChoice | None = Field(None, description="Trigger engine. Default: SCENARIO_ENGINE.")
    time_budget_seconds: float | None = Field(
        None,
        gt=0,
        le=MAX_TIME_BUDGET_SECONDS,
        description=f"How long the run may evaluate, in seconds: above 0, at most {MAX_TIME_BUDGET_SECONDS:.0f}. "
        "Default: SCENARIO_TIME_BUDGET_SECONDS.",
    )
    page_size: int | None = Field(
        None,
        ge=1,
        le=MAX_PAGE_SIZE,
        description=f"Mentors a page, 1 to {MAX_PAGE_SIZE}. Default: SCENARIO_PAGE_SIZE, else by their number.",
    )

    @field_validator("evaluation_date")
    @classmethod
    def _is_a_date(cls, text: str | None) -> str | None:
        if text is None or parse_date(text) is not None:
            return text
        raise ValueError("must be a date that exists, written YYYY-MM-DD")

    @field_validator("organisation_ids")
    @classmethod
    def _are_uuids(cls, texts: list[str]) -> list[str]:
        try:
            return [str(uuid.UUID(text)) for text in texts]
        except ValueError:
            raise ValueError("must be ids of organisations, which are UUIDs") from None

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> "RunConfiguration":
        """Return the configuration that `values` describe.

        Raises:
            UserError: with a sentence for each field that cannot work.
        """
        try:
            configuration = cls(**values)
        except ValidationError as exc:
            wrong = [
                f"{'.'.join(map(str, error['loc']))}: {error['msg'].removeprefix('Value error, ')}"
                for error in exc.errors(include_input=False, include_url=False)
            ]
        else:
            if configuration.dispatch_mode is DispatchModeChoice("live") and configuration.evaluation_date is not None:
                # The first zone to see a new day; the run itself asks again, in the configured one.
                today = utc_now().astimezone(timezone(timedelta(hours=14))).date()
                check_live_date(date.fromisoformat(configuration.evaluation_date), today)
            return configuration
        raise UserError(f"{'; '.join(wrong)}.")


CONFIG_SCHEMA = checked_schema(RunConfiguration, RunConfiguration.checked)


def order_from(context: OpExecutionContext, settings: Settings) -> RunOrder:
    """Complete the run configuration of a step from the partition and the settings.

    Raises:
        UserError: a value that cannot work.
    """
    config = RunConfiguration.checked(context.op_config)
    today = settings.today(utc_now())
    named = config.evaluation_date or (context.partition_key if context.has_partition_key else None)
    evaluation_date = today if named is None else date.fromisoformat(named)
    if context.has_partition_key and context.partition_key != evaluation_date.isoformat():
        raise UserError("evaluation_date is not the date of the partition: omit it.")
    return RunOrder(
        evaluation_date=evaluation_date,
        scenario_types=select_scenarios(choice.value for choice in config.scenario_types),
        organisation_ids=tuple(sorted(set(config.organisation_ids))),
        dispatch_mode=resolve_dispatch_mode(config.dispatch_mode.value, evaluation_date, today),
        engine_name=settings.engine if config.engine is None else config.engine.value,
        time_budget_seconds=config.time_budget_seconds or settings.time_budget_seconds,
        page_size=config.page_size or settings.page_size,
        triggered_by=triggered_by(context.run),
        continues=context.run.tags.get(CONTINUES_TAG) if context.run.parent_run_id is None else None,
    )


def triggered_by(run: DagsterRun) -> str:
    """Return who asked for a run, by its parent and tags; web UI, command line and API are all `manual`."""
    if run.parent_run_id is not None:
        return "retry"
    match run.tags:
        case {"scenario/triggered_by": asked} if asked in TRIGGERED_BY:
            return asked
        case {"dagster/backfill": _}:
            return "backfill"
        case {"dagster/schedule_name": _}:
            return "dagster_schedule"
        case {"dagster/sensor_name": _}:
            return "sensor"
        case _:
            return "manual"
