"""The `sql` trigger engine on a real Postgres: dispatch, races, poison mentors, broken connections, spent budgets.

Belongs here: everything that may happen to a page. Does not belong here: what makes a scenario due
(`test_scenarios`), or the run as a whole.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import CompoundSelect, Connection, Engine, MetaData, text
from sqlalchemy.engine import make_url

from scenario_pipeline.batch_stats import BatchStats
from scenario_pipeline.engines.sql import MAX_ATTEMPTS, Evaluation, SqlTriggerEngine
from scenario_pipeline.engines.statement import decision_statement
from scenario_pipeline.errors import BudgetSpentError, ErrorInfo, ErrorType, SystemicError
from scenario_pipeline.records import DispatchMode, MentorError, Page, PageResult
from scenario_pipeline.storage import database, ledger, tables
from scenario_pipeline.storage.source import Access
from scenario_pipeline.structured_logger import StructuredLogger
from scenario_pipeline.time_budget import TimeBudget
from scenario_pipeline_tests.world import (
    ALL_SCENARIOS,
    DAY,
    FIRST_WINDOW,
    D,
    Log,
    Mentor,
    Notification,
    check_invariants,
    configure,
    insert_activities,
    insert_mentor,
    insert_mentors,
    insert_notification,
    insert_organisation,
    make_page,
    make_request,
    mentor_id,
    new_invocation_id,
    number_of_pages,
    open_run,
    organisation_id,
    run_invocation,
    run_page,
    sent,
    wait_until_blocked,
)

QUIET = D - 30 * DAY
"""A last activity so long ago that `inactivity` is due on D, with the threshold 30."""
INACTIVITY = ["inactivity"]


def outcomes(engine: Engine, page: Page, **options: Any) -> dict[str, int]:
    """Run a page; return its matches by outcome."""
    stats = run_page(engine, page, **options).stats
    return {**stats.suppressed_by_reason, **({"dispatched": stats.total_dispatched} if stats.total_dispatched else {})}


def consistent(engine: Engine) -> None:
    """Check the invariants on a connection of its own."""
    with engine.connect() as connection:
        check_invariants(connection)


def inactive_mentors(engine: Engine, n: int, *, cooldown_days: int = 30) -> list[str]:
    """Make a world of n mentors for whom `inactivity` is due on D, and nothing else."""
    with engine.begin() as connection:
        insert_organisation(connection)
        configure(connection, "inactivity", thresholds=[30], cooldown_days=cooldown_days)
        return insert_mentors(connection, [Mentor(i, activities=[QUIET]) for i in range(1, n + 1)])


def dispatched_on_d(mentor: str) -> Notification:
    """Return the notification that a mentor of `inactive_mentors` gets on D."""
    return (mentor, "inactivity", D, FIRST_WINDOW, "2024-03-01:30", 30, D)


def all_dispatched(n: int) -> PageResult:
    """Return what a page of `inactive_mentors` comes to."""
    return PageResult(
        BatchStats({organisation_id(): n}, {(organisation_id(), "inactivity", "dispatched"): n}, pages_processed=1)
    )


# Dispatch and the reasons against it (contract section 4)


@pytest.mark.parametrize(
    ("opted_out", "days_before", "same_key", "reason"),
    [
        (True, 0, True, "opted_out"),
        (True, 5, False, "opted_out"),
        (True, None, False, "opted_out"),
        (False, 0, True, "duplicate"),
        (False, 0, False, "duplicate"),
        (False, 5, True, "duplicate"),
        (False, 400, True, "duplicate"),
        (False, -5, True, "duplicate"),
        (False, 1, False, "cooldown"),
        (False, 29, False, "cooldown"),
        (False, -1, False, "cooldown"),
        (False, -400, False, "cooldown"),
        (False, 30, False, None),
        (False, 400, False, None),
        (False, None, False, None),
    ],
)
def test_the_first_reason_that_holds_suppresses_a_match(
    engine: Engine, opted_out: bool, days_before: int | None, same_key: bool, reason: str | None
) -> None:
    """The order is what the reasons mean in the log; the edges are what the mentor's telephone shows."""
    earlier = None if days_before is None else D - days_before * DAY
    with engine.begin() as connection:
        insert_organisation(connection)
        configure(connection, "inactivity", thresholds=[30], cooldown_days=30)
        mentor = insert_mentor(connection, activities=[QUIET], opted_out=opted_out)
        if earlier is not None:
            key = "2024-03-01:30" if same_key else "another"
            insert_notification(connection, mentor, earlier, dedup_key=key)
    before = sent(engine)

    result = run_page(engine, make_page([mentor]))

    outcome = reason or "dispatched"
    assert result == PageResult(
        BatchStats({organisation_id(): 1}, {(organisation_id(), "inactivity", outcome): 1}, pages_processed=1)
    )
    new = (mentor, "inactivity", D, earlier or FIRST_WINDOW, "2024-03-01:30", 30, D)
    assert sent(engine) == (before if reason else [*before, new])
    consistent(engine)


