"""A server of a test's own that goes away as in a power failure, and comes back at its address.

Belongs here: stopping and starting it. Does not belong here: when that happens, or what it must not do to a run.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from scenario_pipeline.storage.embedded import EmbeddedPostgres


def crash(server: EmbeddedPostgres) -> None:
    """Stop a server at once: no transaction is ended, no checkpoint is written."""
    server._run("pg_ctl", "-D", "data", "-m", "immediate", "-w", "stop")


def port_of(server: EmbeddedPostgres) -> int:
    """Return where a running server listens."""
    port = urlsplit(server.url("postgres")).port
    assert port is not None
    return port


def start_at(server: EmbeddedPostgres, port: int) -> None:
    """Start a server where its clients look for it; return when it has recovered."""
    server._run("pg_ctl", "-D", "data", "-l", "log", "-w", "-o", f"-p {port}", "start")
