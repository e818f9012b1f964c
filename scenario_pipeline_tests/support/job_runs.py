"""One run of the job in this process, and everything that it left behind.

Belongs here: reading a run's output, tags and records. Does not belong here: starting one (`orchestration/conftest`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from dagster import DagsterInstance, DagsterRunStatus, ExecuteInProcessResult


class JobRun:
    """What one run of the job left behind."""

    def __init__(self, result: ExecuteInProcessResult, instance: DagsterInstance, stdout: str, stderr: str) -> None:
        self.result, self.instance, self.stdout, self.stderr = result, instance, stdout, stderr

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.split("\n") if line]

    @property
    def names(self) -> list[str]:
        return [entry["event"] for entry in self.entries]

    def entry(self, event: str) -> dict[str, Any]:
        [found] = [entry for entry in self.entries if entry["event"] == event]
        return found

    @property
    def tags(self) -> dict[str, str]:
        run = self.instance.get_run_by_id(self.result.run_id)
        assert run is not None
        return dict(run.tags)

    @property
    def status(self) -> DagsterRunStatus:
        run = self.instance.get_run_by_id(self.result.run_id)
        assert run is not None
        return run.status

    def everything_dagster_keeps(self) -> str:
        return "\n".join(str(record) for record in self.instance.all_logs(self.result.run_id))


RunJob = Callable[..., JobRun]
