"""Where the databases are, how to connect to them, and which version they have.

Belongs here: URLs, connection pools, migrations, the version check. Does not belong here: what is read or written.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from scenario_pipeline import conninfo
from scenario_pipeline.errors import ErrorInfo, ErrorType, NoConnectionError, SystemicError, UserError, classify
from scenario_pipeline.settings import Settings
from scenario_pipeline.storage import refusals, roles
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline.storage.tables import SCHEMA

OLDEST_SERVER = 15
# Serialises migrations of one database, since two commands often start together on the first day.
_MIGRATION_LOCK = 0x5CE9A810
# How long an upgrade waits for a table that other sessions use.
UPGRADE_LOCK_SECONDS = 10
UPGRADE_COMMAND = "scenario-pipeline db upgrade"
# This encoding checks nothing that is written: letters from another client would come back as unreadable bytes.
NO_ENCODING = "SQL_ASCII"
WRONG_ENCODING = "the encoding of the database is SQL_ASCII, which checks no letters"
ENCODING_REMEDY = "CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"

# JIT never pays off for statements of milliseconds. row_security=off raises an error where a policy would hide rows.
# The code compares names as Postgres writes them without quotes.
_SESSION_OPTIONS = "-c jit=off -c timezone=UTC -c datestyle=ISO -c row_security=off -c quote_all_identifiers=off"
# How long an attempt to connect may take if the connection string sets no limit.
DATABASE_CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class DatabaseUrls:
    """The two databases of one installation, as connection strings that include the password."""

    scenario: str = field(repr=False)
    dagster: str = field(repr=False)
    embedded: bool


def embedded_postgres(settings: Settings) -> EmbeddedPostgres:
    """Return the embedded server of this `SCENARIO_HOME`, running or not."""
    return EmbeddedPostgres(settings.home / "postgres")


def locate(settings: Settings, *, start: bool = True) -> DatabaseUrls:
    """Return where both databases are.

    Args:
        settings: the settings of this installation.
        start: whether to start the embedded server if it is the one to use, and create its databases.

    Raises:
        UserError: the embedded server cannot be started, or does not run although `start` is False.
    """
    if settings.database_url is not None:
        dagster = settings.dagster_database_url or conninfo.with_database(settings.database_url, "dagster")
        return DatabaseUrls(settings.database_url, dagster, embedded=False)
    server = embedded_postgres(settings)
    if start:
        server.start()
        for database in ("scenario", "dagster"):
            create_database(server.url("postgres"), database)
    dagster = settings.dagster_database_url or server.url("dagster")
    return DatabaseUrls(server.url("scenario"), dagster, embedded=True)


def create_database(server_url: str, database: str) -> None:
    """Create `database` on the server of `server_url` unless it exists; many processes may do so at once.

    Raises:
        psycopg.Error: the connection failed (`NoConnectionError`), or the role may not create databases.
    """
    with session(server_url, autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database]).fetchone():
            return
        try:
            connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(database)))
        except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
            return  # another process was first; either error can result


def session(url: str, *, autocommit: bool = False) -> psycopg.Connection[tuple[Any, ...]]:
    """Return a single connection, for statements that run before there is a pool.

    Args:
        url: a connection string as libpq reads it.
        autocommit: whether each statement is a transaction of its own.

    Raises:
        NoConnectionError: the connection failed; the error says why.
    """
    parameters = {"connect_timeout": str(int(DATABASE_CONNECT_SECONDS))} | conninfo.parts_of(url)
    parameters["client_encoding"] = conninfo.ENCODING
    try:
        return psycopg.connect(conninfo.joined(parameters), autocommit=autocommit)
    except (psycopg.Error, UnicodeError) as exc:
        failure = refusals.explained(exc, url)
    # Outside the handler, so that no text from the driver is attached as context.
    raise failure


def connect(url: str, *, connect_timeout_seconds: float = DATABASE_CONNECT_SECONDS, connections: int = 2) -> Engine:
    """Return a connection pool for the scheduler's own database; nothing is connected yet.

    A failed connection is raised later as an SQLAlchemy error that wraps a `NoConnectionError`.

    Args:
        url: a connection string as libpq reads it, a `postgresql://` URL or pairs of names and values.
        connect_timeout_seconds: limit for one connection attempt if the string names none; libpq takes whole seconds,
            at least 2.
        connections: how many connections may be open at once.

    Raises:
        UserError: libpq cannot read the string.
    """
    usual = {
        "fallback_application_name": "scenario-pipeline",
        "connect_timeout": str(max(2, int(connect_timeout_seconds))),
        # These detect a peer that vanished silently while a statement waits for its reply.
        "keepalives_idle": "5",
        "keepalives_interval": "5",
        "keepalives_count": "3",
        "tcp_user_timeout": "15000",
    }
    needed = {
        # The last option wins, so that no option from the user can let a policy hide rows.
        "options": f"{conninfo.options_of(url)} {_SESSION_OPTIONS}".strip(),
        "client_encoding": conninfo.ENCODING,
    }
    parameters = usual | conninfo.parts_of(url) | needed
    database = create_engine(
        conninfo.shown_url(url),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=connect_timeout_seconds,
        # A generic plan does not know the size of a page and chooses a full scan. Behind a pooler, a prepared statement
        # may be missing.
        connect_args={**parameters, "prepare_threshold": None},
    )

    def connect_or_explain(dialect: Any, _record: Any, arguments: Any, all_parameters: Any) -> Any:
        try:
            return dialect.connect(*arguments, **all_parameters)
        except (psycopg.Error, UnicodeError) as exc:
            failure = refusals.explained(exc, conninfo.joined(parameters))
        raise failure

    event.listen(database, "do_connect", connect_or_explain)
    return database


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


@cache
def code_version() -> str:
    """Return the newest schema version that this code knows."""
    head = ScriptDirectory.from_config(_alembic_config()).get_current_head()
    if head is None:
        raise RuntimeError("the package holds no migration")
    return head


def schema_version(connection: Connection) -> str | None:
    """Return the version of the schema in this database, or None if it was never created."""
    context = MigrationContext.configure(connection, opts={"version_table_schema": SCHEMA})
    return context.get_current_revision()


def upgrade_schema(connection: Connection) -> None:
    """Create or upgrade the schema, and create missing roles if the current role may.

    From then until the end of the transaction, the connection acts as the owner of the schema.

    Args:
        connection: inside a transaction, which the caller commits.

    Raises:
        UserError: the server is too old, or the database is newer than the code.
    """
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    # A session that waits for a table also holds up every session queued behind it.
    connection.execute(text(f"SET LOCAL lock_timeout = '{UPGRADE_LOCK_SECONDS}s'"))
    major = server_major(connection)
    if major < OLDEST_SERVER:
        raise UserError(f"The server is PostgreSQL {major}; version {OLDEST_SERVER} or newer is needed.", exit_status=1)
    if server_encoding(connection) == NO_ENCODING:
        raise UserError(f"{WRONG_ENCODING[0].upper()}{WRONG_ENCODING[1:]}: {ENCODING_REMEDY}.", exit_status=1)
    config = _alembic_config()
    current = schema_version(connection)
    if _is_newer(current):
        raise UserError(f"{mismatch(current).capitalize()}.", exit_status=1)
    is_complete = current == code_version() and len(roles.existing_roles(connection)) == len(roles.ROLES)
    if not is_complete and roles.may_create_roles(connection):
        roles.create_roles(connection)
    # Checked first: a role that may not create a schema may not run CREATE SCHEMA IF NOT EXISTS either.
    if connection.execute(text("SELECT to_regnamespace(:schema)"), {"schema": SCHEMA}).scalar_one() is None:
        connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
    roles.become_owner(connection)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def server_major(connection: Connection) -> int:
    """Return the major version of the server."""
    return int(connection.execute(text("SHOW server_version_num")).scalar_one()) // 10_000


def server_encoding(connection: Connection) -> str:
    """Return the encoding of the database, under its Postgres name."""
    return str(connection.execute(text("SHOW server_encoding")).scalar_one())


def _is_newer(version: str | None) -> bool:
    known = {script.revision for script in ScriptDirectory.from_config(_alembic_config()).walk_revisions()}
    return version is not None and version not in known


def mismatch(version: str | None) -> str:
    """Return why this schema version does not fit the code, and how to fix it."""
    if version is None:
        return f"the database has no schema of this project: run {UPGRADE_COMMAND}"
    if _is_newer(version):
        return "the schema of the database is newer than this code: install the release that belongs to it"
    return f"the schema of the database has version {version} and not {code_version()}: run {UPGRADE_COMMAND}"


def check_schema(connection: Connection) -> None:
    """Refuse a database whose encoding or schema does not fit the code.

    Raises:
        SystemicError: the message names the command that fixes it.
    """
    if server_encoding(connection) == NO_ENCODING:
        raise SystemicError(ErrorInfo(ErrorType.DATABASE, f"{WRONG_ENCODING}: {ENCODING_REMEDY}"))
    version = schema_version(connection)
    if version != code_version():
        raise SystemicError(ErrorInfo(ErrorType.DATABASE, mismatch(version)))


@dataclass(frozen=True)
class Unusable:
    """Why a database cannot be used: a sentence that names its setting, and the remedy; neither contains the URL."""

    sentence: str
    remedy: str


def why_unusable(database: Engine, name: str) -> Unusable | None:
    """Connect once; return why it failed, or None."""
    try:
        with database.connect():
            return None
    except Exception as exc:  # noqa: BLE001 - the boundary to the user: any reason becomes one sentence
        reason = classify(exc).error_message
        remedy = remedy_of(exc, database, name)
    return Unusable(f"The database of {name} cannot be used: {reason}.", remedy or "check the URL and the server")


def remedy_of(exc: BaseException, database: Engine, name: str) -> str | None:
    """Return the remedy for a failed connection to `database`, or None; `name` is the setting of that database."""
    original = exc.orig if isinstance(exc, DBAPIError) else exc
    if not isinstance(original, NoConnectionError):
        return None
    url, address = database.url, ""
    # After an unescaped slash in a password, libpq reads its start as the port and its rest as the name of the
    # database.
    if "@" not in (url.database or ""):
        address = f"-h {shlex.quote(url.host)} " if url.host else ""
        address += f"-p {url.port or 5432}"
    return original.remedy.format(name=name, address=address)


def reachable_or_explain(database: Engine, name: str) -> None:
    """Connect once.

    Raises:
        UserError: the connection failed; the message has the setting, the reason and the remedy, but not the URL.
    """
    unusable = why_unusable(database, name)
    if unusable is not None:
        raise UserError(f"{unusable.sentence} To fix it: {unusable.remedy}.", exit_status=1)


def limit_statement_time(connection: Connection, seconds: float) -> None:
    """Limit each statement of this transaction, and each wait for a lock, to `seconds`."""
    milliseconds = max(1, int(seconds * 1000))
    connection.execute(
        text("SELECT set_config('statement_timeout', :ms, true), set_config('lock_timeout', :ms, true)"),
        {"ms": str(milliseconds)},
    )
