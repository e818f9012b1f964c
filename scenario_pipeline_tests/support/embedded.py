"""Servers of a test's own, looked at from outside.

Belongs here: starting one in another process, finding its processes, asking it. Does not belong here: fixtures
(`embedded/conftest.py`), and the server that the other tests share.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from scenario_pipeline.settings import PROJECT_FOLDER
from scenario_pipeline.storage.embedded import EmbeddedPostgres

linux = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes through /proc")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts the server as another user")

# What a second process does; it says so on stdout and stays if asked to, so that it can be killed.
STARTER = """
import sys
from pathlib import Path
from scenario_pipeline.storage.embedded import EmbeddedPostgres

print(EmbeddedPostgres(Path(sys.argv[1])).start(), flush=True)
if "stay" in sys.argv:
    sys.stdin.read()
"""


def folder_of(server: EmbeddedPostgres) -> Path:
    return server._folder


def wait_until(condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"waited {seconds} s in vain: {what}"
        time.sleep(0.005)


def starter(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STARTER, str(folder), *arguments],
        cwd=PROJECT_FOLDER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def processes_in(folder: Path) -> set[int]:
    """The server's processes: all of them, and no others, work in the data folder."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() in (folder / "data", folder / "data.new"):
                found.add(int(process.name))
    return found


def tools_in(folder: Path) -> set[int]:
    """`initdb` and `pg_ctl`, which work in the folder itself."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == folder:
                found.add(int(process.name))
    return found


def postmasters_in(folder: Path) -> set[int]:
    everyone, found = processes_in(folder), set()
    for pid in everyone:
        with contextlib.suppress(OSError):
            if int(Path(f"/proc/{pid}/stat").read_text().split()[3]) not in everyone:
                found.add(pid)
    return found


def postmaster_of(folder: Path) -> int:
    return int((folder / "data/postmaster.pid").read_text().splitlines()[0])


def execute(server: EmbeddedPostgres, *statements: str) -> list[tuple[object, ...]]:
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Be a user whom permissions bind: root, whom they do not, becomes `nobody` for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
