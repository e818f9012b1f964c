"""What Dagster keeps of runs: step outputs go with the run, everything else after ninety days."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, JobExecutionResult, build_sensor_context, execute_job
from sqlalchemy import Engine, text

from scenario_pipeline.defs import retention
from scenario_pipeline.defs.retention import forget, forget_old_runs_sensor
from scenario_pipeline_tests.support.definitions import reconstructable_job
from scenario_pipeline_tests.support.people import D, mentor_id, ten_mentors
from scenario_pipeline_tests.support.triggers import lose_the_connection_for


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str) -> Iterator[DagsterInstance]:
    """An instance that keeps its records in files."""
    monkeypatch.setenv("SCENARIO_DATABASE_URL", database_url)
    monkeypatch.setenv("SCENARIO_HOME", str(tmp_path))
    captured = {"module": "scenario_pipeline.defs.instance", "class": "CapturedLogs", "config": {}}
    overrides: dict[str, Any] = {"telemetry": {"enabled": False}, "compute_logs": captured}
    folder = tmp_path / "dagster"
    folder.mkdir()
    with DagsterInstance.local_temp(str(folder), overrides=overrides) as instance:
        yield instance


def run(instance: DagsterInstance) -> JobExecutionResult:
    config = {"evaluation_date": D.isoformat(), "dispatch_mode": "live", "page_size": 2}
    quiet = {"console": {"config": {"log_level": "CRITICAL"}}}
    return execute_job(
        reconstructable_job(),
        instance,
        run_config={"ops": {"fetch_active_mentors": {"config": config}}, "loggers": quiet},
    )


def folders_of(instance: DagsterInstance, run_id: str) -> set[str]:
    folder = Path(instance.storage_directory()) / run_id
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def number_of_runs(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM scenario.scheduler_runs")).scalar_one())


def test_step_outputs_go_with_a_run_that_succeeded_and_stay_for_one_that_failed(
    instance: DagsterInstance, engine: Engine
) -> None:
    """Hourly runs left 31 MB a day; only a failed run may be executed again from where it failed."""
    ten_mentors(engine)
    lose_the_connection_for(engine, mentor_id(3))
    failed = run(instance)
    with engine.begin() as connection:
        connection.execute(text("DROP TRIGGER die ON scenario.scenario_notifications"))
    succeeded = run(instance)
    assert (failed.success, succeeded.success) == (False, True)
    assert "fetch_active_mentors" in folders_of(instance, failed.run_id)
    assert folders_of(instance, succeeded.run_id) == {"compute_logs"}


def test_old_runs_go_with_their_files_and_the_ledger_stays(instance: DagsterInstance, engine: Engine) -> None:
    """`dagster run delete` left every file; what was sent is never forgotten."""
    ten_mentors(engine)
    runs = [run(instance).run_id for _ in range(3)]
    instance.delete_run(runs[0])
    now = datetime.now(UTC)
    assert forget(instance, now - timedelta(days=1)) == (0, 0)
    assert [folders_of(instance, run_id) for run_id in runs] == [{"compute_logs"}] * 3
    assert forget(instance, now + timedelta(minutes=1)) == (2, 1)
    assert [folders_of(instance, run_id) for run_id in runs] == [set()] * 3
    assert instance.get_run_ids() == []
    assert [instance.all_logs(run_id) for run_id in runs] == [[], [], []]
    assert number_of_runs(engine) == 3


def test_a_tick_deletes_the_oldest_and_not_more_than_it_has_time_for(
    instance: DagsterInstance, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Years of runs, on the day of the upgrade: no tick is cut off, and the next one goes on."""
    ten_mentors(engine)
    runs = [run(instance).run_id for _ in range(3)]
    monkeypatch.setattr(retention, "MAX_RUNS_A_TICK", 2)
    later = datetime.now(UTC) + timedelta(days=retention.KEEP_DAYS, minutes=1)
    monkeypatch.setattr(retention, "utc_now", lambda: later)
    tick = forget_old_runs_sensor()
    with build_sensor_context(instance) as context:
        tick(context)
        assert instance.get_run_ids() == runs[2:]
        tick(context)
    assert instance.get_run_ids() == []


def test_what_is_not_a_run_is_left_alone(instance: DagsterInstance) -> None:
    """The storage folder is Dagster's, and a person may have put something into it."""
    other = Path(instance.storage_directory()) / "notes"
    other.mkdir(parents=True)
    assert forget(instance, datetime.now(UTC) + timedelta(days=1)) == (0, 0)
    assert other.is_dir()
