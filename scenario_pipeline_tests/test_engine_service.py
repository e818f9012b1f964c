"""The trigger engine that the project serves: who may call, what is answered, and that a repeated key repeats nothing.

Belongs here: the service as its callers see it, over real connections. Does not belong here: the engine that calls it
(`test_http_engine`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode, checks
from sqlalchemy import Engine, event, text

from scenario_pipeline import cli
from scenario_pipeline.engines.api import EVALUATIONS_PATH, HEALTH_PATH
from scenario_pipeline.engines.service.app import EVALUATIONS, EngineService
from scenario_pipeline.engines.service.replies import remove_old_replies
from scenario_pipeline.engines.service.server import check_may_start
from scenario_pipeline.errors import UserError
from scenario_pipeline.storage import database
from scenario_pipeline_tests import world
from scenario_pipeline_tests.conftest import TOKEN, serving
from scenario_pipeline_tests.test_scheduler_job import refuse_notifications_of
from scenario_pipeline_tests.world import DAY, D, Log, Mentor

PROJECT = Path(__file__).resolve().parent.parent


def quiet_mentors(engine: Engine, n: int) -> list[str]:
    """Mentors for whom `inactivity` is due on D; the fourth has opted out."""
    with engine.begin() as connection:
        world.insert_organisation(connection)
        return world.insert_mentors(
            connection, [Mentor(i, activities=[D - 30 * DAY] * 2, opted_out=i == 4) for i in range(1, n + 1)]
        )


def a_request(mentor_ids: list[str], **changed: Any) -> dict[str, Any]:
    return {
        "invocation_id": world.new_invocation_id(),
        "evaluation_date": D.isoformat(),
        "scenario_types": list(world.ALL_SCENARIOS),
        "dispatch_mode": "live",
        "peer_mentor_ids": mentor_ids,
        **changed,
    }


def post(url: str, body: Any, key: str = "run:1:1", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {
        "Authorization": f"Bearer {TOKEN}",
        "Idempotency-Key": key,
        "Content-Type": "application/json",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    sent = {name: value for name, value in sent.items() if value}
    return httpx.post(f"{url}{EVALUATIONS_PATH}", content=content, headers=sent, timeout=60, trust_env=False)


def result_of(mentor_id: str, *, dispatched: Any = None, suppressed: Any = None, error: Any = None) -> dict[str, Any]:
    return {
        "peer_mentor_id": mentor_id,
        "dispatched": dispatched or {},
        "suppressed": suppressed or {},
        "error": error,
    }


def test_each_mentor_gets_a_result_of_their_own(served: str, engine: Engine, engine_log: Log) -> None:
    """The scheduler counts by what it is told here: a mentor too many or too few breaks every total."""
    ids = quiet_mentors(engine, 5)
    nobody = world.mentor_id(99)
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
    assert [row[0] for row in world.sent(engine)] == [ids[0], ids[1], ids[2], ids[4]]
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
    assert world.sent(engine) == []
    assert post(served, asked).json() == first.json()


def test_requests_with_one_key_at_the_same_time_get_one_reply(served: str, engine: Engine) -> None:
    """A client that gave up waiting asks again while the first request is still at work."""
    asked = a_request(quiet_mentors(engine, 8))
    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE scenario.scenario_notifications IN ACCESS EXCLUSIVE MODE"))
        with ThreadPoolExecutor(4) as pool:
            replies = [pool.submit(post, served, asked) for _ in range(4)]
            world.wait_until_blocked(engine, 4)
            connection.rollback()
            bodies = [reply.result().json() for reply in replies]
    assert all(body == bodies[0] for body in bodies)
    assert len(world.sent(engine)) == 7


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
        ({"peer_mentor_ids": [world.mentor_id(1)] * 2}, 400),
        ({"peer_mentor_ids": [world.mentor_id(n) for n in range(1001)]}, 400),
        ({"peer_mentor_ids": ["kari.nordmann@example.org"]}, 400),
        ({"evaluation_date": "2026-02-30"}, 400),
        ({"evaluation_date": 5}, 400),
        ({"invocation_id": "Kari Nordmann"}, 400),
        ({"dispatch_mode": "auto"}, 400),
        ({"scenario_types": []}, 400),
        ({"scenario_types": ["birthday"]}, 422),
        ({"full_name": "Kari Nordmann"}, 400),
        ({"peer_mentor_ids": [f"urn:uuid:{world.mentor_id(1)}"]}, 400),
        ({"peer_mentor_ids": [f"{{{world.mentor_id(1)}}}"]}, 400),
        ({"peer_mentor_ids": [world.mentor_id(1).replace("-", "")]}, 400),
        ({"invocation_id": f"urn:uuid:{world.new_invocation_id()}"}, 400),
    ],
)
def test_a_request_that_cannot_be_right_is_one_sentence(
    served: str, engine_log: Log, changed: dict[str, Any], status: int
) -> None:
    """It names the place and never what stood there: a caller's mistake must not carry a name into the log."""
    reply = post(served, a_request([world.mentor_id(1)], **changed))
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
    assert world.sent(engine) == []


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
        world.wait_until_blocked(engine, EVALUATIONS)
        assert httpx.get(f"{served}{HEALTH_PATH}", trust_env=False).status_code == 200
        # Longer than a pool of connections lets anyone wait.
        time.sleep(5.5)
        assert not any(reply.done() for reply in replies)
        connection.rollback()
        assert [reply.result().status_code for reply in replies] == [200] * len(ids)


