"""Loads many rows with COPY in one transaction, for imports and demonstration data.

Belongs here: the transaction, its lock and the COPY. Does not belong here: what the rows mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, cast

import psycopg
from psycopg import sql
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from scenario_pipeline.errors import SystemicError, classify

Progress = Callable[[str, int], None]
_PROGRESS_EVERY_ROWS = 20_000
# Postgres keeps each new row in memory until the statement ends, to check its foreign key then.
_ROWS_PER_COPY = 100_000
# Without it, two imports that count the existing rows at the same time would add the same ones.
_LOAD_LOCK = 0x5CE9A811
_ANALYZE = """
ANALYZE scenario.organisations, scenario.peer_mentors, scenario.mentor_activities, scenario.mentor_certifications
"""


@contextmanager
def loading(database: Engine) -> Iterator[Connection]:
    """Yield one transaction for a bulk load; after its commit, analyse the source tables.

    Without fresh statistics, the first run after a load would scan whole tables.

    Raises:
        SystemicError: the database failed. The driver's own text is withheld, because it quotes whole rows.
    """
    try:
        with database.begin() as connection:
            yield connection
        with database.begin() as connection:
            connection.exec_driver_sql(_ANALYZE)
    except (psycopg.Error, SQLAlchemyError) as exc:
        raise SystemicError(classify(exc)) from None


def lock_loading(connection: Connection) -> None:
    """Wait until no other load is merging; the lock ends with the transaction."""
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_LOAD_LOCK,))


def copy_rows(
    connection: Connection,
    table: tuple[str, str],
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    progress: Callable[[int], None],
) -> int:
    """Stream rows into a table by COPY, inside the connection's transaction.

    Args:
        connection: inside a transaction.
        table: schema and name.
        columns: the columns, in the order of the values of a row.
        rows: consumed one at a time, never collected.
        progress: called with the number of rows so far, every 20,000 rows and at the end.

    Returns:
        The number of rows.
    """
    driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(*table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    count = 0
    remaining = iter(rows)
    with driver.cursor() as cursor:
        for first in remaining:
            with cursor.copy(statement) as copy:
                copy.write_row(first)
                count += 1
                for row in islice(remaining, _ROWS_PER_COPY - 1):
                    copy.write_row(row)
                    count += 1
                    if count % _PROGRESS_EVERY_ROWS == 0:
                        progress(count)
    progress(count)
    return count


def reporter(progress: Progress | None, name: str) -> Callable[[int], None]:
    """Return a callback that reports progress under `name`; it does nothing if `progress` is None."""

    def report(count: int) -> None:
        if progress is not None:
            progress(name, count)

    return report
