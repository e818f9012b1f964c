"""The time budget of a page of the `sql` engine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, text

from scenario_pipeline.errors import BudgetSpentError
from scenario_pipeline.storage import database
from scenario_pipeline.storage.ledger.pages import claim_page
from scenario_pipeline.time_budget import TimeBudget
from scenario_pipeline_tests.support.invariants import number_of_pages, sent
from scenario_pipeline_tests.support.people import new_invocation_id, quiet_mentors
from scenario_pipeline_tests.support.runs import make_page, open_run, run_page
from scenario_pipeline_tests.support.sql_pages import all_dispatched, locked, make_poisonous


def test_a_page_that_waits_for_a_lock_ends_with_the_budget_and_commits_nothing(
    engine: Engine, database_url: str
) -> None:
    """A migration that holds a table must not hold the scheduler."""
    mentors = quiet_mentors(engine, 3, opted_out=())
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
    mentors = quiet_mentors(engine, 3, opted_out=())
    page, invocation_id = make_page(mentors, time_budget_seconds=0.3), new_invocation_id()
    other = database.connect(database_url)
    with engine.begin() as connection:
        open_run(connection, page.order, invocation_id)
    with ThreadPoolExecutor(1) as pool, other.connect() as connection:
        claim_page(connection, page, invocation_id)
        future = pool.submit(run_page, engine, page, invocation_id=invocation_id)
        assert isinstance(future.exception(timeout=60), BudgetSpentError)
    other.dispose()

    assert (sent(engine), number_of_pages(engine)) == ([], 0)


def test_a_page_is_not_begun_with_a_budget_that_is_spent(engine: Engine) -> None:
    """The last page of a late run would hold the next one up."""
    mentors = quiet_mentors(engine, 3, opted_out=())

    with pytest.raises(BudgetSpentError):
        run_page(engine, make_page(mentors), budget=TimeBudget(0.0, 30.0, clock=lambda: 30.0))

    assert (sent(engine), number_of_pages(engine)) == ([], 0)


def test_a_budget_that_ends_between_two_halves_of_a_page_commits_neither(engine: Engine) -> None:
    """A page is committed whole or left whole; half a page would be counted as evaluated."""
    mentors = quiet_mentors(engine, 4, opted_out=())
    with engine.begin() as connection:
        make_poisonous(connection, mentors[3:])
    ticks = iter(range(1000))

    with pytest.raises(BudgetSpentError):
        run_page(engine, make_page(mentors), budget=TimeBudget(0.0, 7.0, clock=lambda: float(next(ticks))))

    assert next(ticks) > 4, "the budget ended before the page was begun"
    assert (sent(engine), number_of_pages(engine)) == ([], 0)


def test_the_server_itself_bounds_every_statement_by_what_is_left(engine: Engine) -> None:
    """A client that only measures afterwards waits for ever for a statement that never ends."""
    mentors = quiet_mentors(engine, 1, opted_out=())
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
