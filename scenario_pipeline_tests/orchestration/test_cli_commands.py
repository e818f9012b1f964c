"""The other commands as a person uses them: help, advice, and one sentence for a mistake."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import text

from scenario_pipeline.cli import main
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.support.installation import Installation
from scenario_pipeline_tests.support.project import COMMUNITY, PROJECT
from scenario_pipeline_tests.support.stranger import stranger_accepts


def test_the_first_command_of_a_newcomer_works_on_nothing(tmp_path: Path) -> None:
    """No server, no variable, no data: `run --demo` brings all three, and a second run sends nothing twice."""
    home = tmp_path / "home"
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "scenario_pipeline", *arguments],
            env=environment | {"SCENARIO_HOME": str(home)},
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
            timeout=180,
        )

    try:
        first, second = command("run", "--demo"), command("run", "--demo")
        stranger_accepts(first.stdout + second.stdout)
        opening, closing = (json.loads(line) for line in (first.stdout.splitlines()[0], first.stdout.splitlines()[-1]))
        assert opening["dispatch_mode"] == "live"
        assert set(closing["dispatched_by_scenario"]) == {"certification_expiry", "inactivity", "milestone"}
        assert json.loads(second.stdout.splitlines()[-1])["total_dispatched"] == 0
        assert json.loads(command("db", "status").stdout)["fits"] is True
        assert command("db", "url").stdout.startswith("postgresql://scenario:")
    finally:
        command("db", "stop")
    assert not EmbeddedPostgres(home / "postgres").is_running()


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        (["run", "--date", "2026-02-30"], {}, "--date must be a date that exists"),
        (["run", "--date", "20260801"], {}, "--date must be a date that exists"),
        (["run", "--scenario", "birthday"], {}, "There is no scenario 'birthday': the installed ones are"),
        (["run", "--organisation", "x"], {}, "--organisation must be the id of an organisation"),
        (["run", "--dispatch-mode", "maybe"], {}, "Invalid value for '--dispatch-mode'"),
        (["run", "--engine", "steam"], {}, "Invalid value for '--engine'"),
        (["run", "--time-budget", "-1"], {}, "--time-budget must be a number of seconds"),
        (["run", "--time-budget", "nan"], {}, "--time-budget must be a number of seconds"),
        (["run", "--page-size", "0"], {}, "--page-size must be a whole number of mentors"),
        (["run"], {"SCENARIO_PAGE_SIZE": "0"}, "SCENARIO_PAGE_SIZE must be"),
        (["run"], {"SCENARIO_TIME_BUDGET_SECONDS": "soon"}, "SCENARIO_TIME_BUDGET_SECONDS must be"),
        (["run"], {"SCENARIO_TIMEZONE": "Mars/Olympus"}, "SCENARIO_TIMEZONE must be"),
        (["run"], {"SCENARIO_DATABASE_URL": "mysql://user:a-secret@host/x"}, "SCENARIO_DATABASE_URL must begin with"),
        (["nonsense"], {}, "No such command"),
        (["run", "--page-size", "1_000"], {}, "--page-size must be a whole number of mentors"),
        (["run", "--page-size", "\u0663"], {}, "--page-size must be a whole number of mentors"),
        (["run", "--engine", "http"], {}, "SCENARIO_ENGINE_URL must be the base URL"),
        (["engine"], {}, "The engine needs SCENARIO_ENGINE_TOKEN"),
        (["engine", "--allow-anonymous", "--host", "0.0.0.0"], {}, "The engine needs SCENARIO_ENGINE_TOKEN"),
        (["engine", "--port", "65536"], {}, "Invalid value for '--port'"),
        (["run"], {"SCENARIO_DATABASE_URL": "postgresql://u:x@y:a-secret/z"}, "SCENARIO_DATABASE_URL has no valid"),
        (["run"], {"SCENARIO_DATABASE_URL": "postgresql://u:p@[::1/z"}, "SCENARIO_DATABASE_URL has no valid"),
        (["import", ""], {}, "DIR must be the folder"),
        (["demo", "--mentors", "0"], {}, "mentors"),
        (["import", "/no/such/folder"], {}, "folder"),
        (["events", "validate", "/no/such/file"], {}, "No such file"),
    ],
)
def test_a_mistake_gets_one_sentence_and_status_2(
    arguments: list[str],
    environment: dict[str, str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    database_url: str,
) -> None:
    """What is wrong, where, and what to do; nothing was begun, and no secret is repeated."""
    monkeypatch.setenv("SCENARIO_DATABASE_URL", database_url)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert "a-secret" not in result.stderr


def test_a_password_with_signs_and_options_in_the_url_reach_both_databases(
    installation: Installation, server: EmbeddedPostgres
) -> None:
    """What libpq accepts as a URL works for the scheduler and for Dagster alike, and the run is recorded."""
    role, password = f"role_{uuid.uuid4().hex}", "a+b c%d@/:#?"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{password}'")
        # Dagster's tables belong to the role that runs first: not in the database that other tests share.
        connection.execute(f"CREATE DATABASE {role}")
        installation.dagster_url = server.url(role)
        try:
            for name in ("run_url", "dagster_url"):
                address = getattr(installation, name).split("@")[1]
                credentials = f"{role}:{quote(password, safe='')}"
                options = "?options=-c%20work_mem%3D5MB&connect_timeout=9"
                setattr(installation, name, f"postgresql://{credentials}@{address}{options}")
            _, stderr = installation.command("run", "--date", "2026-08-01")
            assert "web UI" not in stderr
        finally:
            connection.execute(f"DROP DATABASE {role} WITH (FORCE)")
            connection.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


def test_a_database_of_a_newer_release_is_refused_with_the_right_advice(installation: Installation) -> None:
    """`db upgrade` cannot fix it, so the advice must not name it."""
    with installation.engine.begin() as connection:
        connection.execute(text("UPDATE scenario.alembic_version SET version_num = '9999'"))
    for command in (["run"], ["db", "status"], ["db", "upgrade"]):
        _, stderr = installation.command(*command, status=1)
        assert "newer than this code: install the release that belongs to it" in stderr
        assert "run scenario-pipeline" not in stderr


@pytest.mark.parametrize("command", [["db", "upgrade"], ["import", str(COMMUNITY)]])
def test_what_the_scheduler_may_not_do_says_who_may(installation: Installation, command: list[str]) -> None:
    """The scheduler's URL is the one that is set; an upgrade needs another."""
    with installation.engine.begin() as connection:
        connection.execute(text("DELETE FROM scenario.scenario_evaluation_config"))
    _, stderr = installation.command(*command, status=1)
    [sentence] = stderr.splitlines()
    assert "SQLSTATE 42501" in sentence
    assert sentence.endswith("; connect as the owner of the schema (scenario_owner) or see scenario-pipeline doctor.")


