"""One user's installation, whose commands are real processes.

Belongs here: running commands, blocking one in the middle, reading what is stored. Does not belong here: what a
command must print.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import Engine, create_engine, text

from scenario_pipeline.storage import database
from scenario_pipeline_tests.support.invariants import check_invariants
from scenario_pipeline_tests.support.project import PROJECT
from scenario_pipeline_tests.support.server import as_scheduler
from scenario_pipeline_tests.support.stranger import stranger_accepts


class Installation:
    """One user's installation: a database with the community in it, Dagster's own database, and a home.

    Its commands may do what the scheduler may, and nothing else; `url` is the administrator's.
    """

    def __init__(self, url: str, dagster_url: str, home: Path) -> None:
        self.url, self.run_url, self.dagster_url, self.home = url, as_scheduler(url), dagster_url, home
        self.engine: Engine = database.connect(url)

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
        return inherited | {
            "SCENARIO_DATABASE_URL": self.run_url,
            "SCENARIO_DAGSTER_DATABASE_URL": self.dagster_url,
            "SCENARIO_HOME": str(self.home),
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "scenario_pipeline", *arguments],
            env=self.environment,
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def command(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        with self.start(*arguments) as process:
            stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == status, stderr
        return stdout, stderr

    def run(self, evaluation_date: str, *more: str, status: int = 0) -> dict[str, Any]:
        """Run a past date for real and return the closing entry."""
        arguments = ("run", "--date", evaluation_date, "--dispatch-mode", "live", *more)
        stdout, _ = self.command(*arguments, status=status)
        stranger_accepts(stdout)
        entry: dict[str, Any] = json.loads(stdout.splitlines()[-1])
        return entry

    def check(self) -> None:
        with self.engine.connect() as connection:
            check_invariants(connection)

    def block_notifications_of(self, mentor_id: str) -> psycopg.Connection[Any]:
        """Let the page of this mentor wait, until the returned connection is closed, when it writes to them."""
        return self.block(f"INSERT ON scenario.scenario_notifications FOR EACH ROW WHEN (NEW.user_id = '{mentor_id}')")

    def block(self, what: str) -> psycopg.Connection[Any]:
        """Let whatever does this wait, as a trigger says it, until the returned connection is closed."""
        holder = psycopg.connect(self.url, autocommit=True)
        holder.execute("""
            CREATE OR REPLACE FUNCTION scenario.wait() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                PERFORM pg_advisory_xact_lock(4711);
                RETURN NEW;
            END $$""")
        holder.execute(f"CREATE OR REPLACE TRIGGER wait BEFORE {what} EXECUTE FUNCTION scenario.wait()".encode())
        holder.execute("SELECT pg_advisory_lock(4711)")
        return holder


EXPECTED = {
    "2026-08-01": (1298, {"certification_expiry": 8, "inactivity": 9, "milestone": 1}, {}),
    "2026-08-02": (1299, {"certification_expiry": 3, "milestone": 1}, {"duplicate": 14}),
    "2026-08-10": (1301, {"certification_expiry": 7, "inactivity": 8, "milestone": 2}, {}),
    "2026-08-20": (1303, {"certification_expiry": 4, "inactivity": 5}, {}),
}


def everything_in(url: str) -> str:
    """Return every table of a database as text."""
    engine = create_engine(database.driver_url(url, "psycopg"))
    with engine.connect() as connection:
        tables = connection.execute(text(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables "
            "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"))  # fmt: skip
        content = [
            str(connection.execute(text(f"SELECT string_agg(t::text, E'\\n') FROM {table} t")).scalar())
            for table in tables.scalars()
            if not table.endswith(".peer_mentors")
        ]
    engine.dispose()
    return "\n".join(content)
