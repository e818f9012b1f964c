"""Dagster's instance: the classes that `dagster.yaml` names, its home folder, and a look at its database."""

from scenario_pipeline.defs.instance.captured_output import CapturedLogs
from scenario_pipeline.defs.instance.storage import InstanceStorage

__all__ = ["CapturedLogs", "InstanceStorage"]