# The time that the caller still waits


def test_nothing_is_committed_after_the_caller_has_stopped_waiting(served: str, engine: Engine) -> None:
    """The run tells of a mentor it got no answer about; a message sent later would be in no total."""
    asked = a_request(quiet_mentors(engine, 2))
    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE scenario.scenario_notifications IN ACCESS EXCLUSIVE MODE"))
        began = time.monotonic()
        reply = post(served, asked, Scenario_Time_Left_Ms="300")
        took = time.monotonic() - began
    assert (reply.status_code, reply.json()["error"]["error_type"]) == (504, "timeout_error")
    assert 0.3 <= took < 3
    assert world.sent(engine) == []
    assert post(served, asked, Scenario_Time_Left_Ms="60000").status_code == 200


def test_the_time_left_bounds_the_wait_for_a_turn_and_for_the_same_key(served: str, engine: Engine) -> None:
    ids = quiet_mentors(engine, EVALUATIONS)
    asked = a_request([ids[0]])
    with engine.connect() as connection, ThreadPoolExecutor(len(ids)) as pool:
        connection.execute(text("LOCK TABLE scenario.scenario_notifications IN ACCESS EXCLUSIVE MODE"))
        replies = [pool.submit(post, served, asked, key="first")]
        world.wait_until_blocked(engine, 1)
        assert post(served, asked, key="first", Scenario_Time_Left_Ms="300").status_code == 504
        replies += [pool.submit(post, served, a_request([one]), key=one) for one in ids[1:]]
        world.wait_until_blocked(engine, EVALUATIONS)
        late = post(served, a_request([world.mentor_id(99)]), key="late", Scenario_Time_Left_Ms="300")
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
    assert world.sent(engine) == []


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
    assert world.sent(engine) == []


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
            "error_message": "the first reply to this key was just removed: ask again",
        }
        assert post(url, asked).status_code == 200
    pool.dispose()


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


@pytest.mark.parametrize(
    ("host", "token", "allow_anonymous", "may"),
    [
        ("0.0.0.0", "t", False, True),
        ("127.0.0.1", None, True, True),
        ("localhost", None, True, True),
        ("::1", None, True, True),
        ("127.0.0.1", None, False, False),
        ("0.0.0.0", None, True, False),
        ("engine.example", None, True, False),
    ],
)
def test_without_a_token_it_serves_this_machine_only_and_only_if_asked(
    host: str, token: str | None, allow_anonymous: bool, may: bool
) -> None:
    """An engine that anyone on the network can call sends messages in the organisation's name."""
    if may:
        check_may_start(host, token, allow_anonymous=allow_anonymous)
    else:
        with pytest.raises(UserError, match="SCENARIO_ENGINE_TOKEN"):
            check_may_start(host, token, allow_anonymous=allow_anonymous)