def test_a_notification_of_another_scenario_or_mentor_suppresses_nothing(engine: Engine) -> None:
    """The negative twin: keys and dates count for one mentor and one scenario only."""
    one, two = inactive_mentors(engine, 2)
    with engine.begin() as connection:
        insert_notification(connection, one, D, dedup_key="2024-03-01:30")
        insert_notification(connection, two, D, scenario_type="milestone", dedup_key="2024-03-01:30")

    assert outcomes(engine, make_page([one, two])) == {"duplicate": 1, "dispatched": 1}


@pytest.mark.parametrize(
    ("cooldown_days", "expected"),
    [
        (1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (2, [0, 2, 4, 6]),
        (3, [0, 3, 6]),
        (7, [0, 7]),
        (8, [0]),
    ],
)
def test_the_cooldown_slides_from_notification_to_notification(
    engine: Engine, cooldown_days: int, expected: list[int]
) -> None:
    """A grid of days would send two at its edges, and none where one is due."""
    with engine.begin() as connection:
        insert_organisation(connection)
        configure(connection, "milestone", thresholds=range(1, 9), cooldown_days=cooldown_days)
        mentor = insert_mentor(connection, activities=[D + i * DAY for i in range(8)])

    for i in range(8):
        run_page(engine, make_page([mentor], D + i * DAY, scenario_types=["milestone"]))

    windows = [FIRST_WINDOW, *(D + i * DAY for i in expected)]
    assert sent(engine) == [
        (mentor, "milestone", D + i * DAY, window, f"{i + 1}", i + 1, D + i * DAY)
        for i, window in zip(expected, windows, strict=False)
    ]
    consistent(engine)


def test_an_older_date_is_suppressed_by_what_was_sent_after_it(engine: Engine) -> None:
    """A backfill of last week must not tell a mentor what they have already moved on from."""
    with engine.begin() as connection:
        insert_organisation(connection)
        mentor = insert_mentor(connection, activities=[D - 5 * DAY] + [D] * 9)

    assert outcomes(engine, make_page([mentor], D)) == {"dispatched": 1}
    assert outcomes(engine, make_page([mentor], D - 5 * DAY)) == {"cooldown": 1}
    assert [row[4] for row in sent(engine)] == ["10"]
    consistent(engine)


def test_a_second_run_dispatches_nothing(engine: Engine) -> None:
    """Pressing the button twice must not send twice."""
    mentors = inactive_mentors(engine, 3)
    first, second = (run_page(engine, make_page(mentors)) for _ in range(2))

    assert first == all_dispatched(3)
    assert second == PageResult(
        BatchStats({organisation_id(): 3}, {(organisation_id(), "inactivity", "duplicate"): 3}, pages_processed=1)
    )
    assert sent(engine) == [dispatched_on_d(mentor) for mentor in mentors]
    consistent(engine)


def test_a_dry_run_reports_what_a_live_run_would_do_and_sends_nothing(engine: Engine) -> None:
    """Operators decide by its numbers whether to send."""
    with engine.begin() as connection:
        insert_organisation(connection)
        mentors = [
            insert_mentor(connection, 1, activities=[QUIET]),
            insert_mentor(connection, 2, activities=[QUIET], opted_out=True),
            insert_mentor(connection, 3, activities=[QUIET], certifications=[("driver", D + 7 * DAY)]),
            insert_mentor(connection, 4, activities=[QUIET]),
            insert_mentor(connection, 5, activities=[QUIET]),
        ]
        insert_notification(connection, mentors[3], D - DAY)
        make_poisonous(connection, [mentors[4]])
    before = sent(engine)

    dry = [run_page(engine, make_page(mentors, dispatch_mode="dry_run")) for _ in range(2)]
    assert sent(engine) == before
    assert number_of_pages(engine) == 2
    live = run_page(engine, make_page(mentors))

    assert dry == [live, live]
    assert live.stats.dispatched_by_scenario == {"certification_expiry": 1, "inactivity": 2}
    assert live.stats.suppressed_by_reason == {"cooldown": 1, "opted_out": 1}
    assert [error.peer_mentor_id for error in live.errors] == [mentors[4]]
    assert len(sent(engine)) == len(before) + live.stats.total_dispatched
    consistent(engine)


def test_a_repeated_page_of_an_invocation_returns_the_first_result_and_changes_nothing(engine: Engine) -> None:
    """A retried step would count its page twice, and lose the errors it had reported."""
    mentors = inactive_mentors(engine, 3)
    with engine.begin() as connection:
        make_poisonous(connection, mentors[:1])
    page, invocation_id = make_page(mentors), new_invocation_id()
    first = run_page(engine, page, invocation_id=invocation_id)
    with engine.begin() as connection:
        insert_activities(connection, mentors[1], [D])
        insert_mentor(connection, 4, activities=[QUIET])
    before = sent(engine)

    again = [run_page(engine, page, invocation_id=invocation_id) for _ in range(3)]

    assert (first.stats.total_dispatched, first.stats.total_errors) == (2, 1)
    assert [
        (r.stats, [(e.peer_mentor_id, e.error.error_type, e.error.error_message) for e in r.errors]) for r in again
    ] == [(first.stats, [(e.peer_mentor_id, e.error.error_type, e.error.error_message) for e in first.errors])] * 3
    assert sent(engine) == before
    assert number_of_pages(engine) == 1
    consistent(engine)


def test_a_mentor_who_left_since_the_list_was_made_is_evaluated_and_matches_nothing(engine: Engine) -> None:
    """The identities of the log must hold although people come and go while it runs."""
    mentors = inactive_mentors(engine, 4)
    with engine.begin() as connection:
        connection.execute(text("UPDATE scenario.peer_mentors SET status = 'left' WHERE id = :id"), {"id": mentors[0]})
        connection.execute(text("DELETE FROM scenario.peer_mentors WHERE id = :id"), {"id": mentors[1]})

    result = run_page(engine, make_page(mentors))

    assert result == PageResult(
        BatchStats(
            {"": 2, organisation_id(): 2}, {(organisation_id(), "inactivity", "dispatched"): 2}, pages_processed=1
        )
    )
    assert [row[0] for row in sent(engine)] == mentors[2:]
    consistent(engine)


# Races


@contextlib.contextmanager
def held_open(engine: Engine, page: Page) -> Iterator[None]:
    """Evaluate a page and hold its transaction open for as long as the block runs, then commit."""
    invocation_id = new_invocation_id()
    with engine.begin() as connection:
        open_run(connection, page.request, invocation_id)
    with engine.begin() as connection:
        assert ledger.claim_page(connection, page, invocation_id) is None
        result = Evaluation(connection, page, invocation_id, TimeBudget.start(60)).run()
        ledger.complete_page(connection, page, invocation_id, result)
        yield


def race(engine: Engine, database_url: str, winner: Page, loser: Page) -> PageResult:
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
    mentors = inactive_mentors(engine, 3)

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
    mentors = inactive_mentors(engine, 2)
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
    mentors = inactive_mentors(engine, 2)
    page, invocation_id = make_page(mentors), new_invocation_id()
    other = database.connect(database_url)
    with engine.begin() as connection:
        open_run(connection, page.request, invocation_id)
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as connection:
            ledger.claim_page(connection, page, invocation_id)
            first = Evaluation(connection, page, invocation_id, TimeBudget.start(60)).run()
            ledger.complete_page(connection, page, invocation_id, first)
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


# Poison mentors


def make_poisonous(connection: Connection, mentors: Sequence[str], *, errcode: str = "P0001") -> None:
    """Let the database refuse notifications of these mentors, with a message that quotes the row."""
    connection.execute(text("CREATE TABLE scenario.poison (user_id uuid PRIMARY KEY)"))
    for mentor in mentors:
        connection.execute(text("INSERT INTO scenario.poison VALUES (:id)"), {"id": mentor})
    connection.exec_driver_sql(
        f"""
        CREATE FUNCTION scenario.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF EXISTS (SELECT FROM scenario.poison p WHERE p.user_id = NEW.user_id) THEN
                RAISE EXCEPTION USING ERRCODE = '{errcode}', MESSAGE = 'refused: ' || NEW.user_id,
                    DETAIL = NEW.user_id, HINT = NEW.dedup_key;
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON scenario.scenario_notifications
            FOR EACH ROW EXECUTE FUNCTION scenario.refuse();
        """
    )


CONDITIONS = {
    "P0001": "raise_exception",
    "22023": "invalid_parameter_value",
    "22P02": "invalid_text_representation",
    "21000": "cardinality_violation",
    "23514": "check_violation",
    "23502": "not_null_violation",
}


@pytest.mark.parametrize(
    ("poisonous", "errcode"),
    [
        *((mentors, "P0001") for mentors in [(), (1,), (7,), (3, 4), (1, 7), (1, 2, 3, 4, 5, 6, 7)]),
        *(((3, 4), errcode) for errcode in CONDITIONS if errcode != "P0001"),
    ],
)
def test_poison_mentors_are_errors_of_their_own_and_all_others_are_evaluated(
    engine: Engine, poisonous: tuple[int, ...], errcode: str
) -> None:
    """One bad row once stopped the whole batch, and its message carried the person into the log."""
    mentors = inactive_mentors(engine, 7)
    refused = [mentor_id(n) for n in poisonous]
    with engine.begin() as connection:
        make_poisonous(connection, refused, errcode=errcode)

    result = run_page(engine, make_page(mentors))

    info = ErrorInfo(ErrorType.EVALUATION_LOGIC, f"SQLSTATE {errcode} {CONDITIONS[errcode]}", errcode)
    well = [mentor for mentor in mentors if mentor not in refused]
    evaluated = {organisation_id(): len(well)} if well else {}
    dispatched = {(organisation_id(), "inactivity", "dispatched"): len(well)} if well else {}
    assert result == PageResult(
        BatchStats(evaluated, dispatched, total_errors=len(refused), pages_processed=1),
        tuple(MentorError(mentor, info) for mentor in refused),
    )
    assert sent(engine) == [dispatched_on_d(mentor) for mentor in well]
    consistent(engine)


def test_a_check_constraint_is_named_and_the_row_that_broke_it_is_not_quoted(engine: Engine) -> None:
    """Postgres answers with the failing row in full."""
    mentors = inactive_mentors(engine, 4)
    with engine.begin() as connection:
        connection.execute(
            text(
                "ALTER TABLE scenario.scenario_notifications ADD CONSTRAINT not_this_one "
                f"CHECK (user_id <> '{mentors[2]}' OR dedup_key <> '2024-03-01:30')"
            )
        )

    result = run_page(engine, make_page(mentors))

    sentence = "SQLSTATE 23514 check_violation, constraint not_this_one, table scenario_notifications"
    assert result.errors == (MentorError(mentors[2], ErrorInfo(ErrorType.EVALUATION_LOGIC, sentence, "23514")),)
    assert [row[0] for row in sent(engine)] == [mentors[0], mentors[1], mentors[3]]
    consistent(engine)


def test_a_window_that_nobody_can_take_costs_one_mentor_and_not_the_run(engine: Engine) -> None:
    """A history taken over from a calendar's windows: the match loses a race against nobody, again and again."""
    mentors = inactive_mentors(engine, 3)
    taken_over = D - 100 * DAY
    with engine.begin() as connection:
        insert_notification(connection, mentors[1], taken_over, cooldown_window_start=taken_over)

    result = run_page(engine, make_page(mentors))

    assert result.stats.total_evaluated + result.stats.total_errors == 3
    assert [row[0] for row in sent(engine) if row[2] == D] == [mentors[0], mentors[2]]
    consistent(engine)


def test_an_invocation_reports_each_poison_mentor_once_and_completes(engine: Engine) -> None:
    """The batch goes on, and the operator learns who was left out, but nothing about them."""
    mentors = inactive_mentors(engine, 9)
    with engine.begin() as connection:
        make_poisonous(connection, [mentors[0], mentors[4], mentors[5]])
    log = Log()

    report = run_invocation(engine, make_request(page_size=4), log=log)

    errors = [entry for entry in log.entries if entry["event"] == "mentor_evaluation_error"]
    assert [entry["event"] for entry in log.entries] == [
        "scheduler_run_started",
        *["mentor_evaluation_error"] * 3,
        "scheduler_run_completed",
    ]
    assert [(e["peer_mentor_id"], e["error_type"], e["error_message"]) for e in errors] == [
        (mentors[i], "evaluation_logic_error", "SQLSTATE P0001 raise_exception") for i in (0, 4, 5)
    ]
    assert (report.status, report.stats.total_evaluated, report.stats.total_errors) == ("completed", 6, 3)
    consistent(engine)


# Failures of the run


def refused(engine: Engine, page: Page, **options: Any) -> ErrorInfo:
    """Run a page that must fail as a whole; check that nothing of it was committed, and return the failure."""
    before = sent(engine)
    with pytest.raises(SystemicError) as caught:
        run_page(engine, page, **options)
    assert sent(engine) == before
    assert number_of_pages(engine) == 0
    return caught.value.info


@pytest.mark.parametrize(
    ("damage", "state"),
    [
        ("ALTER VIEW scenario.source_activities RENAME TO gone", "42P01 undefined_table"),
        ("ALTER TABLE scenario.scenario_notifications RENAME TO gone", "42P01 undefined_table"),
        ("ALTER VIEW scenario.source_activities RENAME COLUMN activity_date TO gone", "42703 undefined_column"),
    ],
)
def test_a_missing_table_or_column_fails_the_run_and_no_mentor(engine: Engine, damage: str, state: str) -> None:
    """A thousand mentor errors would hide that one migration is missing."""
    mentors = inactive_mentors(engine, 3)
    with engine.begin() as connection:
        connection.execute(text(damage))
        before = connection.execute(text("SELECT count(*) FROM scenario.scheduler_run_pages")).scalar_one()

    with pytest.raises(SystemicError) as caught:
        run_page(engine, make_page(mentors))

    assert caught.value.info.error_type is ErrorType.DATABASE
    assert caught.value.info.error_message.startswith(f"SQLSTATE {state}: ")
    assert number_of_pages(engine) == before == 0


@pytest.mark.parametrize("kept", ["SELECT", "SELECT, INSERT"])
def test_a_missing_permission_fails_the_run_and_no_mentor(engine: Engine, database_url: str, kept: str) -> None:
    """The negative twin is the second case: with the permission the same role evaluates the page."""
    mentors = inactive_mentors(engine, 3)
    role = f"limited_{uuid.uuid4().hex}"
    with engine.begin() as connection:
        for statement in (
            f"CREATE ROLE {role} LOGIN BYPASSRLS PASSWORD 'secret'",
            f"GRANT USAGE ON SCHEMA scenario TO {role}",
            f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA scenario TO {role}",
            f"REVOKE INSERT, UPDATE ON scenario.scenario_notifications FROM {role}",
            f"GRANT {kept} ON scenario.scenario_notifications TO {role}",
        ):
            connection.execute(text(statement))
    url = make_url(database_url).set(username=role, password="secret").render_as_string(hide_password=False)
    limited = database.connect(url)
    try:
        if kept == "SELECT":
            failure = refused(engine, make_page(mentors), evaluate_with=limited)
            assert failure == ErrorInfo(
                ErrorType.DATABASE,
                "SQLSTATE 42501 insufficient_privilege: permission denied for table scenario_notifications",
                "42501",
            )
        else:
            assert run_page(engine, make_page(mentors), evaluate_with=limited) == all_dispatched(3)
    finally:
        limited.dispose()
        with engine.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))


