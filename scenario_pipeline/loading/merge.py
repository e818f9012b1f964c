"""Merges the files of an import into the source tables, completely or not at all (contract section 2).

Belongs here: staging tables, rules that need all rows, and the merge. Does not belong here: reading files
(`loading.csv_files`).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from scenario_pipeline.loading.bulk import Progress, copy_rows, loading, lock_loading, reporter
from scenario_pipeline.loading.csv_files import FILES, open_all, refusal, rows

_STAGING = """
CREATE TEMPORARY TABLE staged_organisations (line bigint, id uuid, name text, timezone text) ON COMMIT DROP;
CREATE TEMPORARY TABLE staged_mentors (
    line bigint, id uuid, organisation_id uuid, status text, full_name text, email text, phone text, locale text,
    joined_on date
) ON COMMIT DROP;
CREATE TEMPORARY TABLE staged_activities (
    line bigint, user_id uuid, activity_type text, activity_date date
) ON COMMIT DROP;
CREATE TEMPORARY TABLE staged_certifications (
    line bigint, user_id uuid, certification_type text, expires_on date
) ON COMMIT DROP;
"""
# Autovacuum does not analyse temporary tables. The merge sorts and hashes each file once.
_PREPARE_MERGE = """
ANALYZE pg_temp.staged_organisations, pg_temp.staged_mentors, pg_temp.staged_activities, pg_temp.staged_certifications;
SET LOCAL work_mem = '64MB';
"""


@dataclass(frozen=True)
class _Check:
    """A rule that needs all rows: a statement that selects the lines which break it, and the remedy."""

    file_name: str
    column: str
    lines: str
    remedy: str


_CHECKS = (
    _Check(
        "organisations.csv",
        "id",
        "SELECT line FROM (SELECT line, row_number() OVER (PARTITION BY id ORDER BY line) AS nth"
        " FROM pg_temp.staged_organisations) AS numbered WHERE nth > 1",
        "this id is also on an earlier line; keep one of them",
    ),
    # Python and the server may have different versions of the time zone database; "localtime" is the usual case.
    _Check(
        "organisations.csv",
        "timezone",
        "SELECT line FROM pg_temp.staged_organisations WHERE timezone NOT IN (SELECT name FROM pg_timezone_names)",
        "the database server does not know this time zone; write another name for it",
    ),
    _Check(
        "mentors.csv",
        "id",
        "SELECT line FROM (SELECT line, row_number() OVER (PARTITION BY id ORDER BY line) AS nth"
        " FROM pg_temp.staged_mentors) AS numbered WHERE nth > 1",
        "this id is also on an earlier line; keep one of them",
    ),
    _Check(
        "mentors.csv",
        "organisation_id",
        "SELECT line FROM pg_temp.staged_mentors AS staged"
        " WHERE NOT EXISTS (SELECT FROM pg_temp.staged_organisations AS o WHERE o.id = staged.organisation_id)"
        " AND NOT EXISTS (SELECT FROM scenario.organisations AS o WHERE o.id = staged.organisation_id)",
        "no such organisation is in organisations.csv or in the database; add it or correct the id",
    ),
    _Check(
        "activities.csv",
        "user_id",
        "SELECT line FROM pg_temp.staged_activities AS staged"
        " WHERE NOT EXISTS (SELECT FROM pg_temp.staged_mentors AS m WHERE m.id = staged.user_id)"
        " AND NOT EXISTS (SELECT FROM scenario.peer_mentors AS m WHERE m.id = staged.user_id)",
        "no such mentor is in mentors.csv or in the database; add the mentor or correct the id",
    ),
    _Check(
        "certifications.csv",
        "user_id",
        "SELECT line FROM pg_temp.staged_certifications AS staged"
        " WHERE NOT EXISTS (SELECT FROM pg_temp.staged_mentors AS m WHERE m.id = staged.user_id)"
        " AND NOT EXISTS (SELECT FROM scenario.peer_mentors AS m WHERE m.id = staged.user_id)",
        "no such mentor is in mentors.csv or in the database; add the mentor or correct the id",
    ),
)
_MERGES = (
    """
    INSERT INTO scenario.organisations AS present (id, name, timezone)
    SELECT id, name, timezone FROM pg_temp.staged_organisations ORDER BY id
    ON CONFLICT (id) DO UPDATE SET name = excluded.name, timezone = excluded.timezone
    WHERE (present.name, present.timezone) IS DISTINCT FROM (excluded.name, excluded.timezone)
    """,
    """
    INSERT INTO scenario.peer_mentors AS present
        (id, organisation_id, status, full_name, email, phone, locale, joined_on)
    SELECT id, organisation_id, status, full_name, email, phone, locale, joined_on
    FROM pg_temp.staged_mentors ORDER BY id
    ON CONFLICT (id) DO UPDATE SET
        organisation_id = excluded.organisation_id, status = excluded.status, full_name = excluded.full_name,
        email = excluded.email, phone = excluded.phone, locale = excluded.locale, joined_on = excluded.joined_on
    WHERE (present.organisation_id, present.status, present.full_name, present.email, present.phone,
           present.locale, present.joined_on)
        IS DISTINCT FROM (excluded.organisation_id, excluded.status, excluded.full_name, excluded.email,
                          excluded.phone, excluded.locale, excluded.joined_on)
    """,
    # EXCEPT ALL subtracts multisets: a row that the file has m times and the table n times remains max(m - n, 0) times.
    # Inserting in index order makes the new index entries neighbours.
    """
    INSERT INTO scenario.mentor_activities (user_id, activity_type, activity_date)
    SELECT user_id, activity_type, activity_date FROM (
        SELECT user_id, activity_type, activity_date FROM pg_temp.staged_activities
        EXCEPT ALL
        SELECT user_id, activity_type, activity_date FROM scenario.mentor_activities
        WHERE user_id IN (SELECT user_id FROM pg_temp.staged_activities)
    ) AS lacking ORDER BY user_id, activity_date
    """,
    """
    INSERT INTO scenario.mentor_certifications (user_id, certification_type, expires_on)
    SELECT user_id, certification_type, expires_on FROM (
        SELECT user_id, certification_type, expires_on FROM pg_temp.staged_certifications
        EXCEPT
        SELECT user_id, certification_type, expires_on FROM scenario.mentor_certifications
        WHERE user_id IN (SELECT user_id FROM pg_temp.staged_certifications)
    ) AS lacking ORDER BY user_id, expires_on
    """,
)


def import_folder(database: Engine, folder: Path, *, progress: Progress | None = None) -> dict[str, int]:
    """Import the four CSV files of `folder`, completely or not at all.

    Organisations and mentors in a file replace those in the database; `chapter_id` and `notifications_opt_out` are in
    no file and are kept. Nothing is ever deleted.

    Activities have no id, and two equal rows are two activities on one day. So a file states how many equal rows there
    are *at least*, and the missing ones are added. Importing a file again therefore changes nothing. Plain inserts
    would count every activity twice and cross milestones that nobody reached. If two files each hold some of a mentor's
    equal rows of one day, their numbers do not add up.

    A certification that appears twice is one certification; the missing distinct ones are added.

    Empty lines are skipped. Values are used unchanged, without trimming.

    Args:
        database: on the scheduler's database, whose schema fits the code.
        folder: holds organisations.csv, mentors.csv, activities.csv and certifications.csv.
        progress: called with a file's stem and the number of rows read so far, every 20,000 rows and at its end.

    Returns:
        The number of rows read, by stem of the file name.

    Raises:
        UserError: a file or a row is refused; the message names the file and, if there are any, the line (1 is the
            header) and the column. It contains no value from the file.
        SystemicError: the database failed; nothing was imported.
    """
    with ExitStack() as stack:
        files = open_all(folder, stack)
        with loading(database) as connection:
            connection.exec_driver_sql(_STAGING)
            counts = {
                csv_file.stem: copy_rows(
                    connection,
                    ("pg_temp", f"staged_{csv_file.stem}"),
                    ("line", *csv_file.columns),
                    rows(csv_file, folder / csv_file.file_name, files[csv_file.stem]),
                    reporter(progress, csv_file.stem),
                )
                for csv_file in FILES
            }
            connection.exec_driver_sql(_PREPARE_MERGE)
            lock_loading(connection)
            for check in _CHECKS:
                line = connection.exec_driver_sql(f"{check.lines} ORDER BY line LIMIT 1").scalar()
                if line is not None:
                    raise refusal(check.file_name, line, check.column, check.remedy)
            for merge in _MERGES:
                connection.exec_driver_sql(merge)
    return counts
