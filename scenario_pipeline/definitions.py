"""What Dagster loads. Needs no database, no network and no variable."""

from scenario_pipeline.defs.build import build_definitions
from scenario_pipeline.settings import Settings

defs = build_definitions(Settings.from_environment())
