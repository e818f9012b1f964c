"""Who comes next after a run that failed: never the page that failed it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from scenario_pipeline.engines.sql import SqlTriggerEngine
from scenario_pipeline.invocation.run import Invocation
from scenario_pipeline.storage import database
from scenario_pipeline_tests.faults import small_world
from scenario_pipeline_tests.support.invariants import consistent, sent
from scenario_pipeline_tests.support.people import mentor_id, new_invocation_id
from scenario_pipeline_tests.support.runs import Log, make_request
from scenario_pipeline_tests.support.triggers import lose_the_connection_for

PAGE_SIZE = 5
FIRST_PAGE = [mentor_id(n) for n in range(1, PAGE_SIZE + 1)]
OTHERS = [mentor_id(n) for n in range(PAGE_SIZE + 1, 26)]


@pytest.fixture
def owner(small_url: str) -> Iterator[Engine]:
    engine = database.connect(small_url)
    yield engine
    engine.dispose()


def disk_is_full_for(owner: Engine, mentor: str) -> None:
    """Let whatever is written for this mentor fail as if it were the server's fault."""
    with owner.begin() as connection:
        connection.execute(
            text("""
            CREATE FUNCTION scenario.full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                RAISE EXCEPTION 'no room' USING ERRCODE = 'disk_full';
            END $$""")
        )
        connection.execute(
            text(f"""
            CREATE TRIGGER full_disk BEFORE INSERT ON scenario.scenario_notifications
            FOR EACH ROW WHEN (NEW.user_id = '{mentor}') EXECUTE FUNCTION scenario.full_disk()""")
        )


CAUSES = {"a failure of the server": disk_is_full_for, "the end of its connection": lose_the_connection_for}


def run(owner: Engine) -> tuple[list[str], str, int]:
    """Make a run as the job does; return the mentors in the order of their pages, its status, and how many it left."""
    invocation_id = new_invocation_id()
    invocation = Invocation(
        make_request(page_size=PAGE_SIZE),
        invocation_id,
        database=owner,
        trigger_engine=SqlTriggerEngine(owner),
        logger=Log().logger(invocation_id),
        runs_all_pages=True,
    )
    invocation.open()
    pages = invocation.plan()
    report = invocation.finish([invocation.evaluate(page) for page in pages])
    assert report.remaining is not None
    return [mentor for page in pages for mentor in page.mentor_ids], report.status, report.remaining


@pytest.mark.parametrize("cause", CAUSES)
def test_a_page_that_always_fails_comes_last_and_nobody_else_waits_for_it(owner: Engine, cause: str) -> None:
    """Once it came first in each run, and 600 mentors heard nothing for as long as one of them could not."""
    CAUSES[cause](owner, FIRST_PAGE[0])
    assert run(owner) == ([*FIRST_PAGE, *OTHERS], "failed", 25)
    assert run(owner) == ([*OTHERS, *FIRST_PAGE], "failed", len(FIRST_PAGE))
    due = {user_id for user_id, _, _ in small_world.expected()}
    assert {row[0] for row in sent(owner)} == due - set(FIRST_PAGE)
    assert run(owner) == ([*OTHERS, *FIRST_PAGE], "failed", len(FIRST_PAGE))
    with owner.begin() as connection:
        connection.execute(text("ALTER TABLE scenario.scenario_notifications DISABLE TRIGGER USER"))
    assert run(owner) == ([*OTHERS, *FIRST_PAGE], "completed", 0)
    consistent(owner)
