"""The retention guide: months of runs, then the same weeks with it and without it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

import psycopg
import pytest
from sqlalchemy import Engine, text

from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline.storage.ledger.invocations import resume_position
from scenario_pipeline.storage.run_requests import open_requests
from scenario_pipeline_tests.support.deployment import sql
from scenario_pipeline_tests.support.invariants import Notification, _miscounted, sent
from scenario_pipeline_tests.support.people import (
    DAY,
    D,
    Mentor,
    configure,
    insert_activities,
    insert_certifications,
    insert_mentors,
    insert_organisation,
    mentor_id,
)
from scenario_pipeline_tests.support.runs import ALL_SCENARIOS, make_request, run_invocation
from scenario_pipeline_tests.support.server import copied_database
from scenario_pipeline_tests.support.waiting import blocked_backends, wait_until_blocked

[RETENTION, _SCHEDULED] = sql("how-to/retention", "scenario_owner")
# The history is shorter than a year, and so is what is kept of it.
KEPT, LOOKBACK = 30, 45
START, END, LATER = D - 150 * DAY, D, D + 40 * DAY
# Runs of one kind, which nothing came after: it still says where the next one starts.
ABANDONED = ("inactivity",)
# Mentors with a second certification that arrives late and expires sooner. It is told of in the place of the first,
# until it leaves the look-back window in which the first, told of before, still is.
OVERTAKEN = {
    90: (END - 38 * DAY, END - 8 * DAY, END + 8 * DAY),
    91: (END - 60 * DAY, END - 50 * DAY, END - 5 * DAY),
}


def retention(old: str = "", new: str = "") -> str:
    """Return the page's statement for a short history, with one of its conditions changed."""
    assert old in RETENTION
    return RETENTION.replace(old, new, 1 if old else 0).replace("400", str(KEPT))


def people(random: Random, numbers: range) -> Iterator[Mentor]:
    """Yield mentors who come and go, so that everything that can be due is due now and then."""
    for n in numbers:
        days = sorted(START - 30 * DAY + random.randrange(190) * DAY for _ in range(random.randrange(0, 14)))
        certifications = [
            (name, START + random.randrange(20, 260) * DAY)
            for name in ("basic", "first aid", "driving", "lifting")
            if random.random() < 0.6
        ]
        yield Mentor(n, organisation=1 + n % 2, joined_on=START, activities=days, certifications=certifications)


@pytest.fixture(scope="module")
def history(server: EmbeddedPostgres, template_database: str) -> Iterator[str]:
    """The name of a database in which the scheduler ran every day for five months."""
    name = f"template_history_{uuid.uuid4().hex}"
    with copied_database(server, name, template_database) as url:
        engine = database.connect(url)
        with engine.begin() as connection:
            for n in (1, 2):
                insert_organisation(connection, n)
            insert_mentors(connection, people(Random(7), range(70)))
            insert_mentors(
                connection,
                [
                    Mentor(n, organisation=2, activities=[END - DAY], certifications=[("first", notified + 60 * DAY)])
                    for n, (notified, _, _) in OVERTAKEN.items()
                ],
            )
            configure(connection, "inactivity", thresholds=(8, 16, 32), cooldown_days=5)
            configure(connection, "milestone", thresholds=range(1, 12))
            # An organisation's own look-back, longer than what is kept.
            for scenario, thresholds in (("certification_expiry", (60,)), ("inactivity", (8, 16, 32))):
                configure(
                    connection, scenario, organisation=2, thresholds=thresholds, lookback_days=LOOKBACK, cooldown_days=5
                )
        for day in (START + n * DAY for n in range((END - START).days)):
            with engine.begin() as connection:
                for n, (_, arrives, expires_on) in OVERTAKEN.items():
                    if day == arrives:
                        insert_certifications(connection, mentor_id(n), [("second", expires_on)])
            if day == START + 20 * DAY:
                run_invocation(engine, make_request(day, scenario_types=ABANDONED))
            run_invocation(engine, make_request(day))
        with engine.begin() as connection:
            connection.execute(
                text("UPDATE scenario.scheduler_runs SET status = 'partial', remaining_unprocessed_count = 0, "
                     "resume_after = :mentor WHERE scenario_types = :kind"),
                {"mentor": mentor_id(9), "kind": list(ABANDONED)},
            )  # fmt: skip
            # As if each run had been on its own date, and the last one yesterday.
            age = text("now() - (:end - evaluation_date) * interval '1 day'").bindparams(end=END)
            connection.execute(text(f"UPDATE scenario.scenario_notifications SET created_at = {age}"), {"end": END})
            connection.execute(
                text(f"UPDATE scenario.scheduler_runs SET started_at = {age}, finished_at = {age}"), {"end": END}
            )
            for mode in ("auto", "dry_run"):
                connection.execute(text(f"SELECT scenario.request_scheduler_run(dispatch_mode => '{mode}')"))
            connection.execute(
                text("UPDATE scenario.scheduler_run_requests SET requested_at = now() - interval '1 year'")
            )
            connection.execute(
                text("UPDATE scenario.scheduler_run_requests SET refusal = 'no' WHERE id = "
                     "(SELECT id FROM scenario.scheduler_run_requests LIMIT 1)")
            )  # fmt: skip
        engine.dispose()
        yield name