@contextlib.contextmanager
def locked(engine: Engine, table: str = "mentor_activities") -> Iterator[None]:
    """Hold a table so that nobody else can read it."""
    with engine.begin() as connection:
        connection.execute(text(f"LOCK TABLE scenario.{table} IN ACCESS EXCLUSIVE MODE"))
        yield


@pytest.mark.parametrize(
    ("interrupt", "failure"),
    [
        ("pg_terminate_backend", (ErrorType.NETWORK, "57P01")),
        ("pg_cancel_backend", (ErrorType.TIMEOUT, "57014")),
    ],
)
def test_a_statement_that_an_operator_ends_fails_the_run_and_commits_nothing(
    engine: Engine, database_url: str, interrupt: str, failure: tuple[ErrorType, str]
) -> None:
    """It is neither a mentor's fault nor the end of the budget."""
    mentors = inactive_mentors(engine, 3)
    other = database.connect(database_url)
    with ThreadPoolExecutor(1) as pool:
        with locked(engine):
            future = pool.submit(run_page, other, make_page(mentors))
            (pid,) = wait_until_blocked(other)
            with other.connect() as connection:
                connection.execute(text(f"SELECT {interrupt}(:pid)"), {"pid": pid})
            error = future.exception(timeout=60)
        assert isinstance(error, SystemicError)
        assert (error.info.error_type, error.info.sqlstate) == failure
        assert (sent(engine), number_of_pages(engine)) == ([], 0)
        assert run_page(other, make_page(mentors)) == all_dispatched(3)
    other.dispose()
    consistent(engine)


