"""The owner's functions through which a scheduler without BYPASSRLS reads."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import (
    ColumnElement,
    Date,
    Engine,
    FromClause,
    Integer,
    PickleType,
    Text,
    cast,
    func,
    literal,
    literal_column,
    select,
    text,
)

from scenario_pipeline.errors import SystemicError
from scenario_pipeline.scenarios import MatchesOf, Scenario
from scenario_pipeline.storage import database
from scenario_pipeline.storage.source import function_name
from scenario_pipeline.upgrade import upgrade
from scenario_pipeline_tests.support.invariants import sent
from scenario_pipeline_tests.support.people import ten_mentors
from scenario_pipeline_tests.support.runs import failed_run, make_request, run_invocation
from scenario_pipeline_tests.support.server import SCHEDULERS, as_scheduler


def test_an_operator_of_the_callers_does_not_decide_what_a_function_reads(engine: Engine) -> None:
    """`id = ANY (...)` means the equality of Postgres, whatever the session of the caller looks up first."""
    mentor_ids = ten_mentors(engine)
    with engine.begin() as connection:
        for statement in (
            "CREATE SCHEMA evil",
            "CREATE FUNCTION evil.yes(uuid, uuid) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT true'",
            "CREATE OPERATOR evil.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = evil.yes)",
            "GRANT USAGE ON SCHEMA evil TO PUBLIC",
        ):
            connection.execute(text(statement))
    asked = text("SELECT count(*) FROM scenario.mentors_of(CAST(:ids AS uuid[]))")
    counted = []
    for unpin in (None, "ALTER FUNCTION scenario.mentors_of RESET search_path"):
        with engine.begin() as connection:
            if unpin is not None:
                connection.execute(text(unpin))
            connection.execute(text("SET LOCAL ROLE held_back"))
            connection.execute(text("SET LOCAL search_path = evil, pg_catalog"))
            counted.append(connection.execute(asked, {"ids": mentor_ids[:1]}).scalar_one())
    # The negative twin: without the pin it reads all thirteen.
    assert counted == [1, 13]


def test_a_function_that_could_leave_out_rows_is_refused(engine: Engine, database_url: str) -> None:
    """A changed function opens the way to an empty run that nobody notices."""
    ten_mentors(engine)
    with engine.begin() as connection:
        connection.execute(text("ALTER FUNCTION scenario.active_mentors SET row_security = on"))
    held_back = database.connect(as_scheduler(database_url, "functions"))
    sentence = "the function scenario.active_mentors has row_security on: run scenario-pipeline doctor"
    assert failed_run(held_back) == sentence
    held_back.dispose()


def test_a_function_of_another_release_is_refused_before_anything_is_evaluated(
    engine: Engine, database_url: str
) -> None:
    """A rule that was changed in the code and not in the database would go on deciding by the old one."""
    ten_mentors(engine)
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE OR REPLACE FUNCTION scenario.due_milestone(mentor_ids uuid[], evaluation_date date) "
                "RETURNS TABLE (user_id uuid, threshold int, crossed_on date, dedup_key text) LANGUAGE sql STABLE "
                "SECURITY DEFINER SET search_path = pg_catalog, pg_temp "
                "AS 'SELECT NULL::uuid, 1, NULL::date, NULL WHERE false'"
            )
        )
    held_back = database.connect(as_scheduler(database_url, "functions"))
    sentence = "the function of the scenario milestone is not this release's: run scenario-pipeline db upgrade"
    assert failed_run(held_back) == sentence
    upgrade(engine)
    assert run_invocation(held_back).status == "completed"
    held_back.dispose()


def odd(threshold: Any) -> MatchesOf:
    """Return a rule whose SQL is full of signs that mean something to a driver, or to the text of a function."""

    def matches(page: FromClause, configuration: FromClause, evaluation_date: Any) -> Any:
        says: ColumnElement[str] = literal_column("'a':: text || '%(x)s' || ':name' || $q$%$q$ || '\\d' || chr(39)")
        due = func.mod(func.length(says), 2) >= 0
        return (
            select(
                page.c.user_id,
                threshold.label("threshold"),
                cast(evaluation_date, Date).label("crossed_on"),
                cast(literal("100 % :sure"), Text).label("dedup_key"),
            )
            .join(configuration, configuration.c.organisation_id == page.c.organisation_id)
            .where(due)
        )

    return matches


@pytest.mark.parametrize("name", ["page", "a" * 63, "user"])
@pytest.mark.parametrize("way", SCHEDULERS)
def test_any_name_of_a_scenario_is_its_own(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch, way: str, name: str
) -> None:
    """A scenario may be called as a part of the statement is, or as long as it is allowed to be."""
    scenario = Scenario(name, "Odd.", (1,), 7, 1, odd(cast(literal(7), Integer)))
    monkeypatch.setattr("scenario_pipeline.engines.statement.registry", lambda: {name: scenario})
    monkeypatch.setattr("scenario_pipeline.engines.functions.registry", lambda: {name: scenario})
    monkeypatch.setattr("scenario_pipeline.upgrade.registry", lambda: {name: scenario})
    ten_mentors(engine)
    upgrade(engine)
    scheduler = database.connect(as_scheduler(database_url, way))
    report = run_invocation(scheduler, make_request(scenario_types=[name]))
    scheduler.dispose()
    assert report.stats.dispatched_by_scenario == {name: 9}


@pytest.mark.parametrize("way", SCHEDULERS)
def test_any_sql_of_a_scenario_is_the_same_in_a_function(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A rule from another package must not depend on how the scheduler gets past row-level security."""
    scenario = Scenario("odd", "Odd.", (1,), 7, 1, odd(cast(literal(7), Integer)))
    monkeypatch.setattr("scenario_pipeline.engines.statement.registry", lambda: {"odd": scenario})
    monkeypatch.setattr("scenario_pipeline.engines.functions.registry", lambda: {"odd": scenario})
    monkeypatch.setattr("scenario_pipeline.upgrade.registry", lambda: {"odd": scenario})
    ten_mentors(engine)
    upgrade(engine)
    scheduler = database.connect(as_scheduler(database_url, way))
    report = run_invocation(scheduler, make_request(scenario_types=["odd"]))
    scheduler.dispose()
    assert (report.status, report.stats.dispatched_by_scenario) == ("completed", {"odd": 9})
    assert {(row[4], row[5]) for row in sent(engine)} == {("100 % :sure", 7)}