@contextmanager
def copy_of(server: EmbeddedPostgres, history: str) -> Iterator[Engine]:
    """Yield an engine on a copy of the history."""
    with copied_database(server, f"copy_{uuid.uuid4().hex}", history) as url:
        engine = database.connect(url)
        yield engine
        engine.dispose()


@dataclass(frozen=True)
class Outcome:
    """What must not depend on retention."""

    dispatched: list[Notification]
    totals: list[object]
    resumes_after: object
    open_requests: int


def go_on(engine: Engine) -> Outcome:
    """Run on for weeks after the history, and also for dates long past; return what came of it."""
    before = set(sent(engine))
    with engine.begin() as connection:
        # Sources have a retention of their own, and mistakes are corrected: what was counted once is gone.
        connection.execute(
            text("DELETE FROM scenario.mentor_activities WHERE activity_date < :on"), {"on": END - 60 * DAY}
        )
        random = Random(11)
        for n in range(70):
            days = [END + random.randrange(40) * DAY for _ in range(random.randrange(6))]
            insert_activities(connection, mentor_id(n), days)
        # Certifications are withdrawn, and the next one comes to the fore.
        withdrawn = text("DELETE FROM scenario.mentor_certifications WHERE certification_type = 'driving'")
        connection.execute(withdrawn)
        insert_mentors(connection, people(Random(13), range(70, 80)))
        request = make_request(scenario_types=ABANDONED)
        resumes_after = connection.execute(resume_position(request)).scalar()
    dates = [END + n * DAY for n in range(12)] + [END + n * DAY for n in range(12, (LATER - END).days, 3)]
    # Somebody asks for live runs of old dates.
    dates += [*(START + n * DAY for n in range(60, 150, 15)), END - 18 * DAY]
    totals = [run_invocation(engine, make_request(date)).totals()["total_dispatched"] for date in dates]
    with engine.connect() as connection:
        still_open = len(open_requests(connection, 10))
    return Outcome(sorted(set(sent(engine)) - before), totals, resumes_after, still_open)


@pytest.fixture(scope="module")
def without_retention(server: EmbeddedPostgres, history: str) -> Outcome:
    """What is dispatched where nothing was ever removed."""
    with copy_of(server, history) as engine:
        return go_on(engine)


def removed(engine: Engine, statement: str) -> dict[str, int]:
    """Run a statement; return how many rows each table lost."""
    tables = ("scenario_notifications", "scheduler_runs", "scheduler_run_pages", "scheduler_run_requests")

    def rows() -> dict[str, int]:
        with engine.connect() as connection:
            return {t: connection.execute(text(f"SELECT count(*) FROM scenario.{t}")).scalar_one() for t in tables}

    before = rows()
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL ROLE scenario_owner"))
        connection.execute(text(statement))
    after = rows()
    return {table: before[table] - after[table] for table in tables}


def adds_up(engine: Engine) -> bool:
    """Return whether the totals of every run in the ledger are those of its pages and rows."""
    with engine.connect() as connection:
        return not _miscounted(connection)