# The fuzz: whatever the OpenAPI document allows, and what it does not


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [
        (EVALUATIONS_PATH, "POST", GenerationMode.POSITIVE),
        (EVALUATIONS_PATH, "POST", GenerationMode.NEGATIVE),
        (HEALTH_PATH, "GET", GenerationMode.POSITIVE),
    ],
)
def test_no_request_is_answered_with_500_or_with_something_undocumented(
    path: str, method: str, mode: GenerationMode, database_url: str, engine: Engine
) -> None:
    """The document is a promise to people who write other clients; a crash is one they cannot handle."""
    quiet_mentors(engine, 3)
    pool = database.connect(database_url)
    log = Log()
    api = schemathesis.openapi.from_asgi("/v1/openapi.json", EngineService(pool, TOKEN, log.logger("")).app())
    statuses: set[int] = set()

    @given(api[path][method].as_strategy(generation_mode=mode))
    @settings(max_examples=100, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def fuzz(case: schemathesis.Case[Any]) -> None:
        response = case.call(headers={"Authorization": f"Bearer {TOKEN}"})
        statuses.add(response.status_code)
        # What fits the document may still be refused: a key that was used for another request.
        case.validate_response(response, excluded_checks=[checks.positive_data_acceptance])

    fuzz()
    pool.dispose()
    # Within the one millisecond that a caller may leave, nothing can be evaluated.
    assert max(statuses - {504}) < 500
    assert (200 if mode is GenerationMode.POSITIVE else 400) in statuses


# The command


@contextmanager
def the_command(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    process = subprocess.Popen(
        [sys.executable, "-m", "scenario_pipeline", "engine", "--port", "0", *arguments],
        env=inherited | {"PYTHONPATH": str(PROJECT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_it_finish_what_it_has_in_hand(number: signal.Signals, database_url: str, engine: Engine) -> None:
    """A deployment must not cost anyone an answer: the run would count a mentor as failed who was notified."""
    ids = quiet_mentors(engine, 3)
    with the_command(SCENARIO_DATABASE_URL=database_url, SCENARIO_ENGINE_TOKEN=TOKEN) as process:
        assert process.stdout is not None
        started = json.loads(process.stdout.readline())
        url = f"http://127.0.0.1:{started['port']}"
        with engine.begin() as connection, ThreadPoolExecutor(1) as pool:
            connection.execute(text("LOCK TABLE scenario.scenario_notifications IN ACCESS EXCLUSIVE MODE"))
            reply = pool.submit(post, url, a_request(ids))
            world.wait_until_blocked(engine, 1)
            process.send_signal(number)
            world.wait_until(lambda: not is_listening(started["port"]), "the port is closed")
            connection.rollback()
            assert reply.result().status_code == 200
        out, err = process.communicate(timeout=30)
    entries = [json.loads(line) for line in out.splitlines()]
    assert [entry["event"] for entry in entries] == ["trigger_engine_answered", "trigger_engine_stopped"]
    assert (process.returncode, "Traceback" in err) == (0, False)
    assert len(world.sent(engine)) == 3


def test_a_signal_right_after_the_url_ends_it_in_good_order(database_url: str) -> None:
    """A supervisor that starts and stops quickly must not read -15 as a crash; who is told the URL calls at once."""
    with the_command(SCENARIO_DATABASE_URL=database_url, SCENARIO_ENGINE_TOKEN=TOKEN) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert is_listening(int(said.rpartition(":")[2]))
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    entries = [json.loads(line) for line in out.splitlines()]
    assert [entry["event"] for entry in entries] == ["trigger_engine_started", "trigger_engine_stopped"]
    assert (process.returncode, err) == (0, "")


def test_an_address_of_version_6_is_shown_as_a_url_writes_it(database_url: str) -> None:
    """`http://::1:8642` is a URL that no client takes."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with the_command("--host", "::1", SCENARIO_DATABASE_URL=database_url, SCENARIO_ENGINE_TOKEN=TOKEN) as process:
        assert process.stderr is not None
        url = process.stderr.readline().split()[-1]
        assert url.startswith("http://[::1]:")
        assert httpx.get(f"{url}{HEALTH_PATH}", trust_env=False).status_code == 200


@pytest.mark.parametrize("host", ["a..b", f"{'x' * 64}.example"])
def test_a_host_that_is_no_name_is_one_sentence(host: str, database_url: str) -> None:
    """A stack trace is no help to whoever mistyped it."""
    with the_command("--host", host, SCENARIO_DATABASE_URL=database_url, SCENARIO_ENGINE_TOKEN=TOKEN) as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert err == f"Error: The engine cannot listen at {host}, port 0: the name of a host could not be resolved.\n"
    with pytest.raises(UserError, match="cannot listen"):
        cli._check_address(host, 0)


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_a_busy_port_is_one_sentence(database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with the_command("--port", port, SCENARIO_DATABASE_URL=database_url, SCENARIO_ENGINE_TOKEN=TOKEN) as process:
            out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert err.startswith(f"Error: The engine cannot listen at 127.0.0.1, port {port}: ")
    assert err.count("\n") == 1


def test_its_log_fits_the_published_schema(served: str, engine: Engine, engine_log: Log) -> None:
    """`scenario-pipeline events validate` reads the engine's log as well as the scheduler's."""
    from scenario_pipeline.log.validation import violations

    post(served, a_request(quiet_mentors(engine, 1)))
    post(served, b"", key="x")
    assert list(violations(engine_log.lines)) == []
    assert len(engine_log.lines) == 2
