"""What makes each scenario due, held against the contract by hand-made cases and by a second telling in Python.

Belongs here: the three rules, their configuration, and how scenarios are found. Does not belong here: dispatch,
cooldown and what goes wrong (`test_sql_engine`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, text

from scenario_pipeline.batch_stats import BatchStats
from scenario_pipeline.engines.sql import Evaluation
from scenario_pipeline.errors import ErrorInfo, ErrorType, SystemicError, UserError
from scenario_pipeline.scenarios import (
    Scenario,
    check_configured,
    insert_default_configuration,
    registry,
    select_scenarios,
)
from scenario_pipeline.settings import PROJECT_FOLDER
from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline.time_budget import TimeBudget
from scenario_pipeline_tests.world import (
    ALL_SCENARIOS,
    DAY,
    FIRST_WINDOW,
    Configuration,
    D,
    History,
    Mentor,
    check_invariants,
    configure,
    due,
    insert_mentor,
    insert_mentors,
    insert_organisation,
    make_page,
    make_request,
    mentor_id,
    new_invocation_id,
    notifications,
    organisation_id,
    run_invocation,
    sent,
)


@pytest.fixture(scope="module")
def untouched(server: EmbeddedPostgres, template_database: str) -> Iterator[Engine]:
    """One database for all tests that roll back: making and dropping one costs more than a test."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE test_scenarios TEMPLATE {template_database}".encode())
        engine = database.connect(server.url("test_scenarios"))
        yield engine
        engine.dispose()
        connection.execute("DROP DATABASE test_scenarios WITH (FORCE)")


@pytest.fixture
def world(untouched: Engine) -> Iterator[Connection]:
    """A connection in a transaction that is never committed, on a world with one organisation."""
    with untouched.connect() as connection, connection.begin() as transaction:
        insert_organisation(connection)
        yield connection
        transaction.rollback()


def evaluate(connection: Connection, mentors: list[str], evaluation_date: date = D) -> BatchStats:
    """Run the decision statement over all mentors at once, in the caller's transaction."""
    page = make_page(mentors, evaluation_date)
    return Evaluation(connection, page.order, page.mentor_ids, new_invocation_id(), TimeBudget.start(60)).run().stats


def only(connection: Connection, scenario_type: str, *thresholds: int, lookback_days: int = 7) -> None:
    """Enable one scenario with these thresholds, and no other."""
    for name in ALL_SCENARIOS:
        configure(connection, name, enabled=False)
    configure(connection, scenario_type, thresholds=thresholds, lookback_days=lookback_days)


def matches(connection: Connection) -> list[tuple[int, date, str]]:
    """Return threshold, crossing date and key of what was dispatched."""
    return [(threshold, crossed_on, key) for *_, key, threshold, crossed_on in notifications(connection)]


# The window: D - L < C <= D


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


# Whose configuration, and who is evaluated


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


# The statement against a second telling of the rules

_OFFSETS = st.integers(-3, 20)
_MENTORS = st.lists(
    st.builds(
        lambda organisation, status, opted_out, joined, activities, certifications: Mentor(
            organisation=organisation,
            status=status,
            opted_out=opted_out,
            joined_on=D - joined * DAY,
            activities=[D - offset * DAY for offset in activities],
            certifications=[(name, D + offset * DAY) for name, offset in certifications],
        ),
        organisation=st.integers(1, 3),
        status=st.sampled_from(["active", "active", "active", "active", "paused", "left"]),
        opted_out=st.sampled_from([False, False, False, True]),
        joined=st.integers(0, 20),
        activities=st.lists(_OFFSETS, max_size=8),
        certifications=st.lists(st.tuples(st.sampled_from("ab"), _OFFSETS), max_size=4),
    ),
    min_size=1,
    max_size=30,
)
_CONFIGURATION = st.builds(
    Configuration,
    thresholds=st.lists(st.integers(0, 10), min_size=1, max_size=5),
    lookback_days=st.integers(1, 9),
    cooldown_days=st.integers(1, 9),
    enabled=st.sampled_from([True, True, True, False]),
)
_CONFIGURATIONS = st.fixed_dictionaries(dict.fromkeys(ALL_SCENARIOS, _CONFIGURATION))
# Dates of consecutive evaluations, in any order: what was sent before decides what is sent next.
_DATES = st.lists(st.integers(-3, 12), min_size=1, max_size=4)


