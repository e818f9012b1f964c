"""What an import refuses: the place is named, no value is quoted, and nothing is written."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, event

from scenario_pipeline.errors import SystemicError, UserError
from scenario_pipeline.loading.merge import import_folder
from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline.upgrade import upgrade
from scenario_pipeline_tests.support.csv_folders import (
    GOOD,
    HEADERS_OF_HISTORY,
    HEADERS_OF_MENTORS,
    MENTOR,
    NOBODY,
    ORGANISATION,
    OTHER_MENTOR,
    OTHER_ORGANISATION,
    contents,
    edit,
    write,
)
from scenario_pipeline_tests.support.project import COMMUNITY


@dataclass(frozen=True)
class Bad:
    """One place changed, and where the refusal must point: the file, its line and column, and what must be said."""

    name: str
    old: str
    new: str
    place: str
    hint: str


FIRST_ORGANISATION = f"{ORGANISATION},Canarynorth,Europe/Oslo"
FIRST_MENTOR = f"{MENTOR},{ORGANISATION},active"
LAST_ACTIVITY = f"{OTHER_MENTOR},canarycall,2024-03-01"
BAD_INPUTS = {
    "an empty file": Bad("activities.csv", GOOD["activities.csv"], "", "line 1, column user_id", "header"),
    "no header": Bad(
        "organisations.csv", "id,name,timezone\n", "", "line 1, column id", "must name exactly id, name, timezone"
    ),
    "a column missing from the header": Bad(
        "activities.csv", ",activity_date\n", "\n", "line 1, column activity_date", "header"
    ),
    "a column too many in the header": Bad(
        "activities.csv", "activity_date\n", "activity_date,canarynote\n", "line 1", "too many columns"
    ),
    "a column twice in the header": Bad("activities.csv", "user_id,", "user_id,user_id,", "line 1", "too many columns"),
    "a column under another name": Bad("mentors.csv", "full_name", "canaryname", "line 1, column full_name", "header"),
    "a field missing": Bad(
        "activities.csv", LAST_ACTIVITY, f"{OTHER_MENTOR},canarycall", "line 4, column activity_date", "ends before"
    ),
    "a field too many": Bad(
        "activities.csv", LAST_ACTIVITY, LAST_ACTIVITY + ",canary", "line 4, column activity_date", "continues after"
    ),
    "a name with a bare comma": Bad(
        "mentors.csv", "Canarysecond", "Canarylast, Canaryfirst", "line 3, column joined_on", "continues after"
    ),
    "an empty id": Bad("organisations.csv", ORGANISATION, "", "line 2, column id", "empty"),
    "an empty organisation name": Bad("organisations.csv", "Canarynorth", "", "line 2, column name", "empty"),
    "a name of spaces": Bad("mentors.csv", "Canarysecond", "  ", "line 3, column full_name", "empty"),
    "an empty activity type": Bad("activities.csv", "canarycall", "", "line 4, column activity_type", "empty"),
    "an empty certification type": Bad(
        "certifications.csv",
        f"{MENTOR},canarybasic,2027-05-25\n" * 2,
        f"{MENTOR},,2027-05-25\n",
        "line 2, column certification_type",
        "empty",
    ),
    "an empty date": Bad("activities.csv", "2024-03-01", "", "line 4, column activity_date", "empty"),
    "an id without hyphens": Bad(
        "mentors.csv", FIRST_MENTOR, FIRST_MENTOR.replace("-", "", 4), "line 2, column id", "UUID"
    ),
    "an id in braces": Bad("organisations.csv", ORGANISATION, f"{{{ORGANISATION}}}", "line 2, column id", "UUID"),
    "an id with a line break after it": Bad(
        "organisations.csv", ORGANISATION, f'"{ORGANISATION}\n"', "line 2, column id", "UUID"
    ),
    "columns shifted by one": Bad(
        "mentors.csv", f"{FIRST_MENTOR},", f"{MENTOR},active,Canaryfirst,", "line 2, column organisation_id", "UUID"
    ),
    "a day that does not exist": Bad(
        "activities.csv", "2024-03-01", "2023-02-29", "line 4, column activity_date", "date that exists"
    ),
    "a date without hyphens": Bad(
        "activities.csv", "2024-03-01", "20240301", "line 4, column activity_date", "YYYY-MM-DD"
    ),
    "a week date": Bad("activities.csv", "2024-03-01", "2024-W09-5", "line 4, column activity_date", "YYYY-MM-DD"),
    "a date as the Norwegians write it": Bad(
        "mentors.csv", "2020-01-31", "31.01.2020", "line 2, column joined_on", "YYYY-MM-DD"
    ),
    "a date with a time": Bad(
        "mentors.csv", "2020-01-31", "2020-01-31T00:00:00", "line 2, column joined_on", "YYYY-MM-DD"
    ),
    "a date with other digits": Bad(
        "mentors.csv", "2020-01-31", "\u0662\u0660\u0662\u0660-01-31", "line 2, column joined_on", "YYYY-MM-DD"
    ),
    "a date that never ends": Bad("mentors.csv", "2020-01-31", "infinity", "line 2, column joined_on", "YYYY-MM-DD"),
    "an unknown status": Bad("mentors.csv", "active", "canary", "line 2, column status", "active, paused or left"),
    "a status in capitals": Bad("mentors.csv", "active", "ACTIVE", "line 2, column status", "active, paused or left"),
    "a time zone that does not exist": Bad(
        "organisations.csv", "Europe/Oslo", "Europe/Canary", "line 2, column timezone", "IANA"
    ),
    "a time zone that only Python knows": Bad(
        "organisations.csv", "Europe/Oslo", "localtime", "line 2, column timezone", "time zone"
    ),
    "a time zone as an offset": Bad("organisations.csv", "Europe/Oslo", "+01:00", "line 2, column timezone", "IANA"),
    "a NUL in a name": Bad("mentors.csv", "Canarysecond", "Canary\0second", "line 3, column full_name", "NUL"),
    "a NUL in an e-mail address": Bad("mentors.csv", "canary.1@", "canary\0.1@", "line 2, column email", "NUL"),
    "a name of 10,001 characters": Bad(
        "mentors.csv", "Canarysecond", "Canary" + "x" * 9_995, "line 3, column full_name", "10,000"
    ),
    "a telephone number of 10,001 characters": Bad(
        "mentors.csv", "+47 40000001", "4" * 10_001, "line 2, column phone", "10,000"
    ),
    "a field of 200,000 characters": Bad("mentors.csv", "Canarysecond", "x" * 200_000, "line 3", "far too long"),
    "a quote that is never closed": Bad("mentors.csv", "Canaryfirst", '"Canaryfirst', "line 2", "quoting"),
    "text after a closing quote": Bad("mentors.csv", "Canarysecond", '"Canary"second', "line 3", "quoting"),
    "the same organisation twice": Bad(
        "organisations.csv", OTHER_ORGANISATION, ORGANISATION.upper(), "line 3, column id", "earlier line"
    ),
    "the same mentor twice": Bad(
        "mentors.csv", f"{OTHER_MENTOR},", f"{MENTOR},", "line 3, column id", "earlier line"
    ),
    "an organisation that nobody knows": Bad(
        "mentors.csv", OTHER_ORGANISATION, NOBODY, "line 3, column organisation_id", "no such organisation"
    ),
    "an activity of nobody": Bad(
        "activities.csv", OTHER_MENTOR, NOBODY, "line 4, column user_id", "no such mentor"
    ),
    "a certification of nobody": Bad(
        "certifications.csv",
        f"{MENTOR},canarybasic,2027-05-25\n" * 2,
        f"{MENTOR},canarybasic,2027-05-25\n\n{NOBODY},canarybasic,2027-05-25\n",
        "line 4, column user_id",
        "no such mentor",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def untouched(server: EmbeddedPostgres) -> Iterator[Engine]:
    """One empty database for all refusals, since none of them may change it."""
    database.create_database(server.url("postgres"), "refusals")
    engine = database.connect(server.url("refusals"))
    upgrade(engine)
    yield engine
    engine.dispose()


def assert_refused(engine: Engine, folder: Path) -> UserError:
    """The import refuses with one sentence that holds no value of the files, and leaves the database as it was."""
    before = contents(engine)
    with pytest.raises(UserError) as caught:
        import_folder(engine, folder)
    sentence = str(caught.value)
    assert caught.value.exit_status == 2
    assert contents(engine) == before
    assert "\n" not in sentence
    assert sentence.endswith(".")
    for fragment in ("canary", "0000-4000", "+47", "4000", "2020", "2024", "Oslo,", "infinity", "\0", "xxx", "444"):
        assert fragment not in sentence.replace(str(folder), "").lower()
    return caught.value


@pytest.mark.parametrize("bad", BAD_INPUTS.values(), ids=list(BAD_INPUTS))
def test_a_bad_place_is_named_and_nothing_is_imported(untouched: Engine, good: Path, bad: Bad) -> None:
    """Otherwise a person would search thousands of lines, find half an import, or see someone's name in a message."""
    edit(good, bad.name, bad.old, bad.new)

    sentence = str(assert_refused(untouched, good))

    assert sentence.startswith(f"{bad.name}, {bad.place}: ")
    assert bad.hint in sentence


