"""The `http` trigger engine against servers that answer well, badly, late, twice, or not at all.

Belongs here: what a page and a run come to, whatever the other end does. Does not belong here: the service that the
project brings itself (`test_engine_service`).
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from sqlalchemy import Engine, text

from scenario_pipeline.defs.reconcile import disagreements
from scenario_pipeline.engines.api import EVALUATIONS_PATH, Verdict, failure_of, retry_after_seconds, verdict_of
from scenario_pipeline.engines.http.client import RemoteOptions, failure_of_exception
from scenario_pipeline.engines.http.engine import HttpTriggerEngine
from scenario_pipeline.engines.http.page_calls import BREAKER_CALLS, MAX_CALLS
from scenario_pipeline.errors import ErrorType
from scenario_pipeline.invocation.closing import close_dead_invocation
from scenario_pipeline.invocation.run import Invocation
from scenario_pipeline.loading.merge import import_folder
from scenario_pipeline.log.validation import violations
from scenario_pipeline.records import Page, PageResult, PageUnprocessed
from scenario_pipeline.report import Report
from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline.storage.ledger.closed import closed_invocations
from scenario_pipeline.time_budget import TimeBudget
from scenario_pipeline_tests import world
from scenario_pipeline_tests.conftest import COMMUNITY, TOKEN, RunJob, as_scheduler, own_database
from scenario_pipeline_tests.test_engine_service import a_request, post, quiet_mentors
from scenario_pipeline_tests.test_scheduler_job import refuse_notifications_of, stranger_accepts
from scenario_pipeline_tests.world import DAY, D, Log, Mentor

NETWORK, TIMEOUT, LOGIC = "network_error", "timeout_error", "evaluation_logic_error"
PROJECT = Path(__file__).resolve().parent.parent
SECRETS = ("Kari Nordmann", "kari.nordmann@example.org", "+47 22 22 55 55", "s3cret", "/srv/engine.py", TOKEN)


@pytest.fixture
def engine_log() -> Log:
    return Log()


# A server that does as it is told


@dataclass(frozen=True)
class Asked:
    """One request, as it came."""

    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def key(self) -> str:
        return self.headers["idempotency-key"]

    @property
    def ids(self) -> list[str]:
        return list(self.body["peer_mentor_ids"])


Script = Callable[[Asked, socket.socket], None]


class ScriptedServer:
    """Reads requests and leaves the answer to a script; every connection serves one request."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self.script, self.asked, self._tls = script, list[Asked](), tls
        self.health: Callable[[socket.socket], None] = lambda connection: send(connection, b'{"status": "ok"}')
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.port = self._listener.getsockname()[1]
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.port}"

    def __enter__(self) -> ScriptedServer:
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(10)
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._open.append(connection)
            asked = _read_request(connection)
            if asked is None:
                self.health(connection)
            else:
                self.asked.append(asked)
                self.script(asked, connection)
            connection.shutdown(socket.SHUT_WR)


def _read_request(connection: socket.socket) -> Asked | None:
    """Return a request for evaluations, or None for a question about health."""
    stream = connection.makefile("rb")
    asks_for_health = stream.readline().startswith(b"GET ")
    headers = {}
    while line := stream.readline().strip():
        name, _, value = line.decode().partition(": ")
        headers[name.lower()] = value
    return None if asks_for_health else Asked(headers, json.loads(stream.read(int(headers["content-length"]))))


def send(
    connection: socket.socket,
    body: bytes,
    *,
    status: int = 200,
    content_type: str = "application/json",
    length: int | None = None,
    **headers: str,
) -> None:
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {content_type}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body) if length is None else length}"]
    connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


def result(mentor_id: str, **changed: Any) -> dict[str, Any]:
    return {"peer_mentor_id": mentor_id, "dispatched": {}, "suppressed": {}, "error": None} | changed


def reply(results: Sequence[Any]) -> bytes:
    return json.dumps({"results": results}).encode()


def well(asked: Asked, connection: socket.socket) -> None:
    """Nothing was due for anybody."""
    send(connection, reply([result(m) for m in asked.ids]))


# Runs


def http_engine(engine: Engine, url: str, **options: Any) -> HttpTriggerEngine:
    defaults: dict[str, Any] = {"token": TOKEN, "concurrency": 2, "chunk_size": 2, "backoff_seconds": 0.01}
    return HttpTriggerEngine(engine, RemoteOptions(url, **defaults | options))


@dataclass(frozen=True)
class Ran:
    """One invocation over HTTP, and what it left behind."""

    report: Report
    log: Log
    seconds: float

    @property
    def errors(self) -> dict[str, str]:
        return {
            entry["peer_mentor_id"]: entry["error_type"]
            for entry in self.log.entries
            if entry["event"] == "mentor_evaluation_error"
        }