@settings(
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(told=_MENTORS, default=_CONFIGURATIONS, own=_CONFIGURATIONS, offsets=_DATES)
def test_any_world_is_evaluated_as_the_contract_tells_it(
    untouched: Engine,
    told: list[Mentor],
    default: dict[str, Configuration],
    own: dict[str, Configuration],
    offsets: list[int],
) -> None:
    """Whatever the tables above forgot: whom, for which threshold, under which key, and why not."""
    mentors = [Mentor(**{**vars(mentor), "n": n}) for n, mentor in enumerate(told, start=1)]
    history = History()
    with untouched.connect() as connection, connection.begin() as transaction:
        for n in (1, 2, 3):
            insert_organisation(connection, n)
        for name in ALL_SCENARIOS:
            configure(connection, name, **vars(default[name]))
            configure(connection, name, organisation=2, **vars(own[name]))
        mentor_ids = insert_mentors(connection, mentors)
        for offset in offsets:
            evaluation_date = D + offset * DAY
            outcomes: Counter[tuple[str, str, str]] = Counter()
            for mentor in mentors:
                for name in ALL_SCENARIOS:
                    configuration = (own if mentor.organisation == 2 else default)[name]
                    match = due(name, mentor, configuration, evaluation_date)
                    if match is not None:
                        outcome = history.settle(name, mentor, match, configuration.cooldown_days, evaluation_date)
                        outcomes[(organisation_id(mentor.organisation), name, outcome)] += 1

            stats = evaluate(connection, mentor_ids, evaluation_date)

            assert stats.outcomes == outcomes
            assert stats.total_evaluated == len(mentors)
            assert notifications(connection) == sorted(history.rows)
        check_invariants(connection)
        transaction.rollback()


# How scenarios are found


def test_the_three_built_in_scenarios_are_found() -> None:
    """A scenario that is not found never sends, and nobody notices."""
    found = registry()

    assert list(found) == ["certification_expiry", "inactivity", "milestone"]
    assert [scenario.scenario_type for scenario in found.values()] == list(found)
    assert all(scenario.description.endswith(".") for scenario in found.values())


@pytest.mark.parametrize(
    ("names", "selected"),
    [
        ([], ALL_SCENARIOS),
        (["milestone"], ("milestone",)),
        (["milestone", "inactivity", "milestone"], ALL_SCENARIOS[1:]),
    ],
)
def test_scenarios_are_selected_by_name_once_each_and_sorted(names: list[str], selected: tuple[str, ...]) -> None:
    """The same set in another order must be the same kind of run, or the next run does not resume it."""
    assert select_scenarios(names) == selected


@pytest.mark.parametrize("name", ["birthday", "", "Inactivity", "'); DROP TABLE scenario.peer_mentors; --", "x" * 5000])
def test_an_unknown_scenario_is_refused_with_the_list_of_those_that_exist(name: str) -> None:
    """A typing error must not turn into a run that sends nothing."""
    with pytest.raises(UserError) as caught:
        select_scenarios(["inactivity", name])

    assert str(caught.value) == (
        f"There is no scenario {name[:63]!r}: the installed ones are certification_expiry, inactivity, milestone."
    )
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("name", ["", "Birthday", "1st", "a-b", "a b", "æ", "a" * 64, "a\n", "a;b"])
def test_a_scenario_with_a_bad_name_cannot_be_made(name: str) -> None:
    """The name stands in tables, tags and events; the database would refuse it in the middle of a run."""
    with pytest.raises(ValueError, match="is no scenario type"):
        Scenario(name, "A description.", [1], 7, 1, registry()["inactivity"].matches)


@pytest.mark.parametrize("name", ["a", "birthday_2", "a" * 63])
def test_a_scenario_with_a_good_name_can_be_made(name: str) -> None:
    """The negative twin: the longest and the shortest name are allowed."""
    assert Scenario(name, "A description.", [1], 7, 1, registry()["inactivity"].matches).scenario_type == name


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


ANNIVERSARY = '''
"""`anniversary`: T years, roughly, since joining; a scenario of another package."""

from sqlalchemy import Date, Integer, Text, cast, func, literal, select, true

from scenario_pipeline.scenarios import Scenario


def matches(page, configuration, evaluation_date):
    threshold = func.unnest(configuration.c.thresholds).column_valued("threshold")
    crossed = (
        select(func.max(threshold).label("threshold"))
        .where(page.c.joined_on + threshold * 365 <= evaluation_date,
               page.c.joined_on + threshold * 365 > evaluation_date - configuration.c.lookback_days)
        .lateral("crossed")
    )
    return (
        select(
            page.c.user_id,
            cast(crossed.c.threshold, Integer).label("threshold"),
            cast(page.c.joined_on + crossed.c.threshold * 365, Date).label("crossed_on"),
            cast(crossed.c.threshold, Text).label("dedup_key"),
        )
        .select_from(page)
        .join(configuration, configuration.c.organisation_id == page.c.organisation_id)
        .join(crossed, crossed.c.threshold.is_not(None))
    )


SCENARIO = Scenario("anniversary", "Years since joining.", (1, 5), 7, 300, matches)
'''
CLASHING = """
from scenario_pipeline.scenarios import Scenario

SCENARIO = Scenario("milestone", "Another milestone.", (1,), 7, 1, lambda page, configuration, on: None)
"""
BADLY_NAMED = CLASHING.replace('"milestone"', '"My Scenario"')

SHOW = """
from scenario_pipeline.errors import UserError
from scenario_pipeline.scenarios import registry
try:
    print(*registry())
except UserError as exc:
    print(exc.exit_status, exc)
"""


def in_process_with(folder: Path, module: str, code: str, *, value: str = "extra_scenario:SCENARIO", **env: str) -> str:
    """Run `code` where a distribution is installed that offers `module`; return what it printed."""
    (folder / "extra_scenario.py").write_text(module, encoding="utf-8")
    info = folder / "extra_scenarios-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra-scenarios\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[scenario_pipeline.scenarios]\nextra = {value}\n", encoding="utf-8")
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT_FOLDER,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(PROJECT_FOLDER)]), **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout.strip()


