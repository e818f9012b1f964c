"""The asset checks: they pass on what a run leaves behind, and fail when any of the four places is changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetCheckSeverity,
    AssetSelection,
    DagsterEventType,
    DagsterInstance,
    ExecuteInProcessResult,
    MetadataValue,
    materialize,
)
from sqlalchemy import Engine, text

from scenario_pipeline.batch_stats import BatchStats
from scenario_pipeline.defs.assets import EVALUATIONS
from scenario_pipeline.defs.checks import ASSET_CHECKS, Evidence, events_match_ledger_result, read_evidence
from scenario_pipeline.defs.instance.captured_output import captured_lines
from scenario_pipeline.defs.job import JOB_NAME
from scenario_pipeline.defs.reconcile import disagreements
from scenario_pipeline.storage.ledger.closed import ClosedInvocation, closed_invocations
from scenario_pipeline_tests.support.definitions import definitions, evaluated_asset, op_resources
from scenario_pipeline_tests.support.people import D, mentor_id, ten_mentors
from scenario_pipeline_tests.support.triggers import lose_the_connection_for, refuse_notifications_of

MATCH = AssetCheckKey(EVALUATIONS, "events_match_ledger")
RATE = AssetCheckKey(EVALUATIONS, "error_rate")
Run = Callable[..., str]


@pytest.fixture
def instance(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    """An instance that captures the output of steps as the project's own does."""
    monkeypatch.setenv("SCENARIO_DATABASE_URL", database_url)
    monkeypatch.setenv("SCENARIO_HOME", str(tmp_path / "home"))
    overrides = {
        "telemetry": {"enabled": False},
        "compute_logs": {"module": "scenario_pipeline.defs.instance", "class": "CapturedLogs"},
    }
    with DagsterInstance.local_temp(str(tmp_path), overrides=overrides) as instance:
        yield instance


@pytest.fixture
def run(instance: DagsterInstance) -> Run:
    """Runs the job for the date D and returns its run id."""

    def run(*, dispatch_mode: str = "live", **config: Any) -> str:
        return (
            definitions()
            .resolve_job_def(JOB_NAME)
            .execute_in_process(
                instance=instance,
                run_config={"ops": {"fetch_active_mentors": {"config": {"dispatch_mode": dispatch_mode, **config}}}},
                partition_key=D.isoformat(),
                raise_on_error=False,
            )
            .run_id
        )

    return run


def evaluations(instance: DagsterInstance, run_id: str) -> dict[str, AssetCheckEvaluation]:
    """Return what a run recorded of the checks, by name."""
    records = instance.all_logs(run_id, of_type=DagsterEventType.ASSET_CHECK_EVALUATION)
    found = [record.dagster_event.asset_check_evaluation_data for record in records if record.dagster_event]
    return {evaluation.check_name: evaluation for evaluation in found}


def execute_checks(instance: DagsterInstance) -> ExecuteInProcessResult:
    """What the button "Execute all" does on the asset's page."""
    return materialize(
        [evaluated_asset(), *ASSET_CHECKS],
        selection=AssetSelection.checks(*ASSET_CHECKS),
        instance=instance,
        resources=op_resources(),
    )


def of_date(engine: Engine) -> list[ClosedInvocation]:
    with engine.connect() as connection:
        return closed_invocations(connection, D)


def evidence_of_date(engine: Engine) -> Evidence:
    with engine.connect() as connection:
        return read_evidence(connection, D, D)


def test_a_run_of_the_job_evaluates_all_checks_for_its_date(
    run: Run, instance: DagsterInstance, engine: Engine
) -> None:
    """Nobody executes checks by hand every hour."""
    ten_mentors(engine)
    run()
    found = evaluations(instance, run(page_size=3))
    assert {name: evaluation.passed for name, evaluation in found.items()} == {
        "events_match_ledger": True,
        "everyone_evaluated": True,
        "error_rate": True,
    }
    metadata = found["events_match_ledger"].metadata
    assert (metadata["invocations"].value, metadata["invocations_without_log"].value) == (2, 0)
    assert {key.name for key in instance.event_log_storage.get_asset_check_summary_records([MATCH, RATE])} == {
        "events_match_ledger",
        "error_rate",
    }


@pytest.mark.parametrize("dispatch_mode", ["live", "dry_run"])
def test_a_run_of_the_asset_executes_them_as_steps(
    instance: DagsterInstance, engine: Engine, dispatch_mode: str
) -> None:
    """An asset backfill over last month shows a tick or a cross for every date."""
    ten_mentors(engine)
    config = {"fetch_active_mentors": {"config": {"dispatch_mode": dispatch_mode}}}
    result = materialize(
        [evaluated_asset(), *ASSET_CHECKS],
        partition_key=D.isoformat(),
        instance=instance,
        run_config={"ops": {"scheduler_graph": {"ops": config}}},
        resources=op_resources(),
    )
    found = evaluations(instance, result.run_id)
    assert {name: evaluation.passed for name, evaluation in found.items()} == {
        "events_match_ledger": True,
        "everyone_evaluated": True,
        "error_rate": True,
    }
    assert found["events_match_ledger"].metadata["invocations"].value == 1


def test_a_check_by_itself_looks_at_the_date_evaluated_last(
    run: Run, instance: DagsterInstance, engine: Engine
) -> None:
    """Somebody presses "Execute" on the check, without a partition."""
    ten_mentors(engine)
    run()
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM scenario.scenario_notifications WHERE user_id = :id"),
                           {"id": mentor_id(1)})  # fmt: skip
    result = execute_checks(instance)
    found = evaluations(instance, result.run_id)
    assert not found["events_match_ledger"].passed
    assert found["events_match_ledger"].severity is AssetCheckSeverity.ERROR
    assert found["events_match_ledger"].metadata["evaluation_dates"] == MetadataValue.json([D.isoformat()])
    assert "2 notifications, expected 3" in str(found["events_match_ledger"].metadata["first_disagreements"].value)