def run(engine: Engine, url: str, *, budget: float = 20.0, log: Log | None = None, **options: Any) -> Ran:
    """Run an invocation, and hold it against everything that must hold for any."""
    request = {name: options.pop(name) for name in ("page_size", "dispatch_mode") if name in options}
    http = http_engine(engine, url, **options)
    log = log or Log()
    started = time.monotonic()
    try:
        report = world.run_invocation(
            engine, world.make_request(time_budget_seconds=budget, **request), log=log, trigger_engine=http
        )
    finally:
        http.close()
    ran = Ran(report, log, time.monotonic() - started)
    assert ran.seconds <= budget + 2, "the run must end within its budget and two seconds"
    assert list(violations(log.lines)) == []
    assert [secret for secret in SECRETS if secret.lower() in str(log.entries).lower()] == []
    return ran


def consistent(engine: Engine) -> None:
    with engine.connect() as connection:
        world.check_invariants(connection)


def nobody_due(engine: Engine, n: int) -> list[str]:
    with engine.begin() as connection:
        world.insert_organisation(connection)
        return world.insert_mentors(connection, [Mentor(i) for i in range(1, n + 1)])


@contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """Yield a function that says by how many megabytes this process has grown at its peak; Linux counts it."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")

    def megabytes(name: str) -> float:
        found = re.search(rf"^{name}:\s+(\d+) kB", status.read_text(), flags=re.M)
        assert found
        return int(found[1]) / 1024

    if not clear.exists():
        yield lambda: 0.0
        return
    clear.write_text("5")
    before = megabytes("VmRSS")
    yield lambda: megabytes("VmHWM") - before


# The matrix of bad replies


def dribble(asked: Asked, connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.05)


def headers_without_end(asked: Asked, connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X: y\r\n")
        time.sleep(0.05)


def never(asked: Asked, connection: socket.socket) -> None:
    connection.recv(1)


def reset(asked: Asked, connection: socket.socket) -> None:
    send(connection, b'{"results": [', length=1000)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def a_gigabyte(asked: Asked, connection: socket.socket) -> None:
    send(connection, b"", length=1024**3)
    for _ in range(16 * 1024):
        connection.sendall(b"0" * 65536)


BOMB = gzip.compress(b"[" * 100 * 1024 * 1024)


def a_bomb(asked: Asked, connection: socket.socket) -> None:
    send(connection, BOMB, Content_Encoding="gzip")


def ten_megabytes_of(pattern: bytes) -> Script:
    body = b'{"results":[' + pattern * (10 * 1024 * 1024 // len(pattern) - 10) + b"0]}"
    return lambda _asked, connection: send(connection, body)


def answering(body: bytes, **options: Any) -> Script:
    return lambda _asked, connection: send(connection, body, **options)


def results(change: Callable[[list[dict[str, Any]]], list[Any]]) -> Script:
    return lambda asked, connection: send(connection, reply(change([result(m) for m in asked.ids])))


def told(kind: str) -> bytes:
    message = f"Kari Nordmann <kari.nordmann@example.org> +47 22 22 55 55 password=s3cret Bearer {TOKEN}"
    trace = 'Traceback (most recent call last):\n  File "/srv/engine.py", line 1\nKeyError: Kari Nordmann'
    return json.dumps({"error": {"error_type": kind, "error_message": f"{message}\n{trace}"}}).encode()


NEXT_YEAR = format_datetime(datetime.now(UTC) + timedelta(days=365), usegmt=True)
LAST_YEAR = format_datetime(datetime.now(UTC) - timedelta(days=365), usegmt=True)
DEEP = b'{"results": ' + b"[" * 100_000

# name: what the engine does with the first chunk, and the class of the two mentors in it
BAD: dict[str, tuple[Script, str]] = {
    "accepts and never answers": (never, TIMEOUT),
    "one byte at a time": (dribble, TIMEOUT),
    "headers without an end": (headers_without_end, TIMEOUT),
    "reset in the middle": (reset, NETWORK),
    "closed without a word": (lambda _asked, _connection: None, NETWORK),
    "a body shorter than announced": (answering(b'{"results": []}', length=1000), NETWORK),
    "no HTTP": (lambda _asked, connection: connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"), NETWORK),
    "a gigabyte": (a_gigabyte, NETWORK),
    "a gzip bomb": (a_bomb, NETWORK),
    "ten megabytes of brackets": (ten_megabytes_of(b"[],"), NETWORK),
    "ten megabytes of numbers": (ten_megabytes_of(b"1,"), NETWORK),
    "100,000 nested brackets": (answering(DEEP), NETWORK),
    "NaN": (results(lambda rs: [{**rs[0], "dispatched": {"inactivity": float("nan")}}, rs[1]]), NETWORK),
    "a wrong content type": (
        lambda a, c: send(c, reply([result(m) for m in a.ids]), content_type="text/plain"),
        NETWORK,
    ),
    "HTML": (answering(b"<html>Kari Nordmann</html>", content_type="text/html"), NETWORK),
    "an empty body": (answering(b""), NETWORK),
    "JSON of the wrong shape": (answering(b'{"results": {"Kari Nordmann": 1}}'), NETWORK),
    "a list": (answering(b"[]"), NETWORK),
    "a negative count": (results(lambda rs: [{**rs[0], "suppressed": {"cooldown": -1}}, rs[1]]), NETWORK),
    "a count that is true": (results(lambda rs: [{**rs[0], "dispatched": {"inactivity": True}}, rs[1]]), NETWORK),
    "a reason there is not": (results(lambda rs: [{**rs[0], "suppressed": {"Kari Nordmann": 1}}, rs[1]]), NETWORK),
    "a scenario not asked for": (results(lambda rs: [{**rs[0], "dispatched": {"birthday": 1}}, rs[1]]), NETWORK),
    "status 204": (answering(b"", status=204), NETWORK),
    "another mentor instead": (results(lambda _rs: [result(world.mentor_id(9 + n)) for n in range(2)]), LOGIC),
    "no result for anyone": (results(lambda _rs: []), LOGIC),
    "everyone twice": (results(lambda rs: rs + rs), LOGIC),
    "an error of each mentor": (
        results(lambda rs: [{**r, "error": json.loads(told("database_error"))["error"]} for r in rs]),
        "database_error",
    ),
    "an error of an unknown type": (
        results(lambda rs: [{**r, "error": {"error_type": "gremlins", "error_message": "x"}} for r in rs]),
        LOGIC,
    ),
    "400": (answering(b"", status=400), LOGIC),
    "400 that says otherwise": (answering(told(NETWORK), status=400), LOGIC),
    "408": (answering(b"", status=408), TIMEOUT),
    "409": (answering(b"", status=409), LOGIC),
    "413": (answering(b"", status=413), LOGIC),
    "422": (answering(told(LOGIC), status=422), LOGIC),
    "429 with Retry-After 0": (answering(b"", status=429, Retry_After="0"), NETWORK),
    "429 with Retry-After 3600": (answering(b"", status=429, Retry_After="3600"), NETWORK),
    "429 with a date in a year": (answering(b"", status=429, Retry_After=NEXT_YEAR), NETWORK),
    "429 with a date of last year": (answering(b"", status=429, Retry_After=LAST_YEAR), NETWORK),
    "429 with nonsense": (answering(b"", status=429, Retry_After="soon, Kari Nordmann"), NETWORK),
    "429 with a number without end": (answering(b"", status=429, Retry_After="9" * 5000), NETWORK),
    "500": (answering(b"", status=500), NETWORK),
    "500 with everything in it": (answering(told("database_error"), status=500), "database_error"),
    "500 that blames the content": (answering(told(LOGIC), status=500), LOGIC),
    "500 with an HTML page": (answering(b"<pre>Kari Nordmann</pre>", status=500, content_type="text/html"), NETWORK),
    "502": (answering(b"", status=502), NETWORK),
    "502 that says it timed out": (answering(told(TIMEOUT), status=502), TIMEOUT),
    "503": (answering(b"", status=503), NETWORK),
    "504": (answering(b"", status=504), TIMEOUT),
    "a redirect to another host": (answering(b"", status=307, Location="http://127.0.0.2:1/Kari"), NETWORK),
}
TAKES_THE_WHOLE_BUDGET = {"accepts and never answers", "one byte at a time", "headers without an end"}


@pytest.fixture(scope="module")
def four_mentors(server: EmbeddedPostgres, template_database: str) -> Iterator[Engine]:
    """One database for the whole matrix: every case ends its run, and nothing is due for anybody."""
    for url in own_database(server, template_database):
        engine = database.connect(url)
        nobody_due(engine, 4)
        yield engine
        engine.dispose()


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_reply_costs_its_own_mentors_and_the_batch_goes_on(name: str, four_mentors: Engine) -> None:
    """Whatever an organisation's engine sends back: the class is told, nobody's data is, and the others are served."""
    script, expected = BAD[name]
    ids = [world.mentor_id(n) for n in range(1, 5)]
    engine = four_mentors

    def play(asked: Asked, connection: socket.socket) -> None:
        (script if set(asked.ids) <= set(ids[:2]) else well)(asked, connection)

    with ScriptedServer(play) as server, peak_memory() as grown:
        ran = run(engine, server.url, budget=0.5 if name in TAKES_THE_WHOLE_BUDGET else 10.0)
        assert grown() < 50, "megabytes"
    assert ran.errors == dict.fromkeys(ids[:2], expected)
    assert (ran.report.status, ran.report.stats.total_evaluated, ran.report.remaining) == ("completed", 2, 0)
    consistent(engine)


@pytest.mark.parametrize("status", [401, 403, 404, 405, 407, 410, 451])
def test_an_engine_that_refuses_the_caller_fails_the_run_at_once(status: int, engine: Engine) -> None:
    """A wrong token is one sentence to whoever configured it, and not an error of every mentor."""
    nobody_due(engine, 6)
    with ScriptedServer(answering(told("database_error"), status=status)) as server:
        ran = run(engine, server.url, concurrency=1)
    assert (ran.report.status, ran.report.remaining, ran.errors) == ("failed", 6, {})
    assert ran.report.failure is not None
    assert f"HTTP status {status}" in ran.report.failure.error_message
    assert len(server.asked) == 1, "there is nothing to be gained by asking again"
    consistent(engine)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "https://engine.invalid"])
def test_an_engine_that_is_not_there_fails_the_run_however_few_mentors_there_are(url: str, engine: Engine) -> None:
    """A small organisation's dead engine must not look like a completed run."""
    nobody_due(engine, 3)
    ran = run(engine, url, budget=6.0)
    assert (ran.report.status, ran.report.remaining, ran.errors) == ("failed", 3, {})
    assert ran.report.failure is not None
    assert ran.report.failure.error_type is ErrorType.NETWORK
    consistent(engine)


