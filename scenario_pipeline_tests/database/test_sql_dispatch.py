"""Dispatch by the `sql` engine, and the reasons against it (contract section 4)."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from scenario_pipeline.batch_stats import BatchStats
from scenario_pipeline.records import PageResult
from scenario_pipeline_tests.support.invariants import consistent, number_of_pages, sent
from scenario_pipeline_tests.support.people import (
    DAY,
    FIRST_WINDOW,
    D,
    configure,
    insert_activities,
    insert_mentor,
    insert_notification,
    insert_organisation,
    new_invocation_id,
    organisation_id,
    quiet_mentors,
)
from scenario_pipeline_tests.support.runs import make_page, run_page
from scenario_pipeline_tests.support.sql_pages import QUIET, all_dispatched, dispatched_on_d, make_poisonous, outcomes


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
    one, two = quiet_mentors(engine, 2, opted_out=())
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
    mentors = quiet_mentors(engine, 3, opted_out=())
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
    mentors = quiet_mentors(engine, 3, opted_out=())
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
    mentors = quiet_mentors(engine, 4, opted_out=())
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
