"""`doctor` where something is out of reach, and what it says of Dagster, the engine and the web server."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, text

from scenario_pipeline.cli import main
from scenario_pipeline.doctor.findings import Finding, Status, in_time
from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.support.doctor import Examine, environment
from scenario_pipeline_tests.support.server import as_scheduler
from scenario_pipeline_tests.support.service import TOKEN


def test_a_lock_on_dagsters_records_is_not_waited_for(examine: Examine, dagster_url: str) -> None:
    """An answer within seconds is what makes a doctor worth asking."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", _MAKE_TABLES], check=True, timeout=60, env=environment())
    with psycopg.connect(dagster_url) as connection:
        connection.execute("LOCK TABLE daemon_heartbeats")
        [finding] = examine().wrong
    assert (finding["check"], finding["status"]) == ("dagster_instance", "unknown")


def test_a_server_that_stops_answering_is_not_waited_for_for_ever() -> None:
    """What bounds a statement is the server's own clock, and that one stands still."""
    said = Finding("database_connection", Status.OK, "It answers.")
    stopped = threading.Event()

    def findings() -> Iterator[Finding]:
        yield said
        stopped.wait(60)

    heard = in_time("database_connection", findings(), seconds=0.2)
    assert next(heard) == said
    assert next(heard).status is Status.UNKNOWN
    assert list(heard) == []
    stopped.set()


