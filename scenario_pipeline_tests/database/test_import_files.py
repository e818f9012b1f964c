"""Files and names that are not what they seem: refused in one sentence, never waited for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from scenario_pipeline.errors import UserError
from scenario_pipeline.loading import csv_files
from scenario_pipeline.loading.merge import import_folder
from scenario_pipeline_tests.support.csv_folders import GOOD, contents, edit


def refused(engine: Engine, folder: Path) -> str:
    before = contents(engine)
    with pytest.raises(UserError) as caught:
        import_folder(engine, folder)
    assert contents(engine) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def alarm() -> Iterator[None]:
    """Ends a test that waits for a pipe's other end, which nobody opens."""

    def give_up(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("name", list(GOOD))
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("a pipe", "Is a pipe"),
        ("a link to a pipe", "Is a pipe"),
        ("a device without end", "Is a device"),
        ("an empty device", "Is a device"),
        ("a folder", "Is a directory"),
        ("a link to itself", "Too many levels of symbolic links"),
        ("a link to nothing", "No such file or directory"),
    ],
)
def test_what_is_no_file_is_refused_and_not_waited_for(
    untouched: Engine, good: Path, tmp_path: Path, name: str, kind: str, reason: str
) -> None:
    """Otherwise an import would hang with a transaction open, and nobody would know what it waits for."""
    path = good / name
    path.unlink()
    match kind:
        case "a pipe":
            os.mkfifo(path)
        case "a link to a pipe":
            os.mkfifo(tmp_path / "pipe")
            path.symlink_to(tmp_path / "pipe")
        case "a device without end":
            path.symlink_to("/dev/zero")
        case "an empty device":
            path.symlink_to("/dev/null")
        case "a folder":
            path.mkdir()
        case "a link to itself":
            path.symlink_to(path)
        case _:
            path.symlink_to(tmp_path / "nothing")
    assert refused(untouched, good).startswith(f"{name}: the file cannot be read ({reason}); give a readable file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads whatever there is")
def test_a_file_without_permission_is_refused(untouched: Engine, good: Path) -> None:
    """An export that another user made is the usual case."""
    (good / "mentors.csv").chmod(0)
    assert refused(untouched, good).startswith("mentors.csv: the file cannot be read (Permission denied)")


def test_a_link_to_a_file_is_a_file(untouched: Engine, good: Path, tmp_path: Path) -> None:
    """The negative twin: folders of links to the newest export are common."""
    (good / "mentors.csv").rename(tmp_path / "newest.csv")
    (good / "mentors.csv").symlink_to(tmp_path / "newest.csv")
    assert import_folder(untouched, good)["mentors"] == 2
    with untouched.begin() as connection:
        connection.execute(text("TRUNCATE scenario.organisations CASCADE"))


@pytest.mark.parametrize("every", [1, 50_000], ids=["in the middle", "at the end"])
def test_a_file_that_grows_while_it_is_read_is_refused(
    untouched: Engine, good: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """Half an export would be imported as a whole one, or reading would never end."""
    monkeypatch.setattr(csv_files, "_LOOK_EVERY_ROWS", every)
    source = csv_files.FILES[2]
    with (good / source.file_name).open(encoding="utf-8", newline="") as file:
        rows = csv_files.rows(source, good / source.file_name, file)
        next(rows)
        with (good / source.file_name).open("a", encoding="utf-8") as other:
            other.write(GOOD[source.file_name].splitlines(keepends=True)[1])
        with pytest.raises(UserError, match=r"activities\.csv: the file changed while it was read; import it once"):
            next(rows) if every == 1 else list(rows)


BAD_LETTERS = ["\u2028", "\u2029", "\x85", "\x1b", "\t", "\x7f", "\r"]


@pytest.mark.parametrize("letter", BAD_LETTERS, ids=[f"U+{ord(letter):04X}" for letter in BAD_LETTERS])
def test_an_organisations_name_is_one_line(untouched: Engine, good: Path, letter: str) -> None:
    """It stands in tables of the web UI and in messages, where it would begin another line."""
    edit(good, "organisations.csv", "Canarynorth", f'"Canary{letter}north"')
    assert refused(untouched, good).startswith(
        "organisations.csv, line 2, column name: write at most 200 characters in one line, without control characters"
    )


@pytest.mark.parametrize("length", [201, 9_000, 140_000])
def test_an_organisations_name_has_an_end(untouched: Engine, good: Path, length: int) -> None:
    """A name of 140,000 characters stood three times a run in Dagster's database."""
    edit(good, "organisations.csv", "Canarynorth", "x" * length)
    assert refused(untouched, good).startswith("organisations.csv, line 2")


def test_names_that_organisations_have_are_taken(engine: Engine, good: Path) -> None:
    """The negative twin."""
    name = "Ålesund & Sunnmøre (Håp) «Nord» 北京 🌱".ljust(199, "x") + "Z"
    edit(good, "organisations.csv", "Canarynorth", name)
    import_folder(engine, good)
    assert contents(engine)["organisations"][0][1] == name
