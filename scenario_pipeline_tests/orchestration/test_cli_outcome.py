"""How the command line says a run ended: by the ledger, and by its own log only without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from scenario_pipeline.cli.outcome import summarise
from scenario_pipeline.settings import Settings
from scenario_pipeline_tests.support.installation import Installation
from scenario_pipeline_tests.support.people import ten_mentors
from scenario_pipeline_tests.support.runs import Log, make_request, run_invocation

NEVER = "00000000-0000-4000-8000-000000000000"
BEFORE = "The run was stopped before it began; nothing was evaluated."


@pytest.fixture
def settings(scheduler_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    monkeypatch.setenv("SCENARIO_DATABASE_URL", scheduler_url)
    monkeypatch.setenv("SCENARIO_HOME", str(tmp_path))
    return Settings.from_environment()


def logged(log: Log) -> dict[str, Any]:
    return {entry["event"]: entry for entry in log.entries}


def closed_run(engine: Engine) -> tuple[str, dict[str, Any]]:
    """Evaluate ten mentors; return the invocation's id and the last entry of each event."""
    ten_mentors(engine)
    log = Log()
    run_invocation(engine, make_request(), log=log)
    return log.entries[0]["invocation_id"], logged(log)


def test_a_run_that_another_process_closed_is_no_failure(
    settings: Settings, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    """1,498 notifications were sent, and the command said that nothing was evaluated."""
    run_id, _ = closed_run(engine)
    assert summarise(settings, run_id, {}) == 0
    assert "10 of 10 active mentors evaluated" in capsys.readouterr().err


def test_the_ledger_is_believed_and_not_the_log(
    settings: Settings, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reply to the closing commit was lost: the log says failed, and every total stands in the ledger."""
    run_id, entries = closed_run(engine)
    failed = {"error_type": "network_error", "error_message": "lost", "remaining_unprocessed_count": 0}
    assert summarise(settings, run_id, entries | {"scheduler_run_failed": failed}) == 0
    assert "Failed" not in capsys.readouterr().err


def test_a_run_that_nobody_knows_was_stopped_before_it_began(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only if neither the ledger nor the log has it."""
    assert [summarise(settings, run_id, {}) for run_id in (NEVER, None)] == [1, 1]
    assert capsys.readouterr().err.splitlines() == [BEFORE, BEFORE]


def test_without_a_ledger_the_log_decides(
    settings: Settings,
    engine: Engine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The database went down with the run: stdout is all that is left."""
    run_id, entries = closed_run(engine)
    monkeypatch.setenv("SCENARIO_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nowhere")
    down = Settings.from_environment()
    assert (summarise(down, run_id, entries), summarise(down, run_id, {})) == (0, 1)
    known, unknown = capsys.readouterr().err.splitlines()
    assert "10 of 10 active mentors evaluated" in known
    assert unknown.startswith("How the run ended is unknown: it has no log, and its ledger cannot be read: ")


@pytest.mark.parametrize(
    ("evaluation_date", "reason"), [("2999-01-01", "which is after today"), ("1970-01-01", "notifications begin after")]
)
def test_a_live_run_of_a_date_that_cannot_be_sent_for_is_refused_before_it_starts(
    installation: Installation, evaluation_date: str, reason: str
) -> None:
    """A mistyped year is wrong usage: no run, no log, status 2."""
    stdout, stderr = installation.command("run", "--date", evaluation_date, "--dispatch-mode", "live", status=2)
    assert (stdout, reason in stderr) == ("", True)
    assert not installation.home.exists()


def test_an_empty_log_is_said_to_be_one(installation: Installation, tmp_path: Path) -> None:
    """Zero violations was all that anybody read of a run that never began."""
    log = tmp_path / "events.ndjson"
    log.touch()
    assert installation.command("events", "validate", str(log))[1] == (
        "The log holds no invocation: 0 invocations, 0 violations.\n"
    )
    log.write_text(installation.command("run", "--date", "2026-08-01")[0])
    assert installation.command("events", "validate", str(log))[1] == "1 invocation, 0 violations.\n"
