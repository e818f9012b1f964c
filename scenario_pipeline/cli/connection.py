"""Opens the scheduler's database for a command.

Belongs here: what most commands do before their own work, and what a person is shown while it takes long.
Does not belong here: where the database is, or its upgrade (`storage.database`, `upgrade`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine

from scenario_pipeline.cli.terminal import announce
from scenario_pipeline.settings import Settings
from scenario_pipeline.storage.database import (
    DatabaseUrls,
    check_schema,
    connect,
    embedded_postgres,
    locate,
    reachable_or_explain,
)
from scenario_pipeline.upgrade import upgrade


def start_embedded(settings: Settings) -> bool:
    """Start the embedded Postgres and return whether this call did; the first time it is created, which takes long."""
    server = embedded_postgres(settings)
    if not server.is_created():
        announce(f"Creating the embedded Postgres in {settings.home}", also_in_a_log=True)
    elif not server.is_running():
        announce("Starting the embedded Postgres")
    return server.start()


def located(settings: Settings) -> DatabaseUrls:
    """Return where the databases are, with the embedded server running if it is the one to use."""
    if settings.database_url is None:
        start_embedded(settings)
    return locate(settings)


@contextmanager
def opened(settings: Settings, *, upgrade_embedded: bool = True, connections: int = 2) -> Iterator[Engine]:
    """Yield a pool on the scheduler's database; the embedded one, which nobody else migrates, is upgraded."""
    urls = located(settings)
    database = connect(urls.scenario, connections=connections)
    try:
        reachable_or_explain(database, "the embedded Postgres" if urls.embedded else "SCENARIO_DATABASE_URL")
        if urls.embedded and upgrade_embedded:
            upgrade(database)
        yield database
    finally:
        database.dispose()


def checked_schema(database: Engine) -> None:
    """Refuse a database whose version does not fit."""
    with database.connect() as connection:
        check_schema(connection)