def test_a_database_without_invocations_passes(instance: DagsterInstance, engine: Engine) -> None:
    """The first thing a newcomer may press."""
    found = evaluations(instance, execute_checks(instance).run_id)
    assert found["events_match_ledger"].passed
    assert found["error_rate"].passed


def test_partial_and_failed_invocations_agree_as_well(run: Run, instance: DagsterInstance, engine: Engine) -> None:
    """A check that only knows good days is no check."""
    ten_mentors(engine)
    with engine.connect() as other:
        other.execute(text("LOCK TABLE scenario.mentor_activities IN ACCESS EXCLUSIVE MODE"))
        run(page_size=4, time_budget_seconds=0.3)
    lose_the_connection_for(engine, mentor_id(3))
    run(page_size=1)
    result = events_match_ledger_result(instance, evidence_of_date(engine))
    assert [invocation.status for invocation in of_date(engine)] == ["partial", "failed"]
    assert (result.passed, result.metadata["invocations"]) == (True, MetadataValue.int(2))


def test_a_log_that_is_gone_is_a_warning_and_not_passed_over(
    run: Run, instance: DagsterInstance, engine: Engine, tmp_path: Path
) -> None:
    """Captured logs are files: somebody may clear them away."""
    ten_mentors(engine)
    run_id = run()
    [captured] = (tmp_path / "home" / "dagster" / "storage" / run_id / "compute_logs").glob("*.out")
    captured.unlink()
    result = events_match_ledger_result(instance, evidence_of_date(engine))
    assert (result.passed, result.severity) == (False, AssetCheckSeverity.WARN)
    assert result.metadata["invocations_without_log"] == MetadataValue.int(1)


def test_too_many_errors_are_a_warning(
    run: Run, instance: DagsterInstance, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One mentor in ten who cannot be evaluated is a broken rule and not bad luck; the share is the user's."""
    ten_mentors(engine)
    refuse_notifications_of(engine, [mentor_id(2)])
    found = evaluations(instance, run())["error_rate"]
    assert (found.passed, found.severity) == (False, AssetCheckSeverity.WARN)
    assert found.metadata["error_rate"] == MetadataValue.float(0.1)
    monkeypatch.setenv("SCENARIO_MAX_ERROR_RATE", "0.1")
    assert evaluations(instance, run())["error_rate"].passed


def agreeing(run: Run, instance: DagsterInstance, engine: Engine) -> tuple[ClosedInvocation, list[bytes]]:
    ten_mentors(engine)
    refuse_notifications_of(engine, [mentor_id(2)])
    run_id = run(page_size=4)
    [invocation] = of_date(engine)
    lines = list(captured_lines(instance, run_id))
    assert len(lines) == 3
    return invocation, lines


def changed(line: bytes, **values: Any) -> bytes:
    return json.dumps(json.loads(line) | values).encode()


def test_notifications_that_a_remote_engine_keeps_elsewhere_are_not_missed(
    run: Run, instance: DagsterInstance, engine: Engine
) -> None:
    """An organisation's own engine writes into its own database: red on every date would teach people to look away."""
    invocation, lines = agreeing(run, instance, engine)
    assert list(disagreements(replace(invocation, engine="http", notifications=0), lines, None)) == []
    assert list(disagreements(replace(invocation, engine="http", notifications=1), lines, None)) != []
    assert list(disagreements(replace(invocation, engine="sql", notifications=0), lines, None)) != []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda i, lines, m: (replace(i, notifications=1), lines, m), "1 notifications, expected 2"),
        (lambda i, lines, m: (replace(i, dispatch_mode="dry_run"), lines, m), "2 notifications, expected 0"),
        (lambda i, lines, m: (replace(i, remaining=1), lines, m), "remaining are 11, active are 10"),
        (lambda i, lines, m: (replace(i, pages=BatchStats()), lines, m), "total_evaluated is 9 in the ledger and 0"),
        (lambda i, lines, m: (replace(i, totals={**i.totals, "total_errors": 0}), lines, m), "total_errors is 0"),
        (lambda i, lines, m: (i, lines, m | {"total_suppressed": 7}), "total_suppressed is 1 in the ledger and 7"),
        (lambda i, lines, m: (i, lines[:1] + lines[2:], m), "total_errors is not the number of"),
        (lambda i, lines, m: (i, lines[:2], m), "the invocation is never closed by scheduler_run_completed"),
        (lambda i, lines, m: (i, [*lines, lines[-1]], m), "scheduler_run_completed follows scheduler_run_completed"),
        (
            lambda i, lines, m: (i, [*lines[:2], changed(lines[2], total_active_mentors=11)], m),
            "total_active_mentors is 10 in the ledger and 11 in the log",
        ),
        (
            lambda i, lines, m: (replace(i, status="partial"), lines, m),
            "completed is False in the ledger and True in the log",
        ),
    ],
)  # fmt: skip
def test_each_place_that_disagrees_is_named(
    run: Run, instance: DagsterInstance, engine: Engine, change: Callable[..., Any], told: str
) -> None:
    """A check that says "something is wrong" sends people searching through four places."""
    invocation, lines = agreeing(run, instance, engine)
    metadata: dict[str, Any] = {"total_suppressed": 1}
    assert list(disagreements(invocation, lines, metadata)) == []
    assert any(told in sentence for sentence in disagreements(*change(invocation, lines, metadata)))
