"""Which dates the asset checks look at: nothing that went wrong lately is covered by a run for another date."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetCheckSeverity,
    DagsterEventType,
    DagsterInstance,
    MetadataValue,
    materialize,
)
from sqlalchemy import Engine

from scenario_pipeline.defs.checks import ASSET_CHECKS, events_match_ledger_result, read_evidence
from scenario_pipeline.defs.job import JOB_NAME
from scenario_pipeline.storage.ledger.dates import DatedRun, unfinished
from scenario_pipeline_tests.support.definitions import definitions, evaluated_asset, op_resources
from scenario_pipeline_tests.support.people import DAY, D, mentor_id, organisation_id, ten_mentors
from scenario_pipeline_tests.support.triggers import refuse_notifications_of

Run = Callable[..., dict[str, AssetCheckEvaluation]]


@pytest.fixture
def instance(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
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
    """Runs the job live for a date, and returns what it recorded of the checks."""

    def run(day: date = D, **config: Any) -> dict[str, AssetCheckEvaluation]:
        result = (
            definitions()
            .resolve_job_def(JOB_NAME)
            .execute_in_process(
                instance=instance,
                run_config={"ops": {"fetch_active_mentors": {"config": {"dispatch_mode": "live", **config}}}},
                partition_key=day.isoformat(),
                raise_on_error=False,
            )
        )
        return checks_of(instance, result.run_id)

    return run


def checks_of(instance: DagsterInstance, run_id: str) -> dict[str, AssetCheckEvaluation]:
    """Return what a run recorded of the checks, by name."""
    records = instance.all_logs(run_id, of_type=DagsterEventType.ASSET_CHECK_EVALUATION)
    found = [record.dagster_event.asset_check_evaluation_data for record in records if record.dagster_event]
    return {evaluation.check_name: evaluation for evaluation in found}


# So short that one page is evaluated, in the overtime of the first.
PARTIAL = {"page_size": 4, "time_budget_seconds": 1e-6}


def test_a_partial_run_does_not_look_green_until_a_later_one_makes_up_for_it(run: Run, engine: Engine) -> None:
    """Dagster calls it a success, and six mentors have waited since."""
    ten_mentors(engine)
    found = run(**PARTIAL)["everyone_evaluated"]
    assert (found.passed, found.severity) == (False, AssetCheckSeverity.WARN)
    assert found.metadata["remaining_unprocessed_count"] == MetadataValue.int(6)
    assert found.description is not None
    assert "left 6 mentors unprocessed" in found.description
    # An old date, a dry run and another organisation say nothing of those who were left.
    assert not run(D - 30 * DAY)["everyone_evaluated"].passed
    assert not run(dispatch_mode="dry_run")["everyone_evaluated"].passed
    assert not run(organisation_ids=[organisation_id(1)])["everyone_evaluated"].passed
    assert run(D + DAY)["everyone_evaluated"].passed


def test_a_failed_run_is_an_error_of_the_check_as_well(run: Run, engine: Engine, instance: DagsterInstance) -> None:
    """The asset's page is where people look, and there the last good run would be all that is seen."""
    ten_mentors(engine)
    assert run()["everyone_evaluated"].passed
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION scenario.broken() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE insufficient_privilege; END $$; "
            "CREATE TRIGGER broken BEFORE UPDATE ON scenario.scheduler_run_pages "
            "EXECUTE FUNCTION scenario.broken()"
        )
    of_asset = materialize(
        [evaluated_asset(), *ASSET_CHECKS],
        partition_key=(D + DAY).isoformat(),
        instance=instance,
        run_config={
            "ops": {"scheduler_graph": {"ops": {"fetch_active_mentors": {"config": {"dispatch_mode": "live"}}}}}
        },
        resources=op_resources(),
        raise_on_error=False,
    )
    assert not of_asset.success
    for found in (run(D + DAY), checks_of(instance, of_asset.run_id)):
        assert (found["everyone_evaluated"].passed, found["everyone_evaluated"].severity) == (
            False,
            AssetCheckSeverity.ERROR,
        )


