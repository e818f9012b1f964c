"""Started, raced, killed, moved: a folder always has one server, and that one has all the data."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from scenario_pipeline.settings import PROJECT_FOLDER
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.support.embedded import (
    STARTER,
    execute,
    folder_of,
    linux,
    postmaster_of,
    postmasters_in,
    processes_in,
    starter,
    tools_in,
    wait_until,
)


def test_a_restart_keeps_the_data(postgres: EmbeddedPostgres) -> None:
    """Otherwise everybody's notifications would be sent again after each restart."""
    assert (postgres.is_running(), postgres.stop()) == (False, False)
    assert (postgres.start(), postgres.start(), postgres.is_running()) == (True, False, True)
    execute(postgres, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)")

    assert (postgres.stop(), postgres.stop(), postgres.is_running()) == (True, False, False)
    assert postgres.start()

    assert execute(postgres, "SELECT n FROM kept") == [(7,)]


def test_the_server_is_set_up_as_promised(running: EmbeddedPostgres) -> None:
    """A time zone or an encoding of the machine would move dates and break names."""
    names = ("server_encoding", "lc_collate", "data_checksums", "fsync", "jit", "max_connections", "TimeZone")
    columns = ", ".join(f"current_setting('{name}')" for name in names if name != "lc_collate")
    assert execute(running, f"SELECT {columns}") == [("UTF8", "on", "on", "off", "200", "UTC")]
    assert execute(running, "SELECT DISTINCT datcollate, datctype, datlocprovider FROM pg_database") == [
        ("C", "C", "c")
    ]


def test_a_second_process_finds_the_same_server_and_does_not_stop_it(stopped: EmbeddedPostgres) -> None:
    """Web server, daemon and runs share one database; the first to end must not take it from the others."""
    with starter(folder_of(stopped)) as first:
        assert first.communicate()[0] == "True\n"
    url = stopped.url("postgres")

    with starter(folder_of(stopped)) as second:
        assert second.communicate()[0] == "False\n"

    assert (stopped.start(), stopped.url("postgres")) == (False, url)


@linux
def test_eight_processes_that_start_at_once_leave_one_server(postgres: EmbeddedPostgres) -> None:
    """Two postmasters on one data folder destroy it."""
    with contextlib.ExitStack() as stack:
        starters = [stack.enter_context(starter(folder_of(postgres))) for _ in range(8)]
        answers = [process.communicate()[0] for process in starters]

    assert sorted(answers) == ["False\n"] * 7 + ["True\n"]
    assert len(postmasters_in(folder_of(postgres))) == 1
    assert execute(postgres, "SELECT 1") == [(1,)]


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_the_server_survives_whoever_started_it(stopped: EmbeddedPostgres, number: signal.Signals) -> None:
    """Ctrl-C, a closed terminal or a killed run must not cut off the other processes."""
    with starter(folder_of(stopped), "stay") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        os.killpg(process.pid, number)

    assert execute(stopped, "SELECT 1") == [(1,)]
    assert stopped.stop()
    wait_until(lambda: not processes_in(folder_of(stopped)), "no process is left behind")


@linux
@pytest.mark.parametrize("moment", ["lock", "data.new", "data", "data/postmaster.pid"])
def test_a_starter_killed_at_any_moment_leaves_a_usable_folder(postgres: EmbeddedPostgres, moment: str) -> None:
    """A newcomer who closes the terminal during the first start must be able to start again."""
    folder = folder_of(postgres)
    with starter(folder, "stay") as process:
        wait_until((folder / moment).exists, moment)
        process.kill()

    postgres.start()

    assert execute(postgres, "SELECT 1") == [(1,)]
    assert {path.name for path in folder.iterdir()} == {"data", "password", "lock", "log"}
    # An orphaned `pg_ctl` may still learn that it came second.
    wait_until(lambda: len(postmasters_in(folder)) == 1, "one server")
    assert postgres.stop()
    wait_until(lambda: not processes_in(folder), "no process is left behind")


@linux
def test_a_starter_waits_for_an_orphaned_initdb_instead_of_racing_it(postgres: EmbeddedPostgres) -> None:
    """Two initdb in one folder would mix their files."""
    folder = folder_of(postgres)
    with starter(folder, "stay") as process:
        wait_until((folder / "data.new/base").exists, "initdb at work")
        process.kill()
        process.wait()
        orphans = tools_in(folder)

    with starter(folder) as second:
        assert second.communicate()[0] == "True\n"

    assert orphans, "initdb ended before its starter was killed"
    assert tools_in(folder) == set()


@linux
def test_a_killed_server_comes_back_with_what_was_committed(running: EmbeddedPostgres) -> None:
    """Out of memory kills servers; a notification that was recorded must stay recorded."""
    execute(running, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)")
    for pid in processes_in(folder_of(running)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not running.is_running()

    assert running.start()

    assert execute(running, "SELECT n FROM kept") == [(7,)]


@linux
def test_a_killed_postmaster_whose_backend_still_works_is_replaced_safely(running: EmbeddedPostgres) -> None:
    """A backend that outlives the postmaster by seconds must not write beside the new server."""
    folder = folder_of(running)
    with psycopg.connect(running.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
        os.kill(postmaster_of(folder), signal.SIGKILL)

        assert running.start()

    assert len(postmasters_in(folder)) == 1
    assert execute(running, "SELECT count(*) FROM kept") == [(1000,)]


def test_a_moved_folder_still_works(running: EmbeddedPostgres, tmp_path: Path) -> None:
    """People rename their project folders."""
    execute(running, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)")
    running.stop()
    moved = EmbeddedPostgres(folder_of(running).rename(tmp_path / "moved"))
    try:
        assert moved.start()
        assert execute(moved, "SELECT n FROM kept") == [(7,)]
    finally:
        assert moved.stop()


@pytest.mark.parametrize("name", ["Mine prosjekter/ærlig hånd", "$HOME `id` \"quoted\" 'too'"])
def test_the_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    """`Application Support` and a Norwegian user name are ordinary; a shell must not expand the rest."""
    server = EmbeddedPostgres(tmp_path / name / "postgres")
    try:
        assert server.start()
        assert execute(server, "SELECT 1") == [(1,)]
    finally:
        assert server.stop()


def test_a_parent_that_reads_our_output_sees_its_end_while_the_server_runs(stopped: EmbeddedPostgres) -> None:
    """`scenario-pipeline run | tee log` would hang for ever if the server held the pipe."""
    finished = subprocess.run(
        [sys.executable, "-c", STARTER, str(folder_of(stopped))],
        cwd=PROJECT_FOLDER,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )

    assert (finished.returncode, finished.stdout, finished.stderr) == (0, b"True\n", b"")
    assert stopped.is_running()


@linux
def test_the_server_does_not_hold_the_lock(running: EmbeddedPostgres) -> None:
    """A lock that lives as long as the server would block every later start and stop."""
    held = set()
    for link in Path(f"/proc/{postmaster_of(folder_of(running))}/fd").iterdir():
        with contextlib.suppress(OSError):
            held.add(link.readlink())

    assert folder_of(running) / "log" in held
    assert folder_of(running) / "lock" not in held
