"""The `http` trigger engine while the remote engine is away for a while, or for good.

Belongs here: outages, and what a run makes of them. Does not belong here: single bad replies (`test_http_engine`).
"""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, text

from scenario_pipeline.engines.http.page_calls import MAX_CALLS
from scenario_pipeline.errors import ErrorType
from scenario_pipeline_tests.support.http_runs import nobody_due, run
from scenario_pipeline_tests.support.invariants import consistent, sent
from scenario_pipeline_tests.support.people import quiet_mentors
from scenario_pipeline_tests.support.scripted_server import Asked, ScriptedServer, answering, never, send, well
from scenario_pipeline_tests.support.service import TOKEN, the_command
from scenario_pipeline_tests.support.waiting import wait_until_blocked

# How often a health check fails before the engine is back: longer than any call is repeated.
ABSENCE = 8


class AbsentEngine:
    """An engine that goes away with a certain call, and comes back after it was asked for its health often enough.

    It loses the calls in `stumbles_at` although it is well.
    """

    def __init__(
        self,
        *,
        leaves_at: int,
        absence: int = ABSENCE,
        reports: bytes | None = None,
        stumbles_at: tuple[int, ...] = (),
    ) -> None:
        self.calls_in_vain = self.questions = 0
        self._leaves_at, self._absence, self._reports = leaves_at, absence, reports
        self._stumbles_at = stumbles_at
        self._calls = 0
        self._lock = threading.Lock()

    def script(self, asked: Asked, connection: socket.socket) -> None:
        with self._lock:
            self._calls += 1
            is_away = self._calls >= self._leaves_at and self.questions < self._absence
            self.calls_in_vain += is_away
            is_lost = is_away or self._calls in self._stumbles_at
        if not is_lost:
            well(asked, connection)

    def health(self, connection: socket.socket) -> None:
        with self._lock:
            is_away = self._calls >= self._leaves_at
            self.questions += is_away
            is_well = not is_away or self.questions >= self._absence
        if is_well:
            send(connection, b'{"status": "ok"}')
        elif self._reports is not None:
            connection.sendall(self._reports)


def served_by(engine: AbsentEngine) -> ScriptedServer:
    server = ScriptedServer(engine.script)
    server.health = engine.health
    return server


@pytest.mark.parametrize("concurrency", [1, 2, 8])
@pytest.mark.parametrize("leaves_at", [1, 4])
def test_an_engine_that_restarts_is_waited_for(leaves_at: int, concurrency: int, engine: Engine) -> None:
    """A deployment of eight seconds ended runs that had sixteen left."""
    ids = nobody_due(engine, 40)
    away = AbsentEngine(leaves_at=leaves_at)
    with served_by(away) as server:
        ran = run(engine, server.url, concurrency=concurrency, budget=60)
    assert (ran.report.status, ran.errors, ran.report.stats.total_evaluated) == ("completed", {}, len(ids))
    # While it is away it is asked for its health, and for nothing else.
    assert away.calls_in_vain <= 2 * concurrency
    consistent(engine)


def test_the_smallest_run_waits_too(engine: Engine) -> None:
    """One mentor is one chunk of three calls, which were over before any restart."""
    nobody_due(engine, 1)
    with served_by(AbsentEngine(leaves_at=1)) as server:
        ran = run(engine, server.url, budget=60)
    assert (ran.report.status, ran.errors, ran.report.stats.total_evaluated) == ("completed", {}, 1)


@pytest.mark.parametrize(
    ("leaves_at", "stumbles_at"),
    [
        pytest.param(MAX_CALLS, (1, 2), id="with the last attempt"),
        pytest.param(1, (3, 4), id="and stumbles when it is back"),
    ],
)
def test_calls_during_an_outage_are_no_attempts(leaves_at: int, stumbles_at: tuple[int, ...], engine: Engine) -> None:
    """A mentor is an error of the run only if the engine failed them while it was well."""
    nobody_due(engine, 1)
    with served_by(AbsentEngine(leaves_at=leaves_at, stumbles_at=stumbles_at)) as server:
        ran = run(engine, server.url, budget=60)
    assert (ran.report.status, ran.errors, ran.report.stats.total_evaluated) == ("completed", {}, 1)


def test_an_engine_may_go_away_more_than_once(engine: Engine) -> None:
    """A node that is drained restarts what it runs a second time."""
    nobody_due(engine, 20)
    away, left_again = AbsentEngine(leaves_at=3), threading.Event()

    def leave_again(asked: Asked, connection: socket.socket) -> None:
        if len(server.asked) >= 8 and not left_again.is_set():
            left_again.set()
            away.questions = 0
        away.script(asked, connection)

    with served_by(away) as server:
        server.script = leave_again
        ran = run(engine, server.url, budget=60)
    assert (ran.report.status, ran.errors, ran.report.stats.total_evaluated) == ("completed", {}, 20)
    assert left_again.is_set()
    assert away.questions >= ABSENCE


