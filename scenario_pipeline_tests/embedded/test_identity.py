"""Which server is ours: pid files, ports and numbers of processes may be a stranger's."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from scenario_pipeline.errors import UserError
from scenario_pipeline.storage import embedded
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline.storage.postgres_tools import Account
from scenario_pipeline_tests.support.embedded import (
    execute,
    folder_of,
    linux,
    postmaster_of,
    postmasters_in,
    processes_in,
    wait_until,
)


def test_a_stale_pid_file_is_neither_believed_nor_signalled(running: EmbeddedPostgres) -> None:
    """After a restart of a container the file may name a stranger's process and a stranger's port."""
    pid_file = folder_of(running) / "data/postmaster.pid"
    lines = pid_file.read_text().splitlines()
    running.stop()
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger,
        socket.create_server((embedded.HOST, 0)) as deaf,
    ):
        pid_file.write_text("\n".join([str(stranger.pid), *lines[1:3], str(deaf.getsockname()[1]), *lines[4:], ""]))
        deaf.close()

        assert (running.is_running(), running.stop()) == (False, False)
        with pytest.raises(UserError, match="does not run"):
            running.url("postgres")
        assert stranger.poll() is None
        stranger.communicate(b"\n")
    assert running.start()


def test_another_server_that_trusts_everybody_is_not_taken_for_ours(running: EmbeddedPostgres, tmp_path: Path) -> None:
    """Our data would land in a stranger's database, and our password in its hands."""
    pid_file = folder_of(running) / "data/postmaster.pid"
    stale = pid_file.read_text().splitlines()
    running.stop()
    other = EmbeddedPostgres(tmp_path / "other")
    try:
        other.start()
        url = other.url("postgres")
        (folder_of(other) / "data/pg_hba.conf").write_text("host all all 127.0.0.1/32 trust\n")
        execute(other, "SELECT pg_reload_conf()")
        wait_until(lambda: not other.is_running(), "the other server trusts everybody")
        with psycopg.connect(url, password="wrong", autocommit=True) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
            stale[3] = str(connection.info.port)
        pid_file.write_text("\n".join([*stale, ""]))

        assert not running.is_running()
        assert running.start()
        assert running.is_running()
    finally:
        for pid in postmasters_in(folder_of(other)):
            os.kill(pid, signal.SIGQUIT)
        wait_until(lambda: not processes_in(folder_of(other)), "the other server ends")


def test_a_copy_of_a_running_folder_is_a_database_of_its_own(running: EmbeddedPostgres, tmp_path: Path) -> None:
    """Stopping the copy would stop the original, and both would write into one database."""
    execute(running, "CHECKPOINT")
    shutil.copytree(folder_of(running), tmp_path / "copy")
    copy = EmbeddedPostgres(tmp_path / "copy")

    assert (copy.is_running(), copy.stop()) == (False, False)
    assert running.is_running()


@contextlib.contextmanager
def stranger(kind: str, account: Account | None) -> Iterator[str]:
    """Yield the first line of a pid file that names a live process which is no server."""
    uid, gid = (None, None) if account is None else (account.uid, account.gid)
    groups: list[int] | None = None if account is None else []
    with subprocess.Popen(["sleep", "600"], cwd="/", user=uid, group=gid, extra_groups=groups) as process:
        try:
            if kind == "itself":
                yield str(os.getpid())
            elif kind == "thread":
                done = threading.Event()
                thread = threading.Thread(target=done.wait)
                thread.start()
                yield str(thread.native_id)
                done.set()
            elif kind == "zombie":
                process.kill()
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
                yield str(process.pid)
            else:
                yield f"-{process.pid}" if kind == "single-user server" else str(process.pid)
        finally:
            process.kill()


@linux
@pytest.mark.parametrize("kind", ["process", "single-user server", "itself", "thread", "zombie"])
def test_a_number_that_another_process_of_the_same_user_has_now_does_not_block_a_start(
    running: EmbeddedPostgres, kind: str
) -> None:
    """After a restart of a container numbers come again, and nobody would get on until that process ends."""
    pid_file = folder_of(running) / "data/postmaster.pid"
    lines = pid_file.read_text().splitlines()
    account = running._server_account()
    running.stop()
    with stranger(kind, account) as number:
        pid_file.write_text("\n".join([number, *lines[1:2], "1700000000", *lines[3:], ""]))

        assert running.start()

    assert execute(running, "SELECT 1") == [(1,)]
    assert postmasters_in(folder_of(running)) == {postmaster_of(folder_of(running))}


@linux
@pytest.mark.parametrize("is_clock_moved", [False, True])
def test_a_server_that_does_not_let_us_in_is_named_and_its_pid_file_left_alone(
    running: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch, *, is_clock_moved: bool
) -> None:
    """Who removes the pid file of a healthy server, as was once the advice, can destroy the database."""
    monkeypatch.setattr(embedded, "RESTART_SECONDS", 0.0)
    folder = folder_of(running)
    password, pid_file = folder / "password", folder / "data/postmaster.pid"
    if is_clock_moved:
        lines = pid_file.read_text().split("\n")
        pid_file.write_text("\n".join([*lines[:2], "1700000000", *lines[3:]]))
    kept, before = password.read_text(), pid_file.read_bytes()
    password.write_text("wrong")
    try:
        with pytest.raises(UserError) as caught:
            running.start()
    finally:
        password.write_text(kept)

    assert f"Process {postmaster_of(folder)}, the server of this folder" in str(caught.value)
    assert "stop that process" in str(caught.value)
    assert "postmaster.pid" not in str(caught.value).replace('lock file "postmaster.pid" already exists', "")
    assert pid_file.read_bytes() == before
    assert running.is_running()


@linux
def test_a_copy_of_a_folder_whose_server_runs_does_not_start(
    running: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied while it was written, the database may be damaged without a sign."""
    monkeypatch.setattr(embedded, "RESTART_SECONDS", 0.0)
    shutil.copytree(folder_of(running), tmp_path / "copy")
    for path in ((tmp_path / "copy"), *(tmp_path / "copy").rglob("*")):
        owner = folder_of(running).stat()
        os.chown(path, owner.st_uid, owner.st_gid)

    with pytest.raises(UserError, match="or of the one it was copied from, is running"):
        EmbeddedPostgres(tmp_path / "copy").start()

    assert running.is_running()
