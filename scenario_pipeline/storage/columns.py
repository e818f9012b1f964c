"""Whether the tables and views of a database have the columns that the code names.

Belongs here: the comparison with `storage.tables`, by name and type. Does not belong here: constraints, which the
migrations make and nothing reads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from psycopg import postgres
from sqlalchemy import Connection, Row, Table, text
from sqlalchemy.dialects import postgresql

from scenario_pipeline.errors import ErrorInfo, ErrorType, SystemicError
from scenario_pipeline.storage.roles import SOURCE_TABLES
from scenario_pipeline.storage.tables import SCHEMA, metadata

# What every run reads and writes; the source is read through views, which may be over other tables.
OWN_TABLES = tuple(table for table in metadata.tables.values() if table.name not in SOURCE_TABLES)
# No migration can add what one of the same number has left out.
TABLES_REMEDY = "make the table like the one that scenario-pipeline db upgrade creates in an empty database"


def misfits(connection: Connection, wanted: Collection[Table], kind: str) -> Iterator[str]:
    """Yield one sentence for each relation, and each column of one, that is missing or has another type than it must.

    Further columns are the user's own.

    Args:
        connection: any role's; the catalog is open to all.
        wanted: the relations that the code names.
        kind: what they are called in a sentence, `table` or `view`.
    """
    rows = connection.execute(
        text(
            "SELECT c.relname, a.attname, a.atttypid AS oid, CASE nspname WHEN 'pg_catalog' "
            "THEN format_type(a.atttypid, NULL) ELSE nspname || '.' || typname END AS type FROM pg_class c "
            "JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped "
            "JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace n ON n.oid = typnamespace "
            "WHERE c.relnamespace = to_regnamespace(:schema) AND c.relname = ANY (:names)"
        ),
        {"schema": SCHEMA, "names": [relation.name for relation in wanted]},
    ).all()
    found: dict[str, dict[str, Row[Any]]] = {}
    for row in rows:
        found.setdefault(row.relname, {})[row.attname] = row
    for relation in wanted:
        if relation.name not in found:
            yield f"the {kind} {relation.fullname} does not exist"
            continue
        for column in relation.columns:
            needed = column.type.compile(postgresql.dialect()).lower()  # type: ignore[no-untyped-call]
            actual = found[relation.name].get(column.name)
            if actual is None:
                yield f"the {kind} {relation.fullname} has no column {column.name}, which must be {needed}"
            # By number: how a type's name is written depends on settings of the session and on its search path.
            elif actual.oid != postgres.types.get_oid(needed):
                of = f"{column.name} of the {kind} {relation.fullname}"
                yield f"the column {of} is {actual.type}, and must be {needed}"


def check_tables(connection: Connection, wanted: Collection[Table] = OWN_TABLES) -> None:
    """Refuse tables that another edition of a migration made: a statement would fail in the middle of a run.

    Raises:
        SystemicError: with a sentence that names the first table and column.
    """
    for sentence in misfits(connection, wanted, "table"):
        raise SystemicError(ErrorInfo(ErrorType.DATABASE, f"{sentence}: {TABLES_REMEDY}"))
