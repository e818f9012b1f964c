"""Waiting for a condition instead of sleeping.

Belongs here: polls with a time limit that bounds the test. Does not belong here: measuring how long anything takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Engine, text


def wait_until(condition: Callable[[], object], what: str, seconds: float = 30.0, *, every: float = 0.005) -> None:
    """Poll until `condition` holds; fail after `seconds`, which bound the test and measure nothing."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"waited {seconds} s in vain: {what}"
        time.sleep(every)


def blocked_backends(engine: Engine) -> list[int]:
    """Return the pids of backends of this database that wait for a lock."""
    with engine.connect() as connection:
        statement = text(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
            "AND cardinality(pg_blocking_pids(pid)) > 0 ORDER BY pid"
        )
        return list(connection.execute(statement).scalars())


def wait_until_blocked(engine: Engine, backends: int = 1) -> list[int]:
    """Wait until this many backends wait for a lock; return their pids."""
    wait_until(lambda: len(blocked_backends(engine)) == backends, f"{backends} backends wait for a lock")
    return blocked_backends(engine)
