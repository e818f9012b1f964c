"""`doctor` looks at what happened: an installation that could work, and did not, is no installation that is well."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil
import pytest
from sqlalchemy import Engine, text

from scenario_pipeline.defs.schedules import last_due
from scenario_pipeline.doctor.environment import examine_web_server
from scenario_pipeline.doctor.findings import Finding, Status
from scenario_pipeline.settings import Settings
from scenario_pipeline_tests.support.doctor import Examine, environment
from scenario_pipeline_tests.support.people import new_invocation_id


def today() -> Any:
    return Settings.from_environment().today(datetime.now(UTC))


def ledger_has(engine: Engine, status: str, *, hours_ago: float = 0, **columns: Any) -> str:
    """Write the row of an invocation that is over."""
    values = {
        "invocation_id": new_invocation_id(), "triggered_by": "manual", "evaluation_date": today(),
        "scenario_types": ["inactivity", "milestone", "certification_expiry"], "organisation_ids": [],
        "dispatch_mode": "live", "engine": "sql", "time_budget_ms": 30000, "status": status,
        "started_at": datetime.now(UTC) - timedelta(hours=hours_ago), "finished_at": datetime.now(UTC),
        "total_active_mentors": 100, "total_evaluated": 100, "total_dispatched": 0, "total_suppressed": 0,
        "total_errors": 0, "pages_processed": 1, "duration_ms": 5, "suppressed_by_reason": "{}",
        "dispatched_by_scenario": "{}", "remaining_unprocessed_count": 0, **columns,
    }  # fmt: skip
    names = ", ".join(values)
    casts = {"organisation_ids": "uuid[]", "suppressed_by_reason": "jsonb", "dispatched_by_scenario": "jsonb"}
    given = ", ".join(f"CAST(:{name} AS {casts[name]})" if name in casts else f":{name}" for name in values)
    with engine.begin() as connection:
        connection.execute(text(f"INSERT INTO scenario.scheduler_runs ({names}) VALUES ({given})"), values)
    return str(values["invocation_id"])


def test_runs_as_they_should_be_are_no_finding(examine: Examine, engine: Engine) -> None:
    """A doctor who always finds something is not asked again."""
    ledger_has(engine, "partial", hours_ago=2, total_evaluated=60, remaining_unprocessed_count=40)
    ledger_has(engine, "completed")
    examined = examine()
    assert (examined.exit_status, examined.wrong) == (0, [])


def test_a_schedule_that_asked_for_runs_and_got_none_is_found(examine: Examine, engine: Engine) -> None:
    """The daemon lives, the run queue is full, and for three days nobody was told anything."""
    ledger_has(engine, "completed", hours_ago=73, evaluation_date=today() - timedelta(days=3))
    ledger_has(engine, "completed", dispatch_mode="dry_run")
    examined = examine()
    [finding] = examined.wrong
    assert (examined.exit_status, finding["check"], finding["status"]) == (1, "last_run", "problem")
    assert "SCENARIO_CRON asked for one at" in finding["finding"]
    assert finding["remedy"].startswith("scenario-pipeline up")


def test_a_last_run_that_failed_is_found(examine: Examine, engine: Engine) -> None:
    """Green doctor, red run: the doctor was the first thing people asked."""
    ledger_has(engine, "completed")
    failed = ledger_has(engine, "failed", total_evaluated=10, remaining_unprocessed_count=None)
    found = {finding["check"]: finding for finding in examine().wrong}
    assert set(found) == {"last_run", "everyone_evaluated"}
    assert found["last_run"]["finding"] == f"The last run, {failed} for {today()}, failed."
    assert f"/runs/{failed}" in found["last_run"]["remedy"]
    assert "left an unknown number of mentors unprocessed" in found["everyone_evaluated"]["finding"]


def test_mentors_left_over_and_too_many_errors_are_found(examine: Examine, engine: Engine) -> None:
    """Two in a hundred who cannot be evaluated are a broken rule; forty who wait are not told."""
    ledger_has(engine, "completed", evaluation_date=today() - timedelta(days=1))
    partial = ledger_has(
        engine, "partial", total_evaluated=58, total_errors=2, total_active_mentors=100, remaining_unprocessed_count=40
    )
    examined = examine()
    found = {finding["check"]: finding for finding in examined.wrong}
    assert (examined.exit_status, set(found)) == (1, {"everyone_evaluated", "error_rate"})
    assert (
        f"The partial run {partial} for {today()} left 40 mentors unprocessed" in found["everyone_evaluated"]["finding"]
    )
    assert "SCENARIO_TIME_BUDGET_SECONDS" in found["everyone_evaluated"]["remedy"]
    assert found["error_rate"]["finding"].startswith("2 mentors, 3.33%, had an error in the run ")


def test_an_asset_check_that_failed_when_made_last_is_found(examine: Examine) -> None:
    """Somebody has to open the asset's page to see it; nobody does."""
    make_checks(error_rate="failed")
    examined = examine()
    [finding] = examined.wrong
    assert (examined.exit_status, finding["check"], finding["status"]) == (1, "asset_checks", "problem")
    assert finding["finding"] == "The asset check error_rate failed when made last."
    make_checks(error_rate="passed")
    assert examine().wrong == []


