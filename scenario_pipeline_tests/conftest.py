"""Fixtures: one embedded Postgres for the whole test run, a fresh migrated database for each test that asks."""

from __future__ import annotations

import csv
import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest
from dagster import DagsterInstance, DagsterRunStatus, ExecuteInProcessResult
from sqlalchemy import Engine, make_url, text

from scenario_pipeline.definitions import defs
from scenario_pipeline.defs.job import JOB_NAME
from scenario_pipeline.engines.service.app import CONNECTIONS, EngineService
from scenario_pipeline.engines.service.connections import make_server
from scenario_pipeline.loading.merge import import_folder
from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline.upgrade import upgrade
from scenario_pipeline_tests import world
from scenario_pipeline_tests.world import Log

DATA = Path(__file__).parent / "data"
COMMUNITY = DATA / "community"
TOKEN = "t0ken-of-the-tests"


@pytest.fixture(autouse=True, scope="session")
def _no_settings_from_outside() -> Iterator[None]:
    """A developer's own variables must not decide what the tests see."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("SCENARIO_", "DAGSTER_")):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A real Postgres, stopped at the end whatever happened.

    It does without fsync, which is most of what the copies of a template cost: nothing here outlives a power failure.
    Tests that crash a server have one of their own.
    """
    server = EmbeddedPostgres(tmp_path_factory.mktemp("server") / "postgres")
    server.start()
    try:
        set_fsync(server, on=False)
        yield server
    finally:
        server.stop()


def set_fsync(server: EmbeddedPostgres, *, on: bool) -> None:
    """Let a server that runs wait for its disk, or not."""
    value = "on" if on else "off"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"ALTER SYSTEM SET fsync = {value}")
        connection.execute("SELECT pg_reload_conf()")
        world.wait_until(lambda: connection.execute("SHOW fsync").fetchone() == (value,), f"fsync is {value}")


@pytest.fixture(scope="session")
def template_database(server: EmbeddedPostgres) -> str:
    """The name of a migrated, empty database to copy."""
    name = "template_migrated"
    database.create_database(server.url("postgres"), name)
    engine = database.connect(server.url(name))
    upgrade(engine)
    let_schedulers_in(engine)
    engine.dispose()
    return name


def _copy_database(server: EmbeddedPostgres, name: str, template: str) -> None:
    statement = psycopg.sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(statement.format(psycopg.sql.Identifier(name), psycopg.sql.Identifier(template)))


@contextmanager
def copied_database(server: EmbeddedPostgres, name: str, template: str) -> Iterator[str]:
    """Yield the URL of a copy of `template`, dropped afterwards."""
    _copy_database(server, name, template)
    yield server.url(name)
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(psycopg.sql.Identifier(name)))


def own_database(server: EmbeddedPostgres, template: str) -> Iterator[str]:
    """Yield the URL of a copy of `template`, dropped afterwards."""
    with copied_database(server, f"test_{uuid.uuid4().hex}", template) as url:
        yield url


@pytest.fixture
def database_url(server: EmbeddedPostgres, template_database: str) -> Iterator[str]:
    """The URL of a migrated, empty database of this test's own."""
    yield from own_database(server, template_database)


# The two ways in which a scheduler sees all rows: past row-level security, or through functions of the owner.
SCHEDULERS = {"bypassrls": "scenario_scheduler", "functions": "held_back"}
SCHEDULER_PASSWORD = "pa55word-of-the-scheduler"


def let_schedulers_in(engine: Engine) -> None:
    """Let the roles of `SCHEDULERS` log in, once on a server."""
    with engine.begin() as connection:
        for statement in (
            f"ALTER ROLE scenario_scheduler LOGIN PASSWORD '{SCHEDULER_PASSWORD}'",
            f"CREATE ROLE held_back LOGIN PASSWORD '{SCHEDULER_PASSWORD}' IN ROLE scenario_scheduler",
        ):
            connection.execute(text(statement))


def as_scheduler(url: str, way: str = "bypassrls") -> str:
    """Return the URL of a database for a role that may do what the scheduler may, and nothing else."""
    address = make_url(url).set(username=SCHEDULERS[way], password=SCHEDULER_PASSWORD)
    return address.render_as_string(hide_password=False)


