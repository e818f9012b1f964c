"""Bad replies to the `http` engine: each costs its own mentors, and the batch goes on."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
import trustme
from sqlalchemy import Engine

from scenario_pipeline.engines.api import EVALUATIONS_PATH
from scenario_pipeline.engines.http.page_calls import MAX_CALLS
from scenario_pipeline.errors import ErrorType
from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.support.http_runs import LOGIC, NETWORK, TIMEOUT, nobody_due, peak_memory, run
from scenario_pipeline_tests.support.invariants import consistent
from scenario_pipeline_tests.support.people import DAY, mentor_id
from scenario_pipeline_tests.support.scripted_server import (
    Asked,
    Script,
    ScriptedServer,
    answering,
    never,
    reply,
    result,
    results,
    send,
    told,
    well,
)
from scenario_pipeline_tests.support.server import own_database


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
    "another mentor instead": (results(lambda _rs: [result(mentor_id(9 + n)) for n in range(2)]), LOGIC),
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
    """Whatever an engine sends back, the error's class is reported, no data is, and the other mentors are served."""
    script, expected = BAD[name]
    ids = [mentor_id(n) for n in range(1, 5)]
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
    """A wrong token is one sentence to the person who configured it, and not an error of every mentor."""
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
    """An attacker between the two would read every mentor's id and the token; a proper certificate is accepted."""
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
