"""The process that becomes a Postgres tool, with another user, another environment and its own session.

Belongs here: the steps between fork and exec. It runs as a script, `python -I -S tool_process.py ORDER COMMAND...`,
because a process with threads must not run Python code there. Does not belong here: which tool runs, and why.
"""

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

# Exit status of this script if it may not become that user, or may not keep the capability.
NOT_PERMITTED = 125
_POLL_SECONDS = 0.02

# <linux/prctl.h>, <linux/securebits.h> and <linux/capability.h>
_PR_SET_SECUREBITS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 28, 47, 2
_NO_SETUID_FIXUP = 1 << 2
_CAPABILITY_VERSION_3 = 0x20080522
# CAP_DAC_READ_SEARCH would suffice, but containers usually drop that one and keep this one.
_CAP_DAC_OVERRIDE = 1


def _become(uid: int, gid: int, *, closed: bool) -> None:
    """Become a user with one group; with `closed`, one that may enter folders to which it has no access.

    Raises:
        OSError: the kernel, or the container, does not allow it.
    """
    if closed:
        # `initdb` looks for `postgres` with access(2), which without this bit ignores capabilities of users other than
        # root.
        _call("prctl", _PR_SET_SECUREBITS, _NO_SETUID_FIXUP, 0, 0, 0)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if closed:
        # The bit also keeps root's other capabilities: drop them, and keep this one through exec.
        one = 1 << _CAP_DAC_OVERRIDE
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        _call("capset", header, (ctypes.c_uint32 * 6)(one, one, one, 0, 0, 0))
        _call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)


def _call(name: str, *arguments: Any) -> None:
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if function is None:
        raise PermissionError(f"this system has no {name}")
    if function(*(ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments)) != 0:
        raise OSError(ctypes.get_errno(), name)


def _serve(command: list[str], environment: dict[str, str], log: str, keep_open: list[int], seconds: float) -> int:
    """Start the server as an orphan, like `pg_ctl start`; return 0 once it lets clients in.

    `pg_ctl` would set `PG_GRANDPARENT_PID` itself, and pass the paths to a shell, which would expand a `$` in them.
    """
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            for descriptor in keep_open:
                os.close(descriptor)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(output, 1)
            os.dup2(output, 2)
            _execute(command, environment)
        except OSError as exc:
            os.write(2, f"error: {log} cannot be written: {exc.strerror}\n".encode(errors="replace"))
        finally:
            os._exit(1)
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if os.waitpid(child, os.WNOHANG)[0] == child:
            return 1
        try:
            lines = Path("data/postmaster.pid").read_text(encoding="utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            lines = []
        # Line 8 holds the server's own state.
        if len(lines) > 7 and lines[0] == str(child) and lines[7].strip() == "ready":
            return 0
        time.sleep(_POLL_SECONDS)
    return 1


def _execute(command: list[str], environment: dict[str, str]) -> NoReturn:
    try:
        os.execve(command[0], command, environment)  # noqa: S606 - that is what this script is for
    except OSError as exc:
        os.write(2, f"error: {command[0]} cannot be run: {exc.strerror}\n".encode(errors="replace"))
    os._exit(1)


def main(order: str, *command: str) -> NoReturn:
    """Run `command` as `order` says: a JSON object that `postgres_tools.run` writes."""
    wanted = json.loads(order)
    # Ignored and blocked signals are inherited; without SIGCHLD, `initdb` does not learn how its children ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        if wanted["user"] is not None:
            _become(*wanted["user"], closed=wanted["closed"])
    except OSError:
        sys.exit(NOT_PERMITTED)
    environment = wanted["environment"]
    if wanted["log"] is None:
        _execute([*command], environment)
    sys.exit(_serve([*command], environment, wanted["log"], wanted["keep_open"], wanted["seconds"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
