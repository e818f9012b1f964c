"""What the project's own trigger engine answers, and what it refuses before it does anything."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, text

from scenario_pipeline.engines.api import EVALUATIONS_PATH, HEALTH_PATH
from scenario_pipeline.engines.service.app import EVALUATIONS
from scenario_pipeline_tests.support.invariants import sent
from scenario_pipeline_tests.support.people import mentor_id, new_invocation_id, quiet_mentors
from scenario_pipeline_tests.support.runs import Log
from scenario_pipeline_tests.support.service import TOKEN, a_request, post, result_of
from scenario_pipeline_tests.support.triggers import refuse_notifications_of
from scenario_pipeline_tests.support.waiting import wait_until_blocked


def test_each_mentor_gets_a_result_of_their_own(served: str, engine: Engine, engine_log: Log) -> None:
    """The scheduler counts by these replies: a mentor too many or too few breaks every total."""
    ids = quiet_mentors(engine, 5)
    nobody = mentor_id(99)
    asked = a_request([*ids, nobody])
    reply = post(served, asked)
    assert (reply.status_code, reply.json()) == (
        200,
        {
            "results": [
                *(result_of(m, dispatched={"inactivity": 1}) for m in ids[:3]),
                result_of(ids[3], suppressed={"opted_out": 1}),
                result_of(ids[4], dispatched={"inactivity": 1}),
                result_of(
                    nobody,
                    error={"error_type": "evaluation_logic_error", "error_message": "there is no such mentor"},
                ),
            ]
        },
    )
    assert [row[0] for row in sent(engine)] == [ids[0], ids[1], ids[2], ids[4]]
    [entry] = engine_log.entries
    told = ("event", "component", "invocation_id", "total_evaluated", "total_dispatched", "total_errors", "repeated")
    assert [entry[name] for name in told] == [
        "trigger_engine_answered",
        "scenario-trigger-engine",
        asked["invocation_id"],
        5,
        4,
        1,
        False,
    ]


def test_a_repeated_key_is_answered_with_the_first_reply(served: str, engine: Engine, engine_log: Log) -> None:
    """An answer lost on its way must not turn the same mentors from dispatched into suppressed."""
    asked = a_request(quiet_mentors(engine, 3))
    first, second = post(served, asked), post(served, json.dumps(asked, indent=3).encode())
    assert first.json() == second.json()
    assert [entry["repeated"] for entry in engine_log.entries] == [False, True]
    assert post(served, asked, key="run:1:2").json()["results"][0] == result_of(
        asked["peer_mentor_ids"][0], suppressed={"duplicate": 1}
    )


def test_the_same_key_for_another_request_is_refused(served: str, engine: Engine) -> None:
    """Two requests under one key are a caller's mistake; answering with the wrong mentors would hide it."""
    ids = quiet_mentors(engine, 2)
    assert post(served, a_request(ids)).status_code == 200
    reply = post(served, a_request(ids))
    assert (reply.status_code, reply.json()) == (
        422,
        {
            "error": {
                "error_type": "evaluation_logic_error",
                "error_message": "the idempotency key was used for another request",
            }
        },
    )


def test_a_dry_run_writes_no_notification_and_keeps_its_reply(served: str, engine: Engine) -> None:
    asked = a_request(quiet_mentors(engine, 3), dispatch_mode="dry_run")
    first = post(served, asked)
    assert first.json()["results"][0]["dispatched"] == {"inactivity": 1}
    assert sent(engine) == []
    assert post(served, asked).json() == first.json()


def test_requests_with_one_key_at_the_same_time_get_one_reply(served: str, engine: Engine) -> None:
    """A client that gave up waiting asks again while the first request is still at work."""
    asked = a_request(quiet_mentors(engine, 8))
    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE scenario.scenario_notifications IN ACCESS EXCLUSIVE MODE"))
        with ThreadPoolExecutor(4) as pool:
            replies = [pool.submit(post, served, asked) for _ in range(4)]
            wait_until_blocked(engine, 4)
            connection.rollback()
            bodies = [reply.result().json() for reply in replies]
    assert all(body == bodies[0] for body in bodies)
    assert len(sent(engine)) == 7