def test_a_server_that_cannot_be_reached_fails_the_run(engine: Engine) -> None:
    """The closing events name the network and not the mentors."""
    mentors = inactive_mentors(engine, 1)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    unreachable = database.connect(f"postgresql://scenario@127.0.0.1:{port}/scenario")

    failure = refused(engine, make_page(mentors), evaluate_with=unreachable)

    sentence = "no server answers at the host and port of the database: the connection was refused"
    assert failure == ErrorInfo(ErrorType.NETWORK, sentence)


# Deadlocks and serialization failures


def fail_the_first(connection: Connection, times: int, errcode: str) -> None:
    """Let the first so many notifications fail; a sequence counts them, since it is not rolled back."""
    connection.exec_driver_sql(
        f"""
        CREATE SEQUENCE scenario.attempts;
        CREATE FUNCTION scenario.fail() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF nextval('scenario.attempts') <= {times} THEN
                RAISE EXCEPTION USING ERRCODE = '{errcode}', MESSAGE = 'try again';
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER fail BEFORE INSERT ON scenario.scenario_notifications
            FOR EACH ROW EXECUTE FUNCTION scenario.fail();
        """
    )


def retries(log: Log) -> list[tuple[int, int, str]]:
    """Return page, attempt and type of every entry about a repeated page."""
    assert {entry["event"] for entry in log.entries} <= {"trigger_engine_page_retried"}
    return [(entry["page_number"], entry["attempt"], entry["error_type"]) for entry in log.entries]