def test_a_refusal_leaves_what_was_imported_before(engine: Engine, good: Path) -> None:
    """Otherwise last year's good import could be spoilt by today's bad one."""
    import_folder(engine, good)
    edit(good, "mentors.csv", "Canaryfirst", "Canarychanged")
    edit(good, "certifications.csv", f"{MENTOR},canarybasic,2027-05-25\n" * 2, f"{NOBODY},canarybasic,2027-05-25\n")

    assert_refused(engine, good)


def test_the_line_is_counted_as_an_editor_counts_it(untouched: Engine, good: Path) -> None:
    """Otherwise one address with a line break in it would send a person to the wrong line."""
    edit(good, "mentors.csv", "Canaryfirst Canarylast", '"Canaryfirst\nCanarylast"')
    edit(good, "mentors.csv", f"{OTHER_MENTOR},", f"\n{NOBODY[:-1]},")

    assert str(assert_refused(untouched, good)).startswith("mentors.csv, line 5, column id: ")


@pytest.mark.parametrize("padding", [0, 30_000], ids=["at the beginning", "far down"])
def test_a_byte_that_is_not_utf8_is_named_by_its_line(untouched: Engine, good: Path, padding: int) -> None:
    """Otherwise a file saved by an old program would end in a message about a codec."""
    activity = f"{MENTOR},canaryvisit,2024-02-29\n".encode()
    header = b"user_id,activity_type,activity_date\n"
    (good / "activities.csv").write_bytes(header + activity * padding + activity.replace(b"visit", b"bes\xf8k"))

    sentence = str(assert_refused(untouched, good))

    assert sentence.startswith(f"activities.csv, line {padding + 2}: ")
    assert "UTF-8" in sentence


