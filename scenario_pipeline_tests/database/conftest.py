"""Fixtures: a database whose tests roll back, and a folder that imports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, Engine

from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.support.csv_folders import GOOD, write
from scenario_pipeline_tests.support.people import insert_organisation


@pytest.fixture(scope="module")
def untouched(server: EmbeddedPostgres, template_database: str) -> Iterator[Engine]:
    """One database for all tests that roll back: making and dropping one costs more than a test."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE test_scenarios TEMPLATE {template_database}".encode())
        engine = database.connect(server.url("test_scenarios"))
        yield engine
        engine.dispose()
        connection.execute("DROP DATABASE test_scenarios WITH (FORCE)")


@pytest.fixture
def world(untouched: Engine) -> Iterator[Connection]:
    """A connection in a transaction that is never committed, on a world with one organisation."""
    with untouched.connect() as connection, connection.begin() as transaction:
        insert_organisation(connection)
        yield connection
        transaction.rollback()


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A folder that imports."""
    return write(tmp_path / "import", GOOD)
