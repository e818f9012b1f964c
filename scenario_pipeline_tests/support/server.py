"""Databases on the tests' own server, and the roles that may use them.

Belongs here: copying a template, letting the schedulers in, settings of the server. Does not belong here: starting it
(`conftest`).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy import Engine, make_url, text

from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.support.waiting import wait_until


def set_fsync(server: EmbeddedPostgres, *, on: bool) -> None:
    """Let a server that runs wait for its disk, or not."""
    value = "on" if on else "off"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"ALTER SYSTEM SET fsync = {value}")
        connection.execute("SELECT pg_reload_conf()")
        wait_until(lambda: connection.execute("SHOW fsync").fetchone() == (value,), f"fsync is {value}")


def copy_database(server: EmbeddedPostgres, name: str, template: str) -> None:
    statement = psycopg.sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(statement.format(psycopg.sql.Identifier(name), psycopg.sql.Identifier(template)))


@contextmanager
def copied_database(server: EmbeddedPostgres, name: str, template: str) -> Iterator[str]:
    """Yield the URL of a copy of `template`, dropped afterwards."""
    copy_database(server, name, template)
    yield server.url(name)
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(psycopg.sql.Identifier(name)))


def own_database(server: EmbeddedPostgres, template: str) -> Iterator[str]:
    """Yield the URL of a copy of `template`, dropped afterwards."""
    with copied_database(server, f"test_{uuid.uuid4().hex}", template) as url:
        yield url


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
