"""Runs of the job over HTTP, down to the rows, the log and the exit of the process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from scenario_pipeline.loading.merge import import_folder
from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.support.http_runs import nobody_due
from scenario_pipeline_tests.support.invariants import consistent, notifications, sent
from scenario_pipeline_tests.support.job_runs import RunJob
from scenario_pipeline_tests.support.people import D, quiet_mentors
from scenario_pipeline_tests.support.project import COMMUNITY, PROJECT
from scenario_pipeline_tests.support.scripted_server import Asked, ScriptedServer, never, pass_on, send
from scenario_pipeline_tests.support.server import as_scheduler, own_database
from scenario_pipeline_tests.support.service import TOKEN
from scenario_pipeline_tests.support.stranger import stranger_accepts
from scenario_pipeline_tests.support.triggers import refuse_notifications_of
from scenario_pipeline_tests.support.waiting import wait_until


def test_a_run_without_the_address_of_its_engine_says_so_in_its_log(run_job: RunJob, engine: Engine) -> None:
    """Chosen in the launch form or by a schedule: a run without a single entry would be looked for in vain."""
    nobody_due(engine, 2)
    ran = run_job(evaluation_date=D.isoformat(), engine="http")
    assert ran.names == ["scheduler_run_started", "scheduler_run_failed", "scheduler_run_completed"]
    assert ran.entry("scheduler_run_failed")["error_message"].startswith("SCENARIO_ENGINE_URL is not set")
    assert ran.entry("scheduler_run_failed")["remaining_unprocessed_count"] == 2


def rows(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        runs = connection.execute(
            text(
                "SELECT total_active_mentors, total_evaluated, total_dispatched, total_suppressed, total_errors,"
                " pages_processed, suppressed_by_reason, dispatched_by_scenario, status"
                " FROM scenario.scheduler_runs ORDER BY started_at"
            )
        ).all()
        configured = connection.execute(
            text(
                "SELECT scenario_type, organisation_id::text, last_evaluated_count"
                " FROM scenario.scenario_evaluation_config ORDER BY 1, 2"
            )
        ).all()
        return [*notifications(connection), *map(tuple, runs), *map(tuple, configured)]


@pytest.mark.parametrize("dispatch_mode", ["live", "dry_run"])
def test_both_engines_give_the_same_rows_and_the_same_totals(
    dispatch_mode: str,
    run_job: RunJob,
    served: str,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    server: EmbeddedPostgres,
    template_database: str,
    canaries: list[str],
) -> None:
    """Choosing where the evaluation happens must not choose what comes of it; two dates, so that all reasons occur."""
    dates = ("2026-07-31", "2026-08-01")
    for twin_url in own_database(server, template_database):
        twin = database.connect(twin_url)
        for world_of_its_own in (engine, twin):
            import_folder(world_of_its_own, COMMUNITY)
        poison_all_of([engine, twin])
        monkeypatch.setenv("SCENARIO_ENGINE_URL", served)
        monkeypatch.setenv("SCENARIO_ENGINE_TOKEN", TOKEN)
        monkeypatch.setenv("SCENARIO_ENGINE_CHUNK_SIZE", "37")
        totals = {}
        for name, url in (("http", None), ("sql", twin_url)):
            if url is not None:
                monkeypatch.setenv("SCENARIO_DATABASE_URL", url)
            ran = [
                run_job(evaluation_date=date, dispatch_mode=dispatch_mode, engine=name, page_size=400) for date in dates
            ]
            for job in ran:
                stranger_accepts(job.stdout, [*canaries, TOKEN])
                assert TOKEN not in job.everything_dagster_keeps() + job.stderr
            totals[name] = [job.entry("scheduler_run_completed") for job in ran]
        assert rows(engine) == rows(twin)
        for over_http, in_sql in zip(totals["http"], totals["sql"], strict=True):
            counted = {name for name in in_sql if name.startswith(("total_", "pages", "suppressed", "dispatched"))}
            assert {name: over_http[name] for name in counted} == {name: in_sql[name] for name in counted}
        assert totals["sql"][0]["total_dispatched"] > 0
        assert totals["sql"][0]["total_errors"] > 0
        consistent(engine)
        twin.dispose()


def poison_all_of(engines: Sequence[Engine]) -> None:
    """Let the database refuse what is written for one mentor in whom something is due."""
    with engines[0].connect() as connection:
        due = connection.execute(
            text(
                "SELECT user_id::text FROM scenario.mentor_activities GROUP BY 1"
                " HAVING max(activity_date) BETWEEN date '2026-07-31' - 36 AND date '2026-07-31' - 30"
                " ORDER BY 1 LIMIT 1"
            )
        ).scalar_one()
    for one in engines:
        refuse_notifications_of(one, [due])


def test_a_terminated_run_settles_what_is_in_hand_and_closes_within_five_seconds(
    served: str, database_url: str, dagster_url: str, engine: Engine, tmp_path: Path
) -> None:
    """Dagster's Terminate falls into a call: what the engine did is counted, the rest remains, and it ends at once."""
    ids = quiet_mentors(engine, 6)
    hold = threading.Event()

    def script(asked: Asked, connection: socket.socket) -> None:
        passed = pass_on(asked, served)
        if len(server.asked) == 1 or hold.is_set():
            send(connection, passed.content, status=passed.status_code)
        else:
            never(asked, connection)

    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    with ScriptedServer(script) as server:
        process = subprocess.Popen(
            [*(sys.executable, "-m", "scenario_pipeline", "run", "--date", D.isoformat()), "--dispatch-mode", "live"],
            env=inherited
            | {
                "PYTHONPATH": str(PROJECT),
                "SCENARIO_HOME": str(tmp_path),
                "SCENARIO_DATABASE_URL": as_scheduler(database_url),
                "SCENARIO_DAGSTER_DATABASE_URL": dagster_url,
                "SCENARIO_ENGINE": "http",
                "SCENARIO_ENGINE_URL": server.url,
                "SCENARIO_ENGINE_TOKEN": TOKEN,
                "SCENARIO_ENGINE_CHUNK_SIZE": "2",
                "SCENARIO_ENGINE_CONCURRENCY": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: len(server.asked) == 2, "the second chunk is in flight", 60)
        hold.set()
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
        assert time.monotonic() - started < 5
    stranger_accepts(out)
    entries = {entry["event"]: entry for entry in map(json.loads, out.splitlines())}
    partial = entries["scheduler_run_partial"]
    counted = ("reason", "total_evaluated", "total_dispatched", "total_errors", "remaining_unprocessed_count")
    assert [partial[name] for name in counted] == ["terminated", 4, 3, 0, 2]
    assert [row[0] for row in sent(engine)] == ids[:3]
    assert "Traceback" not in err
    consistent(engine)
