"""The code server is killed under `up`: without it no schedule ticks, and nothing ends."""

from __future__ import annotations

import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import psutil
import psycopg
import pytest

from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.faults.installation import FaultyInstallation
from scenario_pipeline_tests.support.project import PROJECT
from scenario_pipeline_tests.support.waiting import wait_until

pytestmark = pytest.mark.faults


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def code_servers(up: int) -> list[psutil.Process]:
    """Return the processes that hold the definitions: the innermost of those that serve code."""
    return [
        process
        for process in psutil.Process(up).children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE and {"api", "grpc"} <= set(process.cmdline())
    ]


def has_ticked_since(url: str, moment: datetime) -> bool:
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM job_ticks WHERE status IN ('SKIPPED', 'SUCCESS') AND timestamp > %s",
            [moment.replace(tzinfo=None)],
        ).fetchone()
    return row is not None and row[0] > 0


def test_a_killed_code_server_is_started_again_and_ticks_go_on(
    own_server: EmbeddedPostgres, own_installation: FaultyInstallation, tmp_path: Path
) -> None:
    """The memory ran out for a moment: mentors heard nothing any more, and `doctor` saw a daemon that lives."""
    output = tmp_path / "up.out"
    with output.open("wb") as file:
        up = subprocess.Popen(
            [sys.executable, "-m", "scenario_pipeline", "up", "--port", str(free_port())],
            env=own_installation.environment,
            cwd=PROJECT,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: b"Dagster is served" in output.read_bytes(), "the web server answers", 120)
        wait_until(lambda: has_ticked_since(own_server.url("dagster"), datetime(2000, 1, 1, tzinfo=UTC)), "a tick", 120)
        [killed] = code_servers(up.pid)
        killed.kill()
        killed.wait()
        gone_at = datetime.now(UTC)
        said = b"Dagster's code server is gone, so nothing ticks: it is started again."
        wait_until(lambda: said in output.read_bytes(), "the loss is said", 120)
        wait_until(lambda: has_ticked_since(own_server.url("dagster"), gone_at), "ticks go on", 120)
        assert killed not in code_servers(up.pid) != []
    finally:
        up.terminate()
        assert up.wait(60) == 0
