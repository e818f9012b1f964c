"""Runs from the command line: real processes that are killed, stopped, or started side by side."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from dagster import build_run_status_sensor_context
from sqlalchemy import text

from scenario_pipeline.defs.instance.home import load_instance
from scenario_pipeline.defs.sensors import lost_runs
from scenario_pipeline.log.logger import utc_now
from scenario_pipeline.settings import Settings
from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.support.definitions import definitions
from scenario_pipeline_tests.support.installation import EXPECTED, Installation, everything_in
from scenario_pipeline_tests.support.invariants import number_of_pages, sent
from scenario_pipeline_tests.support.project import COMMUNITY, PROJECT
from scenario_pipeline_tests.support.stranger import stranger_accepts
from scenario_pipeline_tests.support.waiting import blocked_backends, wait_until, wait_until_blocked


def totals(completed: dict[str, Any]) -> tuple[int, dict[str, int], dict[str, int]]:
    assert completed["completed"] is True
    assert completed["total_evaluated"] == completed["total_active_mentors"]
    return completed["total_active_mentors"], completed["dispatched_by_scenario"], completed["suppressed_by_reason"]


def test_the_community_gets_exactly_what_is_due_on_each_date_and_leaks_nothing(
    installation: Installation, canaries: Sequence[str]
) -> None:
    """The first real community: who hears of what, day by day, and not one name in anything that is left behind."""
    streams = []
    for evaluation_date, expected in EXPECTED.items():
        stdout, stderr = installation.command("run", "--date", evaluation_date, "--dispatch-mode", "live")
        streams += [stdout, stderr]
        assert totals(json.loads(stdout.splitlines()[-1])) == expected
    again = installation.run("2026-08-20")
    assert (again["total_dispatched"], again["suppressed_by_reason"]) == (0, {"duplicate": 9})
    installation.check()

    stranger_accepts("".join(streams[::2]))
    files = [
        path.read_text(encoding="utf-8", errors="replace") for path in installation.home.rglob("*") if path.is_file()
    ]
    left_behind = "\n".join(
        [*streams, *files, everything_in(installation.dagster_url), everything_in(installation.url)]
    )
    assert [word for word in canaries if word in left_behind] == []


def test_eight_processes_running_one_date_send_everything_once(installation: Installation) -> None:
    """A double click, two daemons and an impatient operator at once: each mentor hears once."""
    runs = [installation.start("run", "--date", "2026-08-01", "--dispatch-mode", "live") for _ in range(8)]
    closing = []
    for process in runs:
        with process:
            stdout, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
        stranger_accepts(stdout)
        closing.append(json.loads(stdout.splitlines()[-1]))
    assert sum(entry["total_dispatched"] for entry in closing) == 18
    assert all(entry["total_dispatched"] + entry["total_suppressed"] == 18 for entry in closing)
    assert len(sent(installation.engine)) == 18
    installation.check()


@pytest.fixture
def blocked_run(installation: Installation) -> Iterator[subprocess.Popen[str]]:
    """A run that has committed some of its pages and waits in the middle of another."""
    with installation.engine.connect() as connection:
        middle = connection.execute(text("SELECT id::text FROM scenario.peer_mentors ORDER BY id OFFSET 600 LIMIT 1"))
        victim = quiet_mentor_after(installation, middle.scalar_one())
    with installation.block_notifications_of(victim):
        process = installation.start("run", "--date", "2026-08-01", "--dispatch-mode", "live", "--page-size", "100")
        with process:
            wait_until_blocked(installation.engine)
            yield process


def quiet_mentor_after(installation: Installation, mentor_id: str) -> str:
    """Return a mentor behind `mentor_id` who is due for `inactivity` on 2026-08-01."""
    with installation.engine.connect() as connection:
        found = connection.execute(
            text("""
                SELECT m.id::text FROM scenario.peer_mentors m WHERE m.status = 'active' AND m.id > :after AND (
                    SELECT max(activity_date) FROM scenario.mentor_activities a
                    WHERE a.user_id = m.id AND a.activity_date <= '2026-08-01') = ANY (
                    SELECT date '2026-08-01' - 30 - day FROM generate_series(0, 6) day) ORDER BY m.id LIMIT 1"""),
            {"after": mentor_id},
        )
        return str(found.scalar_one())


def test_a_killed_run_loses_nothing_and_doubles_nothing(
    installation: Installation, blocked_run: subprocess.Popen[str]
) -> None:
    """Out of memory, a pulled plug, `kill -9`: the next run does the rest, once."""
    blocked_run.kill()
    blocked_run.communicate(timeout=60)
    # The server notices that its client is gone, although the statement still waits.
    wait_until(lambda: not blocked_backends(installation.engine), "the killed run's backend ends")
    with installation.engine.connect() as connection:
        before = connection.execute(text("SELECT count(*) FROM scenario.scenario_notifications")).scalar_one()
        pages = connection.execute(text("""
            SELECT count(*) FROM scenario.scheduler_run_pages JOIN scenario.scheduler_runs USING (invocation_id)
            WHERE status = 'running'""")).scalar_one()  # fmt: skip
    assert pages > 0
    installation_free(installation)
    again = installation.run("2026-08-01")
    assert before + again["total_dispatched"] == len(sent(installation.engine)) == 18
    installation.check()


def test_a_killed_runs_log_is_closed_for_it_exactly_once(
    installation: Installation,
    blocked_run: subprocess.Popen[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A log that stops in the middle is no statement: the daemon writes what the dead process could not."""
    blocked_run.kill()
    before, _ = blocked_run.communicate(timeout=60)
    wait_until(lambda: not blocked_backends(installation.engine), "the killed run's backend ends")
    for name, value in installation.environment.items():
        monkeypatch.setenv(name, value)
    with load_instance(Settings.from_environment()) as instance:
        run = instance.get_run_by_id(json.loads(before.splitlines()[0])["invocation_id"])
        assert run is not None
        assert run.run_id not in [lost.run_id for lost in lost_runs(instance, utc_now(), Settings.from_environment())]
        assert run.run_id in [
            lost.run_id for lost in lost_runs(instance, utc_now() + timedelta(seconds=95), Settings.from_environment())
        ]

        event = instance.report_run_failed(run)
        context = build_run_status_sensor_context(
            sensor_name="close_dead_invocations", dagster_event=event, dagster_instance=instance, dagster_run=run
        ).for_run_failure()
        capfd.readouterr()
        definitions().resolve_sensor_def("close_dead_invocations")(context)
        after = capfd.readouterr().out
        definitions().resolve_sensor_def("close_dead_invocations")(context)
        assert capfd.readouterr().out == ""
    stranger_accepts(before + after)
    failed, completed = (json.loads(line) for line in after.splitlines())
    assert (failed["event"], completed["completed"]) == ("scheduler_run_failed", False)
    assert completed["total_evaluated"] + failed["remaining_unprocessed_count"] == 1298
    assert completed["pages_processed"] > 0
    installation.check()