def test_a_check_that_fails_today_is_not_covered_by_a_backfill(run: Run, engine: Engine) -> None:
    """Dagster shows the evaluation that was made last, and a backfill of last spring is made last."""
    ten_mentors(engine)
    refuse_notifications_of(engine, [mentor_id(2)])
    assert not run()["error_rate"].passed
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM scenario.scenario_notifications")
    found = run(D - 30 * DAY)
    assert {name: evaluation.passed for name, evaluation in found.items()} == {
        "events_match_ledger": False,
        "everyone_evaluated": True,
        "error_rate": False,
    }
    assert found["error_rate"].metadata["evaluation_dates"] == MetadataValue.json(
        [(D - 30 * DAY).isoformat(), D.isoformat()]
    )


def test_a_dry_run_for_a_date_to_come_is_not_the_newest_date(run: Run, engine: Engine) -> None:
    """Somebody tries out next year once, and every check would look at that for a year."""
    ten_mentors(engine)
    run()
    with engine.connect() as connection:
        assert list(read_evidence(connection, None, D).dates) == [D]
        assert list(read_evidence(connection, None, D - DAY).dates) == []


def test_the_end_of_a_log_that_another_machine_holds_is_the_promised_warning(
    run: Run, engine: Engine, instance: DagsterInstance, tmp_path: Path
) -> None:
    """Where machines share no home, each run was an error of the check; people learn to look away."""
    ten_mentors(engine)
    run()
    [captured] = (tmp_path / "home" / "dagster" / "storage").glob("*/compute_logs/*.out")
    *_, last = captured.read_bytes().splitlines(keepends=True)
    captured.write_bytes(last)
    with engine.connect() as connection:
        result = events_match_ledger_result(instance, read_evidence(connection, D, D))
    assert (result.passed, result.severity) == (False, AssetCheckSeverity.WARN)
    assert result.metadata["invocations_without_log"] == MetadataValue.int(1)
    assert result.metadata["disagreements"] == MetadataValue.int(0)


A, B = "a", "b"


def dated(
    number: int, status: str, *, day: date = D, mode: str = "live", of: str = "", scenarios: str = "im"
) -> DatedRun:
    left = 0 if status == "completed" else 1
    return DatedRun(
        str(number), number, day, datetime(2024, 1, 1, tzinfo=UTC), frozenset(scenarios), frozenset(of), mode, status,
        left, 10, 10 - left, 0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("later", "makes_up"),
    [
        (dated(2, "completed"), True),
        (dated(2, "completed", day=D + DAY), True),
        (dated(2, "completed", day=D - DAY), False),
        (dated(0, "completed"), False),
        (dated(2, "partial"), False),
        (dated(2, "completed", mode="dry_run"), False),
        (dated(2, "completed", scenarios="i"), False),
        (dated(2, "completed", scenarios="imc"), True),
        (dated(2, "completed", of=A), False),
        (dated(2, "completed", of=A + B), True),
    ],
)
def test_who_makes_up_for_whom(later: DatedRun, makes_up: bool) -> None:
    """A later run counts only if it evaluated whoever the earlier one was to evaluate, for all it was to evaluate."""
    earlier = dated(1, "partial", of=A + B if later.organisation_ids else "")
    assert later.makes_up_for(earlier) is makes_up


def left(number: int, settled: int, *, status: str = "partial", day: date = D, of: str = "") -> DatedRun:
    return replace(
        dated(number, status, day=day, of=of),
        total_active_mentors=100,
        total_evaluated=settled,
        remaining=100 - settled,
    )


@pytest.mark.parametrize(
    ("later", "numbers"),
    [
        ([left(2, 60)], [2]),
        ([left(2, 30)], [1, 2]),
        ([left(2, 30), left(3, 30)], [2, 3]),
        ([left(2, 60, day=D - DAY)], [1, 2]),
        ([left(2, 60, of=A)], [1, 2]),
        ([left(2, 60, status="failed")], [1, 2]),
    ],
)
def test_partial_runs_that_go_round_make_up_for_one_another(later: list[DatedRun], numbers: list[int]) -> None:
    """Where one budget is never enough, each run begins with those left over: only the latest keeps people waiting."""
    assert [run.number for run in unfinished([left(1, 60), *later])] == numbers
