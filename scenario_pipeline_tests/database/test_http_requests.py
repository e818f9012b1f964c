"""What the `http` engine asks, and when it splits, repeats, pauses or gives up."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

import pytest
from sqlalchemy import Engine

from scenario_pipeline.engines.http.page_calls import BREAKER_CALLS, MAX_CALLS
from scenario_pipeline.errors import ErrorType
from scenario_pipeline_tests.support.http_runs import LOGIC, NETWORK, TIMEOUT, http_engine, nobody_due, peak_memory, run
from scenario_pipeline_tests.support.invariants import consistent
from scenario_pipeline_tests.support.people import D
from scenario_pipeline_tests.support.runs import ALL_SCENARIOS
from scenario_pipeline_tests.support.scripted_server import (
    Asked,
    ScriptedServer,
    answering,
    never,
    reply,
    result,
    send,
    told,
    well,
)
from scenario_pipeline_tests.support.service import TOKEN


def test_a_request_is_what_the_contract_says(engine: Engine) -> None:
    ids = nobody_due(engine, 3)
    with ScriptedServer(well) as server:
        ran = run(engine, server.url, concurrency=1, page_size=3)
    invocation_id = ran.log.entries[0]["invocation_id"]
    assert [asked.key for asked in server.asked] == [f"{invocation_id}:1:1", f"{invocation_id}:1:2"]
    assert [asked.headers["authorization"] for asked in server.asked] == [f"Bearer {TOKEN}"] * 2
    # Of a budget of 20 s: what the engine has not done by then it must not do.
    assert all(0 < int(asked.headers["scenario-time-left-ms"]) <= 20_000 for asked in server.asked)
    assert [asked.body for asked in server.asked] == [
        {
            "invocation_id": invocation_id,
            "evaluation_date": D.isoformat(),
            "scenario_types": list(ALL_SCENARIOS),
            "dispatch_mode": "live",
            "peer_mentor_ids": chunk,
        }
        for chunk in (ids[:2], ids[2:])
    ]


def test_no_more_requests_are_in_hand_than_was_asked_for(engine: Engine) -> None:
    """An edge function with a limit of connections must not be run over."""
    nobody_due(engine, 18)
    gate, together, most = threading.Lock(), [0], [0]
    everyone = threading.Barrier(3)

    def script(asked: Asked, connection: socket.socket) -> None:
        with gate:
            together[0] += 1
            most[0] = max(most[0], together[0])
        with contextlib.suppress(threading.BrokenBarrierError):
            everyone.wait(10)
        with gate:
            together[0] -= 1
        well(asked, connection)

    with ScriptedServer(script) as server:
        assert run(engine, server.url, concurrency=3, chunk_size=2, budget=60).report.status == "completed"
        everyone.abort()
    assert most == [3]


def test_the_token_stands_in_no_repr(engine: Engine) -> None:
    assert TOKEN not in repr(http_engine(engine, "https://engine.example"))


def test_a_chunk_refused_for_its_content_is_split_until_the_mentor_is_alone(engine: Engine) -> None:
    """One broken row in the organisation's own database must cost one mentor, not a hundred."""
    ids = nobody_due(engine, 8)

    def script(asked: Asked, connection: socket.socket) -> None:
        if ids[5] in asked.ids:
            send(connection, told(LOGIC), status=422)
        else:
            well(asked, connection)

    with ScriptedServer(script) as server:
        ran = run(engine, server.url, chunk_size=8, concurrency=1)
    assert ran.errors == {ids[5]: LOGIC}
    assert ran.report.stats.total_evaluated == 7
    parts = [asked.key.split(":", 1)[1] for asked in server.asked]
    assert parts == ["1:1", "1:1.1", "1:1.2", "1:1.2.1", "1:1.2.1.1", "1:1.2.1.2", "1:1.2.2"]
    consistent(engine)


def test_a_call_that_fails_is_repeated_with_its_key_and_said_so(engine: Engine) -> None:
    ids = nobody_due(engine, 2)

    def script(asked: Asked, connection: socket.socket) -> None:
        if len(server.asked) < MAX_CALLS:
            send(connection, b"", status=503, Retry_After="0")
        else:
            well(asked, connection)

    with ScriptedServer(script) as server:
        ran = run(engine, server.url)
    assert (ran.errors, ran.report.stats.total_evaluated) == ({}, len(ids))
    assert len({asked.key for asked in server.asked}) == 1
    retried = [entry for entry in ran.log.entries if entry["event"] == "trigger_engine_call_retried"]
    assert [(entry["chunk"], entry["attempt"], entry["error_type"]) for entry in retried] == [
        ("1", 1, NETWORK),
        ("1", 2, NETWORK),
    ]


def test_an_engine_that_asks_for_more_time_than_there_is_is_not_waited_for(engine: Engine) -> None:
    nobody_due(engine, 2)
    with ScriptedServer(answering(b"", status=503, Retry_After="30")) as server:
        ran = run(engine, server.url, budget=20)
    assert (len(server.asked), ran.seconds < 10) == (1, True)


def test_an_engine_that_is_plainly_down_fails_the_run_with_those_who_remain(engine: Engine) -> None:
    """A hundred thousand errors would say what one sentence says, and the next run would pass those mentors over."""
    ids = nobody_due(engine, 60)
    up = set(ids[:4])

    def script(asked: Asked, connection: socket.socket) -> None:
        if set(asked.ids) <= up:
            well(asked, connection)

    with ScriptedServer(script) as server:
        ran = run(engine, server.url, concurrency=2, page_size=20)
        # A chunk that was in flight while the engine answered for the last time may have failed on its own.
        assert set(ran.errors) <= set(ids[4:6])
        assert (ran.report.status, ran.report.remaining) == ("failed", 56 - len(ran.errors))
        assert ran.report.failure is not None
        assert ran.report.failure.error_type is ErrorType.NETWORK
        assert len(server.asked) <= 2 + BREAKER_CALLS + 2
        consistent(engine)
        up.update(ids)
        server.asked.clear()
        again = run(engine, server.url, concurrency=1, page_size=20)
    assert (again.report.status, again.report.stats.total_evaluated) == ("completed", 60)
    left = [mentor_id for mentor_id in ids[4:] if mentor_id not in ran.errors]
    assert server.asked[0].ids == left[:2], "the next run begins with those who were left"


