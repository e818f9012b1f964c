"""The definitions as Dagster loads them, built anew from the variables that a test has set."""

from __future__ import annotations

from typing import Any

from dagster import AssetsDefinition, Definitions, JobDefinition, reconstructable

from scenario_pipeline.defs.build import build_definitions
from scenario_pipeline.defs.job import JOB_NAME, evaluations_asset
from scenario_pipeline.defs.partitions import daily_partitions
from scenario_pipeline.defs.resources import run_resources
from scenario_pipeline.settings import Settings


def definitions() -> Definitions:
    """Return what `scenario_pipeline.definitions` would hold in a process started now."""
    return build_definitions(Settings.from_environment())


def job() -> JobDefinition:
    """Return the job `scenario_scheduler`."""
    return definitions().resolve_job_def(JOB_NAME)


def reconstructable_job() -> Any:
    """Return the job as `execute_job` takes it; Dagster keeps the latest one, with the variables of another test."""
    found = reconstructable(job)
    for kept in (type(found).get_definition, type(found).get_repository_definition):
        kept.cache_clear()
    return found


def evaluated_asset() -> AssetsDefinition:
    """Return the asset `mentor_scenario_evaluations`."""
    return evaluations_asset(daily_partitions(Settings.from_environment().timezone))


def op_resources() -> dict[str, Any]:
    """Return the resources of ops and checks."""
    return run_resources(Settings.from_environment())
