"""What the trigger engine's service commits: only under its own schema, and only for a run that is open.

Belongs here: the request's transaction beside another one. Does not belong here: HTTP (`test_service_strangers`), or
what is due (`test_engine_service`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text

from scenario_pipeline.engines.service.app import CONNECTIONS, EngineService
from scenario_pipeline.storage import database
from scenario_pipeline_tests.support.invariants import sent
from scenario_pipeline_tests.support.people import new_invocation_id, quiet_mentors
from scenario_pipeline_tests.support.runs import Log, make_request, open_run
from scenario_pipeline_tests.support.service import TOKEN, a_request, post, serving
from scenario_pipeline_tests.support.waiting import wait_until, wait_until_blocked


def set_version(engine: Engine, version: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE scenario.alembic_version SET version_num = :version"), {"version": version})


@pytest.mark.parametrize("version", ["0001", "9999"])
def test_a_service_whose_database_was_upgraded_does_not_evaluate(served: str, engine: Engine, version: str) -> None:
    """Health said 503 while messages went out by rules that the new schema may no longer mean."""
    asked = a_request(quiet_mentors(engine, 2))
    set_version(engine, version)
    reply = post(served, asked)
    assert (reply.status_code, reply.headers["Retry-After"]) == (503, "1")
    assert reply.json()["error"]["error_type"] == "database_error"
    assert sent(engine) == []
    set_version(engine, database.code_version())
    assert post(served, asked).status_code == 200
    assert len(sent(engine)) == 2


def test_a_service_whose_schema_is_gone_does_not_evaluate(served: str, engine: Engine) -> None:
    """A database that was dropped and made anew is empty, and not this release's."""
    asked = a_request(quiet_mentors(engine, 1))
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE scenario.alembic_version"))
    assert post(served, asked).status_code == 503
    assert sent(engine) == []


# The ledger of the run, where it is in the same database


def an_open_run(engine: Engine) -> str:
    invocation_id = new_invocation_id()
    with engine.begin() as connection:
        open_run(connection, make_request(), invocation_id)
    return invocation_id


CLOSE = text(
    "UPDATE scenario.scheduler_runs SET status = 'partial', finished_at = now(), remaining_unprocessed_count = 0 "
    "WHERE invocation_id = :id AND status = 'running'"
)


def close_run(connection: Connection, invocation_id: str) -> None:
    assert connection.execute(CLOSE, {"id": invocation_id}).rowcount == 1


@pytest.mark.parametrize("dispatch_mode", ["live", "dry_run"])
def test_nothing_is_done_for_a_run_that_is_closed(served: str, engine: Engine, dispatch_mode: str) -> None:
    """Seven people got a message, and the run that asked for them had been closed with none."""
    asked = a_request(quiet_mentors(engine, 2), invocation_id=an_open_run(engine), dispatch_mode=dispatch_mode)
    first = post(served, asked, key="early")
    with engine.begin() as connection:
        close_run(connection, asked["invocation_id"])
    before = sent(engine)
    late = post(served, asked, key="late")
    assert (first.status_code, late.status_code) == (200, 409)
    assert late.json()["error"] == {
        "error_type": "evaluation_logic_error",
        "error_message": "the run is closed: nothing was done for this request",
    }
    assert sent(engine) == before
    # What was done is still told.
    assert post(served, asked, key="early").json() == first.json()


def test_a_request_that_meets_the_closing_of_its_run_waits_for_how_that_ends(served: str, engine: Engine) -> None:
    """Either the closing counts the notification, or there is none."""
    ids = quiet_mentors(engine, 2)
    for is_closed, mentor_id in zip([False, True], ids, strict=True):
        asked = a_request([mentor_id], invocation_id=an_open_run(engine))
        with ThreadPoolExecutor(1) as pool, engine.connect() as closing:
            close_run(closing, asked["invocation_id"])
            reply = pool.submit(post, served, asked, mentor_id)
            wait_until_blocked(engine, 1)
            closing.commit() if is_closed else closing.rollback()
            assert reply.result().status_code == (409 if is_closed else 200)
    assert [row[0] for row in sent(engine)] == ids[:1]


@contextmanager
def standing_still_before_the_commit(pool: Engine) -> Iterator[threading.Event]:
    """Let a service stop for a while between its last statement and its commit; yield what lets it go on."""
    go_on = threading.Event()

    def stop(_connection: Any) -> None:
        assert go_on.wait(60)

    event.listen(pool, "commit", stop)
    try:
        yield go_on
    finally:
        go_on.set()
        event.remove(pool, "commit", stop)


def test_a_service_that_stands_still_before_its_commit_does_not_hold_up_the_closing(
    scheduler_url: str, engine: Engine
) -> None:
    """A container that was frozen in the middle of a request kept the run open, and committed after its log ended."""
    asked = a_request(quiet_mentors(engine, 2), invocation_id=an_open_run(engine))
    pool = database.connect(scheduler_url, connections=CONNECTIONS)
    with serving(EngineService(pool, TOKEN, Log().logger(""))) as url, ThreadPoolExecutor(1) as clients:
        with standing_still_before_the_commit(pool) as go_on:
            reply = clients.submit(post, url, asked)
            wait_until(lambda: holds_a_run(engine), "the request is about to commit")
            with engine.begin() as connection:
                connection.execute(text("SET LOCAL lock_timeout = '30s'"))
                close_run(connection, asked["invocation_id"])
            go_on.set()
            assert reply.result().status_code == 504
        assert sent(engine) == []
        assert post(url, asked).status_code == 409
    pool.dispose()


def holds_a_run(engine: Engine) -> bool:
    """Whether a row of the ledger is locked."""
    with engine.begin() as connection:
        free = connection.execute(text("SELECT 1 FROM scenario.scheduler_runs FOR UPDATE SKIP LOCKED")).all()
    return not free
