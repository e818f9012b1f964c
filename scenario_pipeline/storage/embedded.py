"""The embedded Postgres: one private server for each SCENARIO_HOME, shared by all of its processes.

Belongs here: creating the data folder; starting, identifying, addressing and stopping the server, so that no killed
process ever corrupts or loses it. Does not belong here: the binaries (`storage.postgres_tools`), or what is inside the
server.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg.conninfo import make_conninfo

from scenario_pipeline.errors import UserError
from scenario_pipeline.storage import postgres_tools
from scenario_pipeline.storage.postgres_tools import MAJOR, MEMORY, Account

SUPERUSER = "scenario"
# Loopback by number, because `localhost` may resolve to ::1, where the server does not listen.
HOST = "127.0.0.1"
# The slowest work under the lock is a start (at most RECOVERY_SECONDS) plus `initdb` (a few seconds).
HOME_LOCK_SECONDS = 120.0
# The zombie of a killed postmaster and its last backends hold Postgres' own interlock for seconds.
RESTART_SECONDS = 15.0
# Enough for crash recovery of a small installation; after that, the server continues by itself.
RECOVERY_SECONDS = 90.0
# A loopback login takes milliseconds; a server that is silent for longer hangs.
LOGIN_SECONDS = 5
POLL_SECONDS = 0.05

# `log_min_messages = log` leaves ERROR out: its primary text quotes values ('invalid input syntax for type ...').
# `terse` leaves out DETAIL, which quotes rows, and the statement of a crashed backend. There is no socket file, so
# neither the length of the path nor a space in it matters. Nobody rotates the log; without checkpoints it stays small.
# jit costs up to a quarter of a page's time and never saves any. The statement of a killed client ends within a second,
# and so do its locks.
_SETTINGS = f"""
# Written once by scenario_pipeline.
listen_addresses = '{HOST}'
unix_socket_directories = ''
max_connections = 200
shared_preload_libraries = ''
jit = off
timezone = 'UTC'
log_timezone = 'UTC'
log_min_messages = log
log_min_error_statement = panic
log_error_verbosity = terse
log_checkpoints = off
client_connection_check_interval = '1s'
"""
# For other programs such as psql, in which libpq's variables still count; every libpq since version 13 knows these.
CLIENT_PARAMETERS = f"hostaddr={HOST}&sslmode=disable&gssencmode=disable&channel_binding=disable"
_OTHERWISE = "Otherwise set SCENARIO_HOME to another folder or SCENARIO_DATABASE_URL to a server of your own."


class _State(Enum):
    DOWN = "our server does not answer"
    STARTING = "a server answers that it is starting, recovering or shutting down"
    RUNNING = "our server lets us in"


class EmbeddedPostgres:
    """The server of one folder; any number of processes may have such an object for the same folder.

    No process owns the server: it outlives the one that started it, and ends only by `stop`. No absolute path is
    stored, so a folder may be moved or copied while the server is stopped.

    Args:
        folder: holds `data/`, `password`, `lock` and `log`; the first start creates it and its parents.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._data = self._folder / "data"
        self._password = self._folder / "password"

    def start(self) -> bool:
        """Create the data folder if there is none, and start the server if it does not run.

        Returns:
            True if this call started the server, False if it was already running.

        Raises:
            UserError: the server cannot run here (exit status 1); the message says why and what to do.
        """
        with self._one_sentence():
            if self._state() is _State.RUNNING:
                return False
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            self._folder.mkdir(mode=0o700, exist_ok=True)
            with self._locked() as lock:
                self._give_to_server_user()
                self._remove_leftovers()
                if not self._data.exists():
                    self._initialise(lock)
                self._check_data()
                return self._launch(lock)

    def stop(self) -> bool:
        """Shut the server down; open connections are closed, and their transactions are rolled back.

        Returns:
            True if a server was stopped, False if none was running.

        Raises:
            UserError: the server is still recovering, or did not stop within a minute (exit status 1).
        """
        with self._one_sentence():
            if not self._data.exists():
                return False
            with self._locked():
                give_up = time.monotonic() + RECOVERY_SECONDS
                while (state := self._state()) is _State.STARTING and time.monotonic() < give_up:
                    time.sleep(POLL_SECONDS)
                # `pg_ctl stop` signals any process that the pid file names, so first prove that it is our server.
                if state is _State.DOWN:
                    return False
                if state is _State.RUNNING:
                    self._run("pg_ctl", "-D", "data", "-m", "fast", "-w", "-t", "60", "stop")
                    state = self._state()
                if state is not _State.DOWN:
                    raise self._error("did not stop: it is busy recovering or closing; try again in a minute.")
                return True

    def url(self, database: str) -> str:
        """Return the URL of a database on the running server; it includes the password.

        It is valid in this process and in those that it starts, where libpq's variables no longer count.

        Raises:
            UserError: the server does not run (exit status 1).
        """
        with self._one_sentence():
            port = self._port()
            if port is None or self._state() is not _State.RUNNING:
                raise self._error("does not run; start it first.")
            password = self._read_password()
        return f"postgresql://{SUPERUSER}:{password}@{HOST}:{port}/{quote(database, safe='')}"

    def is_created(self) -> bool:
        """Whether the folder already holds a server; the first start creates one, which takes seconds.

        Raises:
            UserError: the folder cannot be read (exit status 1).
        """
        with self._one_sentence():
            return self._data.exists()

    def is_running(self) -> bool:
        """Whether our server accepts our password and answers a SELECT.

        A pid proves nothing, because another process may have it.

        Raises:
            UserError: the folder cannot be read (exit status 1).
        """
        with self._one_sentence():
            return self._state() is _State.RUNNING

    def _state(self) -> _State:
        port = self._port()
        if port is None:
            return _State.DOWN
        postgres_tools.ignore_libpq_variables()
        # After a crash, another server may have the port. SCRAM makes it prove that it knows our password, without
        # showing it the password.
        target = make_conninfo(
            host=HOST,
            hostaddr=HOST,
            port=port,
            user=SUPERUSER,
            password=self._read_password(),
            dbname="postgres",
            connect_timeout=LOGIN_SECONDS,
            require_auth="scram-sha-256",
            sslmode="disable",
            gssencmode="disable",
        )
        try:
            with psycopg.connect(target, autocommit=True) as connection:
                row = connection.execute("SELECT current_setting('data_directory')").fetchone()
        except psycopg.Error:
            rejected = psycopg.pq.PGconn.ping(target.encode()) == psycopg.pq.Ping.REJECT
            return _State.STARTING if rejected else _State.DOWN
        # A copy of the folder of a running server names that server and has its password. If a folder is moved while
        # its server runs, the server still reports the old place.
        served = Path(str(row[0])) if row else self._data
        return _State.RUNNING if not served.exists() or served.samefile(self._data) else _State.DOWN

    def _pid_file(self) -> list[str]:
        try:
            return (self._data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            return []

    def _claimant(self) -> tuple[int | None, bool]:
        """Return the process named in the pid file, and whether it may be a server: ours, or a copied folder's."""
        lines = self._pid_file()
        # A single-user server writes its pid with a minus.
        first = lines[0].removeprefix("-") if lines else ""
        if not first.isdecimal():
            return None, False
        started_at = float(lines[2]) if len(lines) > 3 and lines[2].isdecimal() else 0.0
        return int(first), postgres_tools.may_serve(int(first), self._data, started_at)

    def _port(self) -> int | None:
        """Return the port in line 4 of the pid file, which Postgres writes in several steps."""
        lines = self._pid_file()
        return int(lines[3]) if len(lines) > 4 and lines[3].isdecimal() else None

    def _read_password(self) -> str:
        try:
            return self._password.read_text(encoding="ascii")
        except FileNotFoundError:
            raise self._error(f"has lost the file `password`: put it back. {_OTHERWISE}") from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Hold the lock of the folder; the kernel releases it when its holder dies for any reason."""
        try:
            import fcntl
        except ImportError:
            raise self._error(
                "needs file locks that this operating system lacks: set SCENARIO_DATABASE_URL to a server of your own."
            ) from None
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            give_up = time.monotonic() + HOME_LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > give_up:
                        raise self._error(
                            f"has been locked by another process for {HOME_LOCK_SECONDS:.0f} seconds: end that process."
                        ) from None
                    time.sleep(POLL_SECONDS)
            yield lock
        finally:
            os.close(lock)

    def _initialise(self, lock: int) -> None:
        """Run `initdb` beside `data/` and rename the result, so that `data/` is either complete or absent."""
        binaries = postgres_tools.binaries()
        if postgres_tools.UNSAFE_CHARACTERS & set(str(binaries)):
            raise self._error(
                f"cannot be created: `initdb` lets a shell read its own path, {binaries}, and the shell would take "
                'the characters " $ ` as its own. Move the Python environment, or set SCENARIO_DATABASE_URL to a '
                "server of your own."
            )
        self._password.unlink(missing_ok=True)
        descriptor = os.open(self._password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(32))
            file.flush()
            # If the password did not reach the disk before a power failure, nothing could open the database.
            os.fsync(descriptor)
        self._give_to_server_user()
        new = self._folder / "data.new"
        try:
            # The child inherits the lock: if we are killed, the next starter waits for the orphan instead of racing it.
            result = self._run(
                "initdb",
                *("-D", new.name, "-U", SUPERUSER, f"--pwfile={self._password.name}"),
                *("--auth-local=scram-sha-256", "--auth-host=scram-sha-256"),
                *("--encoding=UTF8", "--locale=C", "--data-checksums", "--no-instructions"),
                # Iterations slow down guessing, but nobody can guess 256 random bits. They would cost two thirds of
                # each connection, and Dagster opens one for each event that it stores.
                *("-c", "scram_iterations=1"),
                *MEMORY,
                keep_open=(lock,),
            )
            if result.returncode != 0:
                reason = _reason(result.stderr)
                raise self._error(f"could not be created: {reason}. Fix that and start again. {_OTHERWISE}")
            with (new / "postgresql.conf").open("a", encoding="utf-8") as file:
                file.write(_SETTINGS)
                file.flush()
                os.fsync(file.fileno())
            new.rename(self._data)
            _sync(self._folder)
        finally:
            self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        shutil.rmtree(self._folder / "data.new", ignore_errors=True)

    def _check_data(self) -> None:
        try:
            found = (self._data / "PG_VERSION").read_text(encoding="ascii", errors="replace").strip()
        except FileNotFoundError:
            raise self._error(f"holds a `data` folder that is not a database: move it away. {_OTHERWISE}") from None
        if found != MAJOR:
            raise self._error(
                f"was made by Postgres {found}, and this project brings Postgres {MAJOR}: dump it with the old version "
                f"and move the folder away. {_OTHERWISE}"
            )
        self._read_password()

    def _launch(self, lock: int) -> bool:
        """Start the server and wait until it lets us in; return whether this call started it."""
        began, started, reason = time.monotonic(), False, ""
        while True:
            state = self._state()
            if state is _State.RUNNING:
                return started
            if state is _State.DOWN:
                # A new port each time, since another process may take it before the server binds it.
                log = self._folder / "log"
                seen = log.stat().st_size if log.exists() else 0
                # Postgres trusts a pid file if any process has its number. We know better whether that may be a server,
                # and tell Postgres in the way Patroni does. Removing the file would race with a server that is just
                # starting.
                pid, may_serve = self._claimant()
                result = self._run(
                    *("postgres", "-D", "data", "-p", str(_free_port()), *MEMORY),
                    log=log.name,
                    ignored_pid=None if may_serve else pid,
                    keep_open=(lock,),
                )
                started, state = result.returncode == 0, self._state()
                if state is _State.RUNNING:
                    return started
                reason = _reason(log.read_bytes()[seen:] if log.exists() else b"", result.stderr)
            patience = RECOVERY_SECONDS if state is _State.STARTING else RESTART_SECONDS
            if time.monotonic() - began > patience:
                break
            time.sleep(POLL_SECONDS)
        if state is _State.STARTING:
            raise self._error("is still recovering from a crash. That continues by itself: try again in a few minutes.")
        hint = "Fix that and start again."
        pid, may_serve = self._claimant()
        if may_serve:
            hint = (
                f"Process {pid}, the server of this folder or of the one it was copied from, is running and does not "
                "let us in: stop that process and start again."
            )
        raise self._error(f"did not start: {reason or 'see its log'}. {hint} {_OTHERWISE}")

    def _server_account(self) -> Account | None:
        """If we are root, return the user that Postgres runs as; otherwise None."""
        if os.geteuid() != 0:
            return None
        status = self._folder.stat()
        if status.st_uid != 0:
            return Account(status.st_uid, status.st_gid)
        import pwd

        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return Account(entry.pw_uid, entry.pw_gid)
        raise self._error("belongs to root, and Postgres does not run as root: run as an ordinary user instead.")

    def _give_to_server_user(self) -> None:
        """As root, give files that root created in the folder to the server's user; never touch its parents."""
        user = self._server_account()
        if user is None:
            return
        # If root made or copied the folder, take every file; otherwise only the few at its top. The folder comes last,
        # so that an interrupted pass is repeated. Skip links, because the server's user may have planted them.
        everything = self._folder.stat().st_uid == 0
        for path in [*(self._folder.rglob("*") if everything else self._folder.iterdir()), self._folder]:
            status = path.lstat()
            if status.st_uid == 0 and (path.is_dir() or status.st_nlink == 1):
                os.chown(path, user.uid, user.gid, follow_symlinks=False)

    def _run(self, tool: str, *arguments: str, **how: Any) -> subprocess.CompletedProcess[bytes]:
        try:
            return postgres_tools.run(tool, *arguments, folder=self._folder, account=self._server_account(), **how)
        except postgres_tools.NotPermittedError:
            raise self._error(
                "or the project lies in a folder that only root may enter. Postgres does not run as root, and this "
                "machine or container does not let root take it there: run as an ordinary user, move the project, or "
                "set SCENARIO_DATABASE_URL to a server of your own."
            ) from None

    def _error(self, rest: str) -> UserError:
        return UserError(f"The embedded database in {self._folder} {rest}", exit_status=1)

    @contextlib.contextmanager
    def _one_sentence(self) -> Iterator[None]:
        """Turn a refusal of the operating system into one sentence instead of a stack trace."""
        try:
            yield
        except PermissionError:
            raise self._error(
                f"cannot be used: you may not write there, or another user created it. Change that. {_OTHERWISE}"
            ) from None
        except OSError as exc:
            raise self._error(f"cannot be used: {exc.strerror or type(exc).__name__}. Fix that. {_OTHERWISE}") from None


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _sync(folder: Path) -> None:
    """Make a rename inside the folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(*outputs: bytes) -> str:
    """Return the first error with its hint, since later errors are consequences; if there is none, the last line.

    Our settings keep values out of these lines.
    """
    lines = [line.strip() for output in outputs for line in output.decode(errors="replace").splitlines()]
    for n, line in enumerate(lines):
        if error := re.search(r"\b(?:FATAL|PANIC|error): +(.+)", line):
            hint = re.search(r"\bHINT: +(.+)", "\n".join(lines[n + 1 : n + 2]))
            return f"{error[1]}. {hint[1] if hint else ''}".rstrip(". ")
    return ([line for line in lines if line] or ["no reason was given"])[-1].rstrip(".")
