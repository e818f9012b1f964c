"""Who gets in, and what the password, the network and the log show."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from pathlib import Path

import psycopg
import pytest

from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.support.embedded import execute, folder_of, linux, starter, wait_until

CANARY = "kari.nordmann@example.org"


def test_nobody_gets_in_without_the_password(running: EmbeddedPostgres) -> None:
    """Every user of the machine can reach a loopback port."""
    url = running.url("postgres")
    password = (folder_of(running) / "password").read_text()
    assert password in url

    for wrong in ("", "wrong"):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url.replace(password, wrong), connect_timeout=5)
    rules = execute(running, "SELECT DISTINCT auth_method FROM pg_hba_file_rules")
    assert rules == [("scram-sha-256",)]


def test_the_server_listens_on_loopback_only(running: EmbeddedPostgres) -> None:
    """The data of people must not be offered to the network."""
    shown = execute(
        running,
        "SELECT current_setting('listen_addresses'), current_setting('unix_socket_directories'), "
        "inet_server_addr()::text",
    )

    assert shown == [("127.0.0.1", "", "127.0.0.1/32")]
    # Line 5 of the pid file is the first socket folder, line 6 the first address it listens on.
    assert (folder_of(running) / "data/postmaster.pid").read_text().splitlines()[4:6] == ["", "127.0.0.1"]


@linux
def test_the_password_is_in_its_file_only(postgres: EmbeddedPostgres) -> None:
    """A command line and an environment can be read by others, a log is sent to others."""
    seen: set[bytes] = set()

    def look_at_processes() -> None:
        for process in Path("/proc").glob("[0-9]*"):
            for kind in ("cmdline", "environ"):
                with contextlib.suppress(OSError):
                    seen.add((process / kind).read_bytes())

    with starter(folder_of(postgres)) as process:
        while process.poll() is None:
            look_at_processes()
        process.communicate()
    look_at_processes()
    file = folder_of(postgres) / "password"
    password = file.read_bytes()

    assert any(b"initdb" in line for line in seen), "never saw initdb at work"
    assert len(password) >= 32
    assert not [line for line in seen if password in line]
    assert password not in (folder_of(postgres) / "log").read_bytes()
    assert {stat.S_IMODE(path.stat().st_mode) for path in (file, folder_of(postgres) / "log")} == {0o600}
    assert stat.S_IMODE(folder_of(postgres).stat().st_mode) == 0o700


@linux
def test_the_log_of_the_server_holds_no_values(running: EmbeddedPostgres) -> None:
    """The log is what people send when they ask for help."""
    execute(running, "CREATE TABLE people (email text PRIMARY KEY CHECK (email <> ''), born date)")
    insert = f"INSERT INTO people VALUES ('{CANARY}')"
    execute(running, insert)
    for failing in (
        insert,
        f"INSERT INTO people VALUES ('{CANARY}', '{CANARY}')",
        f"SELECT 1 / 0, '{CANARY}'",
        f"SELEKT '{CANARY}'",
        f"DO $$ BEGIN RAISE WARNING '{CANARY}'; RAISE EXCEPTION '{CANARY}'; END $$",
    ):
        with pytest.raises(psycopg.Error) as caught:
            execute(running, failing)
        assert caught.value.sqlstate is not None
    # The server's own report of a crash quotes what the killed backend was doing.
    log = folder_of(running) / "log"
    before = len(log.read_text())
    with contextlib.closing(psycopg.connect(running.url("postgres"))) as doomed:
        doomed.execute(f"SELECT '{CANARY}'".encode())
        os.kill(doomed.info.backend_pid, signal.SIGKILL)
    wait_until(lambda: "ready to accept connections" in log.read_text()[before:], "the server recovers")

    assert "terminated by signal 9" in log.read_text()
    assert CANARY not in log.read_text()
