"""Mentors a second through the `http` engine, the `sql` engine, and one request a mentor in sequence.

    python benchmarks/http_engine.py [--mentors 5000] [--pairs 5]

The remote engine is the project's own, on loopback, in a separate process on the same database. All three take turns
over the same mentors as dry runs, so that every turn does the same work. The sequence is slow, so it takes a sample of
300.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from datetime import UTC, datetime

from sqlalchemy import Engine, text

from scenario_pipeline.engines import TriggerEngine
from scenario_pipeline.engines.http.client import RemoteOptions
from scenario_pipeline.engines.http.engine import HttpTriggerEngine
from scenario_pipeline.engines.sql import SqlTriggerEngine
from scenario_pipeline.loading.demo import load_demo
from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.log.stdout import LineSink
from scenario_pipeline.records import Page, RunOrder
from scenario_pipeline.scenarios import registry
from scenario_pipeline.settings import Settings
from scenario_pipeline.storage.database import connect, embedded_postgres, locate
from scenario_pipeline.storage.ledger.invocations import open_invocation
from scenario_pipeline.time_budget import TimeBudget
from scenario_pipeline.upgrade import upgrade

SAMPLE = 300


def rate(trigger_engine: TriggerEngine, database: Engine, mentor_ids: tuple[str, ...], order: RunOrder) -> float:
    """Evaluate one page of all mentors in a new invocation; return mentors a second."""
    invocation_id = str(uuid.uuid4())
    with database.begin() as connection:
        open_invocation(connection, order, invocation_id, parent_invocation_id=None)
    logger = StructuredLogger(LineSink(os.open(os.devnull, os.O_WRONLY)))
    started = time.perf_counter()
    budget = TimeBudget.start(order.time_budget_seconds)
    result = trigger_engine.evaluate_page(order, Page(1, mentor_ids), invocation_id, budget, logger)
    seconds = time.perf_counter() - started
    if result.stats.total_evaluated != len(mentor_ids):
        raise SystemExit(f"only {result.stats.total_evaluated} of {len(mentor_ids)} were evaluated")
    return len(mentor_ids) / seconds


def measure(mentors: int, pairs: int) -> None:
    """Load `mentors`, start the engine, take turns, and print the medians and the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SCENARIO_HOME"] = folder
        settings = Settings.from_environment()
        today = settings.today(datetime.now(UTC))
        database = connect(locate(settings).scenario)
        upgrade(database)
        load_demo(database, mentors=mentors, activities_per_mentor=30, seed=1, today=today)
        with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
            statement = (
                "SELECT id::text FROM scenario.peer_mentors WHERE status = 'active' AND joined_on <= :d ORDER BY 1"
            )
            mentor_ids = tuple(connection.execute(text(statement), {"d": today}).scalars())
        served = subprocess.Popen(
            [*(sys.executable, "-m", "scenario_pipeline", "engine"), "--port", "0", "--allow-anonymous"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            if served.stdout is None:
                raise SystemExit("the engine has no stdout")
            url = f"http://127.0.0.1:{json.loads(served.stdout.readline())['port']}"
            # Nobody reads its events, and a full pipe would hold it up.
            threading.Thread(target=served.stdout.read, daemon=True).start()
            order = RunOrder(today, tuple(registry()), (), "dry_run", "http", 600.0, None, "manual")
            concurrency, chunk_size = settings.engine_concurrency, settings.engine_chunk_size
            over_http = HttpTriggerEngine(database, RemoteOptions(url, None, concurrency, chunk_size))
            one_by_one = HttpTriggerEngine(database, RemoteOptions(url, None, 1, 1))
            rates: dict[str, list[float]] = {"http": [], "sql": [], "sequence": []}
            for turn in range(pairs + 1):
                found = {
                    "http": rate(over_http, database, mentor_ids, order),
                    "sql": rate(SqlTriggerEngine(database), database, mentor_ids, order),
                    "sequence": rate(one_by_one, database, mentor_ids[:SAMPLE], order),
                }
                if turn:  # the first turn warms caches on all sides
                    for name, value in found.items():
                        rates[name].append(value)
            over_http.close()
            one_by_one.close()
        finally:
            served.terminate()
            served.communicate()
            database.dispose()
            embedded_postgres(settings).stop()
    for name, values in rates.items():
        print(
            f"{name:>9}: {statistics.median(values):9,.0f} mentors/s (min {min(values):,.0f}, max {max(values):,.0f})"
        )
    for below in ("sql", "sequence"):
        ratios = [a / b for a, b in zip(rates["http"], rates[below], strict=True)]
        print(
            f"http/{below}: median {statistics.median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f}); "
            f"{chunk_size} mentors a request, {concurrency} requests side by side, "
            f"{len(mentor_ids):,} active mentors"
        )


def main() -> None:
    """Parse the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mentors", type=int, default=5000, help="how many to load")
    parser.add_argument("--pairs", type=int, default=5, help="counted turns of each side")
    options = parser.parse_args()
    measure(options.mentors, options.pairs)


if __name__ == "__main__":
    main()
