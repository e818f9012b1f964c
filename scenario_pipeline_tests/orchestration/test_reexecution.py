"""Runs of the job whose steps are spread over several runs or processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    DagsterInstance,
    JobDefinition,
    JobExecutionResult,
    ReexecutionOptions,
    execute_job,
    multiprocess_executor,
    reconstructable,
)
from sqlalchemy import Engine, text

from scenario_pipeline.defs.job import JOB_NAME, scheduler_graph
from scenario_pipeline_tests.support.definitions import definitions, reconstructable_job
from scenario_pipeline_tests.support.invariants import check_invariants, sent
from scenario_pipeline_tests.support.people import D, mentor_id, ten_mentors
from scenario_pipeline_tests.support.stranger import stranger_accepts
from scenario_pipeline_tests.support.triggers import lose_the_connection_for


def job_with_a_process_a_step() -> JobDefinition:
    return scheduler_graph.to_job(
        name=JOB_NAME,
        executor_def=multiprocess_executor.configured({"max_concurrent": 2, "start_method": {"forkserver": {}}}),
        resource_defs=dict(definitions().resources or {}),
    )


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str) -> Iterator[DagsterInstance]:
    """An instance that keeps step outputs, as a re-execution needs them."""
    monkeypatch.setenv("SCENARIO_DATABASE_URL", database_url)
    monkeypatch.setenv("SCENARIO_HOME", str(tmp_path))
    with DagsterInstance.local_temp(
        str(tmp_path),
        overrides={
            "telemetry": {"enabled": False},
            "compute_logs": {"module": "scenario_pipeline.defs.instance", "class": "CapturedLogs", "config": {}},
        },
    ) as instance:
        yield instance


RUN_CONFIG = {
    "ops": {
        "fetch_active_mentors": {"config": {"evaluation_date": D.isoformat(), "dispatch_mode": "live", "page_size": 2}}
    },
    "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
}

Execute = Callable[..., tuple[JobExecutionResult, list[dict[str, Any]]]]


@pytest.fixture
def execute(instance: DagsterInstance, capfd: pytest.CaptureFixture[str]) -> Execute:
    """Executes a job and returns the result with the entries on stdout, which a stranger accepts."""

    def execute(target: Any, **options: Any) -> tuple[JobExecutionResult, list[dict[str, Any]]]:
        capfd.readouterr()
        result = execute_job(target, instance=instance, **options)
        stdout = capfd.readouterr().out
        stranger_accepts(stdout)
        return result, [json.loads(line) for line in stdout.splitlines()]

    return execute


def test_a_reexecution_from_failure_evaluates_what_its_parent_left(
    execute: Execute, instance: DagsterInstance, engine: Engine
) -> None:
    """A person who presses "from failure" wants the rest, under an invocation of its own, and nothing twice."""
    ten_mentors(engine)
    lose_the_connection_for(engine, mentor_id(3))
    failed, entries = execute(reconstructable_job(), run_config=RUN_CONFIG)
    assert entries[-2]["event"] == "scheduler_run_failed"
    assert entries[-2]["remaining_unprocessed_count"] == 8
    with engine.begin() as connection:
        connection.execute(text("DROP TRIGGER die ON scenario.scenario_notifications"))
    again, entries = execute(
        reconstructable_job(), reexecution_options=ReexecutionOptions.from_failure(failed.run_id, instance)
    )
    assert again.success
    assert {entry["invocation_id"] for entry in entries} == {again.run_id}
    assert (entries[0]["event"], entries[0]["triggered_by"]) == ("scheduler_run_started", "retry")
    assert (entries[-1]["total_active_mentors"], entries[-1]["total_evaluated"]) == (8, 8)
    assert [row[0] for row in sent(engine)] == [mentor_id(n) for n in (1, 2, 3)]
    with engine.connect() as connection:
        check_invariants(connection)


def test_a_reexecution_of_all_steps_evaluates_everybody(
    execute: Execute, instance: DagsterInstance, engine: Engine
) -> None:
    """What people press after a partial run: nobody may be taken for done by the number of a page."""
    ten_mentors(engine)
    config = {"evaluation_date": D.isoformat(), "dispatch_mode": "live", "page_size": 2, "time_budget_seconds": 1e-6}
    spent = {**RUN_CONFIG, "ops": {"fetch_active_mentors": {"config": config}}}
    partial, entries = execute(reconstructable_job(), run_config=spent)
    assert (entries[-1]["total_evaluated"], entries[-1]["completed"]) == (2, False)
    parent = instance.get_run_by_id(partial.run_id)
    assert parent is not None
    options = ReexecutionOptions(parent_run_id=partial.run_id)
    # As Dagster does, which copies the tags that a step set.
    again, entries = execute(
        reconstructable_job(), run_config=RUN_CONFIG, reexecution_options=options, tags=parent.tags
    )
    assert (entries[-1]["completed"], entries[-1]["total_evaluated"], entries[-1]["pages_processed"]) == (True, 10, 5)
    assert entries[-1]["suppressed_by_reason"] == {"duplicate": 2, "opted_out": 1}
    run = instance.get_run_by_id(again.run_id)
    assert run is not None
    assert (run.tags["outcome"], run.tags["partial"]) == ("completed", "")
    with engine.connect() as connection:
        check_invariants(connection)


def test_an_executor_that_starts_processes_is_refused_before_anything_is_decided(
    instance: DagsterInstance, engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    """A page could be committed for an invocation that another process had closed: 960 rows that no total held."""
    ten_mentors(engine)
    config = {**RUN_CONFIG, "ops": {"fetch_active_mentors": {"config": {
        "evaluation_date": D.isoformat(), "dispatch_mode": "live", "page_size": 5}}}}  # fmt: skip
    result = execute_job(reconstructable(job_with_a_process_a_step), instance=instance, run_config=config)
    assert not result.success
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert "is refused, since a run is one process" in str(failure.step_failure_data.user_failure_data)
    assert capfd.readouterr().out == ""
    assert sent(engine) == []