@pytest.mark.parametrize(
    "reports",
    [
        pytest.param(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\nRetry-After: 1\r\n\r\n", id="its database is away"),
        pytest.param(b"HTTP/1.1 502 X\r\nContent-Length: 0\r\n\r\n", id="a proxy answers for it"),
        pytest.param(b"HTTP/1.1 429 X\r\nContent-Length: 0\r\n\r\n", id="it asks for a pause"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="no HTTP"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Le", id="cut off"),
    ],
)
def test_an_engine_that_does_not_say_that_it_is_well_is_asked_again(reports: bytes, engine: Engine) -> None:
    nobody_due(engine, 6)
    with served_by(AbsentEngine(leaves_at=1, reports=reports)) as server:
        ran = run(engine, server.url, budget=60)
    assert (ran.report.status, ran.errors, ran.report.stats.total_evaluated) == ("completed", {}, 6)


def test_an_engine_without_a_health_path_is_called_all_the_same(engine: Engine) -> None:
    """An older engine of somebody else's may not have it; it answers, and that is what matters."""
    ids = nobody_due(engine, 4)

    def script(asked: Asked, connection: socket.socket) -> None:
        if sum(one.key == asked.key for one in server.asked) == MAX_CALLS:
            well(asked, connection)

    with ScriptedServer(script) as server:
        server.health = lambda connection: send(connection, b"", status=404)
        ran = run(engine, server.url, concurrency=1, budget=60)
    assert (ran.report.status, ran.errors, ran.report.stats.total_evaluated) == ("completed", {}, len(ids))


def test_an_engine_that_stays_away_fails_the_run_when_its_budget_ends(engine: Engine) -> None:
    """Those whom nobody answered for are left to the next run, none of them as an error."""
    ids = nobody_due(engine, 30)
    away = AbsentEngine(leaves_at=4, absence=10**9)
    with served_by(away) as server:
        ran = run(engine, server.url, concurrency=2, budget=2.0, page_size=10)
    assert (ran.report.status, ran.errors) == ("failed", {})
    assert ran.report.stats.total_evaluated + (ran.report.remaining or 0) == len(ids)
    assert ran.report.failure is not None
    assert ran.report.failure.error_type is ErrorType.NETWORK
    assert ran.report.failure.error_message.startswith("the trigger engine does not answer: ")
    assert away.questions > 1
    consistent(engine)


def test_an_engine_that_is_well_and_answers_nothing_is_not_waited_for(engine: Engine) -> None:
    """It will be no better in twenty seconds, and its owner wants to know now."""
    nobody_due(engine, 40)
    with ScriptedServer(answering(b"<html></html>")) as server:
        ran = run(engine, server.url, budget=60)
    assert (ran.report.status, ran.report.remaining, ran.seconds < 30) == ("failed", 40, True)


def test_a_chunk_that_an_engine_cannot_bear_costs_its_own_mentors(engine: Engine) -> None:
    """The engine is well before and after each of its calls: it is not the engine."""
    ids = nobody_due(engine, 12)

    def script(asked: Asked, connection: socket.socket) -> None:
        if ids[4] not in asked.ids:
            well(asked, connection)

    with ScriptedServer(script) as server:
        ran = run(engine, server.url, concurrency=2, budget=60)
    assert (ran.report.status, set(ran.errors)) == ("completed", set(ids[4:6]))


def test_a_health_that_never_comes_ends_with_the_budget(engine: Engine) -> None:
    nobody_due(engine, 4)
    with ScriptedServer(lambda _asked, _connection: None) as server:
        server.health = lambda connection: never(Asked({}, {}), connection)
        ran = run(engine, server.url, budget=1.0)
    assert ran.report.stats.total_evaluated == 0
    consistent(engine)


def test_the_projects_own_engine_may_be_killed_in_the_middle_of_a_run(scheduler_url: str, engine: Engine) -> None:
    """It takes seconds to come back; everybody is notified once, and counted."""
    ids = quiet_mentors(engine, 9)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    settings = {"SCENARIO_DATABASE_URL": scheduler_url, "SCENARIO_ENGINE_TOKEN": TOKEN}
    with ThreadPoolExecutor(1) as pool:
        with the_command("--port", port, **settings) as killed, engine.connect() as holds:
            assert killed.stdout is not None
            assert json.loads(killed.stdout.readline())["event"] == "trigger_engine_started"
            holds.execute(text("LOCK TABLE scenario.scenario_notifications IN ACCESS EXCLUSIVE MODE"))
            running = pool.submit(run, engine, f"http://127.0.0.1:{port}", budget=60, backoff_seconds=0.25)
            wait_until_blocked(engine, 2)
            killed.kill()
            killed.wait()
        with the_command("--port", port, **settings):
            ran = running.result()
    assert (ran.report.status, ran.errors, ran.report.stats.total_evaluated) == ("completed", {}, len(ids))
    assert ran.report.stats.total_dispatched == len(sent(engine)) == len(ids) - 1
    consistent(engine)
