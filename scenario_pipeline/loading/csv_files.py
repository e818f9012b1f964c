"""The four CSV files of an import: the format of a row, and the wording of a refusal (contract section 2).

Belongs here: reading and checking rows. Does not belong here: the database (`loading.merge`). No message from here
contains a value from a file: a shifted column could put a name or telephone number anywhere.
"""

from __future__ import annotations

import csv
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import TextIO

from scenario_pipeline.errors import UserError
from scenario_pipeline.records import MENTOR_STATUSES, parse_date
from scenario_pipeline.settings import is_timezone

MAX_FIELD_CHARACTERS = 10_000
_LOOK_EVERY_ROWS = 50_000
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# A name stands in tables of the web UI, for each run anew.
MAX_NAME_CHARACTERS = 200
# Line and paragraph separators and control characters: one line would become two, or something else.
_NAME = re.compile(rf"(?=[^\x00-\x1f\x7f-\x9f\u2028\u2029]{{1,{MAX_NAME_CHARACTERS}}}\Z)\s*\S")
_REQUIRED_TEXT = re.compile(rf"(?=[^\0]{{1,{MAX_FIELD_CHARACTERS}}}\Z)\s*\S")
_OPTIONAL_TEXT = re.compile(rf"[^\0]{{0,{MAX_FIELD_CHARACTERS}}}")


@lru_cache(maxsize=65_536)
def _is_date(value: str) -> bool:
    return parse_date(value) is not None


@dataclass(frozen=True)
class _Kind:
    """The kind of a field: a fast check, and what to write in a field that fails it."""

    check: Callable[[str], object]
    remedy: str


_ID = _Kind(_UUID.fullmatch, "write a UUID in its form of 36 characters with hyphens")
_DAY = _Kind(_is_date, "write a date that exists as YYYY-MM-DD")
_STATUS = _Kind(MENTOR_STATUSES.__contains__, f"write {', '.join(MENTOR_STATUSES[:-1])} or {MENTOR_STATUSES[-1]}")
_TIMEZONE = _Kind(is_timezone, "write an IANA time zone such as Europe/Oslo")
_ONE_LINE = _Kind(
    _NAME.match, f"write at most {MAX_NAME_CHARACTERS} characters in one line, without control characters"
)
_TEXT = _Kind(_REQUIRED_TEXT.match, "write some text")
_TEXT_OR_NOTHING = _Kind(_OPTIONAL_TEXT.fullmatch, "write text or leave the field empty")


@dataclass(frozen=True)
class CsvFile:
    """One of the four files: its stem and its columns with their kinds; its rows are staged in `staged_{stem}`."""

    stem: str
    columns: dict[str, _Kind]

    @property
    def file_name(self) -> str:
        """The name of the file in the folder."""
        return f"{self.stem}.csv"