def test_runs_after_retention_dispatch_exactly_what_they_would_have_dispatched_without_it(
    server: EmbeddedPostgres, history: str, without_retention: Outcome
) -> None:
    """Tidying up must not make anybody hear twice, whatever else was removed or changed meanwhile."""
    with copy_of(server, history) as engine:
        lost = removed(engine, retention())
        assert min(lost.values()) > 0, lost
        assert removed(engine, retention()) == dict.fromkeys(lost, 0)
        assert adds_up(engine)
        assert go_on(engine) == without_retention
    assert len(without_retention.dispatched) > 50
    assert {row[1] for row in without_retention.dispatched} == set(ALL_SCENARIOS)
    assert without_retention.resumes_after == mentor_id(9)
    assert without_retention.open_requests == 1


def test_the_last_notification_of_each_mentor_and_scenario_stays(server: EmbeddedPostgres, history: str) -> None:
    """The cooldown is the distance to it."""
    last = text(
        "SELECT user_id, scenario_type, max(evaluation_date) FROM scenario.scenario_notifications GROUP BY 1, 2 "
        "ORDER BY 1, 2"
    )
    with copy_of(server, history) as engine:
        with engine.connect() as connection:
            before = connection.execute(last).all()
        removed(engine, retention())
        with engine.connect() as connection:
            assert connection.execute(last).all() == before


@pytest.mark.parametrize(
    ("condition", "careless"),
    [
        ("sent.scenario_type IN ('certification_expiry', 'inactivity')", "true"),
        ("AND newer.evaluation_date >= sent.evaluation_date + kept.days", ""),
        ("greatest(400, max(lookback_days))", "400"),
        ("newer.evaluation_date >= sent.evaluation_date + kept.days", "newer.evaluation_date > sent.evaluation_date"),
        ("AND newer.number > run.number", ""),
        ("AND (request.invocation_id IS NOT NULL OR request.refusal IS NOT NULL)", ""),
        (
            "OR NOT EXISTS (SELECT FROM scenario.scheduler_runs AS run",
            "OR EXISTS (SELECT FROM scenario.scheduler_runs AS run",
        ),
    ],
)
def test_each_condition_of_the_retention_is_needed(
    server: EmbeddedPostgres, history: str, without_retention: Outcome, condition: str, careless: str
) -> None:
    """An operator who shortens the statement should learn it here and not from a mentor."""
    with copy_of(server, history) as engine:
        removed(engine, retention(condition, careless))
        assert not adds_up(engine) or go_on(engine) != without_retention


def test_retention_neither_waits_for_a_run_in_progress_nor_changes_what_it_sends(
    server: EmbeddedPostgres, history: str
) -> None:
    """Both are scheduled, and one day they meet."""
    with copy_of(server, history) as untouched:
        run_invocation(untouched, make_request(END))
        before = set(sent(untouched))
    with copy_of(server, history) as engine:
        in_history = set(sent(engine))
        victim = min(row[0] for row in before - in_history)
        url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        holder = psycopg.connect(url, autocommit=True)
        holder.execute(
            "CREATE FUNCTION scenario.wait() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NEW; END$$"
        )
        holder.execute(
            f"CREATE TRIGGER wait BEFORE INSERT ON scenario.scenario_notifications FOR EACH ROW "
            f"WHEN (NEW.user_id = '{victim}') EXECUTE FUNCTION scenario.wait()".encode()
        )
        holder.execute("SELECT pg_advisory_lock(4711)")
        run = threading.Thread(target=run_invocation, args=(engine, make_request(END)))
        with database_of(url) as beside:
            run.start()
            wait_until_blocked(beside)
            lost = removed(beside, f"SET LOCAL lock_timeout = '2s'; {retention()}")
            assert lost["scenario_notifications"] > 0
            assert blocked_backends(beside)
        holder.close()
        run.join(60)
        assert set(sent(engine)) - in_history == before - in_history
        assert adds_up(engine)


@contextmanager
def database_of(url: str) -> Iterator[Engine]:
    engine = database.connect(url)
    yield engine
    engine.dispose()
