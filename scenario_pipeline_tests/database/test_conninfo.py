"""Connection strings: whatever psql accepts connects, over both drivers, and what it does not is one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import create_engine, make_url, text

from scenario_pipeline import conninfo
from scenario_pipeline.defs.instance.storage import InstanceStorage
from scenario_pipeline.errors import UserError
from scenario_pipeline.settings import Settings
from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres

# A name that no URL can hold as it is, and a password of everything that means something in one.
HARD_NAME = "Ærø d@ta/b:se? #1%"
HARD_PASSWORD = "p@ss/w:rd?#%20 '\\+&=;Ø"


class Address:
    """Where the tests' server is, and a role and a database with hard names on it."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        parts = conninfo_to_dict(server.url("postgres"))
        self.user, self.password, self.port = (str(parts[name]) for name in ("user", "password", "port"))
        self.name = HARD_NAME

    def url(self, host: str, *, port: str | None = None, query: str = "", database: str = "postgres") -> str:
        port = f":{self.port}" if port is None else port
        return f"postgresql://{self.user}:{self.password}@{host}{port}/{database}{query}"


@pytest.fixture(scope="module")
def address(server: EmbeddedPostgres) -> Address:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        database_name, role = psycopg.sql.Identifier(HARD_NAME), psycopg.sql.Identifier(HARD_NAME)
        password = psycopg.sql.Literal(HARD_PASSWORD)
        connection.execute(psycopg.sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, password))
        connection.execute(psycopg.sql.SQL("CREATE DATABASE {} OWNER {}").format(database_name, role))
    return Address(server)


def _hard(address: Address) -> str:
    name, password = quote(HARD_NAME, safe=""), quote(HARD_PASSWORD, safe="")
    return f"postgresql://{name}:{password}@127.0.0.1:{address.port}/{name}"


def _every_character_encoded(address: Address) -> str:
    encoded = {
        name: "".join(f"%{byte:02X}" for byte in value.encode())
        for name, value in {"user": HARD_NAME, "password": HARD_PASSWORD, "host": "127.0.0.1"}.items()
    }
    return f"postgresql://{encoded['user']}:{encoded['password']}@{encoded['host']}:{address.port}/{encoded['user']}"


# Each in the words of the manual's chapter on connection strings; what it must come to is asked of the server.
STRINGS: dict[str, Callable[[Address], str]] = {
    "a URL": lambda a: a.url("127.0.0.1"),
    "its other scheme": lambda a: a.url("127.0.0.1").replace("postgresql://", "postgres://"),
    "everything behind the question mark": lambda a: (
        f"postgresql:///postgres?host=127.0.0.1&port={a.port}&user={a.user}&password={a.password}"
    ),
    "a database behind the question mark": lambda a: a.url("127.0.0.1", database="", query="?dbname=postgres"),
    "the address behind the question mark": lambda a: a.url("nowhere.invalid", query="?hostaddr=127.0.0.1"),
    "hard names": _hard,
    "every character encoded": _every_character_encoded,
    "two hosts": lambda a: a.url("127.0.0.1:1,127.0.0.1", query="?target_session_attrs=read-write"),
    "two hosts in a parameter": lambda a: a.url("", port="", query=f"?host=127.0.0.1,127.0.0.1&port=1,{a.port}"),
    "an option": lambda a: a.url("127.0.0.1", query="?options=-c%20geqo%3Doff"),
    "an option twice": lambda a: a.url("127.0.0.1", query="?options=-c%20nonsense%3D1&options=-c%20geqo%3Doff"),
    "many parameters": lambda a: a.url(
        "127.0.0.1", query="?sslmode=prefer&connect_timeout=3&application_name=ours&keepalives=1&gssencmode=disable"
    ),
    "another encoding": lambda a: a.url("127.0.0.1", query="?client_encoding=LATIN1"),
    "endless patience": lambda a: a.url("127.0.0.1", query="?connect_timeout=0"),
    "ssl=true's opposite": lambda a: a.url("127.0.0.1", query="?sslmode=disable"),
    "names and values": lambda a: f"host=127.0.0.1 port={a.port} user={a.user} password={a.password} dbname=postgres",
    "names and values in quotes": lambda a: (
        f"host = '127.0.0.1' port='{a.port}' user='{HARD_NAME}' dbname='{HARD_NAME}' "
        "password='p@ss/w:rd?#%20 \\'\\\\+&=;Ø'"
    ),
}


