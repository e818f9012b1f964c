"""The tables around the scheduler as assets, so that the lineage graph shows what it reads and writes.

Belongs here: keys, owners and descriptions. Does not belong here: how assets are made (`defs.job`).
"""

from dagster import AssetKey, AssetSpec, TableColumn, TableSchema
from sqlalchemy import Dialect, Table
from sqlalchemy.dialects import postgresql

from scenario_pipeline.storage import tables
from scenario_pipeline.storage.roles import PERSONAL_COLUMNS

EVALUATIONS = AssetKey("mentor_scenario_evaluations")
NOTIFICATIONS = AssetKey("scenario_notifications")
OWNERS = ["team:peer-mentoring"]
GROUP = "scenario_pipeline"
_POSTGRES: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy's own lacks annotations
_SOURCES = (
    (tables.organisations, "Organisations, each with its time zone."),
    (tables.peer_mentors, "Volunteers. An evaluation takes the active ones, and never reads their personal columns."),
    (tables.mentor_activities, "What mentors did, and on which date."),
    (tables.mentor_certifications, "Certifications of mentors, and when they expire."),
    (tables.scenario_evaluation_config, "Thresholds, look-back and cooldown: a default row a scenario, and overrides."),
)


def _table_metadata(table: Table) -> dict[str, object]:
    columns = [
        TableColumn(
            column.name,
            column.type.compile(_POSTGRES).lower(),
            description="Personal: never read by an evaluation." if column.name in PERSONAL_COLUMNS else None,
        )
        for column in table.columns
    ]
    return {"dagster/table_name": table.fullname, "dagster/column_schema": TableSchema(columns=columns)}


source_tables = [
    AssetSpec(
        table.name,
        description=description,
        group_name="source_data",
        kinds={"postgres", "table"},
        owners=OWNERS,
        metadata=_table_metadata(table),
    )
    for table, description in _SOURCES
]
scenario_notifications = AssetSpec(
    NOTIFICATIONS,
    deps=[EVALUATIONS],
    description="One row for each dispatched match; its three unique keys are what keeps a mentor from hearing twice.",
    group_name=GROUP,
    kinds={"postgres", "table"},
    owners=OWNERS,
    metadata=_table_metadata(tables.scenario_notifications),
)
