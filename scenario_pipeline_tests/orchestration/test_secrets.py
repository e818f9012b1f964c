"""Secrets: planted as canaries, and looked for in everything that runs leave behind."""

from __future__ import annotations

import json
import secrets as random_secrets
import socket
import subprocess
import sys
import traceback
import uuid
import zlib
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from scenario_pipeline.cli import main
from scenario_pipeline.defs.instance.home import load_instance
from scenario_pipeline.engines.http.client import RemoteOptions
from scenario_pipeline.engines.http.engine import HttpTriggerEngine
from scenario_pipeline.errors import UserError
from scenario_pipeline.settings import Settings
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.support.canaries import (
    Canary,
    Found,
    files_below,
    leaks,
    process_titles,
    sessions_of,
    tables_of,
)
from scenario_pipeline_tests.support.installation import Installation
from scenario_pipeline_tests.support.invariants import sent
from scenario_pipeline_tests.support.people import DAY, D, Mentor, insert_mentors, insert_organisation, mentor_id
from scenario_pipeline_tests.support.runs import Log, make_request, run_invocation
from scenario_pipeline_tests.support.scripted_server import Asked, ScriptedServer, send
from scenario_pipeline_tests.support.server import copied_database
from scenario_pipeline_tests.support.waiting import wait_until_blocked


def a_canary(name: str, signs: str) -> Canary:
    """Return a secret that nothing else on this machine looks like, with signs around it."""
    core = "kanari" + random_secrets.token_hex(8)
    return Canary(name, f"{signs}{core}{signs[::-1]}", core)


SIGNS = "p+ a%2/b@:#?&='\"\\"
SCHEDULERS = a_canary("the scheduler's database password", SIGNS)
DAGSTERS = a_canary("the password of Dagster's database", SIGNS)
WRONG = a_canary("a password that is refused", SIGNS)
TOKEN = a_canary("the engine's token", "t-o.k_e~n+/=")
CANARIES = (SCHEDULERS, DAGSTERS, WRONG, TOKEN)


class Secretive(Installation):
    """An installation whose every secret is a canary."""

    def __init__(self, url: str, dagster_url: str, home: Path) -> None:
        super().__init__(url, dagster_url, home)
        self.address, self.name = url.split("@")[1].split("/")
        self.dagster_name = dagster_url.rsplit("/", 1)[1]
        self.run_url = self.url_of("secret_scheduler", SCHEDULERS, self.name)
        self.dagster_url = self.url_of("secret_dagster", DAGSTERS, self.dagster_name)
        self.more: dict[str, str] = {"SCENARIO_ENGINE_TOKEN": TOKEN.value}
        self.streams: dict[str, bytes] = {}

    def url_of(self, role: str, password: Canary, name: str) -> str:
        return f"postgresql://{role}:{password.encoded}@{self.address}/{name}"

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | self.more

    @contextmanager
    def set(self, **changed: str) -> Iterator[None]:
        """Change variables of the commands meanwhile."""
        before, self.more = self.more, self.more | changed
        yield
        self.more = before

    def end(self, name: str, process: subprocess.Popen[str], status: int) -> str:
        """Wait for a command, keep both of its streams, and return the first."""
        with process:
            stdout, stderr = process.communicate(timeout=120)
        self.streams |= {f"stdout of {name}": stdout.encode(), f"stderr of {name}": stderr.encode()}
        assert process.returncode == status, stderr
        return stdout


RUN = ("run", "--date", D.isoformat(), "--dispatch-mode", "live")


def echo(status: int) -> Any:
    """Answer every request with its own token, in every place where an answer can hold text."""

    def script(asked: Asked, connection: socket.socket) -> None:
        told = asked.headers["authorization"]
        words = f"the token {told} ({b64encode(told.encode()).decode()}) of {told.removeprefix('Bearer ')} is not known"
        body = {"error": {"error_type": "evaluation_logic_error", "error_message": words}, "token": told}
        send(connection, json.dumps(body).encode(), status=status, WWW_Authenticate=f'Bearer error="{told}"')

    return script


