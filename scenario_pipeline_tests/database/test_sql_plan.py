"""The plan of the decision statement, and the tables as the statements see them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import CompoundSelect, Connection, Engine, MetaData, text

from scenario_pipeline.engines.statement import decision_statement
from scenario_pipeline.storage import tables
from scenario_pipeline.storage.source import Access
from scenario_pipeline_tests.support.people import D, insert_organisation, new_invocation_id, organisation_id
from scenario_pipeline_tests.support.runs import ALL_SCENARIOS


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every node of a plan."""
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def test_a_page_reads_the_activities_of_its_own_mentors_by_the_index(engine: Engine) -> None:
    """One sequential scan a page turned seconds into hours on a real table."""
    with engine.begin() as connection:
        insert_organisation(connection)
        connection.exec_driver_sql(
            f"""
            INSERT INTO scenario.peer_mentors (id, organisation_id, status, full_name, joined_on)
            SELECT gen_random_uuid(), '{organisation_id()}', 'active', 'Kari Nordmann', date '{D}' - 1000
            FROM generate_series(1, 20000);
            INSERT INTO scenario.mentor_activities (user_id, activity_type, activity_date)
            SELECT id, 'conversation', date '{D}' - n * 13 FROM generate_series(1, 10) AS n, scenario.peer_mentors;
            """
        )
        ids = "SELECT id::text FROM scenario.peer_mentors ORDER BY id LIMIT 1000 OFFSET 9000"
        mentors = list(connection.execute(text(ids)).scalars())
    # What autovacuum does in its own time: an index-only scan needs the visibility map.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (ANALYZE) scenario.peer_mentors, scenario.mentor_activities"))
    statement = decision_statement(ALL_SCENARIOS, Access.VIEWS)
    assert isinstance(statement, CompoundSelect)
    asked = {"mentor_ids": mentors, "evaluation_date": D, "invocation_id": new_invocation_id()}
    compiled = statement.params(asked).compile(dialect=engine.dialect).construct_expanded_state()

    with engine.connect() as connection:
        (((top,),),) = connection.exec_driver_sql(
            f"EXPLAIN (FORMAT JSON) {compiled.statement}", compiled.parameters
        ).all()

    scans = {
        (node["Node Type"], node.get("Index Name"))
        for node in nodes(top["Plan"])
        if node.get("Relation Name") == "mentor_activities"
    }
    assert scans
    assert {name for _, name in scans} == {"mentor_activities_user_date"}
    assert {kind for kind, _ in scans} <= {"Index Scan", "Index Only Scan"}


def differences(connection: Connection, metadata: MetaData) -> list[Any]:
    """Return how tables and columns of the database differ from `metadata`.

    Indexes, unique constraints and foreign keys are left out: only the migration knows them, because no statement
    is built from them.
    """
    context = MigrationContext.configure(
        connection,
        opts={
            "compare_type": True,
            "include_schemas": True,
            # None is the default schema of the session: ours, where the role has its name.
            "include_name": lambda name, kind, _: (
                name in {None, tables.SCHEMA} if kind == "schema" else name != "alembic_version"
            ),
            "include_object": lambda _object, _name, kind, _reflected, _other: kind in {"table", "column"},
            "version_table_schema": tables.SCHEMA,
        },
    )
    return list(compare_metadata(context, metadata))


def test_the_migrations_make_the_tables_that_the_statements_are_built_from(engine: Engine) -> None:
    """A column renamed in one place only would fail in the middle of the night."""
    with engine.connect() as connection:
        assert differences(connection, tables.metadata) == []


@pytest.mark.parametrize(
    "damage",
    [
        "ALTER TABLE scenario.organisations ADD COLUMN extra text",
        "ALTER TABLE scenario.organisations DROP COLUMN name CASCADE",
        "ALTER TABLE scenario.organisations ALTER name DROP NOT NULL",
        "ALTER TABLE scenario.scheduler_runs ALTER total_errors TYPE bigint",
        "ALTER TABLE scenario.scheduler_runs ALTER scenario_types TYPE uuid[] USING NULL",
        "DROP TABLE scenario.mentor_certifications CASCADE",
        "CREATE TABLE scenario.extra (id int)",
    ],
)
def test_any_difference_between_migrations_and_tables_is_found(engine: Engine, damage: str) -> None:
    """The negative twin: a comparison that leaves everything out finds nothing, too."""
    with engine.connect() as connection:
        connection.execute(text(damage))
        assert differences(connection, tables.metadata) != []