def test_a_file_in_utf16_is_refused_at_its_first_line(untouched: Engine, good: Path) -> None:
    """Otherwise what a spreadsheet calls Unicode text would be refused for a header that looks right."""
    (good / "mentors.csv").write_bytes(GOOD["mentors.csv"].encode("utf-16"))

    assert str(assert_refused(untouched, good)).startswith("mentors.csv, line 1: a byte is not UTF-8")


@pytest.mark.parametrize("name", list(GOOD))
def test_a_missing_file_is_named(untouched: Engine, good: Path, name: str) -> None:
    """Otherwise a forgotten file would look like an organisation without mentors."""
    (good / name).unlink()

    assert str(assert_refused(untouched, good)).startswith(f"{name}: the file is missing")


def test_a_folder_in_place_of_a_file_is_refused(untouched: Engine, good: Path) -> None:
    """Otherwise the person would see a stack trace."""
    (good / "mentors.csv").unlink()
    (good / "mentors.csv").mkdir()

    assert str(assert_refused(untouched, good)).startswith("mentors.csv: the file cannot be read (Is a directory)")


@pytest.mark.parametrize("kind", ["missing", "a file"])
def test_a_folder_that_is_none_is_refused(untouched: Engine, tmp_path: Path, kind: str) -> None:
    """Otherwise a slip of the pen would end in a stack trace."""
    folder = tmp_path / "none"
    if kind == "a file":
        folder.write_text("")

    assert str(assert_refused(untouched, folder)).startswith(f"The folder {folder} cannot be read (")


