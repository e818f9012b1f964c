"""What makes each scenario due, held against the contract by hand-made cases."""

from __future__ import annotations

from datetime import date

import pytest
from sqlalchemy import Connection, Engine, text

from scenario_pipeline.batch_stats import BatchStats
from scenario_pipeline_tests.support.decisions import evaluate, matches, only
from scenario_pipeline_tests.support.invariants import notifications
from scenario_pipeline_tests.support.people import (
    DAY,
    FIRST_WINDOW,
    D,
    Mentor,
    configure,
    insert_mentors,
    organisation_id,
)
from scenario_pipeline_tests.support.runs import ALL_SCENARIOS


@pytest.mark.parametrize("lookback_days", [1, 7, 30])
@pytest.mark.parametrize("days_ago", [-1, 0, 1, 6, 7, 8, 29, 30])
@pytest.mark.parametrize("scenario_type", ALL_SCENARIOS)
def test_a_crossing_is_due_on_its_day_and_until_the_look_back_ends(
    world: Connection, scenario_type: str, days_ago: int, lookback_days: int
) -> None:
    """One day short loses what a missed run should catch up; one day long tells people things that are over."""
    crossed_on = D - days_ago * DAY
    mentor, match = {
        "inactivity": (Mentor(activities=[crossed_on - 40 * DAY]), (40, crossed_on, f"{crossed_on - 40 * DAY}:40")),
        "milestone": (Mentor(activities=[crossed_on]), (1, crossed_on, "1")),
        "certification_expiry": (
            Mentor(certifications=[("driver", crossed_on + 40 * DAY)]),
            (40, crossed_on, f"driver:{crossed_on + 40 * DAY}:40"),
        ),
    }[scenario_type]
    only(world, scenario_type, 1 if scenario_type == "milestone" else 40, lookback_days=lookback_days)

    stats = evaluate(world, insert_mentors(world, [mentor]))

    is_due = 0 <= days_ago < lookback_days
    assert matches(world) == ([match] if is_due else [])
    assert stats == BatchStats(
        {organisation_id(): 1},
        {(organisation_id(), scenario_type, "dispatched"): 1} if is_due else {},
        pages_processed=1,
    )


INACTIVITY = [
    pytest.param(Mentor(joined_on=D - 30 * DAY), (30, D, "2024-03-01:30"), id="counted from joining"),
    pytest.param(Mentor(joined_on=D - 30 * DAY, activities=[D - 10 * DAY]), None, id="an activity outweighs joining"),
    pytest.param(
        Mentor(joined_on=D - 10 * DAY, activities=[D - 30 * DAY]),
        (30, D, "2024-03-01:30"),
        id="also one before joining",
    ),
    pytest.param(
        Mentor(activities=[D - 30 * DAY, D - 200 * DAY, D - 30 * DAY]), (30, D, "2024-03-01:30"), id="the last counts"
    ),
    pytest.param(Mentor(activities=[D - 30 * DAY, D + DAY]), (30, D, "2024-03-01:30"), id="one after D does not exist"),
    pytest.param(
        Mentor(joined_on=D - 31 * DAY, activities=[D + DAY]),
        (30, D - DAY, "2024-02-29:30"),
        id="one after D does not hide joining",
    ),
    pytest.param(Mentor(activities=[D]), None, id="active on D"),
    pytest.param(Mentor(activities=[D - 60 * DAY]), None, id="between two windows"),
    pytest.param(Mentor(activities=[D - 90 * DAY]), (90, D, "2024-01-01:90"), id="the second threshold"),
    pytest.param(Mentor(activities=[D - 93 * DAY]), (92, D - DAY, "2023-12-29:92"), id="two in the window: latest"),
    pytest.param(Mentor(activities=[D - 1000 * DAY]), None, id="long gone"),
]


@pytest.mark.parametrize(("mentor", "match"), INACTIVITY)
def test_inactivity_is_counted_from_the_last_activity_or_from_joining(
    world: Connection, mentor: Mentor, match: tuple[int, date, str] | None
) -> None:
    """A wrong start date tells an active volunteer that nobody has seen them."""
    only(world, "inactivity", 30, 90, 92)

    evaluate(world, insert_mentors(world, [mentor]))

    assert matches(world) == ([match] if match else [])


MILESTONE = [
    pytest.param([D], (1, D, "1"), id="the first"),
    pytest.param([D, D], (1, D, "1"), id="two on one day, the second is no threshold"),
    pytest.param([D] * 10, (10, D, "10"), id="first and tenth on one day: the highest"),
    pytest.param([D - 3 * DAY] * 4 + [D - 2 * DAY] * 6 + [D], (10, D - 2 * DAY, "10"), id="the day of the tenth"),
    pytest.param([D] + [D - 3 * DAY] * 9, (10, D, "10"), id="in any order of insertion"),
    pytest.param([D - 100 * DAY] * 10, None, id="crossed long ago"),
    pytest.param([D - 100 * DAY] * 9 + [D - 7 * DAY], None, id="the tenth a day too early"),
    pytest.param([D - 100 * DAY] * 9 + [D - 6 * DAY] * 3, (10, D - 6 * DAY, "10"), id="the tenth in time"),
    pytest.param([D - 100 * DAY] * 10 + [D], None, id="the eleventh"),
    pytest.param([D - 100 * DAY] * 9 + [D + DAY], None, id="the tenth after D does not exist"),
    pytest.param([D - DAY] + [D + DAY] * 9, (1, D - DAY, "1"), id="the first in time, the tenth not"),
    pytest.param([], None, id="none"),
    pytest.param([D - 8 * DAY] * 9 + [D - 3 * DAY] * 2 + [D] * 14, (25, D, "25"), id="tenth and 25th: the latest"),
    pytest.param([D - 7 * DAY] * 24 + [D], (25, D, "25"), id="those on the eve of the window count once"),
]


