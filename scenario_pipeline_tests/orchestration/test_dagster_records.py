"""Dagster's own database answers and refuses to be written: the mentors hear all the same."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import SQLAlchemyError

from scenario_pipeline.defs.instance.home import load_instance
from scenario_pipeline.settings import Settings
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.support.installation import Installation
from scenario_pipeline_tests.support.invariants import sent
from scenario_pipeline_tests.support.server import as_scheduler
from scenario_pipeline_tests.support.stranger import stranger_accepts
from scenario_pipeline_tests.support.waiting import wait_until_blocked

ARGUMENTS = ("run", "--date", "2026-08-01", "--dispatch-mode", "live")
ALONE = "It will not be seen in the web UI."


def names_in(log: str) -> list[str]:
    stranger_accepts(log)
    return [json.loads(line)["event"] for line in log.splitlines()]


@pytest.fixture
def records(installation: Installation, server: EmbeddedPostgres) -> Iterator[psycopg.Connection[Any]]:
    """Dagster's database of this test's own, as its administrator sees it."""
    # With Dagster's tables in it.
    installation.command("run", "--date", "2026-07-01")
    name = f"dagster_{uuid.uuid4().hex}"
    template = installation.dagster_url.rsplit("/", 1)[1]
    with psycopg.connect(server.url("postgres"), autocommit=True) as administrator:
        administrator.execute(f"CREATE DATABASE {name} TEMPLATE {template} OWNER scenario_scheduler".encode())
    installation.dagster_url = as_scheduler(server.url(name))
    with psycopg.connect(server.url(name), autocommit=True) as connection:
        yield connection


READ_ONLY = "ALTER ROLE scenario_scheduler IN DATABASE {name} SET default_transaction_read_only = on"
REFUSALS = {
    "a server that only reads": READ_ONLY,
    "no right to insert": "REVOKE INSERT ON ALL TABLES IN SCHEMA public FROM scenario_scheduler",
    "tables of another role": "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM scenario_scheduler",
    "entries refused": "ALTER TABLE event_logs ADD CHECK (false) NOT VALID",
    "no room": """
        CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = 'disk_full'; END $$;
        CREATE TRIGGER fill BEFORE INSERT ON event_logs FOR EACH ROW EXECUTE FUNCTION fill()""",
}


def refuse(records: psycopg.Connection[Any], how: str) -> None:
    if how in ("no right to insert", "tables of another role"):
        # The owner of a table may always write to it.
        records.execute("""DO $$ DECLARE name text; BEGIN
            FOR name IN SELECT format('%I', tablename) FROM pg_tables WHERE schemaname = 'public' LOOP
                EXECUTE 'ALTER TABLE ' || name || ' OWNER TO CURRENT_USER';
                EXECUTE 'GRANT ALL ON ' || name || ' TO scenario_scheduler';
            END LOOP; END $$""")
    records.execute(REFUSALS[how].replace("{name}", records.info.dbname).encode())


@pytest.mark.parametrize("how", REFUSALS)
def test_a_run_whose_record_is_refused_evaluates_everybody(
    installation: Installation, records: psycopg.Connection[Any], how: str
) -> None:
    """A failover, a forgotten grant, a full disk: nobody hears, and the empty log is called valid."""
    refuse(records, how)
    stdout, stderr = installation.command(*ARGUMENTS)
    assert names_in(stdout) == ["scheduler_run_started", "scheduler_run_completed"]
    assert len(sent(installation.engine)) == 18
    assert "Dagster" in stderr.splitlines()[0]
    assert "1,298 of 1,298 active mentors evaluated" in stderr.splitlines()[-1]
    assert len(stderr.splitlines()) == 2, stderr
    assert "[SQL" not in stderr
    installation.check()


@pytest.mark.parametrize("how", REFUSALS)
def test_a_record_refused_in_the_middle_of_a_run_costs_the_record_alone(
    installation: Installation, records: psycopg.Connection[Any], how: str
) -> None:
    """Dagster's entries are for the web UI: no mentor waits for one."""
    with installation.engine.connect() as connection:
        [victim] = connection.exec_driver_sql("""
            SELECT user_id FROM scenario.mentor_activities JOIN scenario.peer_mentors m ON m.id = user_id
            WHERE m.status = 'active' GROUP BY user_id
            HAVING max(activity_date) FILTER (WHERE activity_date <= '2026-08-01') BETWEEN '2026-06-26' AND '2026-07-02'
            LIMIT 1""").scalars()
    holder = installation.block_notifications_of(victim)
    with holder, installation.start(*ARGUMENTS, "--page-size", "100") as process:
        wait_until_blocked(installation.engine)
        refuse(records, how)
        holder.close()
        stdout, stderr = process.communicate(timeout=120)
    assert (process.returncode, names_in(stdout)) == (0, ["scheduler_run_started", "scheduler_run_completed"]), stderr
    assert len(sent(installation.engine)) == 18
    assert stderr.startswith("Dagster could not keep its record of this run: SQLSTATE ")
    assert len(stderr.splitlines()) == 2, stderr
    installation.check()


def test_entries_that_wait_for_a_lock_do_not_hold_a_run_for_ever(
    installation: Installation, records: psycopg.Connection[Any]
) -> None:
    """Somebody migrates Dagster's tables: the run waits as long as for a database that is down, and goes on."""
    with psycopg.connect(records.info.dsn, password=records.info.password) as migration:
        migration.execute("LOCK TABLE event_logs IN ACCESS EXCLUSIVE MODE")
        stdout, stderr = installation.command(*ARGUMENTS, "--time-budget", "30")
    assert names_in(stdout) == ["scheduler_run_started", "scheduler_run_completed"], stderr
    assert len(sent(installation.engine)) == 18


def test_an_error_of_dagsters_database_carries_no_statement(
    installation: Installation, records: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon and the web server write errors to stderr as they are: `[SQL: ...]`, with every parameter."""
    refuse(records, "a server that only reads")
    for name, value in installation.environment.items():
        monkeypatch.setenv(name, value)
    with load_instance(Settings.from_environment()) as instance, pytest.raises(SQLAlchemyError) as raised:
        instance.run_storage.set_cursor_values({"a name": "a value"})
    assert "cannot execute INSERT in a read-only transaction" in str(raised.value)
    assert "[SQL" not in str(raised.value)
    assert "a value" not in str(raised.value)


def test_with_neither_database_to_write_the_log_is_closed(
    installation: Installation, records: psycopg.Connection[Any]
) -> None:
    """Both are on the same standby: only stdout can say so."""
    refuse(records, "a server that only reads")
    name = installation.url.rsplit("/", 1)[1]
    with psycopg.connect(installation.url, autocommit=True) as administrator:
        administrator.execute(READ_ONLY.replace("{name}", name).encode())
    stdout, stderr = installation.command(*ARGUMENTS, status=1)
    assert names_in(stdout) == ["scheduler_run_started", "scheduler_run_failed", "scheduler_run_completed"]
    assert stderr.splitlines()[0].endswith(ALONE)
    assert stderr.splitlines()[-1].startswith("Failed (database_error): SQLSTATE 25006")
