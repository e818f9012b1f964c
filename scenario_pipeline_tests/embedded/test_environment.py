"""What a shell, a container or a machine sets: none of it decides whether the server starts and is reached."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import psycopg
import pytest
from sqlalchemy import create_engine, text

from scenario_pipeline.settings import PROJECT_FOLDER
from scenario_pipeline.storage import embedded
from scenario_pipeline.storage.database import driver_url
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.support.embedded import STARTER, as_root, execute, folder_of, linux

# The list is the library's; what is in no connection's parameters stands in its manual.
VARIABLES = sorted(
    {option.envvar.decode() for option in psycopg.pq.Conninfo.get_defaults() if option.envvar}
    | {"PGSERVICEFILE", "PGSYSCONFDIR", "PGLOCALEDIR", "PGREQUIRESSL", "PGTZ", "PGDATESTYLE", "PGGEQO"}
)
WHO = "SELECT current_user, " + ", ".join(
    f"current_setting('{name}')" for name in ("client_encoding", "TimeZone", "DateStyle", "geqo")
)


@pytest.mark.parametrize("value", ["garbage", "require", "1"])
def test_no_variable_of_libpq_keeps_us_from_our_server(
    running: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """Who also works with another Postgres has such variables in the shell, and they are meant for that one."""
    reached: dict[str, list[tuple[str, ...]]] = {}
    for name in VARIABLES:
        monkeypatch.setenv(name, value)
        assert (running.start(), running.is_running()) == (False, True), name
        url = running.url("postgres")
        reached[name] = []
        for driver in ("psycopg", "psycopg2"):
            engine = create_engine(driver_url(url, driver))
            with engine.connect() as connection:
                reached[name].append(tuple(connection.execute(text(WHO)).one()))
            engine.dispose()

    assert reached == dict.fromkeys(VARIABLES, [("scenario", "UTF8", "UTC", "ISO, MDY", "on")] * 2)


def test_what_db_url_prints_leads_another_program_to_our_server(running: EmbeddedPostgres) -> None:
    """Their own program keeps the variables of the shell, of which some would lead it elsewhere or keep it out."""
    program = "import psycopg, sys; print(psycopg.connect(sys.argv[1]).execute('SHOW data_directory').fetchone()[0])"
    elsewhere = {"PGHOSTADDR": "127.0.0.2", "PGPORT": "1", "PGDATABASE": "nosuch", "PGUSER": "nobody"}
    finished = subprocess.run(
        [sys.executable, "-c", program, f"{running.url('postgres')}?{embedded.CLIENT_PARAMETERS}"],
        env=os.environ | elsewhere | dict.fromkeys(("PGSSLMODE", "PGGSSENCMODE", "PGCHANNELBINDING"), "require"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (finished.stdout, finished.stderr) == (f"{folder_of(running) / 'data'}\n", "")


def test_a_server_first_created_under_hostile_variables_is_like_any_other(postgres: EmbeddedPostgres) -> None:
    """A locale that does not exist, or another data folder, would end `initdb` or make other data of it."""
    hostile = dict.fromkeys(VARIABLES, "garbage") | {
        **dict.fromkeys(("LANG", "LC_ALL", "LC_MESSAGES", "LC_NUMERIC", "LANGUAGE"), "xx_YY.KOI8-R"),
        **dict.fromkeys(("PGDATA", "TMPDIR", "PATH", "LD_LIBRARY_PATH", "HOME"), "/nonexistent"),
        "TZ": "garbage",
        "PGCTLTIMEOUT": "0",
        "PG_COLOR": "always",
        "PG_TEST_INITDB_TEMPLATE": "/nonexistent",
    }
    finished = subprocess.run(
        [sys.executable, "-c", STARTER, str(folder_of(postgres))],
        cwd=PROJECT_FOLDER,
        env=hostile,
        capture_output=True,
        timeout=120,
        check=False,
    )

    assert (finished.returncode, finished.stdout, finished.stderr) == (0, b"True\n", b"")
    names = ("server_encoding", "TimeZone", "lc_messages", "port", "DateStyle")
    [shown] = execute(postgres, "SELECT " + ", ".join(f"current_setting('{name}')" for name in names))
    assert shown == ("UTF8", "UTC", "C", str(postgres._port()), "ISO, MDY")
    assert execute(postgres, "SELECT name FROM pg_settings WHERE source = 'environment variable'") == []


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_no_umask_opens_or_breaks_the_folder(postgres: EmbeddedPostgres, umask: int) -> None:
    """Every user of the machine would read the password and the log."""
    before = os.umask(umask)
    try:
        assert postgres.start()
    finally:
        os.umask(before)

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) & 0o077 for path in folder_of(postgres).iterdir()}
    assert modes == dict.fromkeys(("data", "password", "lock", "log"), 0)


def test_signals_that_a_parent_ignores_do_not_reach_the_tools(postgres: EmbeddedPostgres) -> None:
    """Where SIGCHLD is ignored, `initdb` does not learn how its children ended."""
    ignoring = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    finished = subprocess.run(
        [sys.executable, "-c", ignoring + STARTER, str(folder_of(postgres))],
        cwd=PROJECT_FOLDER,
        capture_output=True,
        timeout=120,
        check=False,
    )

    assert (finished.returncode, finished.stdout) == (0, b"True\n")
    assert execute(postgres, "SELECT 1") == [(1,)]


@linux
def test_a_folder_made_for_dev_shm_runs_without_it(stopped: EmbeddedPostgres) -> None:
    """A container gives /dev/shm 64 MB or less, and a folder that was made elsewhere may name it."""
    with (folder_of(stopped) / "data/postgresql.conf").open("a") as file:
        file.write("dynamic_shared_memory_type = posix\n")

    assert stopped.start()

    assert execute(stopped, "SHOW dynamic_shared_memory_type") == [("sysv",)]


@as_root
@linux
def test_a_tiny_dev_shm_is_enough(postgres: EmbeddedPostgres) -> None:
    """`initdb` ended with a PANIC about a transaction that was already committed."""
    # 0x20000 is CLONE_NEWNS; 0x44000 makes the mounts private, so that no other process sees the small one.
    tiny = (
        "import ctypes; libc = ctypes.CDLL(None)\n"
        "if libc.unshare(0x20000) or libc.mount(b'none', b'/', None, 0x44000, None)"
        " or libc.mount(b'tmpfs', b'/dev/shm', b'tmpfs', 0, b'size=64k'): raise SystemExit(77)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", tiny + STARTER, str(folder_of(postgres))],
        cwd=PROJECT_FOLDER,
        capture_output=True,
        timeout=120,
        check=False,
    )
    if finished.returncode == 77:
        pytest.skip("this container lets nobody mount")

    assert (finished.returncode, finished.stdout, finished.stderr) == (0, b"True\n", b"")
    # More than 64 KiB of shared memory, which parallel workers use.
    statements = (
        "SET debug_parallel_query = on",
        "SET parallel_setup_cost = 0",
        "SET parallel_tuple_cost = 0",
        "SET min_parallel_table_scan_size = 0",
        "CREATE TABLE numbers AS SELECT generate_series(1, 100000) AS n",
        "SELECT count(*) FROM numbers a JOIN numbers b USING (n)",
    )
    assert execute(postgres, *statements) == [(100000,)]