@pytest.fixture
def scheduler_url(database_url: str) -> str:
    """What the pipeline connects with: this test's own database, as the scheduler's role."""
    return as_scheduler(database_url)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on a migrated, empty database of this test's own."""
    engine = database.connect(database_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def community_template(server: EmbeddedPostgres, template_database: str) -> str:
    """The name of a database with the real-shaped community in it, to copy."""
    name = "template_community"
    _copy_database(server, name, template_database)
    engine = database.connect(server.url(name))
    import_folder(engine, COMMUNITY)
    engine.dispose()
    return name


@pytest.fixture
def community_url(server: EmbeddedPostgres, community_template: str) -> Iterator[str]:
    """The URL of a database of this test's own with the community in it."""
    yield from own_database(server, community_template)


@pytest.fixture(scope="session")
def canaries() -> list[str]:
    """Every name, e-mail address and telephone number of the community: none may ever be seen in an output."""
    with (COMMUNITY / "mentors.csv").open(encoding="utf-8", newline="") as file:
        return [row[field] for row in csv.DictReader(file) for field in ("full_name", "email", "phone") if row[field]]


@pytest.fixture(scope="session")
def dagster_url(server: EmbeddedPostgres, template_database: str) -> str:
    """Dagster's instance storage, shared by all tests that need one: creating its tables takes seconds.

    It belongs to the scheduler, since Dagster makes its own tables.
    """
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE dagster OWNER scenario_scheduler")
    return as_scheduler(server.url("dagster"))


class JobRun:
    """What one run of the job left behind."""

    def __init__(self, result: ExecuteInProcessResult, instance: DagsterInstance, stdout: str, stderr: str) -> None:
        self.result, self.instance, self.stdout, self.stderr = result, instance, stdout, stderr

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.split("\n") if line]

    @property
    def names(self) -> list[str]:
        return [entry["event"] for entry in self.entries]

    def entry(self, event: str) -> dict[str, Any]:
        [found] = [entry for entry in self.entries if entry["event"] == event]
        return found

    @property
    def tags(self) -> dict[str, str]:
        run = self.instance.get_run_by_id(self.result.run_id)
        assert run is not None
        return dict(run.tags)

    @property
    def status(self) -> DagsterRunStatus:
        run = self.instance.get_run_by_id(self.result.run_id)
        assert run is not None
        return run.status

    def everything_dagster_keeps(self) -> str:
        return "\n".join(str(record) for record in self.instance.all_logs(self.result.run_id))


RunJob = Callable[..., JobRun]


@pytest.fixture
def run_job(
    scheduler_url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[RunJob]:
    """Runs the job over this test's own database and returns what it printed and recorded."""
    monkeypatch.setenv("SCENARIO_DATABASE_URL", scheduler_url)
    monkeypatch.setenv("SCENARIO_HOME", str(tmp_path))
    with DagsterInstance.ephemeral() as instance:

        def run(*, partition: date | None = None, tags: dict[str, str] | None = None, **config: Any) -> JobRun:
            capfd.readouterr()
            result = defs.resolve_job_def(JOB_NAME).execute_in_process(
                instance=instance,
                run_config={"ops": {"fetch_active_mentors": {"config": config}}},
                partition_key=None if partition is None else partition.isoformat(),
                tags=tags,
                raise_on_error=False,
            )
            captured = capfd.readouterr()
            return JobRun(result, instance, captured.out, captured.err)

        yield run


@contextmanager
def serving(engine_service: EngineService) -> Iterator[str]:
    """Serve on a free port of this machine; yield the base URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = make_server(engine_service)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        world.wait_until(lambda: server.started, "the service answers")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


@pytest.fixture
def engine_log() -> Log:
    return Log()


@pytest.fixture
def served(scheduler_url: str, engine_log: Log) -> Iterator[str]:
    """The base URL of a service on this test's own database."""
    pool = database.connect(scheduler_url, connections=CONNECTIONS)
    with serving(EngineService(pool, TOKEN, engine_log.logger(""))) as url:
        yield url
    pool.dispose()
