"""The cost of the whole Dagster job, compared with the same decision as one bare SQL statement.

    python benchmarks/evaluate.py [--mentors 500 --mentors 100000] [--pairs 5]

Each size gets its own database in a temporary folder, with 30 activities a mentor. Job and statement take turns as dry
runs, so that every pair does the same work. The output has the medians and the ratio by pair.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from datetime import UTC, datetime

from sqlalchemy import text

from scenario_pipeline.engines.statement import decision_statement
from scenario_pipeline.loading.demo import load_demo
from scenario_pipeline.log.stdout import STDOUT_SINK
from scenario_pipeline.scenarios import registry
from scenario_pipeline.settings import Settings
from scenario_pipeline.storage.database import connect, embedded_postgres, locate
from scenario_pipeline.storage.source import Access
from scenario_pipeline.upgrade import upgrade

ACTIVITIES = 30


def measure(mentors: int, pairs: int) -> None:
    """Load `mentors`, take turns, and print one line."""
    from scenario_pipeline.defs.instance.home import load_instance
    from scenario_pipeline.defs.local_run import execute

    with tempfile.TemporaryDirectory() as folder:
        os.environ["SCENARIO_HOME"] = folder
        settings = Settings.from_environment()
        today = settings.today(datetime.now(UTC))
        database = connect(locate(settings).scenario)
        try:
            upgrade(database)
            load_demo(database, mentors=mentors, activities_per_mentor=ACTIVITIES, seed=1, today=today)
            with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text("VACUUM ANALYZE"))
            statement = decision_statement(tuple(registry()), Access.VIEWS)
            job, bare = [], []
            with load_instance(settings) as instance:
                for turn in range(pairs + 1):
                    started = time.perf_counter()
                    execute(
                        instance,
                        {"dispatch_mode": "dry_run"},
                        evaluation_date=today,
                        on_page=lambda _done, _total: None,
                    )
                    between = time.perf_counter()
                    with database.connect() as connection:
                        ids = connection.execute(
                            text(
                                "SELECT id::text FROM scenario.peer_mentors WHERE status = 'active' AND joined_on <= :d"
                            ),
                            {"d": today},
                        )
                        mentor_ids = list(ids.scalars())
                        parameters = {
                            "mentor_ids": mentor_ids,
                            "evaluation_date": today,
                            "invocation_id": "00000000-0000-4000-8000-000000000000",
                        }
                        connection.execute(statement, parameters).all()
                        connection.rollback()
                    ended = time.perf_counter()
                    if turn:  # the first turn warms caches on both sides
                        job.append(between - started)
                        bare.append(ended - between)
            active = len(mentor_ids)
        finally:
            database.dispose()
            embedded_postgres(settings).stop()
    ratios = [a / b for a, b in zip(job, bare, strict=True)]
    print(
        f"{mentors:>9,} mentors ({active:,} active): job {statistics.median(job):7.3f} s, "
        f"bare statement {statistics.median(bare):7.3f} s, job/bare median {statistics.median(ratios):6.1f} "
        f"(min {min(ratios):.1f}, max {max(ratios):.1f}); job {1e6 * statistics.median(job) / active:.0f} us a mentor"
    )


def main() -> None:
    """Parse the options and measure each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mentors", type=int, action="append", help="sizes to measure; default 500 and 100000")
    parser.add_argument("--pairs", type=int, default=5, help="counted turns of each side")
    options = parser.parse_args()
    STDOUT_SINK.fd = os.open(os.devnull, os.O_WRONLY)
    for mentors in options.mentors or [500, 100_000]:
        measure(mentors, options.pairs)


if __name__ == "__main__":
    main()