@pytest.mark.parametrize(("activities", "match"), MILESTONE)
def test_a_milestone_is_dated_by_the_activity_that_reached_it(
    world: Connection, activities: list[date], match: tuple[int, date, str] | None
) -> None:
    """Congratulations for the wrong number, or for one reached a year ago, are worse than none."""
    only(world, "milestone", 1, 10, 25, 30)

    evaluate(world, insert_mentors(world, [Mentor(activities=activities)]))

    assert matches(world) == ([match] if match else [])


CERTIFICATION = [
    pytest.param([("driver", D + 30 * DAY)], (30, D, "driver:2024-04-30:30"), id="in 30 days"),
    pytest.param([("driver", D)], (0, D, "driver:2024-03-31:0"), id="today"),
    pytest.param([("driver", D - DAY)], None, id="expired yesterday"),
    pytest.param([("driver", D + 5 * DAY)], (7, D - 2 * DAY, "driver:2024-04-05:7"), id="caught up two days late"),
    pytest.param([("driver", D + 3 * DAY)], (7, D - 4 * DAY, "driver:2024-04-03:7"), id="0 is not crossed yet"),
    pytest.param([("driver", D + 4 * DAY)], (7, D - 3 * DAY, "driver:2024-04-04:7"), id="thresholds 9 and 7: lowest"),
    pytest.param([("driver", D + 20 * DAY)], None, id="between two windows"),
    pytest.param(
        [("driver", D + 30 * DAY), ("first aid", D + 7 * DAY)], (7, D, "first aid:2024-04-07:7"), id="two: earliest"
    ),
    pytest.param(
        [("first aid", D + 7 * DAY), ("driver", D + 7 * DAY)], (7, D, "driver:2024-04-07:7"), id="same day: by type"
    ),
    pytest.param([("driver", D + 7 * DAY)] * 2, (7, D, "driver:2024-04-07:7"), id="the same one twice"),
    pytest.param(
        [("driver", D + 20 * DAY), ("first aid", D + 30 * DAY)],
        (30, D, "first aid:2024-04-30:30"),
        id="one that is not due does not hide one that is",
    ),
    pytest.param(
        [("driver", D - DAY), ("driver", D + 30 * DAY)], (30, D, "driver:2024-04-30:30"), id="renewed after expiry"
    ),
    pytest.param([("a:b", D + 30 * DAY)], (30, D, "a:b:2024-04-30:30"), id="a colon in the type"),
    pytest.param(
        [("Førstehjelp «nivå 2» 50 % :x", D + 30 * DAY)],
        (30, D, "Førstehjelp «nivå 2» 50 % :x:2024-04-30:30"),
        id="any text as type",
    ),
    pytest.param([], None, id="none"),
]


@pytest.mark.parametrize(("certifications", "match"), CERTIFICATION)
def test_a_certification_is_due_before_it_expires_and_never_after(
    world: Connection, certifications: list[tuple[str, date]], match: tuple[int, date, str] | None
) -> None:
    """A mentor who learns too late drives without a licence; one who learns twice stops reading."""
    only(world, "certification_expiry", 30, 9, 7, 0)

    evaluate(world, insert_mentors(world, [Mentor(certifications=certifications)]))

    assert matches(world) == ([match] if match else [])


def test_a_mentor_may_match_every_scenario_on_one_date(world: Connection) -> None:
    """The keys and columns of one scenario must not leak into another."""
    configure(world, "inactivity", thresholds=[1])
    mentor = Mentor(activities=[D - DAY] * 10, certifications=[("driver", D + 30 * DAY)])

    stats = evaluate(world, insert_mentors(world, [mentor]))

    assert notifications(world) == [
        (mentor.id, "certification_expiry", D, FIRST_WINDOW, "driver:2024-04-30:30", 30, D),
        (mentor.id, "inactivity", D, FIRST_WINDOW, "2024-03-30:1", 1, D),
        (mentor.id, "milestone", D, FIRST_WINDOW, "10", 10, D - DAY),
    ]
    assert stats.dispatched_by_scenario == {"certification_expiry": 1, "inactivity": 1, "milestone": 1}


def test_the_defaults_are_those_of_the_contract(untouched: Engine) -> None:
    """An organisation that configures nothing relies on the documented days."""
    with untouched.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT scenario_type, organisation_id, enabled, thresholds, lookback_days, cooldown_days "
                "FROM scenario.scenario_evaluation_config ORDER BY 1"
            )
        ).all()

    assert [tuple(row) for row in rows] == [
        ("certification_expiry", None, True, [60, 30, 7], 7, 7),
        ("inactivity", None, True, [30, 90, 180], 7, 30),
        ("milestone", None, True, [1, 10, 25, 50, 100, 250, 500, 1000], 7, 1),
    ]