def test_demonstration_data_is_not_mixed_with_real_mentors(installation: Installation) -> None:
    """The next run would tell a real organisation about people who do not exist."""
    _, stderr = installation.command("demo", status=1)
    assert stderr == "Error: Demonstration data is loaded only where there are no mentors yet.\n"


def test_a_port_in_use_ends_up_with_a_sentence(installation: Installation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        _, stderr = installation.command("up", "--port", str(taken.getsockname()[1]), status=1)
    assert stderr.startswith("Error: The web server cannot listen at 127.0.0.1")


@pytest.mark.parametrize(
    "arguments",
    [[], ["run"], ["up"], ["demo"], ["import"], ["db"], ["db", "upgrade"], ["db", "status"], ["events", "schema"]],
)
def test_every_command_has_help(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, [*arguments, "--help"])
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage:")


def test_the_published_schema_and_the_validator_are_at_hand(installation: Installation, tmp_path: Path) -> None:
    """People who read the log elsewhere can check it with the tool that wrote it."""
    schema = CliRunner().invoke(main, ["events", "schema"])
    assert json.loads(schema.stdout)["title"] == "Scenario pipeline event"
    stdout, _ = installation.command("run", "--date", "2026-08-01")
    log = tmp_path / "run.ndjson"
    log.write_text(stdout)
    assert CliRunner().invoke(main, ["events", "validate", str(log)]).exit_code == 0
    log.write_text(stdout.splitlines()[0])
    broken = CliRunner().invoke(main, ["events", "validate", str(log)])
    assert (broken.exit_code, broken.stdout) == (
        1,
        "line 1: the invocation is never closed by scheduler_run_completed\n",
    )
