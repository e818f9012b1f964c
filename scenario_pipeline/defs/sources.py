"""When the source tables were last seen, and how many rows they have, at a cost that no run notices.

Belongs here: estimates, and what an index or a small table shows. Does not belong here: what an evaluation reads.
"""

from collections.abc import Callable, Iterator

from dagster import AssetKey, AssetObservation, MetadataValue
from sqlalchemy import Engine, text

from scenario_pipeline.storage.database import limit_statement_time
from scenario_pipeline.storage.source import Access, access_of

# A table of this size is read in a few milliseconds; a larger one only by an index that begins with the date.
SMALL_TABLE_BYTES = 4_000_000
# Each source with the view that evaluations read and the column that dates its rows.
_SOURCES = (
    ("organisations", "source_organisations", None),
    ("peer_mentors", "source_mentors", "joined_on"),
    ("mentor_activities", "source_activities", "activity_date"),
    ("mentor_certifications", "source_certifications", "expires_on"),
    ("scenario_evaluation_config", None, None),
)
# The one table that a view reads: with several of them, none has as many rows as the view. The statistics hold what was
# written since the last ANALYZE, and the catalog what they held before a crash.
_ESTIMATE = text("""
    WITH tables AS (
        SELECT DISTINCT d.refobjid AS id
        FROM pg_rewrite r JOIN pg_depend d ON d.objid = r.oid AND d.refobjid <> r.ev_class
        WHERE r.ev_class = to_regclass(:view)
            AND d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
        UNION SELECT to_regclass(:table)::oid WHERE to_regclass(:view) IS NULL
    )
    SELECT
        format('%I.%I', n.nspname, c.relname) AS name,
        greatest(c.reltuples, pg_stat_get_live_tuples(c.oid), 0)::bigint AS rows,
        pg_table_size(c.oid) <= :small OR EXISTS (
            SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
            WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL AND a.attname = :column
        ) AS is_cheap
    FROM pg_class c JOIN tables ON tables.id = c.oid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE (SELECT count(*) FROM tables) = 1 AND c.relkind IN ('r', 'p')""")


def observations(database: Engine, seconds_left: Callable[[], float]) -> Iterator[AssetObservation]:
    """Yield what is seen of each source table: an estimate of its rows and, if that is cheap, its newest date.

    Args:
        database: connections to the scheduler's own database.
        seconds_left: how long the next statement may take.
    """
    for table, view, column in _SOURCES:
        with database.begin() as connection:
            limit_statement_time(connection, seconds_left())
            seen = connection.execute(
                _ESTIMATE,
                {
                    "view": view and f"scenario.{view}",
                    "table": f"scenario.{table}",
                    "small": SMALL_TABLE_BYTES,
                    "column": column,
                },
            ).one_or_none()
            metadata: dict[str, MetadataValue[int | None] | MetadataValue[str]] = {}
            if seen is not None:
                metadata["rows_estimated"] = MetadataValue.int(seen.rows)
                metadata["read_from"] = MetadataValue.text(seen.name)
            # Only a function with the owner's rights reads what policies guard, and none was made for this.
            may_read = access_of(connection) is Access.VIEWS
            if seen is not None and seen.is_cheap and column is not None and may_read:
                newest = connection.execute(text(f"SELECT max({column}) FROM scenario.{view}")).scalar_one()  # noqa: S608
                if newest is not None:
                    metadata[f"newest_{column}"] = MetadataValue.text(newest.isoformat())
        yield AssetObservation(AssetKey(table), metadata=metadata)