@pytest.fixture(scope="module")
def installation(
    server: EmbeddedPostgres, template_database: str, dagster_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Secretive]:
    """Roles with canaries for passwords, and three mentors who are due."""
    with ExitStack() as stack:
        url = stack.enter_context(copied_database(server, f"secrets_{uuid.uuid4().hex}", template_database))
        administrator = stack.enter_context(psycopg.connect(server.url("postgres"), autocommit=True))
        for role, canary in (("secret_scheduler", SCHEDULERS), ("secret_dagster", DAGSTERS)):
            password = psycopg.sql.Literal(canary.value).as_string(administrator)
            rights = "BYPASSRLS IN ROLE scenario_scheduler"
            administrator.execute(f"CREATE ROLE {role} LOGIN PASSWORD {password} {rights}".encode())
            stack.callback(administrator.execute, f"DROP ROLE {role}".encode())
        # The server shows the last statement of a session.
        administrator.execute("SELECT 1")
        dagster = server.url(dagster_url.rsplit("/", 1)[1])
        tables = stack.enter_context(psycopg.connect(dagster, autocommit=True))
        stack.callback(tables.execute, "REASSIGN OWNED BY secret_dagster TO scenario_scheduler")
        installation = Secretive(url, dagster, tmp_path_factory.mktemp("secrets") / "home")
        stack.callback(installation.engine.dispose)
        with installation.engine.begin() as connection:
            insert_organisation(connection)
            insert_mentors(connection, [Mentor(n, activities=[D - 30 * DAY]) for n in (1, 2, 3)])
        yield installation


@pytest.fixture(scope="module")
def left_behind(installation: Secretive, server: EmbeddedPostgres) -> dict[str, Found]:
    """What is found, place by place, after runs that went well and runs that failed in every way."""
    found = run_through_the_engine(installation)
    let_fail(installation)
    be_refused_by_engines(installation)
    assert len(sent(installation.engine)) == 3
    return found | {
        "streams": installation.streams,
        "files": files_below(installation.home),
        "scenario tables": tables_of(installation.url),
        "dagster tables": tables_of(server.url(installation.dagster_name)),
    }


def run_through_the_engine(installation: Secretive) -> dict[str, Found]:
    """Run over the project's own engine, and look at processes and sessions during the page."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    engine = installation.start("engine", "--port", str(port))
    with installation.set(SCENARIO_ENGINE="http", SCENARIO_ENGINE_URL=f"http://127.0.0.1:{port}"):
        assert engine.stderr is not None
        assert "is served at" in engine.stderr.readline()
        with installation.block_notifications_of(mentor_id(2)):
            run = installation.start(*RUN)
            wait_until_blocked(installation.engine)
            in_hand = {"process titles": process_titles(), "sessions": sessions_of(installation.url)}
        assert '"total_dispatched":3' in installation.end("a run over http", run, 0)
        engine.terminate()
        assert "trigger_engine_answered" in installation.end("the engine", engine, 0)
    titles = b"".join(in_hand["process titles"].values())
    assert b"scenario_pipeline\0run\0" in titles
    assert b"scenario_pipeline\0engine\0" in titles
    assert b"secret_scheduler scenario-pipeline" in b"".join(in_hand["sessions"].values())
    return in_hand


def let_fail(installation: Secretive) -> None:
    """Let runs fail for every secret that they use."""
    refused = installation.url_of("secret_scheduler", WRONG, installation.name)
    refused_by_dagster = installation.url_of("secret_dagster", WRONG, installation.dagster_name)
    with ScriptedServer(echo(401)) as engine:
        runs = {
            "a run with a refused password": ({"SCENARIO_DATABASE_URL": refused}, 1),
            "a run that Dagster's database refuses": ({"SCENARIO_DAGSTER_DATABASE_URL": refused_by_dagster}, 0),
            "a run that its engine refuses": ({"SCENARIO_ENGINE": "http", "SCENARIO_ENGINE_URL": engine.url}, 1),
        }
        started = []
        for name, (changed, status) in runs.items():
            with installation.set(**changed):
                started.append((name, installation.start(*RUN), status))
        told = {name: installation.end(name, process, status) for name, process, status in started}
    assert "answered with HTTP status 401" in told["a run that its engine refuses"]
    assert b"will not be seen in the web UI" in installation.streams["stderr of a run that Dagster's database refuses"]


def be_refused_by_engines(installation: Secretive) -> None:
    """Let engines send the token back with answers that make a retry, and an error of each mentor."""
    for status in (422, 500):
        log = Log()
        with ScriptedServer(echo(status)) as server:
            options = RemoteOptions(server.url, TOKEN.value, concurrency=1, chunk_size=1, backoff_seconds=0.01)
            http = HttpTriggerEngine(installation.engine, options)
            run_invocation(installation.engine, make_request(D + DAY), log=log, trigger_engine=http)
            http.close()
        assert [entry["event"] for entry in log.entries].count("mentor_evaluation_error") == 3
        installation.streams[f"events of a run whose engine answers {status}"] = b"".join(log.lines)


PLACES = ("streams", "files", "scenario tables", "dagster tables", "process titles", "sessions")


@pytest.mark.parametrize("place", PLACES)
def test_no_secret_is_left_behind(left_behind: dict[str, Found], place: str) -> None:
    """A password in a log is a password in every backup and search index of that log."""
    assert any(left_behind[place].values())
    assert leaks(left_behind[place], CANARIES) == []


# libpq and Python's own parser quote from what they refuse.
MALFORMED = {
    "percent sign": f"postgresql://somebody:%zz{SCHEDULERS.core}@127.0.0.1:1/scenario",
    "host": f"postgresql://somebody:pass@{SCHEDULERS.core}:{SCHEDULERS.core}/scenario",
    "bracket": f"postgresql://somebody:[{SCHEDULERS.core}@127.0.0.1:1/scenario",
    "name of an option": f"postgresql://somebody@127.0.0.1:1/scenario?{SCHEDULERS.core}={SCHEDULERS.core}",
    "values of options": f"postgresql://somebody@127.0.0.1:1/scenario?password={SCHEDULERS.encoded}&sslmode={SCHEDULERS.core}",
    "compatibility character": f"postgresql://somebody:{SCHEDULERS.core}\u2100@127.0.0.1:1/scenario",
}
# The secrets are of this process: under their own names, all workers would collect other tests.
malformed = pytest.mark.parametrize("url", MALFORMED.values(), ids=MALFORMED)


@malformed
@pytest.mark.parametrize("command", [("db", "status"), ("db", "upgrade"), ("doctor",)])
def test_a_url_that_nobody_can_read_is_not_quoted(
    url: str, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A typing mistake in a password is nearly the password."""
    monkeypatch.setenv("SCENARIO_HOME", str(tmp_path))
    monkeypatch.setenv("SCENARIO_DATABASE_URL", url)
    done = CliRunner().invoke(main, command)
    assert done.exit_code in (1, 2)
    told = f"{done.stdout}\n{done.stderr}\n{''.join(traceback.format_exception(done.exception))}"
    assert leaks({"what was told": told.encode()}, CANARIES) == []


