"""`scenario-pipeline db`: the scheduler's database.

Belongs here: its commands. Does not belong here: migrations (`storage.database`) or the embedded server's life
(`storage.embedded`).
"""

from __future__ import annotations

import json

import click

from scenario_pipeline.cli.terminal import EXIT_FAILED, echo, one_sentence, stop
from scenario_pipeline.settings import Settings


@click.group()
def db() -> None:
    """Manage the scheduler's database."""


@db.command("upgrade")
@one_sentence
def db_upgrade() -> None:
    """Create the schema, or upgrade it to this version of the code."""
    from scenario_pipeline.cli.connection import opened
    from scenario_pipeline.storage.database import code_version
    from scenario_pipeline.upgrade import upgrade

    with opened(Settings.from_environment(), upgrade_embedded=False) as database:
        upgrade(database)
    echo(f"The schema has version {code_version()}.")


@db.command("status")
@one_sentence
def db_status() -> None:
    """Print the version of the schema as JSON.

    Exit status: 0 if it fits the code, else 1.
    """
    from scenario_pipeline.cli.connection import opened
    from scenario_pipeline.storage.database import code_version, mismatch, schema_version

    with (
        opened(Settings.from_environment(), upgrade_embedded=False) as database,
        database.connect() as connection,
    ):
        current = schema_version(connection)
    expected = code_version()
    click.echo(json.dumps({"schema_version": current, "code_version": expected, "fits": current == expected}))
    if current != expected:
        stop(f"{mismatch(current).capitalize()}.", EXIT_FAILED)


@db.command("url")
@one_sentence
def db_url() -> None:
    """Print the URL of the scheduler's database, with its password, for psql and other tools."""
    from scenario_pipeline.cli.connection import located
    from scenario_pipeline.storage.embedded import CLIENT_PARAMETERS

    urls = located(Settings.from_environment())
    # The user's own client keeps the variables of the shell.
    click.echo(f"{urls.scenario}?{CLIENT_PARAMETERS}" if urls.embedded else urls.scenario)


@db.command("stop")
@one_sentence
def db_stop() -> None:
    """Stop the embedded Postgres of this SCENARIO_HOME."""
    from scenario_pipeline.storage.database import embedded_postgres

    stopped = embedded_postgres(Settings.from_environment()).stop()
    echo("The embedded Postgres was stopped." if stopped else "The embedded Postgres was not running.")