@pytest.mark.parametrize(("errcode", "name"), [("40P01", "deadlock_detected"), ("40001", "serialization_failure")])
@pytest.mark.parametrize("times", [1, MAX_ATTEMPTS - 1, MAX_ATTEMPTS])
def test_a_page_is_repeated_after_a_deadlock_or_serialization_failure_but_not_for_ever(
    engine: Engine, errcode: str, name: str, times: int
) -> None:
    """The victim of a deadlock did nothing wrong; a database that always answers so is broken."""
    mentors = inactive_mentors(engine, 3)
    with engine.begin() as connection:
        fail_the_first(connection, times, errcode)
    log, page = Log(), make_page(mentors, number=5)

    if times < MAX_ATTEMPTS:
        assert run_page(engine, page, log=log) == all_dispatched(3)
        assert sent(engine) == [dispatched_on_d(mentor) for mentor in mentors]
    else:
        failure = refused(engine, page, log=log)
        assert failure == ErrorInfo(ErrorType.DATABASE, f"SQLSTATE {errcode} {name}: try again", errcode)

    attempts = range(1, min(times, MAX_ATTEMPTS - 1) + 1)
    assert retries(log) == [(5, attempt, "database_error") for attempt in attempts]
    consistent(engine)


def test_a_real_deadlock_is_survived(engine: Engine, database_url: str) -> None:
    """Another program that writes in another order must not end the run."""
    (mentor,) = inactive_mentors(engine, 1)
    page, invocation_id, log = make_page([mentor]), new_invocation_id(), Log()
    with engine.begin() as connection:
        open_run(connection, page.request, invocation_id)
        # The page's backend looks for a deadlock at once, the stranger's never: so the page is the victim.
        connection.execute(text(f"ALTER DATABASE {make_url(database_url).database} SET deadlock_timeout = 1"))
    victim, stranger = database.connect(database_url), database.connect(database_url)
    with ThreadPoolExecutor(2) as pool, stranger.connect() as connection:
        connection.execute(text("SET deadlock_timeout = '1h'"))
        insert_notification(connection, mentor, D)
        with locked(engine):
            running = pool.submit(run_page, victim, page, invocation_id=invocation_id, log=log)
            wait_until_blocked(victim)
            # The page holds its row in the ledger and waits for the activities.
            claim = pool.submit(ledger.claim_page, connection, page, invocation_id)
            wait_until_blocked(victim, 2)
        assert claim.result(timeout=60) is None
        connection.rollback()
        result = running.result(timeout=60)
    victim.dispose()
    stranger.dispose()

    assert result == all_dispatched(1)
    # The page may be back before the stranger has woken up, and meet it once more.
    repeated = retries(log)
    assert repeated == [(1, attempt, "database_error") for attempt in range(1, len(repeated) + 1)] != []
    assert sent(engine) == [dispatched_on_d(mentor)]
    consistent(engine)


