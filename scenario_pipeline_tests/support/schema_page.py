"""The schema page, made of the tables' comments: `python -m scenario_pipeline_tests.support.schema_page` writes it.

Belongs here: how a table is shown on the page. Does not belong here: what a column means, which its comment says.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Column, Table
from sqlalchemy.dialects import postgresql

from scenario_pipeline.storage.tables import SCHEMA, metadata, source_metadata
from scenario_pipeline_tests.support.project import PROJECT

# Untyped in SQLAlchemy.
_POSTGRES = postgresql.dialect()  # type: ignore[no-untyped-call]
PAGE = PROJECT / "docs" / "reference" / "schema.md"
_HEAD = f"""# Schema

The tables and views of the schema `{SCHEMA}`. This page is made of the comments on them, which `psql` shows too
(`\\d+ {SCHEMA}.scheduler_runs`). After changing a comment, write it again:

```sh
.venv/bin/python -m scenario_pipeline_tests.support.schema_page
```

## Tables
"""
_VIEWS = """
## Views that an evaluation reads

They select from the tables above until you [define them over your own](../how-to/your-own-tables.md).
"""


def schema_page() -> str:
    """Return the whole page."""
    tables = "".join(_table(table) for table in metadata.tables.values())
    views = "".join(_table(view) for view in source_metadata.tables.values())
    return f"{_HEAD}{tables}{_VIEWS}{views}"


def _table(table: Table) -> str:
    return "\n".join(
        [
            f"\n### {table.name}\n",
            f"{table.comment}\n",
            "| column | type | null | meaning |",
            "|---|---|---|---|",
            *(_row(column, is_view=table.metadata is source_metadata) for column in table.columns),
            "",
        ]
    )


def _row(column: Column[object], *, is_view: bool) -> str:
    name = f"`{column.name}`" + (" (key)" if column.primary_key else "")
    kind = str(column.type.compile(dialect=_POSTGRES)).lower()
    return f"| {name} | `{kind}` | {'yes' if column.nullable and not is_view else 'no'} | {column.comment} |"


def comments() -> Iterator[tuple[str, str | None, str | None]]:
    """Yield each table and view, and each of their columns, with its comment."""
    for described in (metadata, source_metadata):
        for table in described.tables.values():
            yield table.name, None, table.comment
            yield from ((table.name, column.name, column.comment) for column in table.columns)


if __name__ == "__main__":
    PAGE.write_text(schema_page(), encoding="utf-8")
