"""What one call of `doctor --json` said, and the environment of a process beside it.

Belongs here: reading a report. Does not belong here: what makes it change.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from scenario_pipeline_tests.support.project import PROJECT

CHECKS = [
    "database_connection",
    "server_version",
    "server_encoding",
    "session_options",
    "writable",
    "schema_version",
    "tables",
    "views",
    "roles",
    "row_level_security",
    "mentors",
    "configuration",
    "activity_index",
    "clock",
    "time_zones",
    "durability",
    "last_run",
    "everyone_evaluated",
    "error_rate",
    "dagster_instance",
    "asset_checks",
    "variables",
    "trigger_engine",
    "web_server",
]


class Examined:
    """What one call of `doctor --json` said."""

    def __init__(self, exit_status: int, report: dict[str, Any]) -> None:
        self.exit_status, self.status, self.findings = exit_status, report["status"], report["findings"]

    @property
    def wrong(self) -> list[dict[str, str]]:
        return [finding for finding in self.findings if finding["status"] != "ok"]


Examine = Callable[[], Examined]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("SCENARIO_")} | {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(PROJECT),
    }
