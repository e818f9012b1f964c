"""The real pg_cron extension as the clock, on a Postgres from Debian's packages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from dagster import DagsterInstance, build_sensor_context
from sqlalchemy import Engine

from scenario_pipeline.defs.job import JOB_NAME
from scenario_pipeline.storage import database
from scenario_pipeline.upgrade import upgrade
from scenario_pipeline_tests.support.definitions import definitions
from scenario_pipeline_tests.support.people import insert_mentor, insert_organisation
from scenario_pipeline_tests.system.conftest import wait_until

pytestmark = pytest.mark.system


@pytest.fixture
def engine(debian_url: str) -> Iterator[Engine]:
    engine = database.connect(debian_url)
    upgrade(engine)
    yield engine
    engine.dispose()


def test_an_entry_of_pg_cron_becomes_a_run(
    engine: Engine, debian_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site with a pg_cron entry keeps it, and changes what it calls."""
    with engine.begin() as connection:
        insert_organisation(connection)
        insert_mentor(connection)
    with psycopg.connect(debian_url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION pg_cron")
        connection.execute("SELECT cron.schedule('scheduler', '* * * * *', 'SELECT scenario.request_scheduler_run()')")
        # The clock strikes on the full minute.
        requested = "SELECT id::text FROM scenario.scheduler_run_requests ORDER BY requested_at"
        wait_until(lambda: connection.execute(requested).fetchone(), "pg_cron calls the function", 90)
        connection.execute("SELECT cron.unschedule('scheduler')")
        failed = "SELECT return_message FROM cron.job_run_details WHERE status = 'failed'"
        assert connection.execute(failed).fetchall() == []
        requests = connection.execute(requested).fetchall()
    monkeypatch.setenv("SCENARIO_DATABASE_URL", debian_url)
    monkeypatch.setenv("SCENARIO_HOME", str(tmp_path / "home"))
    with DagsterInstance.local_temp(str(tmp_path), overrides={"telemetry": {"enabled": False}}) as instance:
        context = build_sensor_context(instance=instance, repository_def=definitions().get_repository_def())
        launched = definitions().resolve_sensor_def("pg_cron_requests").evaluate_tick(context).run_requests or []
        assert [request.tags["scenario/request_id"] for request in launched] == [row[0] for row in requests]
        job = definitions().resolve_job_def(JOB_NAME)
        for request in launched:
            result = job.execute_in_process(
                instance=instance, run_config=request.run_config, partition_key=request.partition_key, tags=request.tags
            )
            assert result.success
    with psycopg.connect(debian_url) as connection:
        rows = connection.execute("SELECT triggered_by, status, total_active_mentors FROM scenario.scheduler_runs")
        assert rows.fetchall() == [("pg_cron", "completed", 1)] * len(requests)
