"""Fixtures: a server as it should be, and one call of `doctor` over it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from scenario_pipeline.cli import main
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.support.doctor import Examine, Examined
from scenario_pipeline_tests.support.server import set_fsync


@pytest.fixture(scope="module", autouse=True)
def _durable(server: EmbeddedPostgres) -> Iterator[None]:
    """A server as it should be; the other tests do without fsync."""
    set_fsync(server, on=True)
    yield
    set_fsync(server, on=False)


@pytest.fixture
def examine(scheduler_url: str, dagster_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """Examines an installation of this test's own, as the scheduler's role."""
    monkeypatch.setenv("SCENARIO_DATABASE_URL", scheduler_url)
    monkeypatch.setenv("SCENARIO_DAGSTER_DATABASE_URL", dagster_url)
    monkeypatch.setenv("SCENARIO_HOME", str(tmp_path / "home"))

    def call() -> Examined:
        result = CliRunner().invoke(main, ["doctor", "--json"])
        assert "Traceback" not in result.stderr
        return Examined(result.exit_code, json.loads(result.stdout))

    return call