def _expected(address: Address, kind: str) -> tuple[str, str]:
    is_hard = kind in {"hard names", "every character encoded", "names and values in quotes"}
    return (HARD_NAME, HARD_NAME) if is_hard else ("postgres", address.user)


@pytest.mark.parametrize("kind", STRINGS)
def test_a_string_that_psql_accepts_means_the_same_to_both_drivers(address: Address, kind: str) -> None:
    """A URL that a host's panel shows is pasted as it is."""
    url = STRINGS[kind](address)
    checked = Settings.from_environment({"SCENARIO_DATABASE_URL": url, "SCENARIO_DAGSTER_DATABASE_URL": url})
    assert (checked.database_url, checked.dagster_database_url) == (url, url)
    asked = text(
        "SELECT current_database(), current_user::text, current_setting('client_encoding'), "
        "convert_from('\\x4bc3a57269', 'UTF8')"
    )
    ours = database.connect(url)
    dagsters = create_engine(conninfo.psycopg2_url(url))
    found: list[tuple[object, ...] | None] = []
    for engine in (ours, dagsters):
        with engine.connect() as connection:
            found.append(tuple(connection.execute(asked).one()))
        engine.dispose()
    with database.session(url) as session:
        found.append(session.execute(asked.text).fetchone())
    expected = (*_expected(address, kind), "UTF8", "Kåri")
    assert found == [expected] * 3


