"""CSV import: four files into the source tables, all of it or nothing (contract section 2).

Belongs here: what a row must look like, how a refusal is worded, how rows reach the tables in bulk, how they merge.
Does not belong here: the command line, the tables themselves, what the rows mean to a scenario.
No message made here holds a value from a file: a shifted column could put a name or a telephone number anywhere.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO, cast

import psycopg
from psycopg import sql
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from scenario_pipeline.errors import SystemicError, UserError, classify
from scenario_pipeline.records import parse_date
from scenario_pipeline.settings import is_timezone

Progress = Callable[[str, int], None]

MAX_FIELD_CHARACTERS = 10_000
_PROGRESS_EVERY_ROWS = 20_000
# Postgres remembers each new row until the statement ends, to check its foreign key then.
_ROWS_PER_COPY = 100_000
# Two imports that both count the rows already there would both add the same ones.
_LOAD_LOCK = 0x5CE9A811

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_REQUIRED_TEXT = re.compile(rf"(?=[^\0]{{1,{MAX_FIELD_CHARACTERS}}}\Z)\s*\S")
_OPTIONAL_TEXT = re.compile(rf"[^\0]{{0,{MAX_FIELD_CHARACTERS}}}")


@lru_cache(maxsize=65_536)
def _is_date(value: str) -> bool:
    return parse_date(value) is not None


@dataclass(frozen=True)
class _Kind:
    """What a field may hold: a fast check, and the sentence that mends a field which fails it."""

    check: Callable[[str], object]
    remedy: str


_ID = _Kind(_UUID.fullmatch, "write a UUID in its form of 36 characters with hyphens")
_DAY = _Kind(_is_date, "write a date that exists as YYYY-MM-DD")
_STATUS = _Kind({"active", "paused", "left"}.__contains__, "write active, paused or left")
_TIMEZONE = _Kind(is_timezone, "write an IANA time zone such as Europe/Oslo")
_TEXT = _Kind(_REQUIRED_TEXT.match, "write some text")
_TEXT_OR_NOTHING = _Kind(_OPTIONAL_TEXT.fullmatch, "write text or leave the field empty")


@dataclass(frozen=True)
class _Source:
    """One of the four files: its stem, its columns and what they hold; its rows are staged in `staged_{stem}`."""

    stem: str
    columns: dict[str, _Kind]

    @property
    def file_name(self) -> str:
        return f"{self.stem}.csv"


_SOURCES = (
    _Source("organisations", {"id": _ID, "name": _TEXT, "timezone": _TIMEZONE}),
    _Source(
        "mentors",
        {
            "id": _ID,
            "organisation_id": _ID,
            "status": _STATUS,
            "full_name": _TEXT,
            "email": _TEXT_OR_NOTHING,
            "phone": _TEXT_OR_NOTHING,
            "locale": _TEXT_OR_NOTHING,
            "joined_on": _DAY,
        },
    ),
    _Source("activities", {"user_id": _ID, "activity_type": _TEXT, "activity_date": _DAY}),
    _Source("certifications", {"user_id": _ID, "certification_type": _TEXT, "expires_on": _DAY}),
)

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

# Nothing analyses a temporary table by itself; the merge sorts and hashes each file once.
_PREPARE_MERGE = """
ANALYZE pg_temp.staged_organisations, pg_temp.staged_mentors, pg_temp.staged_activities, pg_temp.staged_certifications;
SET LOCAL work_mem = '64MB';
"""

_ANALYZE = """
ANALYZE scenario.organisations, scenario.peer_mentors, scenario.mentor_activities, scenario.mentor_certifications
"""


@dataclass(frozen=True)
class _Check:
    """A rule that needs all rows: a statement that returns the lines which break it, and what to do about them."""

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
        "this id stands on an earlier line too; keep one of them",
    ),
    # Python and the server may have different editions of the time zone database ("localtime" is the usual case).
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
        "this id stands on an earlier line too; keep one of them",
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
    # EXCEPT ALL subtracts multisets: a row that the file holds m times and the table n times remains max(m - n, 0)
    # times. Rows in index order make the new index entries neighbours.
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


def import_folder(engine: Engine, folder: Path, *, progress: Progress | None = None) -> dict[str, int]:
    """Import the four CSV files of `folder`, all of them or nothing.

    Organisations and mentors are replaced by what the file says; `chapter_id` and `notifications_opt_out` are in no
    file and stay. Activities have no id of their own, and two equal rows are two activities of one day. So a file is
    taken as saying how many equal rows there are *at least*: those that the database lacks are added. Importing a
    file again therefore changes nothing, where plain inserts would count every activity twice and cross milestones
    that nobody reached. A certification held twice is one certification: the distinct ones that lack are added.
    Nothing is ever deleted. Two files that each hold a part of one mentor's equal rows of one day do not add up.

    Empty lines are skipped. Values are taken as they stand, without trimming.

    Args:
        engine: on the scheduler's database, whose schema fits the code.
        folder: holds organisations.csv, mentors.csv, activities.csv and certifications.csv.
        progress: told a file's stem and the rows read of it so far, every 20,000 rows and at its end.

    Returns:
        The rows read, by stem of the file name.

    Raises:
        UserError: a file or a row is refused; the sentence names file, line (of the file; 1 is the header) and
            column as far as there is one, and holds no value from the file.
        SystemicError: the database failed; nothing was imported.
    """
    with ExitStack() as stack:
        files = _open_all(folder, stack)
        with loading(engine) as connection:
            connection.exec_driver_sql(_STAGING)
            counts = {
                source.stem: copy_rows(
                    connection,
                    ("pg_temp", f"staged_{source.stem}"),
                    ("line", *source.columns),
                    _rows(source, folder / source.file_name, files[source.stem]),
                    _reporter(progress, source.stem),
                )
                for source in _SOURCES
            }
            connection.exec_driver_sql(_PREPARE_MERGE)
            lock_loading(connection)
            for check in _CHECKS:
                line = connection.exec_driver_sql(f"{check.lines} ORDER BY line LIMIT 1").scalar()
                if line is not None:
                    raise _refusal(check.file_name, line, check.column, check.remedy)
            for merge in _MERGES:
                connection.exec_driver_sql(merge)
    return counts


@contextmanager
def loading(engine: Engine) -> Iterator[Connection]:
    """Yield one transaction for a bulk load; after its commit the source tables are analysed.

    Without fresh statistics the first run after a load would scan whole tables.

    Raises:
        SystemicError: the database failed. The driver's own text is withheld, since it quotes whole rows.
    """
    try:
        with engine.begin() as connection:
            yield connection
        with engine.begin() as connection:
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
        connection: with a transaction begun.
        table: schema and name.
        columns: the columns, in the order of the values of a row.
        rows: consumed one at a time, never held together.
        progress: told the number of rows so far, every 20,000 rows and at the end.

    Returns:
        How many rows there were.
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


def _reporter(progress: Progress | None, name: str) -> Callable[[int], None]:
    """Bind the name of what is loaded, and be silent where nobody listens."""

    def report(count: int) -> None:
        if progress is not None:
            progress(name, count)

    return report


def _refusal(file_name: str, line: int | None = None, column: str | None = None, remedy: str = "") -> UserError:
    """Word a refusal: where, what to do, and that nothing happened."""
    place = file_name
    if line is not None:
        place += f", line {line}"
    if column is not None:
        place += f", column {column}"
    return UserError(f"{place}: {remedy} (nothing was imported).")


def _open_all(folder: Path, stack: ExitStack) -> dict[str, TextIO]:
    """Open the four files before the database is touched.

    Raises:
        UserError: the folder or a file is missing or cannot be read.
    """
    needed = ", ".join(source.file_name for source in _SOURCES)
    try:
        present = {path.name for path in folder.iterdir()}
    except OSError as exc:
        reason = os.strerror(exc.errno or 0)
        raise UserError(f"The folder {folder} cannot be read ({reason}): name one that holds {needed}.") from None
    for source in _SOURCES:
        if source.file_name not in present:
            raise _refusal(source.file_name, remedy=f"the file is missing; the folder must hold all of {needed}")
    files: dict[str, TextIO] = {}
    for source in _SOURCES:
        try:
            file = (folder / source.file_name).open(encoding="utf-8-sig", newline="")
        except OSError as exc:
            raise _unreadable(source, exc) from None
        files[source.stem] = stack.enter_context(file)
    return files


def _unreadable(source: _Source, exc: OSError) -> UserError:
    reason = os.strerror(exc.errno or 0)
    return _refusal(source.file_name, remedy=f"the file cannot be read ({reason}); give a readable file")


def _rows(source: _Source, path: Path, file: TextIO) -> Iterator[Sequence[object]]:
    """Yield the rows of one file, each checked and led by its line number; empty fields become None.

    Raises:
        UserError: the file cannot be read or decoded, or a row is refused.
    """
    try:
        yield from _checked_rows(source, file)
    except OSError as exc:
        raise _unreadable(source, exc) from None
    except UnicodeDecodeError:
        raise _refusal(
            source.file_name,
            _first_line_not_utf8(path),
            remedy="a byte is not UTF-8; save the file with the encoding UTF-8",
        ) from None


def _first_line_not_utf8(path: Path) -> int:
    """Find the line that the decoder, which works on blocks, cannot name."""
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):  # noqa: B007 - the last line is the answer if the loop ends
            try:
                line.decode()
            except UnicodeDecodeError:
                break
    return number


def _checked_rows(source: _Source, file: TextIO) -> Iterator[Sequence[object]]:
    reader = csv.reader(file, strict=True)
    line = 1  # where the row in hand begins; a quoted field may go on over several lines
    try:
        header = next(reader, [])
        _check_header(source, header)
        width = len(header)
        in_order = itemgetter(*map(header.index, source.columns))
        checks = [kind.check for kind in source.columns.values()]
        line = reader.line_num + 1
        for row in reader:
            if len(row) == width:
                values = in_order(row)
                for check, value in zip(checks, values, strict=True):
                    if not check(value):
                        raise _bad_field(source, line, values)
                yield (line, *[value or None for value in values])
            elif row:
                raise _bad_width(source, line, header, len(row))
            line = reader.line_num + 1
    except csv.Error:
        raise _refusal(
            source.file_name,
            line,
            remedy="the quoting is broken or a field is far too long; put a field that holds a comma, a quote or a"
            " line break between double quotes, and double each quote inside",
        ) from None


def _check_header(source: _Source, header: Sequence[str]) -> None:
    names = ", ".join(source.columns)
    for column in source.columns:
        if column not in header:
            raise _refusal(source.file_name, 1, column, f"the header lacks it; it must name exactly {names}")
    if len(header) > len(source.columns):
        raise _refusal(source.file_name, 1, remedy=f"the header names too many columns; it must name exactly {names}")


def _bad_width(source: _Source, line: int, header: Sequence[str], fields: int) -> UserError:
    if fields < len(header):
        return _refusal(
            source.file_name, line, header[fields], "the row ends before it; give each row as many fields as the header"
        )
    return _refusal(
        source.file_name, line, header[-1], "the row goes on after it; give each row as many fields as the header"
    )


def _bad_field(source: _Source, line: int, values: Sequence[str]) -> UserError:
    """Say about the first field that fails its check what would mend it."""
    column, kind, value = next(
        (column, kind, value)
        for (column, kind), value in zip(source.columns.items(), values, strict=True)
        if not kind.check(value)
    )
    if len(value) > MAX_FIELD_CHARACTERS:
        remedy = f"the field is longer than {MAX_FIELD_CHARACTERS:,} characters; shorten it"
    elif "\0" in value:
        remedy = "the field holds a NUL character; remove it"
    elif not value.strip():
        remedy = f"the field is empty; {kind.remedy}"
    else:
        remedy = kind.remedy
    return _refusal(source.file_name, line, column, remedy)