@malformed
def test_an_instance_that_cannot_be_loaded_tells_dagsters_processes_no_secret(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Dagster prints and stores the text of every exception behind the one that it sees."""
    monkeypatch.setenv("SCENARIO_HOME", str(tmp_path))
    monkeypatch.setenv("SCENARIO_DATABASE_URL", "postgresql://somebody@127.0.0.1:1/scenario")
    monkeypatch.setenv("SCENARIO_DAGSTER_DATABASE_URL", url)
    with pytest.raises(UserError) as raised:
        load_instance(Settings.from_environment())
    assert leaks({"the traceback": "".join(traceback.format_exception(raised.value)).encode()}, CANARIES) == []


# Whether each search can find anything


def planted_in_files(installation: Secretive, value: str) -> Found:
    path = installation.home / "planted" / "compute.out"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'{{"error_message":"{value}"}}\n')
    try:
        return files_below(installation.home)
    finally:
        path.unlink()


def planted_in_tables(installation: Secretive, value: str) -> Found:
    with psycopg.connect(installation.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE planted (plain text, document jsonb, compressed bytea)")
        compressed = zlib.compress(json.dumps({"nothing": value}).encode())
        connection.execute("INSERT INTO planted (compressed) VALUES (%s)", [compressed])
        try:
            return tables_of(installation.url)
        finally:
            connection.execute("DROP TABLE planted")


def planted_in_a_title(installation: Secretive, value: str) -> Found:
    command = [sys.executable, "-c", "print(flush=True); input()", value]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            return process_titles()
        finally:
            process.communicate(b"\n")


def planted_in_a_session(installation: Secretive, value: str) -> Found:
    with psycopg.connect(installation.url, autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("SELECT {}").format(psycopg.sql.Literal(value)))
        return sessions_of(installation.url)


@pytest.mark.parametrize(
    "planted", [planted_in_files, planted_in_tables, planted_in_a_title, planted_in_a_session], ids=lambda p: p.__name__
)
def test_a_secret_that_is_left_behind_is_found(
    installation: Secretive, planted: Callable[[Secretive, str], Found]
) -> None:
    """A search that cannot fail would prove nothing: raw, as a URL holds it, in base64, escaped, in capitals."""
    canary = a_canary("a planted secret", SIGNS)
    url = f"postgresql://role:{canary.encoded}@host/database"
    for value in (
        canary.value,
        canary.encoded,
        url,
        b64encode(canary.value.encode()).decode(),
        urlsafe_b64encode(f"role:{canary.value}".encode()).decode(),
        b64encode(url.encode()).decode(),
        repr(canary.value),
        canary.core.upper(),
        canary.value.encode().hex(),
    ):
        [found] = {sentence.split(" in ")[0] for sentence in leaks(planted(installation, value), [canary])}
        assert found == canary.name
    assert leaks(planted(installation, "nothing"), [canary]) == []