def test_a_users_options_hold_beside_ours_and_ours_come_last(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option that is dropped is a setting without effect; one that wins could let a policy hide rows."""
    own = "?options=-c%20geqo%3Doff%20-c%20row_security%3Don&application_name=ours"
    settings = text(
        "SELECT current_setting('geqo'), current_setting('row_security'), current_setting('jit'), "
        "current_setting('application_name')"
    )
    found = {}
    for name, url in {
        "of the URL": address.url("127.0.0.1", query=own),
        "of PGOPTIONS": address.url("127.0.0.1"),
    }.items():
        if name == "of PGOPTIONS":
            monkeypatch.setenv("PGOPTIONS", "-c geqo=off -c row_security=on")
        engine = database.connect(url)
        with engine.connect() as connection:
            found[name] = tuple(connection.execute(settings).one())
        engine.dispose()
    assert found == {
        "of the URL": ("off", "off", "off", "ours"),
        "of PGOPTIONS": ("off", "off", "off", "scenario-pipeline"),
    }


def test_a_service_a_password_file_and_libpqs_variables_hold(
    address: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where passwords are kept out of URLs, the URL is hardly more than a name."""
    services, passwords = tmp_path / "services", tmp_path / "passwords"
    services.write_text(
        f"[ours]\nhost=127.0.0.1\nport={address.port}\nuser={address.user}\noptions=-c geqo=off\n", encoding="utf-8"
    )
    passwords.write_text(f"127.0.0.1:{address.port}:*:{address.user}:{address.password}\n", encoding="utf-8")
    passwords.chmod(0o600)
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    url = f"postgresql:///postgres?service=ours&passfile={quote(str(passwords), safe='')}"
    engine, dagsters = database.connect(url), create_engine(conninfo.psycopg2_url(url))
    with engine.connect() as ours, dagsters.connect() as theirs:
        found = [c.execute(text("SELECT current_user, current_setting('geqo')")).one() for c in (ours, theirs)]
    engine.dispose()
    assert found == [(address.user, "off")] * 2
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    monkeypatch.setenv("PGPORT", address.port)
    monkeypatch.setenv("PGUSER", address.user)
    monkeypatch.setenv("PGPASSWORD", address.password)
    with database.session("postgresql:///postgres") as session:
        assert session.execute("SELECT current_user").fetchone() == (address.user,)


def test_the_database_of_dagster_is_made_beside_one_with_a_hard_name(
    address: Address, server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Its address is derived from the scheduler's, whatever that looks like."""
    for url in (_hard(address), STRINGS["names and values in quotes"](address)):
        urls = database.locate(
            Settings.from_environment({"SCENARIO_DATABASE_URL": url, "SCENARIO_HOME": str(tmp_path)})
        )
        parts = conninfo.parts_of(url)
        assert conninfo.parts_of(urls.dagster) == parts | {"dbname": "dagster"}
    parts = conninfo.parts_of(server.url("postgres"))
    database.create_database(conninfo.joined(parts), HARD_NAME + "'s")
    with database.session(conninfo.with_database(server.url("postgres"), HARD_NAME + "'s")) as session:
        assert session.execute("SELECT current_database()").fetchone() == (HARD_NAME + "'s",)


def test_dagsters_storage_connects_by_the_same_strings(
    address: Address, dagster_url: str, scheduler_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its web server makes its connections anew from the URL that the storage keeps."""
    parts = conninfo.parts_of(dagster_url)
    monkeypatch.setenv("SCENARIO_HOME", str(tmp_path))
    monkeypatch.setenv("SCENARIO_DATABASE_URL", scheduler_url)
    for url in (
        conninfo.joined(parts | {"options": "-c geqo=off"}),
        "postgresql:///dagster?" + "&".join(f"{k}={quote(v, safe='')}" for k, v in parts.items() if k != "dbname"),
        f"postgresql://{parts['user']}:{parts['password']}@127.0.0.1:1,127.0.0.1:{parts['port']}/dagster",
    ):
        monkeypatch.setenv("SCENARIO_DAGSTER_DATABASE_URL", url)
        storage = InstanceStorage.from_config_value(None, None)
        storage.event_log_storage.optimize_for_webserver(5_000, 60, 1)
        assert storage.event_log_storage.get_logs_for_run("nobody") == []
        assert storage.run_storage.get_runs(limit=1) is not None
        assert parts["password"] not in repr(make_url(storage.postgres_url))


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("postgresql://kari:s3cret@db/x?pgbouncer=true", "has parameters after the question mark that libpq cannot"),
        ("postgresql://kari:s3 cret@db/x", "has no valid form: "),
        ("postgresql://kari:s3cret%zz@db/x", "has no valid form: "),
        ("postgresql://kari:s3cret%FF@db/x", "has no valid form: "),
        ("postgresql://kari:s3cret%00@db/x", "has no valid form: "),
        ("postgresql://kari:s3cret@[::1/x", "has no valid form: "),
        ("host=db password='s3cret", "has no valid form: "),
        ("host=db nonsense=s3cret", "has no valid form: "),
        ("host=db password=s3cret\udcff", "has no valid form: "),
        ("postgresql://kari:s3/cret@db/x", "has no valid host and port: "),
        ("postgresql://kari:p@s3cret@db/x", "has no valid host and port: "),
        ("postgresql://db:99999/s3cret", "has no valid host and port: "),
        ("postgresql://db:0/s3cret", "has no valid host and port: "),
        ("postgresql://a:1,b:c/s3cret", "has no valid host and port: "),
        ("host=db port=5432.5 password=s3cret", "has no valid host and port: "),
        ("kari", "must begin with postgresql://"),
        ("sqlite:///s3cret?a=b", "must begin with postgresql://"),
        ("POSTGRESQL://kari:s3cret@db/x", "must begin with postgresql://"),
    ],
)
def test_what_psql_does_not_accept_is_one_sentence_without_the_value(value: str, part: str) -> None:
    """The value may be a password that was not encoded, in pieces."""
    with pytest.raises(UserError) as caught:
        Settings.from_environment({"SCENARIO_DATABASE_URL": value})
    assert str(caught.value).startswith(f"SCENARIO_DATABASE_URL {part}")
    assert not any(word in str(caught.value) for word in ("s3", "cret", "kari", "pgbouncer", "nonsense"))
    assert caught.value.exit_status == 2


def test_the_command_line_takes_such_a_string_from_db_upgrade_to_doctor(
    address: Address, server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """One command that reads the string in another way than the others is a dead end after the first success."""
    database.create_database(server.url("postgres"), "as_psql_has_it")
    url = (
        f"postgresql:///as_psql_has_it?host=127.0.0.1,127.0.0.1&port=1,{address.port}&user={address.user}"
        f"&password={address.password}&options=-c%20geqo%3Doff&target_session_attrs=read-write"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SCENARIO_", "PG"))} | {
        "SCENARIO_DATABASE_URL": url,
        "SCENARIO_HOME": str(tmp_path),
        "SCENARIO_DAGSTER_DATABASE_URL": url.replace("as_psql_has_it", "postgres"),
    }

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "scenario_pipeline", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    upgraded, status = command("db", "upgrade"), command("db", "status")
    assert (upgraded.returncode, status.returncode) == (0, 0), upgraded.stderr + status.stderr
    report = json.loads(command("doctor", "--json").stdout)
    wrong = {finding["check"] for finding in report["findings"] if finding["status"] != "ok"}
    assert wrong <= {"durability", "web_server", "roles"}
    assert address.password not in upgraded.stdout + upgraded.stderr + status.stdout + status.stderr + json.dumps(
        report
    )
