"""The demonstration data in a real Postgres: the same for the same arguments, and with something to do today."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest
from sqlalchemy import Date, Engine, literal, select, true

from scenario_pipeline.errors import UserError
from scenario_pipeline.loading.demo import is_empty, load_demo
from scenario_pipeline.scenarios import registry
from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline.storage.tables import organisations, peer_mentors, scenario_evaluation_config
from scenario_pipeline.upgrade import upgrade

TODAY = date(2026, 3, 1)
TABLES = ("organisations", "peer_mentors", "mentor_activities", "mentor_certifications")


def contents(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Every row that was loaded; in the order of all columns."""
    with engine.connect() as connection:
        return {
            table: sorted(map(tuple, connection.exec_driver_sql(f"SELECT * FROM scenario.{table}")), key=repr)
            for table in TABLES
        }


def matches(engine: Engine, today: date) -> Counter[tuple[str, bool]]:
    """How many active mentors each scenario finds on `today`, by scenario type and opt-out."""
    page = (
        select(peer_mentors.c.id.label("user_id"), peer_mentors.c.organisation_id, peer_mentors.c.joined_on)
        .where(peer_mentors.c.status == "active", peer_mentors.c.joined_on <= today)
        .subquery("page")
    )
    default = scenario_evaluation_config
    found: Counter[tuple[str, bool]] = Counter()
    with engine.connect() as connection:
        for name, scenario in registry().items():
            configuration = (
                select(organisations.c.id.label("organisation_id"), default.c.thresholds, default.c.lookback_days)
                .join_from(organisations, default, true())
                .where(default.c.scenario_type == name, default.c.organisation_id.is_(None))
                .subquery("configuration")
            )
            due = scenario.matches(page, configuration, literal(today, Date)).subquery("due")
            opted_out = select(peer_mentors.c.notifications_opt_out).join(due, due.c.user_id == peer_mentors.c.id)
            found.update((name, row.notifications_opt_out) for row in connection.execute(opted_out))
    return found


@pytest.fixture
def other_engine(server: EmbeddedPostgres) -> Iterator[Engine]:
    """A second database, to compare with."""
    database.create_database(server.url("postgres"), "demo_twin")
    engine = database.connect(server.url("demo_twin"))
    upgrade(engine)
    yield engine
    engine.dispose()


def test_the_same_arguments_give_the_same_data(engine: Engine, other_engine: Engine) -> None:
    """Otherwise two people could not talk about what they see in the demonstration."""
    counts = load_demo(engine, mentors=100, seed=7, today=TODAY)

    assert load_demo(other_engine, mentors=100, seed=7, today=TODAY) == counts
    assert contents(other_engine) == contents(engine)


def test_another_seed_gives_other_data_beside_the_first(engine: Engine) -> None:
    """Otherwise the seed would be an option that does nothing."""
    first = load_demo(engine, mentors=50, seed=1, today=TODAY)
    before = contents(engine)["mentor_activities"]

    second = load_demo(engine, mentors=50, seed=2, today=TODAY)

    after = contents(engine)
    assert {table: len(after[table]) for table in TABLES} == {
        table: first[name] + second[name] for table, name in zip(TABLES, first, strict=True)
    }
    assert set(before) < set(after["mentor_activities"])


def test_the_counts_are_as_asked_and_as_returned(engine: Engine) -> None:
    """Otherwise a measurement on a million mentors would be one on another number."""
    counts = load_demo(engine, mentors=2000, activities_per_mentor=5, today=TODAY)

    found = contents(engine)
    assert list(counts) == ["organisations", "mentors", "activities", "certifications"]
    assert [len(found[table]) for table in TABLES] == list(counts.values())
    assert (counts["organisations"], counts["mentors"]) == (3, 2000)
    assert 2000 * 4.5 < counts["activities"] < 2000 * 5.5
    assert 900 < counts["certifications"] < 1100


def test_the_default_set_is_a_plausible_community(engine: Engine) -> None:
    """Otherwise the demonstration would show a picture no organisation knows."""
    assert load_demo(engine, today=TODAY)["mentors"] == 500

    found = contents(engine)
    status = Counter(row[3] for row in found["peer_mentors"])
    assert len({row[2] for row in found["organisations"]}) == 3, "three time zones"
    assert {row[1] for row in found["peer_mentors"]} == {row[0] for row in found["organisations"]}
    assert 0.90 < status["active"] / 500 < 0.96
    assert 0.03 < sum(row[9] for row in found["peer_mentors"]) / 500 < 0.05


def test_a_run_on_the_day_has_something_of_everything(engine: Engine) -> None:
    """Otherwise a newcomer's first run would end with zeros, and look broken."""
    load_demo(engine, mentors=500, today=TODAY)

    found = matches(engine, TODAY)

    expected = {(scenario, opted_out) for scenario in registry() for opted_out in (False, True)}
    assert {key for key in expected if found[key] == 0} == set()


