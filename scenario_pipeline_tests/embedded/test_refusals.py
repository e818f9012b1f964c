"""Folders that cannot be used: one sentence each, and nothing is destroyed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scenario_pipeline.errors import UserError
from scenario_pipeline.settings import PROJECT_FOLDER
from scenario_pipeline.storage import embedded, postgres_tools
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.support.embedded import STARTER, as_root, folder_of, ordinary_user


@pytest.mark.parametrize("name", ["postgres", "new/home/postgres"])
def test_an_unwritable_folder_ends_in_one_sentence(tmp_path: Path, name: str) -> None:
    """A stack trace would hide from a newcomer that only a folder has to be changed."""
    tmp_path.chmod(0o500)
    server = EmbeddedPostgres(tmp_path / name)

    with ordinary_user(), pytest.raises(UserError) as caught:
        server.start()

    assert caught.value.exit_status == 1
    assert str(tmp_path / name) in str(caught.value)
    assert "SCENARIO_HOME" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@as_root
def test_a_folder_of_another_user_ends_in_one_sentence(running: EmbeddedPostgres) -> None:
    """Whoever once used sudo meets this on the next day."""
    with ordinary_user():
        for call in (running.start, running.stop, running.is_running, lambda: running.url("postgres")):
            with pytest.raises(UserError, match="another user") as caught:
                call()
            assert caught.value.exit_status == 1

    assert running.is_running()


def test_a_file_in_the_place_of_the_folder_ends_in_one_sentence(tmp_path: Path) -> None:
    """The same, for a mistyped SCENARIO_HOME."""
    (tmp_path / "postgres").write_text("not a folder")

    with pytest.raises(UserError, match="SCENARIO_HOME") as caught:
        EmbeddedPostgres(tmp_path / "postgres").start()

    assert caught.value.exit_status == 1


def test_a_full_disk_leaves_no_half_made_database(postgres: EmbeddedPostgres) -> None:
    """Half a database would be taken for a whole one after space was made."""
    limited = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from scenario_pipeline.errors import UserError\n"
        f"try:{STARTER.replace(chr(10), chr(10) + ' ')}\n"
        "except UserError as exc: print(exc.exit_status, exc)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", limited, str(folder_of(postgres))],
        cwd=PROJECT_FOLDER,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert finished.stdout.startswith(f"1 The embedded database in {folder_of(postgres)} could not be created: ")
    assert finished.stderr == ""
    assert {path.name for path in folder_of(postgres).iterdir()} <= {"lock", "password"}
    assert postgres.start()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "data/PG_VERSION").write_text("16\n"), "made by Postgres 16"),
        (lambda folder: (folder / "data/PG_VERSION").unlink(), "not a database"),
        (lambda folder: (folder / "password").unlink(), "lost the file `password`"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(
    running: EmbeddedPostgres, damage: Callable[[Path], object], sentence: str
) -> None:
    """Creating the database anew over somebody's data would be the worst answer."""
    running.stop()
    damage(folder_of(running))
    before = sorted(folder_of(running).rglob("*"))

    with pytest.raises(UserError, match=sentence) as caught:
        running.start()

    assert caught.value.exit_status == 1
    assert sorted(folder_of(running).rglob("*")) == before


def test_a_missing_wheel_ends_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a system without a wheel the way out is a server of one's own."""
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})

    with pytest.raises(UserError, match="SCENARIO_DATABASE_URL") as caught:
        EmbeddedPostgres(tmp_path / "postgres").start()

    assert caught.value.exit_status == 1
    assert not (tmp_path / "postgres/data").exists()


def test_a_log_that_cannot_be_written_is_named(stopped: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the server would end in silence."""
    monkeypatch.setattr(embedded, "RESTART_SECONDS", 0.0)
    (folder_of(stopped) / "log").unlink(missing_ok=True)
    (folder_of(stopped) / "log").symlink_to("/dev/full/log")

    with pytest.raises(UserError, match="log cannot be written") as caught:
        stopped.start()

    assert caught.value.exit_status == 1


@pytest.mark.parametrize("name", ["do$HOME", "back`id`", 'quo"te'])
def test_an_environment_whose_path_a_shell_would_expand_is_refused(
    postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """`initdb` would say that `postgres` is missing, which lies right beside it, or run what the name says."""
    monkeypatch.setattr(postgres_tools, "binaries", lambda: tmp_path / name / "bin")

    with pytest.raises(UserError, match="Move the Python environment") as caught:
        postgres.start()

    assert caught.value.exit_status == 1


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (
            "running bootstrap script ... 2026-11-25 17:12:27.444 UTC [9524] FATAL:  could not resize shared memory "
            'segment "/PostgreSQL.1" to 1048576 bytes: No space left on device\n'
            "2026-11-25 17:12:27.444 UTC [9524] PANIC:  cannot abort transaction 1, it was already committed\n"
            "child process exited with exit code 134\n",
            'could not resize shared memory segment "/PostgreSQL.1" to 1048576 bytes: No space left on device',
        ),
        (
            '2026-11-25 17:12:27 UTC [9] FATAL:  could not extend file "base/1/2691"\n'
            "2026-11-25 17:12:27 UTC [9] HINT:  Check free disk space.\n",
            'could not extend file "base/1/2691". Check free disk space',
        ),
        ("initdb: error: directory exists but is not empty\n", "directory exists but is not empty"),
        ("starting\nsh: not found.\n\n", "sh: not found"),
        ("", "no reason was given"),
    ],
)
def test_the_reason_is_the_first_error_and_not_what_follows_from_it(output: str, reason: str) -> None:
    """A reader who learns that a transaction was already committed does not look at the disk."""
    assert embedded._reason(output.encode()) == reason
