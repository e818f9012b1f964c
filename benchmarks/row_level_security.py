"""The cost of evaluating a page past row-level security, in both ways, compared with the owner.

    python benchmarks/row_level_security.py [--mentors 100000] [--page-size 1000] [--rounds 3]

Three roles take turns page by page, as dry runs over the same mentors with 30 activities each. They are the owner of
the tables, a role with BYPASSRLS, and a role that reads through SECURITY DEFINER functions. An app user, who sees one
organisation through the policies, evaluates nothing. That user only counts activities, in turn with the owner, who
counts the same ones.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import tempfile
import time
from datetime import UTC, date, datetime

from sqlalchemy import Engine, make_url, text

from scenario_pipeline.engines.statement import decision_statement
from scenario_pipeline.loading.demo import load_demo
from scenario_pipeline.scenarios import registry
from scenario_pipeline.settings import Settings
from scenario_pipeline.storage.database import connect, embedded_postgres, locate
from scenario_pipeline.storage.source import access_of
from scenario_pipeline.upgrade import upgrade

ACTIVITIES = 30
WAYS = {"owner": "scenario_owner", "BYPASSRLS": "scenario_scheduler", "functions": "held_back"}
COUNT = """
    SELECT count(*) FROM scenario.mentor_activities a JOIN scenario.peer_mentors m ON m.id = a.user_id
    WHERE m.organisation_id = CAST(:organisation AS uuid)"""


def prepare(database: Engine, url: str, mentors: int, today: date) -> dict[str, Engine]:
    """Load the mentors, and return a connection pool for each way."""
    upgrade(database)
    load_demo(database, mentors=mentors, activities_per_mentor=ACTIVITIES, seed=1, today=today)
    password = secrets.token_urlsafe()
    with database.begin() as connection:
        connection.execute(text(f"CREATE ROLE held_back LOGIN PASSWORD '{password}' IN ROLE scenario_scheduler"))
        connection.execute(text("CREATE ROLE app_user"))
        connection.execute(text("GRANT USAGE ON SCHEMA scenario TO app_user"))
        connection.execute(text("GRANT SELECT ON scenario.peer_mentors, scenario.mentor_activities TO app_user"))
        for role in ("scenario_owner", "scenario_scheduler"):
            connection.execute(text(f"ALTER ROLE {role} LOGIN PASSWORD '{password}'"))
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    addresses = {way: make_url(url).set(username=role, password=password) for way, role in WAYS.items()}
    return {way: connect(a.render_as_string(hide_password=False)) for way, a in addresses.items()}


def evaluate(database: Engine, mentor_ids: list[str], today: date) -> float:
    """Return the seconds that the statement of a page takes, and roll it back."""
    with database.connect() as connection:
        statement = decision_statement(tuple(registry()), access_of(connection))
        parameters = {
            "mentor_ids": mentor_ids,
            "evaluation_date": today,
            "invocation_id": "00000000-0000-4000-8000-000000000000",
        }
        started = time.perf_counter()
        connection.execute(statement, parameters).all()
        elapsed = time.perf_counter() - started
        connection.rollback()
    return elapsed


def count(database: Engine, organisation: str, role: str | None) -> float:
    """Return the seconds that counting an organisation's activities takes, as an app user or as the owner."""
    with database.begin() as connection:
        if role is not None:
            connection.execute(text(f"SET LOCAL ROLE {role}; SET LOCAL row_security = on"))
        connection.execute(text("SELECT set_config('scenario.organisation_id', :id, true)"), {"id": organisation})
        started = time.perf_counter()
        connection.execute(text(COUNT), {"organisation": organisation}).all()
        return time.perf_counter() - started


def measure(mentors: int, page_size: int, rounds: int) -> None:
    """Take turns, and print a line for each way."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SCENARIO_HOME"] = folder
        settings = Settings.from_environment()
        today = settings.today(datetime.now(UTC))
        url = locate(settings).scenario
        database = connect(url)
        databases: dict[str, Engine] = {}
        try:
            databases = prepare(database, url, mentors, today)
            with database.connect() as connection:
                ids = list(
                    connection.execute(
                        text("SELECT id::text FROM scenario.peer_mentors WHERE status = 'active' ORDER BY id")
                    ).scalars()
                )
                organisation = connection.execute(text("SELECT id::text FROM scenario.organisations LIMIT 1")).scalar()
            pages = [ids[start : start + page_size] for start in range(0, len(ids), page_size)]
            seconds: dict[str, list[float]] = {way: [] for way in WAYS}
            for turn in range(rounds + 1):
                for page in pages:
                    for way, one in databases.items():
                        elapsed = evaluate(one, page, today)
                        if turn:  # the first round warms caches on all sides
                            seconds[way].append(elapsed)
            counts = [
                (count(database, str(organisation), None), count(database, str(organisation), "app_user"))
                for _ in range(2 * rounds + 1)
            ][1:]
        finally:
            for one in (database, *databases.values()):
                one.dispose()
            embedded_postgres(settings).stop()
    for way in WAYS:
        ratios = [own / owners for own, owners in zip(seconds[way], seconds["owner"], strict=True)]
        each = 1e6 * sum(seconds[way]) / (len(ids) * rounds)
        print(f"{way:<10} {each:6.1f} us a mentor, {way}/owner median {statistics.median(ratios):.2f}")
    ratio = statistics.median(users / owners for owners, users in counts)
    print(f"app user   counts activities of an organisation: app user/owner median {ratio:.2f}")


def main() -> None:
    """Parse the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mentors", type=int, default=100_000)
    parser.add_argument("--page-size", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds over all pages")
    options = parser.parse_args()
    measure(options.mentors, options.page_size, options.rounds)


if __name__ == "__main__":
    main()
