"""Databases in other encodings, and sessions with other settings: served, or refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, make_url, text

from scenario_pipeline.cli import main
from scenario_pipeline.storage import database, source
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.support.job_runs import RunJob
from scenario_pipeline_tests.support.people import D
from scenario_pipeline_tests.support.scripted_servers import dropping_options

ORGANISATION, MENTOR = "0190c0de-0000-7000-8000-000000000001", "0190c0de-0000-7000-8000-000000000002"
REFUSAL = (
    "The encoding of the database is SQL_ASCII, which checks no letters: "
    "CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
)

Command = Callable[..., Result]


def _new_database(server: EmbeddedPostgres, encoding: str) -> str:
    name = f"in_{encoding.lower()}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name}")
        connection.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    return server.url(name)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs the command line over the database with a URL."""

    def run(url: str, *arguments: str) -> Result:
        monkeypatch.setenv("SCENARIO_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("SCENARIO_DATABASE_URL", url)
        return CliRunner().invoke(main, list(arguments))

    return run


def _files(folder: Path, name: str) -> Path:
    folder.mkdir()
    for file, lines in {
        "organisations.csv": ["id,name,timezone", f"{ORGANISATION},Ærø,Europe/Copenhagen"],
        "mentors.csv": [
            "id,organisation_id,status,full_name,email,phone,locale,joined_on",
            f"{MENTOR},{ORGANISATION},active,{name},,,,2020-01-01",
        ],
        "activities.csv": ["user_id,activity_type,activity_date", f"{MENTOR},møte,2026-07-01"],
        "certifications.csv": ["user_id,certification_type,expires_on", f"{MENTOR},førstehjelp,2027-01-01"],
    }.items():
        (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _finding(result: Result, check: str) -> tuple[str, str, str | None]:
    [found] = [f for f in json.loads(result.stdout)["findings"] if f["check"] == check]
    return found["status"], found["finding"], found["remedy"]


def test_a_database_that_checks_no_letters_is_refused_with_what_helps(
    server: EmbeddedPostgres, command: Command
) -> None:
    """It keeps bytes: what another client writes there is no text that anybody can read."""
    url = _new_database(server, "SQL_ASCII")
    upgraded, examined = command(url, "db", "upgrade"), command(url, "doctor", "--json")
    assert (upgraded.exit_code, upgraded.stderr) == (1, f"Error: {REFUSAL}.\n")
    sentence, _, remedy = REFUSAL.partition(": ")
    assert _finding(examined, "server_encoding") == ("problem", f"{sentence}.", remedy)


def test_a_run_over_a_database_that_checks_no_letters_fails_with_the_same_sentence(
    server: EmbeddedPostgres, run_job: RunJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever restores a dump into such a database hears it from the run's own events."""
    monkeypatch.setenv("SCENARIO_DATABASE_URL", _new_database(server, "SQL_ASCII"))
    ran = run_job(evaluation_date=D.isoformat())
    assert not ran.result.success
    assert REFUSAL[1:] in ran.everything_dagster_keeps() + ran.stdout


def test_a_database_in_another_encoding_takes_what_it_has_letters_for(
    server: EmbeddedPostgres, command: Command, tmp_path: Path
) -> None:
    """The letter it lacks is refused in one sentence that does not show it: it stands in somebody's name."""
    url = _new_database(server, "LATIN1")
    assert command(url, "db", "upgrade").exit_code == 0
    refused = command(url, "import", str(_files(tmp_path / "refused", "Ståle Kowałska")))
    assert (refused.exit_code, refused.exception.__class__) == (1, SystemExit)
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("Error: ")
    assert refused.stderr.endswith("the encoding of the database cannot represent a letter; use a database in UTF8.\n")
    assert not any(part in refused.output for part in ("ł", "c5", "82", "Kowa", "Traceback"))
    taken = command(url, "import", str(_files(tmp_path / "taken", "Ståle Ærøskøbing")))
    assert taken.exit_code == 0, taken.stderr
    engine = database.connect(url)
    with engine.connect() as connection:
        names = connection.execute(text("SELECT full_name FROM scenario.peer_mentors")).scalars().all()
    engine.dispose()
    assert names == ["Ståle Ærøskøbing"]
    status, sentence, _ = _finding(command(url, "doctor", "--json"), "server_encoding")
    assert (status, sentence) == (
        "ok",
        "The encoding of the database is LATIN1; an import of other letters is refused.",
    )


def test_a_server_that_prefers_another_encoding_is_asked_for_utf8(
    server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`client_encoding` can be set for a role, a database, a shell and a URL."""
    monkeypatch.setenv("PGCLIENTENCODING", "SQL_ASCII")
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS prefers_latin")
        connection.execute("CREATE DATABASE prefers_latin")
        connection.execute("ALTER DATABASE prefers_latin SET client_encoding = 'LATIN1'")
    engine = database.connect(f"{server.url('prefers_latin')}?client_encoding=SQL_ASCII")
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 'Kowałska'")).scalar_one() == "Kowałska"
    engine.dispose()


@pytest.mark.parametrize("holds", ["for the session", "in spite of the session's options"])
def test_types_are_compared_whatever_the_role_has_their_names_written_like(
    engine: Engine, database_url: str, command: Command, holds: str
) -> None:
    """A role that some tools want set so could not evaluate anybody."""
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA mine; CREATE DOMAIN mine.uuid AS text; CREATE DOMAIN mine.text AS text"))
        name = connection.execute(text("SELECT quote_ident(current_database())")).scalar_one()
        connection.execute(text(f"ALTER DATABASE {name} SET quote_all_identifiers = on"))
        connection.execute(text(f"ALTER DATABASE {name} SET search_path = mine, pg_catalog, public"))
    odd = database.connect(database_url)
    with odd.connect() as connection:
        if holds != "for the session":
            connection.execute(text("SET quote_all_identifiers = on"))
        assert list(source.misfits(connection)) == []
    odd.dispose()
    examined = command(database_url, "doctor", "--json")
    for check in ("views", "roles", "row_level_security", "configuration"):
        assert _finding(examined, check)[0] == "ok"


def test_a_column_of_another_type_is_still_named(engine: Engine) -> None:
    """The negative twin."""
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA mine; CREATE DOMAIN mine.uuid AS text"))
        connection.execute(text("DROP VIEW scenario.source_certifications CASCADE"))
        connection.execute(
            text(
                "CREATE VIEW scenario.source_certifications AS SELECT user_id::text::mine.uuid AS user_id, "
                "certification_type, expires_on::timestamp AS expires_on FROM scenario.mentor_certifications"
            )
        )
    with engine.connect() as connection:
        connection.execute(text("SET search_path = mine, pg_catalog"))
        assert list(source.misfits(connection)) == [
            "the column user_id of the view scenario.source_certifications is mine.uuid, and must be uuid",
            "the column expires_on of the view scenario.source_certifications is timestamp without time zone, "
            "and must be date",
        ]


def test_a_pooler_that_drops_options_is_named_with_the_statement_that_helps(
    engine: Engine, scheduler_url: str, command: Command
) -> None:
    """A pooler of many projects cannot be gone around, and nobody may change its configuration."""
    check = "session_options"
    address = make_url(scheduler_url)
    with dropping_options(int(address.port or 0)) as port:
        pooled = address.set(port=port).render_as_string(hide_password=False)
        status, sentence, remedy = _finding(command(pooled, "doctor", "--json"), check)
        assert (status, remedy) == ("problem", "ALTER ROLE scenario_scheduler SET row_security = off")
        assert sentence == (
            "row_security is on in a session that was started with off: a pooler drops the options of sessions."
        )
        with engine.begin() as connection:
            connection.execute(text(str(remedy)))
        try:
            examined = command(pooled, "doctor", "--json")
            assert {_finding(examined, name)[0] for name in (check, "views", "roles", "mentors")} == {"ok"}
        finally:
            with engine.begin() as connection:
                connection.execute(text("ALTER ROLE scenario_scheduler RESET row_security"))
