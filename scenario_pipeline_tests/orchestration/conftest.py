"""Fixtures: the job, run in this process, and an installation whose commands are processes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance

from scenario_pipeline.defs.job import JOB_NAME
from scenario_pipeline_tests.support.definitions import definitions
from scenario_pipeline_tests.support.installation import Installation
from scenario_pipeline_tests.support.job_runs import JobRun, RunJob


@pytest.fixture
def run_job(
    scheduler_url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[RunJob]:
    """Runs the job over this test's own database and returns what it printed and recorded."""
    monkeypatch.setenv("SCENARIO_DATABASE_URL", scheduler_url)
    monkeypatch.setenv("SCENARIO_HOME", str(tmp_path))
    with DagsterInstance.ephemeral() as instance:

        def run(*, partition: date | None = None, tags: dict[str, str] | None = None, **config: Any) -> JobRun:
            capfd.readouterr()
            result = (
                definitions()
                .resolve_job_def(JOB_NAME)
                .execute_in_process(
                    instance=instance,
                    run_config={"ops": {"fetch_active_mentors": {"config": config}}},
                    partition_key=None if partition is None else partition.isoformat(),
                    tags=tags,
                    raise_on_error=False,
                )
            )
            captured = capfd.readouterr()
            return JobRun(result, instance, captured.out, captured.err)

        yield run


@pytest.fixture
def installation(community_url: str, dagster_url: str, tmp_path: Path) -> Iterator[Installation]:
    installation = Installation(community_url, dagster_url, tmp_path / "home")
    yield installation
    installation.engine.dispose()
