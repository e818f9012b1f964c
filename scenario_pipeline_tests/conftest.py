"""Fixtures: one embedded Postgres for each worker, a fresh migrated database for each test that asks."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine
from xdist.scheduler import LoadFileScheduling

from scenario_pipeline.engines.service.app import CONNECTIONS, EngineService
from scenario_pipeline.loading.merge import import_folder
from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline.upgrade import upgrade
from scenario_pipeline_tests.support.project import COMMUNITY
from scenario_pipeline_tests.support.runs import Log
from scenario_pipeline_tests.support.server import (
    as_scheduler,
    copy_database,
    let_schedulers_in,
    own_database,
    set_fsync,
)
from scenario_pipeline_tests.support.service import TOKEN, serving

# A worker has a Postgres server: more of them than this take more memory than they save time.
MAX_WORKERS = 4


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Use the machine's cores for whole folders; what is marked otherwise measures time, or needs the machine."""
    is_marked = config.option.markexpr in ("system", "faults")
    is_small = not any(Path(argument).is_dir() for argument in config.args)
    return 0 if is_marked or is_small else min(os.cpu_count() or 1, MAX_WORKERS)


class ByFile(LoadFileScheduling):  # type: ignore[misc]
    """A file stays on one worker; so does everything about `doctor`, which looks at all processes of the machine."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "doctor" if "/doctor/" in file else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


@pytest.fixture(autouse=True, scope="session")
def _no_settings_from_outside() -> Iterator[None]:
    """A developer's own variables must not decide what the tests see."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("SCENARIO_", "DAGSTER_", "PG")):
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


@pytest.fixture
def database_url(server: EmbeddedPostgres, template_database: str) -> Iterator[str]:
    """The URL of a migrated, empty database of this test's own."""
    yield from own_database(server, template_database)


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
    copy_database(server, name, template_database)
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