@pytest.mark.parametrize("seed", range(5))
def test_twenty_five_mentors_are_enough_for_every_scenario(engine: Engine, seed: int) -> None:
    """Otherwise a small demonstration would show something for lucky seeds only."""
    load_demo(engine, mentors=25, seed=seed, today=TODAY)

    found = matches(engine, TODAY)

    assert {scenario for scenario in registry() if found[scenario, False] == 0} == set()


def test_a_hundred_mentors_are_enough_for_a_suppression(engine: Engine) -> None:
    """Otherwise a newcomer would not see that an opt-out is respected."""
    load_demo(engine, mentors=100, activities_per_mentor=0, today=TODAY)

    found = matches(engine, TODAY)

    assert sum(count for (_, opted_out), count in found.items() if opted_out) > 0


def test_nothing_happened_after_today_or_before_joining(engine: Engine) -> None:
    """Otherwise the demonstration would hold rows that an evaluation must not see."""
    load_demo(engine, mentors=1000, today=TODAY)

    with engine.connect() as connection:
        joined = connection.exec_driver_sql("SELECT min(joined_on), max(joined_on) FROM scenario.peer_mentors").one()
        last, early = connection.exec_driver_sql(
            "SELECT max(activity_date), count(*) FILTER (WHERE activity_date < joined_on)"
            " FROM scenario.mentor_activities JOIN scenario.peer_mentors AS m ON m.id = user_id"
        ).one()
    assert date(2020, 3, 1) <= joined[0] < joined[1] <= TODAY
    assert (last, early) == (TODAY, 0)


def test_nobody_real_can_be_meant(engine: Engine) -> None:
    """Otherwise a demonstration could write to, or name, a person who exists."""
    load_demo(engine, mentors=123, today=TODAY)

    people = {row[4]: (row[5], row[6]) for row in contents(engine)["peer_mentors"]}
    assert people["Demo Mentor 000123"] == ("demo.000123@example.invalid", "+47 000 00 123")
    assert all(name.startswith("Demo Mentor ") for name in people)
    assert all(email.endswith("@example.invalid") for email, _ in people.values())
    assert all(phone.startswith("+47 0") for _, phone in people.values())


@pytest.mark.parametrize(
    "again",
    [
        pytest.param({"mentors": 50, "today": TODAY}, id="with the same arguments"),
        pytest.param({"mentors": 80, "today": date(2026, 3, 2)}, id="larger and on the next day"),
    ],
)
def test_loading_twice_adds_nothing(engine: Engine, again: dict[str, Any]) -> None:
    """Otherwise every mentor would get a second history, and be congratulated for both."""
    load_demo(engine, mentors=50, today=TODAY)
    before = contents(engine)

    counts = load_demo(engine, **again)

    assert counts == {"organisations": 0, "mentors": 0, "activities": 0, "certifications": 0}
    assert contents(engine) == before


def test_a_set_whose_mentors_were_deleted_is_loaded_again(engine: Engine) -> None:
    """Otherwise `run --demo` would find no mentors, load none and say it had."""
    load_demo(engine, mentors=50, today=TODAY)
    before = contents(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM scenario.peer_mentors")

    load_demo(engine, mentors=50, today=TODAY)

    after = contents(engine)
    assert after["peer_mentors"] == before["peer_mentors"]
    assert len(after["mentor_activities"]) == len(before["mentor_activities"])


def test_a_database_is_empty_until_it_holds_a_mentor(engine: Engine) -> None:
    """Otherwise `run --demo` would add invented mentors to real ones."""
    with engine.connect() as connection:
        assert is_empty(connection)

    load_demo(engine, mentors=1, today=TODAY)

    with engine.connect() as connection:
        assert not is_empty(connection)


@pytest.mark.parametrize("mentors", [0, -1, 10_000_001])
def test_a_number_of_mentors_that_cannot_be_is_refused(engine: Engine, mentors: int) -> None:
    """Otherwise a slip of the pen would fill the disk."""
    with pytest.raises(UserError, match=r"^--mentors must be between 1 and 10,000,000\.$"):
        load_demo(engine, mentors=mentors, today=TODAY)

    with engine.connect() as connection:
        assert is_empty(connection)


def test_progress_counts_what_is_made(engine: Engine) -> None:
    """Otherwise a person would look at a still terminal and stop a good load."""
    seen: list[tuple[str, int]] = []

    counts = load_demo(engine, mentors=2000, today=TODAY, progress=lambda name, count: seen.append((name, count)))

    assert seen == [
        ("mentors", 2000),
        ("activities", 20_000),
        ("activities", counts["activities"]),
        ("certifications", counts["certifications"]),
    ]