def test_a_scenario_of_another_package_is_found_configured_and_evaluated(tmp_path: Path, database_url: str) -> None:
    """Adding a scenario touches no other file: neither the engine nor a migration."""
    code = """
import os
from datetime import date
from scenario_pipeline.scenarios import insert_default_configuration, registry
from scenario_pipeline.storage import database
from scenario_pipeline_tests.world import insert_mentor, insert_organisation, make_request, run_invocation, sent

print(*registry())
engine = database.connect(os.environ["URL"])
with engine.begin() as connection:
    insert_default_configuration(connection, registry().values())
    insert_organisation(connection)
    insert_mentor(connection, joined_on=date(2023, 3, 30))
report = run_invocation(engine, make_request(date(2024, 3, 31), scenario_types=list(registry())))
print(report.status, report.stats.dispatched_by_scenario)
for row in sent(engine):
    print(*row)
engine.dispose()
"""
    printed = in_process_with(tmp_path, ANNIVERSARY, code, URL=database_url)

    assert printed.splitlines() == [
        "anniversary certification_expiry inactivity milestone",
        "completed {'anniversary': 1}",
        f"{mentor_id(1)} anniversary 2024-03-31 1970-01-01 1 1 2024-03-29",
    ]


@pytest.mark.parametrize(
    ("module", "value", "sentence"),
    [
        (
            CLASHING,
            "extra_scenario:SCENARIO",
            "2 Two installed scenarios are called milestone: remove one of the packages.",
        ),
        (BADLY_NAMED, "extra_scenario:SCENARIO", "2 The scenario extra cannot be loaded: ValueError."),
        ("1 / 0", "extra_scenario:SCENARIO", "2 The scenario extra cannot be loaded: ZeroDivisionError."),
        (ANNIVERSARY, "extra_scenario:MISSING", "2 The scenario extra cannot be loaded: AttributeError."),
        (ANNIVERSARY, "not_installed:SCENARIO", "2 The scenario extra cannot be loaded: ModuleNotFoundError."),
        (ANNIVERSARY, "extra_scenario:matches", "2 The entry point extra does not name a Scenario."),
    ],
)
def test_a_scenario_of_another_package_that_cannot_be_used_is_refused_in_one_sentence(
    tmp_path: Path, module: str, value: str, sentence: str
) -> None:
    """Whoever installed it must learn which package it was; two rules under one name would send either."""
    assert in_process_with(tmp_path, module, SHOW, value=value) == sentence