def test_a_mentor_whom_the_database_refuses_is_an_error_of_their_own(served: str, engine: Engine) -> None:
    ids = quiet_mentors(engine, 3)
    refuse_notifications_of(engine, [ids[1]], "Kari Nordmann")
    results = post(served, a_request(ids)).json()["results"]
    assert [result["error"] is None for result in results] == [True, False, True]
    assert "Kari" not in str(results)


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"peer_mentor_ids": []}, 400),
        ({"peer_mentor_ids": [mentor_id(1)] * 2}, 400),
        ({"peer_mentor_ids": [mentor_id(n) for n in range(1001)]}, 400),
        ({"peer_mentor_ids": ["kari.nordmann@example.org"]}, 400),
        ({"evaluation_date": "2026-02-30"}, 400),
        ({"evaluation_date": 5}, 400),
        ({"invocation_id": "Kari Nordmann"}, 400),
        ({"dispatch_mode": "auto"}, 400),
        ({"scenario_types": []}, 400),
        ({"scenario_types": ["birthday"]}, 422),
        ({"full_name": "Kari Nordmann"}, 400),
        ({"peer_mentor_ids": [f"urn:uuid:{mentor_id(1)}"]}, 400),
        ({"peer_mentor_ids": [f"{{{mentor_id(1)}}}"]}, 400),
        ({"peer_mentor_ids": [mentor_id(1).replace("-", "")]}, 400),
        ({"invocation_id": f"urn:uuid:{new_invocation_id()}"}, 400),
    ],
)
def test_a_request_that_cannot_be_right_is_one_sentence(
    served: str, engine_log: Log, changed: dict[str, Any], status: int
) -> None:
    """It names the place and never what stood there: a caller's mistake must not carry a name into the log."""
    reply = post(served, a_request([mentor_id(1)], **changed))
    assert reply.status_code == status
    assert set(reply.json()["error"]) == {"error_type", "error_message"}
    assert "[" not in reply.json()["error"]["error_message"], "the sanitiser took the point out of it"
    assert "ordmann" not in reply.text + str(engine_log.entries)
    [entry] = engine_log.entries
    assert (entry["event"], entry["status"], entry["level"]) == ("trigger_engine_refused", status, "warning")


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{}", {"Authorization": ""}, 401),
        (b"{}", {"Authorization": "Bearer wrong"}, 401),
        (b"{}", {"Authorization": f"Basic {TOKEN}"}, 401),
        (b"{}", {"Authorization": f"Bearer {TOKEN}x"}, 401),
        (b"{}", {"Idempotency_Key": ""}, 422),
        (b"{}", {"Idempotency_Key": "x" * 201}, 422),
        (b"{}", {"Content_Type": "text/plain"}, 415),
        (b"x" * (1024 * 1024 + 1), {}, 413),
        (b"[" * 100_000, {}, 400),
        (b'{"evaluation_date": NaN}', {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"", {}, 400),
        (b"{}", {"Scenario_Time_Left_Ms": "0"}, 422),
        (b"{}", {"Scenario_Time_Left_Ms": "86400001"}, 422),
        (b"{}", {"Scenario_Time_Left_Ms": "-1"}, 422),
        (b"{}", {"Scenario_Time_Left_Ms": "+5"}, 422),
        (b"{}", {"Scenario_Time_Left_Ms": "5.0"}, 422),
        (b"{}", {"Scenario_Time_Left_Ms": "1_000"}, 422),
        (b"{}", {"Scenario_Time_Left_Ms": "9" * 5000}, 422),
    ],
)
def test_what_is_no_request_is_refused_before_anything_is_done(
    served: str, engine: Engine, content: bytes, headers: dict[str, str], status: int
) -> None:
    reply = post(served, content, **headers)
    assert reply.status_code == status
    assert reply.json()["error"]["error_type"] == "evaluation_logic_error"
    assert "[" not in reply.json()["error"]["error_message"], "the sanitiser took the point out of it"
    with engine.connect() as connection:
        kept = connection.execute(text("SELECT count(*) FROM scenario.trigger_engine_replies")).scalar_one()
    assert kept == 0


