"""Brings one installation's database to this code's version.

Belongs here: the steps of an upgrade, and opening the database for a run. Does not belong here: where the database is,
or its migrations (`storage.database`).
"""

from __future__ import annotations

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from scenario_pipeline.engines.functions import replace_functions
from scenario_pipeline.errors import UserError
from scenario_pipeline.scenarios import insert_default_configuration, registry
from scenario_pipeline.settings import Settings
from scenario_pipeline.storage.database import code_version, connect, locate, schema_version, upgrade_schema
from scenario_pipeline.storage.roles import grant


def upgrade(database: Engine) -> None:
    """Upgrade the database to this code's version: schema, grants, and each scenario's configuration and function.

    It happens completely or not at all, and is safe to repeat.

    Raises:
        UserError: the server is too old, or the database is newer than the code.
    """
    with database.begin() as connection:
        upgrade_schema(connection)
        insert_default_configuration(connection, registry().values())
        grant(connection, replace_functions(connection))


def open_database(settings: Settings) -> Engine:
    """Return a pool of connections to the scheduler's own database, upgraded first if it is the embedded one.

    If the database cannot be upgraded or reached, the code that uses it reports that.

    Raises:
        UserError: a setting cannot work, or the embedded server cannot be started.
    """
    urls = locate(settings)
    database = connect(urls.scenario)
    if urls.embedded:
        try:
            with database.connect() as connection:
                is_current = schema_version(connection) == code_version()
            if not is_current:
                upgrade(database)
        except (UserError, SQLAlchemyError):
            pass
    return database