def test_single_failures_between_answers_do_not_open_the_breaker(engine: Engine) -> None:
    """A chunk that kills the engine is that chunk's fault."""
    ids = nobody_due(engine, 40)
    bad = set(ids[::4])

    def script(asked: Asked, connection: socket.socket) -> None:
        if not bad & set(asked.ids):
            well(asked, connection)

    with ScriptedServer(script) as server:
        ran = run(engine, server.url, concurrency=1)
    assert (ran.report.status, len(ran.errors), ran.report.stats.total_evaluated) == ("completed", 20, 20)
    consistent(engine)


@pytest.mark.parametrize("unusable", [b"<html></html>", reply([{"peer_mentor_id": "x"}])])
def test_an_engine_that_answers_nothing_usable_fails_even_the_smallest_run(unusable: bytes, engine: Engine) -> None:
    """One chunk makes three calls and no more: "completed, 1 error a mentor" would be read by nobody."""
    nobody_due(engine, 2)
    with ScriptedServer(answering(unusable)) as server:
        ran = run(engine, server.url)
    assert (ran.report.status, ran.report.remaining, ran.errors) == ("failed", 2, {})
    consistent(engine)


def test_an_engine_that_asks_for_a_pause_gets_it_from_all_requests(engine: Engine) -> None:
    """A rate limit is no failure: more requests at once than the breaker allows in a row, all asked to wait."""
    nobody_due(engine, 30)

    def script(asked: Asked, connection: socket.socket) -> None:
        if len(server.asked) <= 12:
            send(connection, b"", status=429, Retry_After="1")
        else:
            well(asked, connection)

    with ScriptedServer(script) as server:
        ran = run(engine, server.url, concurrency=12)
    assert (ran.report.status, ran.report.stats.total_evaluated, ran.errors) == ("completed", 30, {})


def test_pauses_are_no_attempts(engine: Engine) -> None:
    """An engine that is busy for longer than three pauses is still busy, and not broken."""
    nobody_due(engine, 2)

    def script(asked: Asked, connection: socket.socket) -> None:
        if len(server.asked) <= MAX_CALLS + 1:
            send(connection, b"", status=503, Retry_After="1")
        else:
            well(asked, connection)

    with ScriptedServer(script) as server:
        ran = run(engine, server.url)
    assert (ran.report.status, ran.report.stats.total_evaluated) == ("completed", 2)


def test_who_was_told_to_wait_until_the_budget_ended_is_left(engine: Engine) -> None:
    """The engine did nothing for them and said so: they come first in the next run."""
    nobody_due(engine, 4)
    with ScriptedServer(answering(b"", status=429, Retry_After="1")) as server:
        ran = run(engine, server.url, budget=1.5)
    assert (ran.report.status, ran.report.remaining, ran.errors) == ("partial", 4, {})
    consistent(engine)


def test_a_budget_that_ends_during_a_search_blames_nobody_who_was_not_found(engine: Engine) -> None:
    """One mentor in sixteen is refused; the budget ends before the halves are small enough."""
    ids = nobody_due(engine, 16)

    def script(asked: Asked, connection: socket.socket) -> None:
        if len(asked.ids) <= 4:
            never(asked, connection)
        elif ids[0] in asked.ids:
            send(connection, b"{}", status=422)
        else:
            well(asked, connection)

    with ScriptedServer(script) as server:
        ran = run(engine, server.url, concurrency=1, chunk_size=16, budget=0.6)
    # 16 and 8 were refused; of the first four nothing is known; the second four and the other eight were never sent.
    assert ran.errors == dict.fromkeys(ids[:4], TIMEOUT)
    assert (ran.report.status, ran.report.remaining) == ("partial", 12)
    consistent(engine)


@pytest.mark.parametrize("counts", [{"dispatched": {"inactivity": 2}}, {"suppressed": {"cooldown": 4}}])
def test_more_matches_than_a_mentor_can_have_are_not_believed(counts: dict[str, Any], engine: Engine) -> None:
    """A wrong engine could otherwise write any number into the statement."""
    ids = nobody_due(engine, 4)

    def script(asked: Asked, connection: socket.socket) -> None:
        found = [result(m, **(counts if m == ids[0] else {})) for m in asked.ids]
        send(connection, reply(found))

    with ScriptedServer(script) as server:
        ran = run(engine, server.url, concurrency=1)
    assert ran.errors == dict.fromkeys(ids[:2], NETWORK)
    assert ran.report.stats.total_dispatched == ran.report.stats.total_suppressed == 0


def test_many_large_replies_at_once_do_not_fill_the_memory(engine: Engine) -> None:
    """Every request in flight may bring the largest reply there is."""
    nobody_due(engine, 8)
    extra = "x" * (9 * 1024 * 1024)

    def script(asked: Asked, connection: socket.socket) -> None:
        send(connection, reply([result(asked.ids[0], extra=extra), *(result(m) for m in asked.ids[1:])]))

    with ScriptedServer(script) as server, peak_memory() as grown:
        run(engine, server.url, concurrency=4)
        # The server of this test lives in the same process and makes the bodies.
        assert grown() < 50 + 2 * 4 * 9, "megabytes"
