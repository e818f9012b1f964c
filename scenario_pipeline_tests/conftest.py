"""Fixtures: one embedded Postgres for the whole test run, a fresh migrated database for each test that asks."""

from __future__ import annotations

import csv
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine

from scenario_pipeline.importer import import_folder
from scenario_pipeline.scenarios import insert_default_configuration, registry
from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres

DATA = Path(__file__).parent / "data"
COMMUNITY = DATA / "community"


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
    """A real Postgres, stopped at the end whatever happened."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("server") / "postgres")
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def template_database(server: EmbeddedPostgres) -> str:
    """The name of a migrated, empty database to copy."""
    name = "template_migrated"
    database.create_database(server.url("postgres"), name)
    engine = database.connect(server.url(name))
    database.upgrade(engine)
    with engine.begin() as connection:
        insert_default_configuration(connection, registry().values())
    engine.dispose()
    return name


def _copy_database(server: EmbeddedPostgres, name: str, template: str) -> None:
    statement = psycopg.sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(statement.format(psycopg.sql.Identifier(name), psycopg.sql.Identifier(template)))


def _own_database(server: EmbeddedPostgres, template: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    _copy_database(server, name, template)
    yield server.url(name)
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(psycopg.sql.Identifier(name)))


@pytest.fixture
def database_url(server: EmbeddedPostgres, template_database: str) -> Iterator[str]:
    """The URL of a migrated, empty database of this test's own."""
    yield from _own_database(server, template_database)


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
    yield from _own_database(server, community_template)


@pytest.fixture(scope="session")
def canaries() -> list[str]:
    """Every name, e-mail address and telephone number of the community: none may ever be seen in an output."""
    with (COMMUNITY / "mentors.csv").open(encoding="utf-8", newline="") as file:
        return [row[field] for row in csv.DictReader(file) for field in ("full_name", "email", "phone") if row[field]]


@pytest.fixture(scope="session")
def dagster_url(server: EmbeddedPostgres) -> str:
    """Dagster's instance storage, shared by all tests that need one: creating its tables takes seconds."""
    database.create_database(server.url("postgres"), "dagster")
    return server.url("dagster")
