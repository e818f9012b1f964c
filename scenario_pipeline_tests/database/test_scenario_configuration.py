"""Whose configuration counts, who is evaluated, and what the default rows are."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, Engine, text

from scenario_pipeline.batch_stats import BatchStats
from scenario_pipeline.errors import ErrorInfo, ErrorType, SystemicError
from scenario_pipeline.scenarios import Scenario, check_configured, insert_default_configuration, registry
from scenario_pipeline_tests.support.decisions import evaluate, only
from scenario_pipeline_tests.support.invariants import check_invariants, notifications, sent
from scenario_pipeline_tests.support.people import (
    DAY,
    D,
    Mentor,
    configure,
    insert_mentor,
    insert_mentors,
    insert_organisation,
    mentor_id,
    organisation_id,
)
from scenario_pipeline_tests.support.runs import ALL_SCENARIOS, make_request, run_invocation


def test_the_row_of_an_organisation_replaces_the_default_row_as_a_whole(world: Connection) -> None:
    """Half a row of each would send by a rule that nobody wrote down."""
    insert_organisation(world, 2)
    insert_organisation(world, 3)
    only(world, "inactivity", 30, lookback_days=7)
    configure(world, "inactivity", organisation=2, thresholds=[50], lookback_days=1)
    configure(world, "inactivity", organisation=3, enabled=False, thresholds=[30])
    mentors = [
        Mentor(10 * organisation + i, organisation, activities=[D - days * DAY])
        for organisation in (1, 2, 3)
        for i, days in enumerate((30, 31, 50, 51))
    ]

    stats = evaluate(world, insert_mentors(world, mentors))

    assert [(row[0], row[4]) for row in notifications(world)] == [
        (mentor_id(10), "2024-03-01:30"),
        (mentor_id(11), "2024-02-29:30"),
        (mentor_id(22), "2024-02-10:50"),
    ]
    assert stats == BatchStats(
        {organisation_id(1): 4, organisation_id(2): 4, organisation_id(3): 4},
        {
            (organisation_id(1), "inactivity", "dispatched"): 2,
            (organisation_id(2), "inactivity", "dispatched"): 1,
        },
        pages_processed=1,
    )


def test_an_organisation_may_enable_what_is_disabled_by_default(world: Connection) -> None:
    """An opt-in scenario starts with one organisation."""
    insert_organisation(world, 2)
    only(world, "inactivity", 30)
    configure(world, "inactivity", enabled=False)
    configure(world, "inactivity", organisation=2, thresholds=[30])
    mentors = [Mentor(n, n, activities=[D - 30 * DAY]) for n in (1, 2)]

    evaluate(world, insert_mentors(world, mentors))

    assert [row[0] for row in notifications(world)] == [mentor_id(2)]


def test_only_active_mentors_who_have_joined_are_evaluated(engine: Engine) -> None:
    """Someone who has left, or is on leave, must not hear from us; someone of tomorrow is not there yet."""
    with engine.begin() as connection:
        insert_organisation(connection)
        configure(connection, "inactivity", thresholds=[0, 30])
        insert_mentor(connection, 1, activities=[D - 30 * DAY])
        insert_mentor(connection, 2, activities=[D - 30 * DAY], status="paused")
        insert_mentor(connection, 3, activities=[D - 30 * DAY], status="left")
        insert_mentor(connection, 4, activities=[D - 30 * DAY], joined_on=D + DAY)
        insert_mentor(connection, 5, joined_on=D)

    report = run_invocation(engine)

    assert [(row[0], row[1]) for row in sent(engine)] == [(mentor_id(1), "inactivity"), (mentor_id(5), "inactivity")]
    assert (report.status, report.total_active_mentors, report.stats.total_evaluated) == ("completed", 2, 2)
    with engine.connect() as connection:
        check_invariants(connection)


def test_a_run_evaluates_the_scenarios_and_organisations_it_was_asked_for_and_no_other(engine: Engine) -> None:
    """The contingency schedules run one scenario each; they must not send the others'."""
    mentor = {"activities": [D - 30 * DAY] + [D - 40 * DAY] * 9, "certifications": [("driver", D + 30 * DAY)]}
    with engine.begin() as connection:
        for n in (1, 2):
            insert_organisation(connection, n)
            insert_mentor(connection, n, organisation=n, **mentor)

    request = make_request(scenario_types=["inactivity"], organisation_ids=[organisation_id(2)])
    report = run_invocation(engine, request)

    assert [(row[0], row[1]) for row in sent(engine)] == [(mentor_id(2), "inactivity")]
    assert (report.total_active_mentors, report.stats.total_dispatched) == (1, 1)


def test_a_scenario_without_a_default_row_is_refused_with_the_command_that_mends_it(world: Connection) -> None:
    """It would match nobody, and the run would look complete."""
    scenario = Scenario("birthday", "A description.", [1], 7, 1, registry()["inactivity"].matches)

    check_configured(world, ALL_SCENARIOS)
    with pytest.raises(SystemicError) as caught:
        check_configured(world, [*ALL_SCENARIOS, "birthday"])
    insert_default_configuration(world, [scenario])
    check_configured(world, [*ALL_SCENARIOS, "birthday"])

    assert caught.value.info == ErrorInfo(
        ErrorType.DATABASE,
        "the scenario birthday has no default configuration: run scenario-pipeline db upgrade",
    )


def test_the_row_of_an_organisation_is_no_default_row(world: Connection) -> None:
    """All other organisations would silently be left out."""
    world.execute(text("DELETE FROM scenario.scenario_evaluation_config WHERE scenario_type = 'inactivity'"))
    configure(world, "inactivity", organisation=1)

    with pytest.raises(SystemicError):
        check_configured(world, ALL_SCENARIOS)


def test_defaults_that_somebody_changed_are_kept(world: Connection) -> None:
    """An upgrade must not put back what an operator set."""
    configure(world, "inactivity", thresholds=[11], enabled=False, lookback_days=3, cooldown_days=4)

    insert_default_configuration(world, registry().values())

    row = world.execute(
        text(
            "SELECT enabled, thresholds, lookback_days, cooldown_days FROM scenario.scenario_evaluation_config "
            "WHERE scenario_type = 'inactivity'"
        )
    ).one()
    assert tuple(row) == (False, [11], 3, 4)