def make_checks(*, error_rate: str) -> None:
    """Let Dagster record one evaluation of two checks in the instance of this test."""
    command = [sys.executable, "-W", "ignore", "-c", _MAKE_CHECKS, error_rate]
    subprocess.run(command, check=True, timeout=120, env=environment())


_MAKE_CHECKS = """
import sys
from dagster import AssetCheckResult, asset, asset_check, materialize
from scenario_pipeline.defs.instance.home import load_instance
from scenario_pipeline.settings import Settings

@asset
def evaluations(): pass

@asset_check(asset=evaluations)
def error_rate(): return AssetCheckResult(passed=sys.argv[1] == "passed")

@asset_check(asset=evaluations)
def everyone_evaluated(): return AssetCheckResult(passed=True)

with load_instance(Settings.from_environment()) as instance:
    materialize([evaluations, error_rate, everyone_evaluated], instance=instance)
"""


@pytest.mark.parametrize("cron", ["nonsense", "99 * * * *"])
def test_a_cron_expression_that_cannot_work_is_one_sentence(
    examine: Examine, monkeypatch: pytest.MonkeyPatch, cron: str
) -> None:
    """Dagster's own message for it is a stack trace in the code server's log."""
    monkeypatch.setenv("SCENARIO_CRON", cron)
    [finding] = examine().findings
    assert (finding["check"], finding["status"]) == ("settings", "unknown")
    assert finding["finding"].startswith("SCENARIO_CRON must be a cron expression")


def test_a_tick_counts_once_its_run_should_be_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute past the hour the run of the hour is still at work, and that is no problem."""
    monkeypatch.setenv("SCENARIO_CRON", "0 7 * * *")
    monkeypatch.setenv("SCENARIO_TIMEZONE", "Europe/Oslo")
    settings = Settings.from_environment()
    due = [last_due(settings, datetime(2024, 3, 31, 5, minute, tzinfo=UTC)) for minute in (1, 2)]
    # The night in between is that of summer time.
    assert due == [datetime(2024, 3, 30, 6, tzinfo=UTC), datetime(2024, 3, 31, 5, tzinfo=UTC)]


class _Process:
    """A process of this machine, as psutil shows it to somebody who may not look into all of them."""

    def __init__(self, *words: str, denied: str = "") -> None:
        self._words, self._denied = words, denied

    def cmdline(self) -> list[str]:
        if self._denied == "cmdline":
            raise psutil.AccessDenied
        return list(self._words)

    def net_connections(self, _kind: str) -> list[Any]:
        if self._denied:
            raise psutil.AccessDenied
        return []


SERVER, OTHER = "dagster-webserver", "postgres"


@pytest.mark.parametrize(
    ("processes", "status"),
    [
        ([_Process(SERVER), _Process(denied="cmdline")], Status.OK),
        ([_Process(SERVER), _Process(OTHER, denied="connections")], Status.OK),
        ([_Process(denied="cmdline")], Status.OK),
        ([_Process(SERVER, denied="connections")], Status.UNKNOWN),
    ],
)
def test_only_a_server_that_was_recognised_is_suspected(
    monkeypatch: pytest.MonkeyPatch, processes: list[_Process], status: Status
) -> None:
    """On a shared machine there is always a process that cannot be looked at, and exit status 2 would be the rule."""
    monkeypatch.setattr(psutil, "process_iter", lambda: iter(processes))
    [finding] = examine_web_server()
    assert isinstance(finding, Finding)
    assert finding.status is status