# Commits whose answer is lost

Loss = Literal["request", "answer"]


class LossyProxy:
    """A TCP proxy before the server that loses one COMMIT, before or after it took effect, and cuts the connection.

    Args:
        url: the URL of the database behind it.
    """

    def __init__(self, url: str) -> None:
        self._target = make_url(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lose: Loss | None = None
        self._refuse = 0
        self._closing = False
        self.lost = 0
        self._threads: list[threading.Thread] = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """The URL of the database through the proxy."""
        port = self._listener.getsockname()[1]
        return self._target.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)

    def lose_next_commit(self, lose: Loss, *, then_refuse: int = 0) -> None:
        """Lose the request of the next COMMIT or the answer to it, and refuse so many connections after it."""
        self._lose, self._refuse = lose, then_refuse

    def __enter__(self) -> LossyProxy:
        return self

    def __exit__(self, *_: object) -> None:
        # A listener does not wake up when it is closed: a last connection makes it look.
        self._closing = True
        with socket.create_connection(self._listener.getsockname()):
            pass
        for thread in self._threads:
            thread.join(timeout=30)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._closing:
                client.close()
                return
            if self.lost and self._refuse:
                self._refuse -= 1
                client.close()
                continue
            thread = threading.Thread(target=self._forward, args=(client,))
            thread.start()
            self._threads.append(thread)

    def _forward(self, client: socket.socket) -> None:
        with client, socket.create_connection((self._target.host, self._target.port)) as upstream:
            losing = False
            while True:
                for source in select.select([client, upstream], [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    if source is client and self._lose and b"COMMIT\0" in data:
                        lose, self._lose, losing = self._lose, None, True
                        self.lost += 1
                        if lose == "request":
                            return
                    # The tag of the answer says that the server has committed.
                    if source is upstream and losing and b"COMMIT\0" in data:
                        return
                    (upstream if source is client else client).sendall(data)


@pytest.fixture
def proxy(database_url: str) -> Iterator[LossyProxy]:
    """A proxy before this test's database."""
    with LossyProxy(database_url) as proxy:
        yield proxy


@pytest.fixture
def through_proxy(proxy: LossyProxy) -> Iterator[Engine]:
    """An engine that connects through the proxy."""
    engine = database.connect(proxy.url)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("mode", ["live", "dry_run"])
@pytest.mark.parametrize("lose", ["answer", "request"])
def test_a_page_whose_commit_was_lost_is_counted_once(
    engine: Engine, proxy: LossyProxy, through_proxy: Engine, lose: Loss, mode: DispatchMode
) -> None:
    """Counting it twice lies to the operator; not at all leaves notifications that nobody accounts for."""
    mentors = inactive_mentors(engine, 4)
    with engine.begin() as connection:
        make_poisonous(connection, mentors[:1])
    log = Log()
    proxy.lose_next_commit(lose)

    result = run_page(engine, make_page(mentors, number=3, dispatch_mode=mode), evaluate_with=through_proxy, log=log)

    assert proxy.lost == 1
    assert result.stats == BatchStats(
        {organisation_id(): 3}, {(organisation_id(), "inactivity", "dispatched"): 3}, total_errors=1, pages_processed=1
    )
    assert [error.peer_mentor_id for error in result.errors] == mentors[:1]
    assert retries(log) == [(3, 1, "network_error")]
    assert sent(engine) == ([dispatched_on_d(mentor) for mentor in mentors[1:]] if mode == "live" else [])
    assert number_of_pages(engine) == 1
    consistent(engine)


@pytest.mark.parametrize("lose", ["answer", "request"])
def test_an_invocation_that_loses_a_commit_closes_with_counters_that_equal_the_rows(
    engine: Engine, proxy: LossyProxy, through_proxy: Engine, lose: Loss
) -> None:
    """The same for the whole run, in the log and in the ledger."""
    mentors = inactive_mentors(engine, 4)
    log = Log()

    report = run_invocation(
        engine,
        make_request(page_size=2),
        log=log,
        trigger_engine=LosingCommit(SqlTriggerEngine(through_proxy), proxy, page_number=2, lose=lose),
    )

    assert (report.status, report.stats) == (
        "completed",
        BatchStats({organisation_id(): 4}, {(organisation_id(), "inactivity", "dispatched"): 4}, pages_processed=2),
    )
    assert [entry["event"] for entry in log.entries] == [
        "scheduler_run_started",
        "trigger_engine_page_retried",
        "scheduler_run_completed",
    ]
    assert sent(engine) == [dispatched_on_d(mentor) for mentor in mentors]
    consistent(engine)


@dataclass(frozen=True)
class LosingCommit:
    """A trigger engine whose network loses the commit of one page, and what else happens then."""

    engine: SqlTriggerEngine
    proxy: LossyProxy
    page_number: int
    lose: Loss = "answer"
    then_refuse: int = 0
    budget: TimeBudget | None = None

    def evaluate_page(self, page: Page, invocation_id: str, budget: TimeBudget, logger: StructuredLogger) -> PageResult:
        """Evaluate a page, with its commit lost if it is the one."""
        if page.number == self.page_number:
            self.proxy.lose_next_commit(self.lose, then_refuse=self.then_refuse)
        return self.engine.evaluate_page(page, invocation_id, self.budget or budget, logger)


@pytest.mark.parametrize("lose", ["answer", "request"])
def test_a_commit_is_settled_although_the_budget_ended_with_it(
    engine: Engine, proxy: LossyProxy, through_proxy: Engine, lose: Loss
) -> None:
    """A page called unprocessed whose notifications were sent: the counters would not equal the rows."""
    mentors = inactive_mentors(engine, 2)
    # The budget is over as soon as the commit is lost, whatever the speed of this machine.
    budget = TimeBudget(0.0, 60.0, clock=lambda: 61.0 if proxy.lost else 0.0)
    trigger_engine = LosingCommit(SqlTriggerEngine(through_proxy), proxy, page_number=1, lose=lose, budget=budget)

    report = run_invocation(engine, trigger_engine=trigger_engine)

    was_committed = lose == "answer"
    assert len(sent(engine)) == (len(mentors) if was_committed else 0)
    assert (report.status, report.remaining) == (("completed", 0) if was_committed else ("partial", 2))
    consistent(engine)


@pytest.mark.parametrize("lose", ["answer", "request"])
def test_a_run_that_fails_after_a_lost_commit_counts_what_was_committed(
    engine: Engine, proxy: LossyProxy, through_proxy: Engine, lose: Loss
) -> None:
    """A server that restarts right after a commit answers neither that one nor the next connection."""
    inactive_mentors(engine, 4)
    trigger_engine = LosingCommit(SqlTriggerEngine(through_proxy), proxy, page_number=1, lose=lose, then_refuse=1000)

    report = run_invocation(engine, make_request(page_size=2), trigger_engine=trigger_engine)

    committed = 2 if lose == "answer" else 0
    assert len(sent(engine)) == committed
    assert (report.status, report.stats.total_dispatched, report.remaining) == ("failed", committed, 4 - committed)
    consistent(engine)


# The time budget


def test_a_page_that_waits_for_a_lock_ends_with_the_budget_and_commits_nothing(
    engine: Engine, database_url: str
) -> None:
    """A migration that holds a table must not hold the scheduler."""
    mentors = inactive_mentors(engine, 3)
    other = database.connect(database_url)
    with ThreadPoolExecutor(1) as pool, locked(other):
        future = pool.submit(run_page, engine, make_page(mentors, time_budget_seconds=0.3))
        assert isinstance(future.exception(timeout=60), BudgetSpentError)
    assert (sent(engine), number_of_pages(engine)) == ([], 0)

    assert run_page(engine, make_page(mentors)) == all_dispatched(3)
    other.dispose()


def test_a_page_that_waits_for_its_own_row_in_the_ledger_ends_with_the_budget(
    engine: Engine, database_url: str
) -> None:
    """A step whose predecessor hangs must not hang with it."""
    mentors = inactive_mentors(engine, 3)
    page, invocation_id = make_page(mentors, time_budget_seconds=0.3), new_invocation_id()
    other = database.connect(database_url)
    with engine.begin() as connection:
        open_run(connection, page.request, invocation_id)
    with ThreadPoolExecutor(1) as pool, other.connect() as connection:
        ledger.claim_page(connection, page, invocation_id)
        future = pool.submit(run_page, engine, page, invocation_id=invocation_id)
        assert isinstance(future.exception(timeout=60), BudgetSpentError)
    other.dispose()

    assert (sent(engine), number_of_pages(engine)) == ([], 0)


def test_a_page_is_not_begun_with_a_budget_that_is_spent(engine: Engine) -> None:
    """The last page of a late run would hold the next one up."""
    mentors = inactive_mentors(engine, 3)

    with pytest.raises(BudgetSpentError):
        run_page(engine, make_page(mentors), budget=TimeBudget(0.0, 30.0, clock=lambda: 30.0))

    assert (sent(engine), number_of_pages(engine)) == ([], 0)


def test_a_budget_that_ends_between_two_halves_of_a_page_commits_neither(engine: Engine) -> None:
    """A page is committed whole or left whole; half a page would be counted as evaluated."""
    mentors = inactive_mentors(engine, 4)
    with engine.begin() as connection:
        make_poisonous(connection, mentors[3:])
    ticks = iter(range(1000))

    with pytest.raises(BudgetSpentError):
        run_page(engine, make_page(mentors), budget=TimeBudget(0.0, 7.0, clock=lambda: float(next(ticks))))

    assert next(ticks) > 4, "the budget ended before the page was begun"
    assert (sent(engine), number_of_pages(engine)) == ([], 0)


def test_the_server_itself_bounds_every_statement_by_what_is_left(engine: Engine) -> None:
    """A client that only measures afterwards waits for ever for a statement that never ends."""
    mentors = inactive_mentors(engine, 1)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            """
            CREATE TABLE scenario.seen (name text, setting text);
            CREATE FUNCTION scenario.look() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                INSERT INTO scenario.seen VALUES
                    (TG_TABLE_NAME, current_setting('statement_timeout') || ' ' || current_setting('lock_timeout'));
                RETURN NEW;
            END $$;
            CREATE TRIGGER look BEFORE INSERT ON scenario.scenario_notifications
                FOR EACH ROW EXECUTE FUNCTION scenario.look();
            CREATE TRIGGER look BEFORE INSERT ON scenario.scheduler_run_pages
                FOR EACH ROW EXECUTE FUNCTION scenario.look();
            """
        )

    run_page(engine, make_page(mentors), budget=TimeBudget(0.0, 30.0, clock=lambda: 17.5))

    with engine.connect() as connection:
        seen = [tuple(row) for row in connection.execute(text("SELECT * FROM scenario.seen ORDER BY 1"))]
        after = connection.execute(text("SHOW statement_timeout")).scalar_one()
    assert seen == [("scenario_notifications", "12500ms 12500ms"), ("scheduler_run_pages", "12500ms 12500ms")]
    assert after == "0", "the limit outlived its transaction"


# The plan, and the tables as the statements see them


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every node of a plan."""
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def test_a_page_reads_the_activities_of_its_own_mentors_by_the_index(engine: Engine) -> None:
    """One sequential scan a page turned seconds into hours on a real table."""
    with engine.begin() as connection:
        insert_organisation(connection)
        connection.exec_driver_sql(
            f"""
            INSERT INTO scenario.peer_mentors (id, organisation_id, status, full_name, joined_on)
            SELECT gen_random_uuid(), '{organisation_id()}', 'active', 'Kari Nordmann', date '{D}' - 1000
            FROM generate_series(1, 20000);
            INSERT INTO scenario.mentor_activities (user_id, activity_type, activity_date)
            SELECT id, 'conversation', date '{D}' - n * 13 FROM generate_series(1, 10) AS n, scenario.peer_mentors;
            """
        )
        ids = "SELECT id::text FROM scenario.peer_mentors ORDER BY id LIMIT 1000 OFFSET 9000"
        mentors = list(connection.execute(text(ids)).scalars())
    # What autovacuum does in its own time: an index-only scan needs the visibility map.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (ANALYZE) scenario.peer_mentors, scenario.mentor_activities"))
    statement = decision_statement(ALL_SCENARIOS, Access.VIEWS)
    assert isinstance(statement, CompoundSelect)
    asked = {"mentor_ids": mentors, "evaluation_date": D, "invocation_id": new_invocation_id()}
    compiled = statement.params(asked).compile(dialect=engine.dialect).construct_expanded_state()

    with engine.connect() as connection:
        (((top,),),) = connection.exec_driver_sql(
            f"EXPLAIN (FORMAT JSON) {compiled.statement}", compiled.parameters
        ).all()

    scans = {
        (node["Node Type"], node.get("Index Name"))
        for node in nodes(top["Plan"])
        if node.get("Relation Name") == "mentor_activities"
    }
    assert scans
    assert {name for _, name in scans} == {"mentor_activities_user_date"}
    assert {kind for kind, _ in scans} <= {"Index Scan", "Index Only Scan"}


def differences(connection: Connection, metadata: MetaData) -> list[Any]:
    """Return how tables and columns of the database differ from `metadata`.

    Indexes, unique constraints and foreign keys are left out: only the migration knows them, because no statement
    is built from them.
    """
    context = MigrationContext.configure(
        connection,
        opts={
            "compare_type": True,
            "include_schemas": True,
            # None is the default schema of the session: ours, where the role has its name.
            "include_name": lambda name, kind, _: (
                name in {None, tables.SCHEMA} if kind == "schema" else name != "alembic_version"
            ),
            "include_object": lambda _object, _name, kind, _reflected, _other: kind in {"table", "column"},
            "version_table_schema": tables.SCHEMA,
        },
    )
    return list(compare_metadata(context, metadata))


def test_the_migrations_make_the_tables_that_the_statements_are_built_from(engine: Engine) -> None:
    """A column renamed in one place only would fail in the middle of the night."""
    with engine.connect() as connection:
        assert differences(connection, tables.metadata) == []


@pytest.mark.parametrize(
    "damage",
    [
        "ALTER TABLE scenario.organisations ADD COLUMN extra text",
        "ALTER TABLE scenario.organisations DROP COLUMN name CASCADE",
        "ALTER TABLE scenario.organisations ALTER name DROP NOT NULL",
        "ALTER TABLE scenario.scheduler_runs ALTER total_errors TYPE bigint",
        "ALTER TABLE scenario.scheduler_runs ALTER scenario_types TYPE uuid[] USING NULL",
        "DROP TABLE scenario.mentor_certifications CASCADE",
        "CREATE TABLE scenario.extra (id int)",
    ],
)
def test_any_difference_between_migrations_and_tables_is_found(engine: Engine, damage: str) -> None:
    """The negative twin: a comparison that leaves everything out finds nothing, too."""
    with engine.connect() as connection:
        connection.execute(text(damage))
        assert differences(connection, tables.metadata) != []
