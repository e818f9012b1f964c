"""One installation's database, found and brought to this code's version.

Belongs here: what the command line and Dagster's processes do before anything else. Does not belong here: where the
database is, or its migrations (`storage.database`).
"""

from __future__ import annotations

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from scenario_pipeline.engines.statement import replace_functions
from scenario_pipeline.errors import UserError
from scenario_pipeline.scenarios import insert_default_configuration, registry
from scenario_pipeline.settings import Settings
from scenario_pipeline.storage import database, roles


def upgrade(engine: Engine) -> None:
    """Bring the database to this code's version: schema, configuration and functions of each scenario, and grants.

    All of it or nothing, and safe to repeat.

    Raises:
        UserError: the server is too old, or the database is newer than the code.
    """
    with engine.begin() as connection:
        database.upgrade(connection)
        insert_default_configuration(connection, registry().values())
        roles.grant(connection, replace_functions(connection))


def open_database() -> Engine:
    """Return an engine on the scheduler's own database; the embedded one, which nobody else migrates, is upgraded.

    A database that cannot be upgraded or reached is left to whoever uses it: that is where it is reported.

    Raises:
        UserError: a setting cannot work, or the embedded server cannot be started.
    """
    urls = database.locate(Settings.from_environment())
    engine = database.connect(urls.scenario)
    if urls.embedded:
        try:
            with engine.connect() as connection:
                is_current = database.schema_version(connection) == database.code_version()
            if not is_current:
                upgrade(engine)
        except (UserError, SQLAlchemyError):
            pass
    return engine