FILES = (
    CsvFile("organisations", {"id": _ID, "name": _ONE_LINE, "timezone": _TIMEZONE}),
    CsvFile(
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
    CsvFile("activities", {"user_id": _ID, "activity_type": _TEXT, "activity_date": _DAY}),
    CsvFile("certifications", {"user_id": _ID, "certification_type": _TEXT, "expires_on": _DAY}),
)


def refusal(file_name: str, line: int | None = None, column: str | None = None, remedy: str = "") -> UserError:
    """Word a refusal: where it is, what to do, and that nothing was imported."""
    place = file_name
    if line is not None:
        place += f", line {line}"
    if column is not None:
        place += f", column {column}"
    return UserError(f"{place}: {remedy} (nothing was imported).")


def open_all(folder: Path, stack: ExitStack) -> dict[str, TextIO]:
    """Open the four files before the database is touched.

    Raises:
        UserError: the folder or a file is missing or cannot be read.
    """
    needed = ", ".join(csv_file.file_name for csv_file in FILES)
    try:
        present = {path.name for path in folder.iterdir()}
    except OSError as exc:
        reason = os.strerror(exc.errno or 0)
        raise UserError(f"The folder {folder} cannot be read ({reason}): name one that holds {needed}.") from None
    for csv_file in FILES:
        if csv_file.file_name not in present:
            raise refusal(csv_file.file_name, remedy=f"the file is missing; the folder must hold all of {needed}")
    files: dict[str, TextIO] = {}
    for csv_file in FILES:
        try:
            # Opening a pipe would wait for its other end.
            descriptor = os.open(folder / csv_file.file_name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            raise _unreadable(csv_file, exc) from None
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            os.close(descriptor)
            raise refusal(
                csv_file.file_name, remedy=f"the file cannot be read ({_kind_of(mode)}); give a readable file"
            )
        files[csv_file.stem] = stack.enter_context(os.fdopen(descriptor, encoding="utf-8-sig", newline=""))
    return files


def _kind_of(mode: int) -> str:
    """Say what a path leads to that is no regular file."""
    if stat.S_ISDIR(mode):
        return os.strerror(errno.EISDIR)
    return "Is a pipe" if stat.S_ISFIFO(mode) else "Is a device"


def _unreadable(csv_file: CsvFile, exc: OSError) -> UserError:
    reason = os.strerror(exc.errno or 0)
    return refusal(csv_file.file_name, remedy=f"the file cannot be read ({reason}); give a readable file")


def rows(csv_file: CsvFile, path: Path, file: TextIO) -> Iterator[Sequence[object]]:
    """Yield the checked rows of one file, each with its line number first; empty fields become None.

    Raises:
        UserError: the file cannot be read or decoded, changes meanwhile, or a row is refused.
    """
    try:
        before = _state_of(file)
        for number, row in enumerate(_checked_rows(csv_file, file), start=1):
            # What is appended without end must not be read without end.
            if number % _LOOK_EVERY_ROWS == 0:
                _check_unchanged(csv_file, file, before)
            yield row
        _check_unchanged(csv_file, file, before)
    except OSError as exc:
        raise _unreadable(csv_file, exc) from None
    except UnicodeDecodeError:
        raise refusal(
            csv_file.file_name,
            _first_line_not_utf8(path),
            remedy="a byte is not UTF-8; save the file with the encoding UTF-8",
        ) from None


def _state_of(file: TextIO) -> tuple[int, int]:
    """Return the size and the time of the last change of an open file."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _check_unchanged(csv_file: CsvFile, file: TextIO, before: tuple[int, int]) -> None:
    if _state_of(file) != before:
        raise refusal(csv_file.file_name, remedy="the file changed while it was read; import it once it is complete")


def _first_line_not_utf8(path: Path) -> int:
    """Find the line with a byte that is not UTF-8; the decoder works on blocks and cannot name it."""
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):  # noqa: B007 - the last line is the answer if the loop ends
            try:
                line.decode()
            except UnicodeDecodeError:
                break
    return number


def _checked_rows(csv_file: CsvFile, file: TextIO) -> Iterator[Sequence[object]]:
    reader = csv.reader(file, strict=True)
    line = 1  # where the current row begins; a quoted field may span several lines
    try:
        header = next(reader, [])
        _check_header(csv_file, header)
        width = len(header)
        in_order = itemgetter(*map(header.index, csv_file.columns))
        checks = [kind.check for kind in csv_file.columns.values()]
        line = reader.line_num + 1
        for row in reader:
            if len(row) == width:
                values = in_order(row)
                for check, value in zip(checks, values, strict=True):
                    if not check(value):
                        raise _bad_field(csv_file, line, values)
                yield (line, *[value or None for value in values])
            elif row:
                raise _bad_width(csv_file, line, header, len(row))
            line = reader.line_num + 1
    except csv.Error:
        raise refusal(
            csv_file.file_name,
            line,
            remedy="the quoting is broken or a field is far too long; put a field that holds a comma, a quote or a"
            " line break between double quotes, and double each quote inside",
        ) from None


def _check_header(csv_file: CsvFile, header: Sequence[str]) -> None:
    names = ", ".join(csv_file.columns)
    for column in csv_file.columns:
        if column not in header:
            raise refusal(csv_file.file_name, 1, column, f"the header lacks it; it must name exactly {names}")
    if len(header) > len(csv_file.columns):
        raise refusal(csv_file.file_name, 1, remedy=f"the header names too many columns; it must name exactly {names}")


def _bad_width(csv_file: CsvFile, line: int, header: Sequence[str], fields: int) -> UserError:
    if fields < len(header):
        return refusal(
            csv_file.file_name,
            line,
            header[fields],
            "the row ends before this column; give each row as many fields as the header",
        )
    return refusal(
        csv_file.file_name,
        line,
        header[-1],
        "the row continues after this column; give each row as many fields as the header",
    )


def _bad_field(csv_file: CsvFile, line: int, values: Sequence[str]) -> UserError:
    """Word the refusal of the first field that fails its check."""
    column, kind, value = next(
        (column, kind, value)
        for (column, kind), value in zip(csv_file.columns.items(), values, strict=True)
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
    return refusal(csv_file.file_name, line, column, remedy)