def tls_of(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest.mark.parametrize("wrong", ["unknown authority", "expired", "another host", None])
def test_a_certificate_that_does_not_prove_the_host_is_not_accepted(
    wrong: str | None, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever sits between the two would read every mentor's id and the token; a proper certificate is accepted."""
    nobody_due(engine, 2)
    ca = trustme.CA()
    if wrong != "unknown authority":
        ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    yesterday = datetime.now(UTC) - DAY if wrong == "expired" else None
    host = "127.0.0.2" if wrong == "another host" else "127.0.0.1"
    with ScriptedServer(well, tls_of(ca.issue_cert(host, not_after=yesterday))) as server:
        ran = run(engine, server.url)
    assert (ran.report.status, ran.errors) == ("completed" if wrong is None else "failed", {})
    if wrong is not None:
        assert ran.report.failure is not None
        assert "TLS certificate" in ran.report.failure.error_message
    assert (len(server.asked) > 0) is (wrong is None)


def test_a_redirect_is_not_followed(engine: Engine) -> None:
    """The token would go to whatever host the redirect names."""
    nobody_due(engine, 2)
    with (
        ScriptedServer(well) as elsewhere,
        ScriptedServer(answering(b"", status=307, Location=f"{elsewhere.url}{EVALUATIONS_PATH}")) as server,
    ):
        run(engine, server.url)
        assert (len(server.asked), elsewhere.asked) == (MAX_CALLS, [])


def test_proxy_variables_hold_only_if_asked_for(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable set for something else must not send mentors' ids through somebody's proxy."""
    nobody_due(engine, 2)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with ScriptedServer(well) as server, ScriptedServer(well) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        assert run(engine, server.url).errors == {}
        assert (len(server.asked), len(proxy.asked)) == (1, 0)
        assert run(engine, server.url, trust_proxy=True).errors == {}
        assert (len(server.asked), len(proxy.asked)) == (1, 1)


# What is asked


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
            "scenario_types": list(world.ALL_SCENARIOS),
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


# Content, retries, and the breaker


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
        # A chunk that was in hand while the engine answered for the last time may have failed for its own sake.
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
    """A rate limit is no failure: more requests side by side than the breaker allows in a row, all told to wait."""
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


def test_a_run_without_the_address_of_its_engine_says_so_in_its_log(run_job: RunJob, engine: Engine) -> None:
    """Chosen in the launch form or by a schedule: a run without a single entry would be looked for in vain."""
    nobody_due(engine, 2)
    ran = run_job(evaluation_date=D.isoformat(), engine="http")
    assert ran.names == ["scheduler_run_started", "scheduler_run_failed", "scheduler_run_completed"]
    assert ran.entry("scheduler_run_failed")["error_message"].startswith("SCENARIO_ENGINE_URL is not set")
    assert ran.entry("scheduler_run_failed")["remaining_unprocessed_count"] == 2


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
    """Every request in hand may bring the largest reply there is."""
    nobody_due(engine, 8)
    extra = "x" * (9 * 1024 * 1024)

    def script(asked: Asked, connection: socket.socket) -> None:
        send(connection, reply([result(asked.ids[0], extra=extra), *(result(m) for m in asked.ids[1:])]))

    with ScriptedServer(script) as server, peak_memory() as grown:
        run(engine, server.url, concurrency=4)
        # The server of this test lives in the same process and makes the bodies.
        assert grown() < 50 + 2 * 4 * 9, "megabytes"


# The end of the budget


def test_what_was_never_sent_is_left_to_the_next_run_and_what_was_sent_is_settled(engine: Engine) -> None:
    """Nobody is called a failure who was not even tried, and nobody is tried again who was answered for."""
    ids = nobody_due(engine, 10)
    slow = {ids[2]}

    def script(asked: Asked, connection: socket.socket) -> None:
        (never if slow & set(asked.ids) else well)(asked, connection)

    with ScriptedServer(script) as server:
        ran = run(engine, server.url, concurrency=1, budget=0.6, page_size=10)
        assert (ran.report.status, ran.report.reason, ran.report.remaining) == ("partial", "time_budget", 6)
        assert (ran.errors, ran.report.stats.total_evaluated) == (dict.fromkeys(ids[2:4], TIMEOUT), 2)
        consistent(engine)
        slow.clear()
        server.asked.clear()
        again = run(engine, server.url, concurrency=1, page_size=10)
    assert server.asked[0].ids == ids[4:6]
    assert again.report.stats.total_evaluated == 10
    consistent(engine)


def test_what_was_sent_for_a_killed_scheduler_is_counted_when_its_log_is_closed(served: str, engine: Engine) -> None:
    """The engine acted, and the process that asked died before it could write the page's row."""
    ids = quiet_mentors(engine, 6)
    request = replace(world.make_request(page_size=2), engine_name="http")
    invocation_id, log = world.new_invocation_id(), Log()
    http = http_engine(engine, served)
    killed = Invocation(request, invocation_id, database=engine, trigger_engine=http, logger=log.logger(invocation_id))
    killed.open()
    first, second, _third = killed.plan()
    killed.evaluate(first)
    http.close()
    asked = {"invocation_id": invocation_id, "peer_mentor_ids": list(second.mentor_ids)}
    assert post(served, a_request([], **asked), f"{invocation_id}:2:1").status_code == 200
    assert close_dead_invocation(engine, invocation_id, log.logger(invocation_id), logged=log.entries) is not None
    assert list(violations(log.lines)) == []
    completed = log.entries[-1]
    assert [row[0] for row in world.sent(engine)] == ids[:3]
    assert (completed["total_dispatched"], completed["dispatched_by_scenario"]) == (3, {"inactivity": 3})
    assert (completed["total_evaluated"], log.entries[-2]["remaining_unprocessed_count"]) == (2, 4)
    with engine.connect() as connection:
        [closed] = closed_invocations(connection, request.evaluation_date)
    assert list(disagreements(closed, log.lines, None)) == []


def test_what_the_service_cannot_finish_in_time_it_does_not_do(served: str, engine: Engine) -> None:
    """A notification that is committed after its run was closed would be in no total, for good."""
    quiet_mentors(engine, 3)
    with engine.begin() as connection:
        connection.execute(text("""
            CREATE FUNCTION scenario.slow() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM pg_sleep(0.6); RETURN NEW; END $$"""))  # fmt: skip
        connection.execute(text(
            "CREATE TRIGGER slow BEFORE INSERT ON scenario.scenario_notifications "
            "FOR EACH ROW EXECUTE FUNCTION scenario.slow()"))  # fmt: skip
    ran = run(engine, served, budget=0.8, chunk_size=3)
    assert (ran.report.stats.total_dispatched, set(ran.errors.values())) == (0, {TIMEOUT})
    world.wait_until(lambda: not active_backends(engine), "the service has ended what it had in hand")
    assert world.sent(engine) == []
    consistent(engine)


def active_backends(engine: Engine) -> int:
    """How many other connections of this database are in the middle of something."""
    with engine.connect() as connection:
        n: int = connection.execute(text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND state <> 'idle'")).scalar_one()  # fmt: skip
    return n


def test_an_answer_that_comes_after_the_budget_is_asked_for_once_more(engine: Engine) -> None:
    """The engine acted: its first reply is what counts, if it can be had at all."""
    ids = nobody_due(engine, 2)

    def script(asked: Asked, connection: socket.socket) -> None:
        (never if len(server.asked) == 1 else well)(asked, connection)

    with ScriptedServer(script) as server:
        ran = run(engine, server.url, budget=0.4)
    assert (ran.report.status, ran.errors, ran.report.stats.total_evaluated) == ("completed", {}, len(ids))
    assert [asked.key for asked in server.asked] == [server.asked[0].key] * 2


def test_a_budget_too_small_for_anything_is_kept_all_the_same(engine: Engine) -> None:
    """The first page may take a second of its own, so that every run gets on; an engine that hangs gets no more."""
    nobody_due(engine, 6)
    with ScriptedServer(never) as server:
        ran = run(engine, server.url, budget=0.001, concurrency=1)
    assert (ran.report.status, ran.report.remaining, len(ran.errors)) == ("partial", 4, 2)
    consistent(engine)


@pytest.mark.parametrize("was_reported", [True, False])
def test_a_re_execution_evaluates_only_the_rest_of_a_page(was_reported: bool, engine: Engine) -> None:
    """What the failed run was answered for is in its ledger; the re-execution counts the others and nobody twice."""
    ids = nobody_due(engine, 6)
    token_is_good = [True]

    def script(asked: Asked, connection: socket.socket) -> None:
        if token_is_good[0] or ids[0] in asked.ids:
            well(asked, connection)
        else:
            send(connection, b"", status=401)

    request = world.make_request()
    first_id, second_id, log = world.new_invocation_id(), world.new_invocation_id(), Log()
    with ScriptedServer(script) as server:
        token_is_good[0] = False
        http = http_engine(engine, server.url, concurrency=1)
        first = Invocation(request, first_id, database=engine, trigger_engine=http, logger=log.logger(first_id))
        first.open()
        pages = first.plan()
        outcomes = [first.evaluate(page) for page in pages]
        report = first.finish(outcomes)
        assert (report.status, report.stats.total_evaluated, report.remaining) == ("failed", 2, 4)
        assert [o.page.mentor_ids for o in outcomes if isinstance(o, PageUnprocessed)] == [tuple(ids[2:])]
        token_is_good[0] = True
        second = Invocation(
            request,
            second_id,
            database=engine,
            trigger_engine=http,
            logger=log.logger(second_id),
            parent_invocation_id=first_id,
        )
        second.open()
        if not was_reported:  # the process of the first run died between the page's commit and the end of its step
            outcomes = [second.evaluate(page) for page in pages]
        report = second.finish(outcomes)
        assert (report.status, report.stats.total_evaluated, report.total_active_mentors) == ("completed", 4, 4)
        http.close()
    assert list(violations(log.lines)) == []
    consistent(engine)


def evaluate_page(http: HttpTriggerEngine, engine: Engine, page: Page, invocation_id: str) -> PageResult:
    with engine.begin() as connection:
        world.open_run(connection, page.order, invocation_id)
    logger = Log().logger(invocation_id)
    return http.evaluate_page(page, invocation_id, TimeBudget.start(page.order.time_budget_seconds), logger)


def test_a_repeated_page_is_answered_from_the_ledger(engine: Engine) -> None:
    """A step that is run again must not send anything again, and must say the same of those who were left."""
    page = world.make_page(nobody_due(engine, 6), time_budget_seconds=0.6)
    invocation_id = world.new_invocation_id()

    def script(asked: Asked, connection: socket.socket) -> None:
        (never if page.mentor_ids[2] in asked.ids else well)(asked, connection)

    with ScriptedServer(script) as server:
        http = http_engine(engine, server.url, concurrency=1)
        first = evaluate_page(http, engine, page, invocation_id)
        requests = len(server.asked)
        assert (first.stats.total_evaluated, len(first.errors), first.unprocessed) == (2, 2, page.mentor_ids[4:])
        assert evaluate_page(http, engine, page, invocation_id) == first
        assert len(server.asked) == requests
        http.close()


def test_a_ledger_that_cannot_be_written_fails_the_run(engine: Engine) -> None:
    """What the ledger does not hold has not happened, as far as the totals go; and it is said whose fault it is."""
    nobody_due(engine, 2)

    def script(asked: Asked, connection: socket.socket) -> None:
        with engine.begin() as own:
            own.execute(text("ALTER TABLE scenario.scheduler_run_pages DROP COLUMN last_mentor_id"))
        well(asked, connection)

    with ScriptedServer(script) as server:
        ran = run(engine, server.url)
    assert (ran.report.status, ran.report.remaining, ran.errors) == ("failed", 2, {})
    assert ran.report.failure is not None
    assert ran.report.failure.error_type is ErrorType.DATABASE


# Both ends of the project


def test_a_mentor_who_is_no_longer_active_is_counted_as_the_sql_engine_does(served: str, engine: Engine) -> None:
    """Somebody who left between the list and the evaluation belongs to no organisation any more."""
    ids = quiet_mentors(engine, 2)
    with engine.begin() as connection:
        connection.execute(text("UPDATE scenario.peer_mentors SET status = 'left' WHERE id = :id"), {"id": ids[0]})
    http = http_engine(engine, served)
    page = world.make_page(ids, dispatch_mode="dry_run")
    over_http = evaluate_page(http, engine, page, world.new_invocation_id())
    in_sql = world.run_page(engine, page)
    assert over_http == in_sql
    assert over_http.stats.evaluated_by_organisation == {"": 1, world.organisation_id(): 1}
    http.close()


def pass_on(asked: Asked, url: str) -> httpx.Response:
    """Let the real engine act on a request."""
    return httpx.post(
        f"{url}{EVALUATIONS_PATH}",
        content=json.dumps(asked.body),
        headers={name: asked.headers[name] for name in ("authorization", "idempotency-key", "content-type")},
        trust_env=False,
    )


def test_an_answer_lost_after_the_engine_acted_doubles_nothing(served: str, engine: Engine) -> None:
    """Without the key the second request would find every mentor notified, and the run would count none."""
    ids = quiet_mentors(engine, 6)
    lost: set[str] = set()

    def script(asked: Asked, connection: socket.socket) -> None:
        reply = pass_on(asked, served)
        if asked.key in lost:
            send(connection, reply.content, status=reply.status_code)
        lost.add(asked.key)

    with ScriptedServer(script) as server:
        ran = run(engine, server.url, chunk_size=2, concurrency=3)
    stats = ran.report.stats
    assert (stats.total_dispatched, stats.suppressed_by_reason, ran.errors) == (5, {"opted_out": 1}, {})
    assert len(server.asked) == 6
    assert [row[0] for row in world.sent(engine)] == [m for m in ids if m != ids[3]]
    consistent(engine)


def rows(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        runs = connection.execute(
            text(
                "SELECT total_active_mentors, total_evaluated, total_dispatched, total_suppressed, total_errors,"
                " pages_processed, suppressed_by_reason, dispatched_by_scenario, status"
                " FROM scenario.scheduler_runs ORDER BY started_at"
            )
        ).all()
        configured = connection.execute(
            text(
                "SELECT scenario_type, organisation_id::text, last_evaluated_count"
                " FROM scenario.scenario_evaluation_config ORDER BY 1, 2"
            )
        ).all()
        return [*world.notifications(connection), *map(tuple, runs), *map(tuple, configured)]


@pytest.mark.parametrize("dispatch_mode", ["live", "dry_run"])
def test_both_engines_give_the_same_rows_and_the_same_totals(
    dispatch_mode: str,
    run_job: RunJob,
    served: str,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    server: EmbeddedPostgres,
    template_database: str,
    canaries: list[str],
) -> None:
    """Choosing where the evaluation happens must not choose what comes of it; two dates, so that all reasons occur."""
    dates = ("2026-07-31", "2026-08-01")
    for twin_url in own_database(server, template_database):
        twin = database.connect(twin_url)
        for world_of_its_own in (engine, twin):
            import_folder(world_of_its_own, COMMUNITY)
        poison_all_of([engine, twin])
        monkeypatch.setenv("SCENARIO_ENGINE_URL", served)
        monkeypatch.setenv("SCENARIO_ENGINE_TOKEN", TOKEN)
        monkeypatch.setenv("SCENARIO_ENGINE_CHUNK_SIZE", "37")
        totals = {}
        for name, url in (("http", None), ("sql", twin_url)):
            if url is not None:
                monkeypatch.setenv("SCENARIO_DATABASE_URL", url)
            ran = [
                run_job(evaluation_date=date, dispatch_mode=dispatch_mode, engine=name, page_size=400) for date in dates
            ]
            for job in ran:
                stranger_accepts(job.stdout, [*canaries, TOKEN])
                assert TOKEN not in job.everything_dagster_keeps() + job.stderr
            totals[name] = [job.entry("scheduler_run_completed") for job in ran]
        assert rows(engine) == rows(twin)
        for over_http, in_sql in zip(totals["http"], totals["sql"], strict=True):
            counted = {name for name in in_sql if name.startswith(("total_", "pages", "suppressed", "dispatched"))}
            assert {name: over_http[name] for name in counted} == {name: in_sql[name] for name in counted}
        assert totals["sql"][0]["total_dispatched"] > 0
        assert totals["sql"][0]["total_errors"] > 0
        consistent(engine)
        twin.dispose()


def poison_all_of(engines: Sequence[Engine]) -> None:
    """Let the database refuse what is written for one mentor in whom something is due."""
    with engines[0].connect() as connection:
        due = connection.execute(
            text(
                "SELECT user_id::text FROM scenario.mentor_activities GROUP BY 1"
                " HAVING max(activity_date) BETWEEN date '2026-07-31' - 36 AND date '2026-07-31' - 30"
                " ORDER BY 1 LIMIT 1"
            )
        ).scalar_one()
    for one in engines:
        refuse_notifications_of(one, [due])


def test_a_terminated_run_settles_what_is_in_hand_and_closes_within_five_seconds(
    served: str, database_url: str, dagster_url: str, engine: Engine, tmp_path: Path
) -> None:
    """Dagster's Terminate falls into a call: what the engine did is counted, the rest remains, and it ends at once."""
    ids = quiet_mentors(engine, 6)
    hold = threading.Event()

    def script(asked: Asked, connection: socket.socket) -> None:
        passed = pass_on(asked, served)
        if len(server.asked) == 1 or hold.is_set():
            send(connection, passed.content, status=passed.status_code)
        else:
            never(asked, connection)

    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    with ScriptedServer(script) as server:
        process = subprocess.Popen(
            [*(sys.executable, "-m", "scenario_pipeline", "run", "--date", D.isoformat()), "--dispatch-mode", "live"],
            env=inherited
            | {
                "PYTHONPATH": str(PROJECT),
                "SCENARIO_HOME": str(tmp_path),
                "SCENARIO_DATABASE_URL": as_scheduler(database_url),
                "SCENARIO_DAGSTER_DATABASE_URL": dagster_url,
                "SCENARIO_ENGINE": "http",
                "SCENARIO_ENGINE_URL": server.url,
                "SCENARIO_ENGINE_TOKEN": TOKEN,
                "SCENARIO_ENGINE_CHUNK_SIZE": "2",
                "SCENARIO_ENGINE_CONCURRENCY": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        world.wait_until(lambda: len(server.asked) == 2, "the second chunk is in hand", 60)
        hold.set()
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
        assert time.monotonic() - started < 5
    stranger_accepts(out)
    entries = {entry["event"]: entry for entry in map(json.loads, out.splitlines())}
    partial = entries["scheduler_run_partial"]
    counted = ("reason", "total_evaluated", "total_dispatched", "total_errors", "remaining_unprocessed_count")
    assert [partial[name] for name in counted] == ["terminated", 4, 3, 0, 2]
    assert [row[0] for row in world.sent(engine)] == ids[:3]
    assert "Traceback" not in err
    consistent(engine)


def test_a_resolver_that_hangs_does_not_hold_up_the_end(engine: Engine) -> None:
    """A name server that does not answer takes half a minute to give up on; nobody waits for that."""
    nobody_due(engine, 2)
    code = (
        "import socket, sys, time\n"
        "real, hangs = socket.getaddrinfo, ('engine.example', b'engine.example')\n"
        "socket.getaddrinfo = lambda host, *a, **k: time.sleep(60) if host in hangs else real(host, *a, **k)\n"
        "from scenario_pipeline_tests.test_http_engine import run\n"
        "from scenario_pipeline.storage import database\n"
        "ran = run(database.connect(sys.argv[1]), 'https://engine.example', budget=0.5)\n"
        "print(ran.report.stats.total_errors)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, engine.url.set(drivername="postgresql").render_as_string(False)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


# The tables of classes


def test_every_status_code_has_one_verdict() -> None:
    """A code nobody thought of must still end up in one of the four types."""
    found = {status: verdict_of(status) for status in range(100, 600)}
    listed = {
        Verdict.ANSWERED: {200},
        Verdict.CONTENT: {400, 413, 422},
        Verdict.TIMED_OUT: {408, 504},
        Verdict.CONFLICT: {409, 423, 425},
    }
    for verdict, statuses in listed.items():
        assert {status for status, given in found.items() if given is verdict} == statuses
    others = set(found) - set().union(*listed.values())
    refusing = {status for status in others if 400 <= status < 500} - {429}
    assert {status for status, given in found.items() if given is Verdict.MISCONFIGURED} == refusing
    assert {status for status, given in found.items() if given is Verdict.UNAVAILABLE} == others - refusing


@pytest.mark.parametrize(
    ("status", "kind", "fails_run", "splits", "retries"),
    [
        (200, NETWORK, False, False, True),
        (302, NETWORK, False, False, True),
        (400, LOGIC, False, True, False),
        (401, LOGIC, True, False, False),
        (403, LOGIC, True, False, False),
        (408, TIMEOUT, False, False, True),
        (409, LOGIC, False, False, True),
        (422, LOGIC, False, True, False),
        (429, NETWORK, False, False, True),
        (500, NETWORK, False, False, True),
        (502, NETWORK, False, False, True),
        (503, NETWORK, False, False, True),
        (504, TIMEOUT, False, False, True),
    ],
)
def test_a_status_says_what_may_be_done_about_it(
    status: int, kind: str, fails_run: bool, splits: bool, retries: bool
) -> None:
    failure = failure_of(status, {}, b"", datetime.now(UTC))
    assert (failure.info.error_type.value, failure.fails_run, failure.splits, failure.retries) == (
        kind,
        fails_run,
        splits,
        retries,
    )


def exceptions_of_the_client() -> list[type[Exception]]:
    def below(kind: type[Exception]) -> Iterator[type[Exception]]:
        yield kind
        for narrower in kind.__subclasses__():
            yield from below(narrower)

    return [kind for root in (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) for kind in below(root)]


@pytest.mark.parametrize("kind", exceptions_of_the_client(), ids=lambda kind: kind.__name__)
def test_every_exception_of_the_client_has_a_class_and_passes_no_text_on(kind: type[Exception]) -> None:
    """A release of the client that adds an exception must not add a type of error, or a name to the log."""
    exc = kind.__new__(kind)
    exc.args = ("Kari Nordmann",)
    failure = failure_of_exception(exc)
    assert "Kari" not in failure.info.error_message
    if issubclass(kind, httpx.TimeoutException):
        expected = ErrorType.TIMEOUT
    elif kind in (httpx.InvalidURL, httpx.UnsupportedProtocol):
        expected = ErrorType.EVALUATION_LOGIC
    else:
        expected = ErrorType.NETWORK
    assert failure.info.error_type is expected


def test_an_exception_of_any_other_library_is_a_failed_call_without_its_text() -> None:
    failure = failure_of_exception(RuntimeError("Kari Nordmann"))
    assert (failure.info.error_type, failure.fails_run, failure.splits) == (ErrorType.EVALUATION_LOGIC, False, False)
    assert "Kari" not in failure.info.error_message


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        (" 7 ", 7.0),
        ("-1", None),
        ("1.5", None),
        ("\u0663", None),
        ("9" * 5000, None),
        ("soon", None),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Wed, 01 Jan 2025 00:01:00 GMT", 60.0),
        ("Wed, 99 Jan 2025 00:01:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_or_nothing(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, datetime(2025, 1, 1, tzinfo=UTC)) == seconds
