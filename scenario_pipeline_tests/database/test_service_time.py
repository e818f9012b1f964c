"""The time that a caller of the service still waits, and how long replies are kept."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, event, text

from scenario_pipeline.engines.api import EVALUATIONS_PATH
from scenario_pipeline.engines.service.app import EVALUATIONS, EngineService
from scenario_pipeline.engines.service.replies import remove_old_replies
from scenario_pipeline.storage import database
from scenario_pipeline_tests.support.invariants import sent
from scenario_pipeline_tests.support.people import mentor_id, quiet_mentors
from scenario_pipeline_tests.support.runs import Log
from scenario_pipeline_tests.support.service import TOKEN, a_request, post, serving
from scenario_pipeline_tests.support.waiting import wait_until_blocked


def test_nothing_is_committed_after_the_caller_has_stopped_waiting(served: str, engine: Engine) -> None:
    """The run reports a mentor without a reply; a message sent later would be in no total."""
    asked = a_request(quiet_mentors(engine, 2))
    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE scenario.scenario_notifications IN ACCESS EXCLUSIVE MODE"))
        began = time.monotonic()
        reply = post(served, asked, Scenario_Time_Left_Ms="300")
        took = time.monotonic() - began
    assert (reply.status_code, reply.json()["error"]["error_type"]) == (504, "timeout_error")
    assert 0.3 <= took < 3
    assert sent(engine) == []
    assert post(served, asked, Scenario_Time_Left_Ms="60000").status_code == 200


def test_the_time_left_bounds_the_wait_for_a_turn_and_for_the_same_key(served: str, engine: Engine) -> None:
    ids = quiet_mentors(engine, EVALUATIONS)
    asked = a_request([ids[0]])
    with engine.connect() as connection, ThreadPoolExecutor(len(ids)) as pool:
        connection.execute(text("LOCK TABLE scenario.scenario_notifications IN ACCESS EXCLUSIVE MODE"))
        replies = [pool.submit(post, served, asked, key="first")]
        wait_until_blocked(engine, 1)
        assert post(served, asked, key="first", Scenario_Time_Left_Ms="300").status_code == 504
        replies += [pool.submit(post, served, a_request([one]), key=one) for one in ids[1:]]
        wait_until_blocked(engine, EVALUATIONS)
        late = post(served, a_request([mentor_id(99)]), key="late", Scenario_Time_Left_Ms="300")
        assert (late.status_code, late.json()["error"]["error_message"]) == (
            504,
            "no database connection became free in time",
        )
        connection.rollback()
        assert {reply.result().status_code for reply in replies} == {200}


def test_the_time_left_counts_from_the_arrival_of_the_request(served: str, engine: Engine) -> None:
    """A body that dribbles in must not buy its caller more time than it waits."""
    body = json.dumps(a_request(quiet_mentors(engine, 1))).encode()

    def dribbled() -> Iterator[bytes]:
        yield body[:10]
        time.sleep(1)
        yield body[10:]

    headers = {"Authorization": f"Bearer {TOKEN}", "Idempotency-Key": "k", "Content-Type": "application/json"}
    with httpx.Client(trust_env=False, timeout=60) as client:
        reply = client.post(
            f"{served}{EVALUATIONS_PATH}", content=dribbled(), headers=headers | {"Scenario-Time-Left-Ms": "500"}
        )
    assert (reply.status_code, reply.json()["error"]["error_type"]) == (408, "timeout_error")
    assert sent(engine) == []


def test_the_time_left_is_looked_at_once_more_before_the_commit(
    database_url: str, served: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last statement may have had its result in time, and its caller gone since."""
    asked = a_request(quiet_mentors(engine, 1))
    remove = remove_old_replies

    def slowly(connection: Any) -> None:
        remove(connection)
        time.sleep(1)

    monkeypatch.setattr("scenario_pipeline.engines.service.replies.remove_old_replies", slowly)
    assert post(served, asked, Scenario_Time_Left_Ms="800").status_code == 504
    assert sent(engine) == []


def test_a_first_reply_that_was_removed_meanwhile_is_to_be_asked_for_again(
    database_url: str, engine: Engine, engine_log: Log
) -> None:
    """The oldest replies are taken away by other requests, also between two statements of this one."""
    asked = a_request(quiet_mentors(engine, 1))
    pool = database.connect(database_url)
    with serving(EngineService(pool, TOKEN, engine_log.logger(""))) as url:
        assert post(url, asked).status_code == 200

        @event.listens_for(pool, "after_cursor_execute")
        def remove(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if statement.startswith("INSERT INTO scenario.trigger_engine_replies"):
                with engine.begin() as connection:
                    connection.execute(text("DELETE FROM scenario.trigger_engine_replies"))

        reply = post(url, asked)
        event.remove(pool, "after_cursor_execute", remove)
        assert (reply.status_code, reply.headers["Retry-After"]) == (503, "1")
        assert reply.json()["error"] == {
            "error_type": "network_error",
            "error_message": "the first reply to this key was just removed: repeat the request",
        }
        assert post(url, asked).status_code == 200
    pool.dispose()


def test_old_replies_are_taken_away(served: str, engine: Engine) -> None:
    """A table that only grows is somebody's outage next year."""
    ids = quiet_mentors(engine, 1)
    for n in range(3):
        post(served, a_request(ids), key=f"old:{n}")
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE scenario.trigger_engine_replies SET created_at = created_at - interval '8 days' "
                "WHERE idempotency_key <> 'old:2'"
            )
        )
    post(served, a_request(ids), key="new")
    with engine.connect() as connection:
        kept = connection.execute(text("SELECT idempotency_key FROM scenario.trigger_engine_replies ORDER BY 1"))
        assert list(kept.scalars()) == ["new", "old:2"]
