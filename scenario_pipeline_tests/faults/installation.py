"""One installation over the small world, whose runs are real processes and whose faults are made through its owner.

Belongs here: starting runs, holding one in the middle of a page, and collecting what it left behind. Does not belong
here: judging it (`checker`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import psycopg

from scenario_pipeline.invocation.closing import close_dead_invocation
from scenario_pipeline.storage import database
from scenario_pipeline_tests.faults import checker, small_world
from scenario_pipeline_tests.faults.checker import Evidence
from scenario_pipeline_tests.support.installation import Installation
from scenario_pipeline_tests.support.people import D, mentor_id
from scenario_pipeline_tests.support.project import PROJECT
from scenario_pipeline_tests.support.runs import Log, make_request, run_invocation
from scenario_pipeline_tests.support.waiting import wait_until_blocked

# Nothing here takes a run longer than a few seconds: a longer wait is in vain.
PATIENCE_SECONDS = 120
_BACKENDS_OF_RUNS = (
    "FROM pg_stat_activity WHERE datname = current_database() "
    "AND application_name = 'scenario-pipeline' AND pid <> pg_backend_pid()"
)


class Run:
    """A run in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], time_budget_seconds: float) -> None:
        self.process, self.time_budget_seconds = process, time_budget_seconds
        self.stderr = ""
        # Takes away what holds it.
        self.go_on: Callable[[], None] = lambda: None

    def end(self, **facts: Any) -> Evidence:
        """Wait for its end and return what it left behind; `facts` are fields of `Evidence`."""
        stdout, stderr = self.process.communicate(timeout=PATIENCE_SECONDS)
        self.stderr = stderr.decode()
        found = {
            "log": stdout or b"",
            "exit_status": self.process.returncode,
            "ended_at": datetime.now(UTC),
            "killed": self.process.returncode == -9,
        }
        return Evidence(time_budget_seconds=self.time_budget_seconds, **{**found, **facts})


class FaultyInstallation(Installation):
    """An installation whose runs are disturbed."""

    def __init__(self, url: str, dagster_url: str, home: Path) -> None:
        super().__init__(url, dagster_url, home)
        self.page_size = small_world.PAGE_SIZE
        # A test may let the runs connect in another way.
        self.variables: dict[str, str] = {}

    def move_to(self, url: str) -> None:
        """Find the database at another address from now on."""
        self.engine.dispose()
        self.url, self.engine = url, database.connect(url)

    @property
    def environment(self) -> dict[str, str]:
        """What its runs see."""
        return super().environment | self.variables

    @contextmanager
    def running(
        self, *, time_budget_seconds: float = 30.0, stdout: int | IO[bytes] = subprocess.PIPE, shell: str = '"$@"'
    ) -> Iterator[Run]:
        """Start a run; `shell` says what a shell does with its command before the shell is replaced by it."""
        command = [
            *(sys.executable, "-m", "scenario_pipeline", "run", "--date", D.isoformat(), "--dispatch-mode", "live"),
            *("--page-size", str(self.page_size), "--time-budget", str(time_budget_seconds)),
        ]
        process = subprocess.Popen(
            ["sh", "-c", f"exec {shell}", "sh", *command],
            env=self.environment,
            cwd=PROJECT,
            stdout=stdout,
            stderr=subprocess.PIPE,
        )
        with process:
            try:
                yield Run(process, time_budget_seconds)
            finally:
                process.kill()

    @contextmanager
    def held(self, mentor: int = small_world.IN_THE_MIDDLE, **how: Any) -> Iterator[Run]:
        """Start a run and wait until it hangs at a mentor, in the middle of a page; `how` is as in `running`."""
        with self.block_notifications_of(mentor_id(mentor)) as holder, self.running(**how) as run:
            run.go_on = holder.close
            wait_until_blocked(self.engine)
            yield run

    def as_owner(self, *statements: str) -> None:
        """Execute statements, each in a transaction of its own."""
        # Whatever the database's own default is meanwhile.
        writing = "-c default_transaction_read_only=off"
        with psycopg.connect(self.url, autocommit=True, options=writing) as connection:
            for statement in statements:
                connection.execute(statement)

    def end_backends(self) -> None:
        """Let the server end the connections of the runs."""
        # Ours have the same name.
        self.engine.dispose()
        self.as_owner(f"SELECT pg_terminate_backend(pid) {_BACKENDS_OF_RUNS}")

    def backends_of_runs(self) -> list[int]:
        """Return the pids of the connections of the runs."""
        with psycopg.connect(self.url) as connection:
            return [pid for (pid,) in connection.execute(f"SELECT pid {_BACKENDS_OF_RUNS}")]

    def close_as_sensors_do(self, written: bytes) -> bytes:
        """Close the invocation of a run whose process is taken for dead, and return what that writes.

        Args:
            written: its log so far.
        """
        entries, log = [json.loads(line) for line in written.splitlines()], Log()
        invocation_id = entries[0]["invocation_id"]
        assert close_dead_invocation(self.engine, invocation_id, log.logger(invocation_id), logged=entries)
        return b"".join(log.lines)

    def captured_log(self) -> bytes:
        """Return the event log of the only run, as Dagster has captured it."""
        [file] = self.home.rglob("*.out")
        return file.read_bytes()

    def judge(self, evidence: Evidence) -> None:
        """Hold what a run left behind against every promise; the fault is over."""
        checker.check(evidence, self.engine, small_world.expected(), self.next_run)

    def next_run(self) -> bytes:
        """Make one more run that nothing disturbs, in this process, and return its log."""
        log = Log()
        run_invocation(self.engine, make_request(page_size=self.page_size), log=log)
        return b"".join(log.lines)