def test_a_scenario_that_cannot_be_a_function_needs_a_role_that_passes_policies(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not keep anybody from upgrading, and says what it needs where it is needed."""
    # A value of this kind has no literal in SQL.
    value = cast(func.octet_length(literal("seven", PickleType)), Integer)
    scenario = Scenario("odd", "Odd.", (1,), 7, 1, odd(value))
    monkeypatch.setattr("scenario_pipeline.engines.statement.registry", lambda: {"odd": scenario})
    monkeypatch.setattr("scenario_pipeline.engines.functions.registry", lambda: {"odd": scenario})
    monkeypatch.setattr("scenario_pipeline.upgrade.registry", lambda: {"odd": scenario})
    ten_mentors(engine)
    upgrade(engine)
    request = make_request(scenario_types=["odd"])
    held_back, scheduler = (database.connect(as_scheduler(database_url, way)) for way in ("functions", "bypassrls"))
    with pytest.raises(SystemicError) as caught:
        run_invocation(held_back, request)
    assert caught.value.info.error_message == (
        "the scenario odd cannot be a function: run ALTER ROLE scenario_scheduler BYPASSRLS"
    )
    assert run_invocation(scheduler, request).stats.dispatched_by_scenario == {"odd": 9}
    held_back.dispose()
    scheduler.dispose()


def test_a_name_too_long_for_postgres_is_shortened_to_one_of_its_own() -> None:
    """Two scenarios whose functions had one name would decide for each other."""
    names = [f"{'a' * 62}{last}" for last in "bc"]
    shortened = [function_name(name) for name in names]
    assert len({*shortened}) == 2
    assert all(len(name) == 63 for name in shortened)
    assert function_name("milestone") == "due_milestone"