def test_a_database_out_of_reach_is_no_all_clear(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be looked at is neither well nor ill."""
    monkeypatch.setenv("SCENARIO_DATABASE_URL", "postgresql://user:a-secret@127.0.0.1:1/nowhere")
    examined = examine()
    [finding] = examined.wrong
    assert (examined.exit_status, examined.status) == (2, "unknown")
    assert finding["check"] == "database_connection"
    assert finding["finding"].startswith("The database of SCENARIO_DATABASE_URL cannot be used: ")
    assert finding["remedy"] == "pg_isready -h 127.0.0.1 -p 1"
    assert "a-secret" not in str(examined.findings)


def test_an_embedded_server_that_does_not_run_is_not_started(
    examine: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Looking must not create a database."""
    monkeypatch.delenv("SCENARIO_DATABASE_URL")
    monkeypatch.delenv("SCENARIO_DAGSTER_DATABASE_URL")
    examined = examine()
    assert (examined.exit_status, [finding["check"] for finding in examined.wrong]) == (
        2,
        ["database_connection", "dagster_instance"],
    )
    assert not (tmp_path / "home").exists()


def test_a_setting_that_cannot_work_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to look at then."""
    monkeypatch.setenv("SCENARIO_PAGE_SIZE", "0")
    result = CliRunner().invoke(main, ["doctor", "--json"])
    [finding] = json.loads(result.stdout)["findings"]
    assert (result.exit_code, finding["check"], finding["status"]) == (2, "settings", "unknown")
    assert finding["finding"].startswith("SCENARIO_PAGE_SIZE must be")


def test_a_person_reads_sentences(examine: Examine, engine: Engine) -> None:
    """Without --json each finding is a line, with its remedy below."""
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM scenario.alembic_version"))
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert (
        "problem schema_version: The database has no schema of this project.\n"
        "        fix: scenario-pipeline db upgrade\n"
    ) in result.stdout


def test_dagsters_records_out_of_reach_or_not_to_be_made_are_found(
    examine: Examine, monkeypatch: pytest.MonkeyPatch, server: EmbeddedPostgres, dagster_url: str
) -> None:
    """A run goes on without them, and nobody sees it in the web UI."""
    monkeypatch.setenv("SCENARIO_DAGSTER_DATABASE_URL", "postgresql://user:a-secret@127.0.0.1:1/nowhere")
    [finding] = examine().wrong
    assert (finding["check"], finding["status"]) == ("dagster_instance", "unknown")
    assert "a-secret" not in str(finding)
    # A database that belongs to somebody else, and is empty.
    name = "somebody_elses"
    database.create_database(server.url("postgres"), name)
    monkeypatch.setenv("SCENARIO_DAGSTER_DATABASE_URL", as_scheduler(server.url(name)))
    [finding] = examine().wrong
    assert (finding["finding"], finding["remedy"]) == (
        "Dagster's database has no tables, and this role may not create them.",
        "ALTER DATABASE dagster OWNER TO scenario_scheduler",
    )


def test_the_tables_of_another_application_are_not_dagsters(
    examine: Examine, monkeypatch: pytest.MonkeyPatch, server: EmbeddedPostgres
) -> None:
    """Dagster's migrations would stumble over the other's."""
    name = "another_application"
    database.create_database(server.url("postgres"), name)
    with psycopg.connect(server.url(name), autocommit=True) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num text)")
    monkeypatch.setenv("SCENARIO_DAGSTER_DATABASE_URL", as_scheduler(server.url(name)))
    [finding] = examine().wrong
    assert (finding["check"], finding["status"]) == ("dagster_instance", "problem")
    assert finding["finding"].startswith("Dagster's database holds the tables of another application")


def test_a_daemon_that_fell_silent_is_found(
    examine: Examine, monkeypatch: pytest.MonkeyPatch, server: EmbeddedPostgres
) -> None:
    """No schedule ticks without it, and nothing else says so."""
    name = "records_of_a_daemon"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} OWNER scenario_scheduler")
    url = as_scheduler(server.url(name))
    monkeypatch.setenv("SCENARIO_DAGSTER_DATABASE_URL", url)

    def told() -> str:
        [finding] = [finding for finding in examine().findings if finding["check"] == "dagster_instance"]
        return str(finding["finding"])

    assert told() == "Dagster's database has no tables yet: the first run creates them."
    subprocess.run([sys.executable, "-W", "ignore", "-c", _MAKE_TABLES], check=True, timeout=60, env=environment())
    assert told() == "Dagster's records are usable; its daemon never ran, so no schedule ticks."
    insert = (
        "INSERT INTO daemon_heartbeats (daemon_type, daemon_id, timestamp, body) "
        "VALUES ('SCHEDULER', 'x', timezone('UTC', now()) - interval '{} seconds', '')"
    )
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(insert.format(3600))
        assert told() == "Dagster's daemon was silent for 1:00:00: no schedule ticks."
        connection.execute("DELETE FROM daemon_heartbeats")
        connection.execute(insert.format(10))
        assert told() == "Dagster's records are usable and its daemon is running."
        connection.execute("UPDATE alembic_version SET version_num = 'another'")
        assert told() == "The tables of Dagster are those of another release of Dagster."


_MAKE_TABLES = """
from scenario_pipeline.defs.instance.home import load_instance
from scenario_pipeline.settings import Settings
with load_instance(Settings.from_environment()) as instance:
    instance.get_runs_count()
"""


def test_a_remote_engine_is_asked_for_its_health(
    examine: Examine, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run would find out too, with everybody left to the next one."""
    monkeypatch.setenv("SCENARIO_ENGINE", "http")
    monkeypatch.setenv("SCENARIO_ENGINE_TOKEN", TOKEN)
    for url, wrong in (
        (served, []),
        (f"{served}/elsewhere", ["The trigger engine answered with HTTP status 404"]),
        ("http://127.0.0.1:1", ["The connection to the trigger engine was refused or lost."]),
    ):
        monkeypatch.setenv("SCENARIO_ENGINE_URL", url)
        found = [finding for finding in examine().wrong if finding["check"] == "trigger_engine"]
        assert [finding["finding"][: len(sentence)] for finding, sentence in zip(found, wrong, strict=True)] == wrong


@pytest.mark.parametrize(("host", "wrong"), [("127.0.0.1", []), ("0.0.0.0", ["web_server"])])
def test_a_web_server_that_others_can_reach_is_found(examine: Examine, host: str, wrong: list[str]) -> None:
    """Dagster asks nobody for a password: anyone who reaches it can launch runs."""
    listener = (
        "import socket, sys; s = socket.create_server((sys.argv[2], 0)); print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", listener, "dagster_webserver", host]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert [finding["check"] for finding in examine().wrong] == wrong
        process.communicate()
