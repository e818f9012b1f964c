"""What people read about tables: the page, the comments in the code, and the comments in the database."""

from __future__ import annotations

from sqlalchemy import Engine, text

from scenario_pipeline_tests.support.schema_page import PAGE, comments, schema_page


def test_the_schema_page_is_what_the_tables_say() -> None:
    """Somebody builds a report on a column whose meaning changed a year ago."""
    remedy = "python -m scenario_pipeline_tests.support.schema_page writes it again"
    assert PAGE.read_text(encoding="utf-8") == schema_page(), remedy


def test_every_table_and_column_is_explained() -> None:
    """A column without a word is looked up in the code, by people who do not read code."""
    assert [(table, column) for table, column, words in comments() if not words] == []


def test_the_database_explains_itself_in_the_same_words(engine: Engine) -> None:
    """Who opens psql at night has no page at hand."""
    statement = text(
        "SELECT relname, attname, coalesce(col_description(c.oid, attnum), '') FROM pg_class c "
        "JOIN pg_attribute ON attrelid = c.oid AND attnum > 0 AND NOT attisdropped "
        "WHERE relnamespace = 'scenario'::regnamespace AND relkind IN ('r', 'v') AND relname <> 'alembic_version' "
        "UNION ALL SELECT relname, NULL, coalesce(obj_description(oid, 'pg_class'), '') FROM pg_class "
        "WHERE relnamespace = 'scenario'::regnamespace AND relkind IN ('r', 'v') AND relname <> 'alembic_version'"
    )
    with engine.connect() as connection:
        found = {(row[0], row[1]): row[2] for row in connection.execute(statement)}
    assert found == {(table, column): words for table, column, words in comments()}
