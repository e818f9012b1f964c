"""The definitions as Dagster loads them, built anew from the variables that a test has set."""

from __future__ import annotations

from typing import Any

from dagster import AssetsDefinition, Definitions

from scenario_pipeline.defs.build import build_definitions
from scenario_pipeline.defs.job import evaluations_asset
from scenario_pipeline.defs.partitions import daily_partitions
from scenario_pipeline.defs.resources import run_resources
from scenario_pipeline.settings import Settings


def definitions() -> Definitions:
    """Return what `scenario_pipeline.definitions` would hold in a process started now."""
    return build_definitions(Settings.from_environment())


def evaluated_asset() -> AssetsDefinition:
    """Return the asset `mentor_scenario_evaluations`."""
    return evaluations_asset(daily_partitions(Settings.from_environment().timezone))


def op_resources() -> dict[str, Any]:
    """Return the resources of ops and checks."""
    return run_resources(Settings.from_environment())