def installation_free(installation: Installation) -> None:
    """Drop the trigger that makes a page wait."""
    with psycopg.connect(installation.url, autocommit=True) as connection:
        connection.execute("DROP TRIGGER wait ON scenario.scenario_notifications")


def test_a_terminated_run_closes_its_log_as_partial(
    installation: Installation, blocked_run: subprocess.Popen[str]
) -> None:
    """A deployment stops the container: the current page is rolled back, and the log says so before it ends."""
    blocked_run.send_signal(signal.SIGTERM)
    stdout, stderr = blocked_run.communicate(timeout=60)
    assert blocked_run.returncode == 3, stderr
    stranger_accepts(stdout)
    partial, completed = (json.loads(line) for line in stdout.splitlines()[-2:])
    assert (partial["event"], partial["reason"]) == ("scheduler_run_partial", "terminated")
    assert completed["total_evaluated"] + partial["remaining_unprocessed_count"] == 1298
    assert "Traceback" not in stderr
    installation.check()


@pytest.mark.parametrize("pages", [3, 20])
def test_a_run_told_to_stop_has_its_whole_log_in_dagsters_capture(installation: Installation, pages: int) -> None:
    """The web UI and the asset check read what was captured; between two steps, nothing is captured any more."""
    process = installation.start("run", "--date", "2026-08-01", "--dispatch-mode", "live", "--page-size", "10")
    with process:
        wait_until(lambda: number_of_pages(installation.engine) >= pages, "some pages are committed")
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 3, stderr
    [captured] = installation.home.rglob("*.out")
    assert captured.read_text() == stdout