def test_two_imports_at_once_end_as_one(engine: Engine, database_url: str, tmp_path: Path) -> None:
    """Otherwise two impatient colleagues would double everybody's activities."""
    import_folder(engine, write(shutil.copytree(COMMUNITY, tmp_path / "mentors"), HEADERS_OF_HISTORY))
    # No mentor among the rows: the locks of an upsert would hide a race between the activities.
    history = write(shutil.copytree(COMMUNITY, tmp_path / "history"), HEADERS_OF_MENTORS)
    second = database.connect(database_url)
    at_the_merge = threading.Barrier(2, timeout=60)

    def meet(
        connection: Connection, cursor: object, statement: str, parameters: object, context: object, many: bool
    ) -> None:
        # Both have read all their rows and neither has looked at the other's: the worst moment to be two.
        if "pg_advisory_xact_lock" in statement:
            at_the_merge.wait()

    failures: list[BaseException] = []

    def run(own: Engine) -> None:
        try:
            import_folder(own, history)
        except BaseException as exc:  # noqa: BLE001 - handed to the test's own thread
            failures.append(exc)

    threads = [threading.Thread(target=run, args=[own]) for own in (engine, second)]
    for own in (engine, second):
        event.listen(own, "before_cursor_execute", meet)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    second.dispose()

    assert failures == []
    assert not at_the_merge.broken
    assert {name: len(rows) for name, rows in contents(engine).items()} == {
        "organisations": 3,
        "mentors": 1390,
        "activities": 17425,
        "certifications": 1390,
    }


def test_the_database_says_no_without_quoting_a_person(engine: Engine, good: Path) -> None:
    """Otherwise a constraint of one's own would print a mentor's name, address and number."""
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "ALTER TABLE scenario.peer_mentors ADD CONSTRAINT peer_mentors_locale_check CHECK (locale IS NULL)"
        )  # fmt: skip
    before = contents(engine)

    with pytest.raises(SystemicError) as caught:
        import_folder(engine, good)

    assert (
        str(caught.value) == "SQLSTATE 23514 check_violation, constraint peer_mentors_locale_check, table peer_mentors"
    )
    assert caught.value.__suppress_context__
    assert contents(engine) == before


def test_a_database_that_fails_in_the_middle_of_a_file_says_so_without_quoting_a_row(
    engine: Engine, good: Path
) -> None:
    """Otherwise a lost connection would print the line that was on its way."""

    def break_staging(
        connection: Connection, cursor: object, statement: str, parameters: object, context: object, many: bool
    ) -> tuple[str, object]:
        return statement.replace("email text", "email int"), parameters

    event.listen(engine, "before_cursor_execute", break_staging, retval=True)

    with pytest.raises(SystemicError) as caught:
        import_folder(engine, good)

    assert str(caught.value) == "SQLSTATE 22P02 invalid_text_representation"
    assert "canary" not in str(caught.value).lower()