def test_a_field_named_twice_is_refused(served: str, engine: Engine) -> None:
    """The second one would win: what its author took for a dry run would send messages."""
    body = json.dumps(a_request(quiet_mentors(engine, 1), dispatch_mode="dry_run"))
    for hidden in ('"dispatch_mode": "live"', '"dispatch_mod\\u0065": "live"', '"evaluation_date": "2026-01-01"'):
        assert hidden not in body
        reply = post(served, f"{body[:-1]}, {hidden}}}".encode())
        assert (reply.status_code, reply.json()["error"]["error_message"]) == (400, "the body names a field twice")
    huge = f'{{"evaluation_date": {"9" * 5000}, {body[1:]}'
    assert post(served, huge.encode()).status_code == 400
    assert sent(engine) == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2", 404),
        ("GET", EVALUATIONS_PATH, 405),
        ("POST", f"{EVALUATIONS_PATH}/", 404),
        ("GET", f"{HEALTH_PATH}/", 404),
    ],
)
def test_a_wrong_path_or_method_has_the_shape_of_every_error(served: str, method: str, path: str, status: int) -> None:
    reply = httpx.request(method, f"{served}{path}", trust_env=False)
    assert (reply.status_code, set(reply.json())) == (status, {"error"})


def test_health_needs_no_token_and_looks_at_the_database(served: str, engine: Engine) -> None:
    def health() -> httpx.Response:
        return httpx.get(f"{served}{HEALTH_PATH}", trust_env=False)

    assert (health().status_code, health().json()) == (200, {"status": "ok"})
    with engine.begin() as connection:
        connection.execute(text("UPDATE scenario.alembic_version SET version_num = '0001'"))
    reply = health()
    assert (reply.status_code, reply.json()["error"]["error_type"]) == (503, "database_error")


def test_a_busy_service_is_well_and_requests_wait_for_their_turn(served: str, engine: Engine) -> None:
    """A supervisor that takes a busy engine for a dead one restarts it, and so makes it slower."""
    ids = quiet_mentors(engine, EVALUATIONS + 2)
    with engine.connect() as connection, ThreadPoolExecutor(len(ids)) as pool:
        connection.execute(text("LOCK TABLE scenario.scenario_notifications IN ACCESS EXCLUSIVE MODE"))
        replies = [pool.submit(post, served, a_request([one]), key=one) for one in ids]
        wait_until_blocked(engine, EVALUATIONS)
        assert httpx.get(f"{served}{HEALTH_PATH}", trust_env=False).status_code == 200
        # Longer than a pool of connections lets anyone wait.
        time.sleep(5.5)
        assert not any(reply.done() for reply in replies)
        connection.rollback()
        assert [reply.result().status_code for reply in replies] == [200] * len(ids)


def test_a_failure_of_the_database_is_an_answer_and_no_stack_trace(
    served: str, engine: Engine, engine_log: Log
) -> None:
    asked = a_request(quiet_mentors(engine, 2))
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE scenario.scenario_notifications RENAME TO gone"))
    reply = post(served, asked)
    assert (reply.status_code, reply.json()["error"]["error_type"]) == (500, "database_error")
    assert "SELECT" not in reply.text
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE scenario.gone RENAME TO scenario_notifications"))
    assert post(served, asked).status_code == 200, "a failure must not be kept as the first reply"
    assert [entry["level"] for entry in engine_log.entries] == ["error", "info"]


def test_its_log_fits_the_published_schema(served: str, engine: Engine, engine_log: Log) -> None:
    """`scenario-pipeline events validate` reads the engine's log as well as the scheduler's."""
    from scenario_pipeline.log.validation import violations

    post(served, a_request(quiet_mentors(engine, 1)))
    post(served, b"", key="x")
    assert list(violations(engine_log.lines)) == []
    assert len(engine_log.lines) == 2
