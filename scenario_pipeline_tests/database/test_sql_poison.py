"""Mentors at whose row the `sql` engine fails: each is an error of their own."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from scenario_pipeline.batch_stats import BatchStats
from scenario_pipeline.errors import ErrorInfo, ErrorType
from scenario_pipeline.records import MentorError, PageResult
from scenario_pipeline_tests.support.invariants import consistent, sent
from scenario_pipeline_tests.support.people import (
    DAY,
    D,
    insert_notification,
    mentor_id,
    organisation_id,
    quiet_mentors,
)
from scenario_pipeline_tests.support.runs import Log, make_page, make_request, run_invocation, run_page
from scenario_pipeline_tests.support.sql_pages import dispatched_on_d, make_poisonous

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
    mentors = quiet_mentors(engine, 7, opted_out=())
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
    mentors = quiet_mentors(engine, 4, opted_out=())
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
    mentors = quiet_mentors(engine, 3, opted_out=())
    taken_over = D - 100 * DAY
    with engine.begin() as connection:
        insert_notification(connection, mentors[1], taken_over, cooldown_window_start=taken_over)

    result = run_page(engine, make_page(mentors))

    assert result.stats.total_evaluated + result.stats.total_errors == 3
    assert [row[0] for row in sent(engine) if row[2] == D] == [mentors[0], mentors[2]]
    consistent(engine)


def test_an_invocation_reports_each_poison_mentor_once_and_completes(engine: Engine) -> None:
    """The batch goes on, and the operator learns who was left out, but nothing about them."""
    mentors = quiet_mentors(engine, 9, opted_out=())
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