def test_dagsters_database_may_not_be_that_of_another_application(
    installation: Installation, server: EmbeddedPostgres
) -> None:
    """Dagster's migrations would stumble over the other's: the run goes on without a record, and says why."""
    name = f"another_{uuid.uuid4().hex}"
    database.create_database(server.url("postgres"), name)
    with psycopg.connect(server.url(name), autocommit=True) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num text); INSERT INTO alembic_version VALUES ('x')")
    installation.dagster_url = server.url(name)
    stdout, stderr = installation.command("run", "--date", "2026-08-01")
    stranger_accepts(stdout)
    assert stderr.splitlines()[0] == (
        "Dagster's database holds the tables of another application: give Dagster a database of its own. "
        "This run will not be seen in the web UI."
    )


def test_a_failed_run_ends_with_status_1_and_one_sentence(installation: Installation) -> None:
    """An operator reads the sentence, not a stack trace."""
    with installation.engine.begin() as connection:
        connection.execute(text("DELETE FROM scenario.alembic_version"))
    stdout, stderr = installation.command("run", status=1)
    stranger_accepts(stdout)
    assert stderr.splitlines()[-1] == (
        "Failed (database_error): the database has no schema of this project: run scenario-pipeline db upgrade."
    )
    assert "Traceback" not in stderr
    installation.command("db", "status", status=1)


def test_a_log_that_cannot_be_written_does_not_stop_the_run_and_is_not_passed_over(installation: Installation) -> None:
    """A full disk under the log costs the log; the mentors hear all the same, and the exit status says so."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "scenario_pipeline", "run", "--date", "2026-08-01", "--dispatch-mode", "live"],
            env=installation.environment,
            cwd=PROJECT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "2 entries could not be written to stdout: the log is incomplete; the ledger is complete."
    )
    assert len(sent(installation.engine)) == 18
    installation.check()


def test_a_database_out_of_reach_still_gives_a_closed_log(installation: Installation) -> None:
    """With both databases down, only stdout can report it."""
    installation.run_url = installation.dagster_url = "postgresql://user:a-secret@127.0.0.1:1/nowhere"
    stdout, stderr = installation.command("run", status=1)
    stranger_accepts(stdout)
    assert [json.loads(line)["event"] for line in stdout.splitlines()] == [
        "scheduler_run_started",
        "scheduler_run_failed",
        "scheduler_run_completed",
    ]
    assert "a-secret" not in stdout + stderr
    assert "Traceback" not in stderr


def test_runs_that_never_have_time_get_through_everybody_all_the_same(installation: Installation) -> None:
    """A budget below what Dagster itself takes must not leave the same mentors out for ever."""
    evaluated = 0
    for _ in range(4):
        completed = installation.run("2026-08-01", "--page-size", "400", "--time-budget", "0.001", status=3)
        evaluated += completed["total_evaluated"]
        assert completed["pages_processed"] == 1
    assert evaluated >= 1298
    assert len(sent(installation.engine)) == 18
    installation.check()


def test_a_terminal_that_is_gone_does_not_decide_how_a_run_ends(installation: Installation) -> None:
    """stderr is for people; a cron job may have none."""
    with Path("/dev/full").open("wb") as full:
        for stderr in (full, None):
            command = [sys.executable, "-m", "scenario_pipeline", "run", "--date", "2026-08-01"]
            if stderr is None:
                command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
            done = subprocess.run(
                command,
                env=installation.environment,
                cwd=PROJECT,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                check=False,
                timeout=120,
            )
            assert done.returncode == 0
            stranger_accepts(done.stdout)


def test_a_run_of_one_scenario_and_organisation_evaluates_only_those(installation: Installation) -> None:
    """The seed's contingency: scenarios and organisations can be run apart."""
    organisation = next(line.split(",")[0] for line in (COMMUNITY / "organisations.csv").read_text().splitlines()[1:])
    completed = installation.run("2026-08-01", "--scenario", "inactivity", "--organisation", organisation)
    with installation.engine.connect() as connection:
        rows = connection.execute(
            text("""SELECT count(*) FROM scenario.peer_mentors WHERE status = 'active' AND joined_on <= '2026-08-01'
                    AND organisation_id = :organisation"""),
            {"organisation": organisation},
        )
        assert completed["total_active_mentors"] == rows.scalar_one() > 0
    assert set(completed["dispatched_by_scenario"]) == {"inactivity"}
    assert {row[1] for row in sent(installation.engine)} == {"inactivity"}
