"""Several runs of the `sql` engine at once: who wins, and what the others count."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import date

import pytest
from sqlalchemy import Engine, text

from scenario_pipeline.batch_stats import BatchStats
from scenario_pipeline.engines.sql import Evaluation
from scenario_pipeline.records import DispatchMode, PageResult
from scenario_pipeline.storage import database
from scenario_pipeline.storage.ledger.pages import claim_page, complete_page
from scenario_pipeline.time_budget import TimeBudget
from scenario_pipeline_tests.support.invariants import consistent, number_of_pages, sent
from scenario_pipeline_tests.support.people import (
    DAY,
    FIRST_WINDOW,
    D,
    Mentor,
    configure,
    insert_mentor,
    insert_mentors,
    insert_organisation,
    mentor_id,
    new_invocation_id,
    organisation_id,
    quiet_mentors,
)
from scenario_pipeline_tests.support.runs import PageOfRun, make_page, make_request, open_run, run_invocation, run_page
from scenario_pipeline_tests.support.sql_pages import QUIET, all_dispatched, dispatched_on_d, held_open
from scenario_pipeline_tests.support.waiting import wait_until_blocked


def race(engine: Engine, database_url: str, winner: PageOfRun, loser: PageOfRun) -> PageResult:
    """Let `loser` meet the uncommitted rows of `winner`, then let `winner` commit; return what became of `loser`."""
    other = database.connect(database_url)
    with ThreadPoolExecutor(1) as pool:
        with held_open(engine, winner):
            future = pool.submit(run_page, other, loser)
            wait_until_blocked(engine)
        result = future.result(timeout=60)
    other.dispose()
    return result


def test_of_two_runs_at_once_one_dispatches_and_the_other_calls_it_a_duplicate(
    engine: Engine, database_url: str
) -> None:
    """Two schedulers on one database are an accident that must not reach the mentors."""
    mentors = quiet_mentors(engine, 3, opted_out=())

    result = race(engine, database_url, make_page(mentors[:2]), make_page(mentors))

    assert result.stats.outcomes == {
        (organisation_id(), "inactivity", "duplicate"): 2,
        (organisation_id(), "inactivity", "dispatched"): 1,
    }
    assert result.stats.evaluated_by_organisation == {organisation_id(): 3}
    assert sent(engine) == [dispatched_on_d(mentor) for mentor in mentors]
    consistent(engine)


def milestones_on_two_days(engine: Engine, *, cooldown_days: int, distance: int) -> str:
    """Make a mentor with a milestone on D and another one `distance` days later, each with a key of its own."""
    with engine.begin() as connection:
        insert_organisation(connection)
        configure(connection, "milestone", thresholds=[1, 2], cooldown_days=cooldown_days)
        return insert_mentor(connection, activities=[D, D + distance * DAY])


@pytest.mark.parametrize(("winner", "loser"), [(D, D + DAY), (D + DAY, D)])
def test_two_runs_at_once_for_neighbouring_dates_respect_the_cooldown(
    engine: Engine, database_url: str, winner: date, loser: date
) -> None:
    """A run over midnight, or a backfill beside the schedule: a window cut from the calendar let both through."""
    mentor = milestones_on_two_days(engine, cooldown_days=2, distance=1)
    pages = [make_page([mentor], on, scenario_types=["milestone"]) for on in (winner, loser)]

    result = race(engine, database_url, *pages)

    assert result.stats.outcomes == {(organisation_id(), "milestone", "cooldown"): 1}
    assert [row[2:4] for row in sent(engine)] == [(winner, FIRST_WINDOW)]
    consistent(engine)


@pytest.mark.parametrize("mode", ["live", "dry_run"])
def test_a_match_that_lost_a_race_against_nothing_that_holds_is_dispatched_after_all(
    engine: Engine, database_url: str, mode: DispatchMode
) -> None:
    """It would otherwise be neither sent nor suppressed, and its threshold never comes back."""
    mentor = milestones_on_two_days(engine, cooldown_days=2, distance=2)
    winner = make_page([mentor], D, scenario_types=["milestone"])
    loser = make_page([mentor], D + 2 * DAY, scenario_types=["milestone"], dispatch_mode=mode)

    result = race(engine, database_url, winner, loser)

    assert result.stats.outcomes == {(organisation_id(), "milestone", "dispatched"): 1}
    rows = [
        (mentor, "milestone", D, FIRST_WINDOW, "1", 1, D),
        (mentor, "milestone", D + 2 * DAY, D, "2", 2, D + 2 * DAY),
    ]
    assert sent(engine) == (rows if mode == "live" else rows[:1])
    consistent(engine)


def test_a_race_against_a_transaction_that_rolls_back_is_won(engine: Engine, database_url: str) -> None:
    """The negative twin: a killed rival must not take the notification with it."""
    mentors = quiet_mentors(engine, 2, opted_out=())
    other = database.connect(database_url)
    with ThreadPoolExecutor(1) as pool:
        with contextlib.suppress(InterruptedError), held_open(engine, make_page(mentors)):
            future = pool.submit(run_page, other, make_page(mentors))
            wait_until_blocked(engine)
            raise InterruptedError
        result = future.result(timeout=60)
    other.dispose()

    assert result == all_dispatched(2)
    assert sent(engine) == [dispatched_on_d(mentor) for mentor in mentors]
    consistent(engine)


def test_two_processes_that_evaluate_one_page_of_one_invocation_count_it_once(
    engine: Engine, database_url: str
) -> None:
    """A step that Dagster believed dead may still be at work when its retry begins."""
    mentors = quiet_mentors(engine, 2, opted_out=())
    page, invocation_id = make_page(mentors), new_invocation_id()
    other = database.connect(database_url)
    with engine.begin() as connection:
        open_run(connection, page.order, invocation_id)
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as connection:
            claim_page(connection, page, invocation_id)
            first = Evaluation(connection, page.order, page.mentor_ids, invocation_id, TimeBudget.start(60)).run()
            complete_page(connection, page, invocation_id, first)
            future = pool.submit(run_page, other, page, invocation_id=invocation_id)
            wait_until_blocked(engine)
        second = future.result(timeout=60)
    other.dispose()

    assert first == second == all_dispatched(2)
    assert number_of_pages(engine) == 1
    consistent(engine)


def test_rows_are_written_in_one_order_whatever_the_order_of_the_page(engine: Engine) -> None:
    """Eight runs in eight orders once deadlocked each other for minutes."""
    with engine.begin() as connection:
        insert_organisation(connection)
        mentors = insert_mentors(
            connection,
            [Mentor(n, activities=[QUIET], certifications=[("driver", D + 30 * DAY)]) for n in range(1, 41)],
        )
        connection.exec_driver_sql(
            """
            CREATE TABLE scenario.written (n bigserial, user_id uuid, scenario_type text);
            CREATE FUNCTION scenario.note() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                INSERT INTO scenario.written (user_id, scenario_type) VALUES (NEW.user_id, NEW.scenario_type);
                RETURN NEW;
            END $$;
            CREATE TRIGGER note BEFORE INSERT ON scenario.scenario_notifications
                FOR EACH ROW EXECUTE FUNCTION scenario.note();
            """
        )

    run_page(engine, make_page([*mentors[20:], *reversed(mentors[:20])]))

    with engine.connect() as connection:
        rows = connection.execute(text("SELECT user_id::text, scenario_type FROM scenario.written ORDER BY n"))
        written = [tuple(row) for row in rows]
    assert written == [(mentor, name) for mentor in mentors for name in ("certification_expiry", "inactivity")]


def test_eight_runs_at_once_send_once_and_their_counters_add_up_to_the_rows(engine: Engine, database_url: str) -> None:
    """Half of them for the next day: 18 000 of 20 000 mentors were once told twice this way."""
    with engine.begin() as connection:
        insert_organisation(connection)
        configure(connection, "milestone", thresholds=[1, 2], cooldown_days=3)
        insert_mentors(
            connection,
            [
                Mentor(n, activities=[D, D + DAY] if n % 2 else [QUIET], certifications=[("driver", D + 30 * DAY)])
                for n in range(1, 301)
            ],
        )
    start = threading.Barrier(8)

    def run(n: int) -> BatchStats:
        own = database.connect(database_url)
        start.wait(timeout=60)
        stats = run_invocation(own, make_request(D + (n % 2) * DAY, page_size=60)).stats
        own.dispose()
        return stats

    with ThreadPoolExecutor(8) as pool:
        stats = BatchStats.sum(pool.map(run, range(8)))

    rows = sent(engine)
    assert len(rows) == stats.total_dispatched == 300 + 150 + 150
    assert {row[:2] for row in rows} == (
        {(mentor_id(n), "certification_expiry") for n in range(1, 301)}
        | {(mentor_id(n), "milestone" if n % 2 else "inactivity") for n in range(1, 301)}
    )
    assert (stats.total_evaluated, stats.total_errors, stats.pages_processed) == (8 * 300, 0, 8 * 5)
    consistent(engine)
