"""The trigger engine's service under people who hold no token: what they may send, how slowly, and how often.

Belongs here: raw connections to the service. Does not belong here: requests that a client library would send
(`test_engine_service`).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from sqlalchemy import Engine, text

from scenario_pipeline.engines.api import EVALUATIONS_PATH, HEALTH_PATH
from scenario_pipeline.engines.service.connections import HEADERS_SECONDS, KEEP_ALIVE_SECONDS, MAX_CONNECTIONS
from scenario_pipeline_tests.support.invariants import sent
from scenario_pipeline_tests.support.people import quiet_mentors
from scenario_pipeline_tests.support.project import PROJECT
from scenario_pipeline_tests.support.service import TOKEN, a_request, post
from scenario_pipeline_tests.support.waiting import wait_until_blocked

HEALTH = f"GET {HEALTH_PATH} HTTP/1.1\r\nHost: engine\r\n".encode()


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 0), 30) as connection:
        yield connection


def exchange(url: str, request: bytes) -> bytes:
    """Send a request on a connection of its own; return all that comes back until the other side closes."""
    with connected(url) as connection:
        with contextlib.suppress(OSError):  # the service may close before it has read all
            connection.sendall(request)
        return received(connection)


def received(connection: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            answer += part
    return answer


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def is_well(url: str) -> bool:
    return httpx.get(f"{url}{HEALTH_PATH}", trust_env=False, timeout=30).status_code == 200


def raw_request(body: bytes, *headers: str) -> bytes:
    lines = [f"POST {EVALUATIONS_PATH} HTTP/1.1", "Host: engine", "Connection: close", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


# Bounds before anything is parsed


@pytest.mark.parametrize(
    "endless",
    [
        pytest.param(HEALTH + b"X: " + b"x" * 40 * 1024 * 1024, id="one value"),
        pytest.param(HEALTH + b"x" * 40 * 1024 * 1024, id="one name"),
        pytest.param(HEALTH + b"a:b\r\n" * 8 * 1024 * 1024, id="many headers"),
        pytest.param(b"GET /" + b"x" * 40 * 1024 * 1024, id="one path"),
        pytest.param(b"\r\n" * 20 * 1024 * 1024, id="empty lines"),
    ],
)
def test_headers_without_end_are_refused_after_a_few_kilobytes(served: str, endless: bytes) -> None:
    """Forty megabytes in one header stalled the service for nine seconds: each piece was added to all before it."""
    with connected(served) as connection:
        connection.setblocking(False)
        sent, ends_at = 0, time.monotonic() + 60
        with contextlib.suppress(ConnectionError):
            while sent < len(endless) and time.monotonic() < ends_at:
                readable, writable, _ = select.select([connection], [connection], [], 60)
                if readable:
                    break
                if writable:
                    sent += connection.send(endless[sent : sent + 65536])
    # What was not read stands in the buffers of the two sockets.
    assert sent < 16 * 1024 * 1024
    assert is_well(served)


def test_a_header_block_that_is_too_large_is_refused_although_it_is_complete(served: str) -> None:
    """It fits into one read, and thousands of small headers cost more than any large one."""
    assert status_of(exchange(served, HEALTH + b"Connection: close\r\n" + b"a:b\r\n" * 100 + b"\r\n")) == 200
    assert status_of(exchange(served, HEALTH + b"a:b\r\n" * 6000 + b"\r\n")) == 400


def test_a_body_in_tiny_pieces_is_refused(served: str, engine: Engine) -> None:
    """Each piece costs a step of the parser, with a token or without."""
    body = b" " * 20_000 + json.dumps(a_request(quiet_mentors(engine, 1))).encode()
    headers = (f"Authorization: Bearer {TOKEN}", "Content-Type: application/json", "Transfer-Encoding: chunked")

    def sent_in(size: int) -> bytes:
        pieces = (body[start : start + size] for start in range(0, len(body), size))
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        return exchange(served, raw_request(chunks + b"0\r\n\r\n", *headers, "Idempotency-Key: k"))

    assert status_of(sent_in(1)) == 400
    assert sent(engine) == []
    assert status_of(sent_in(1000)) == 200
    assert is_well(served)


def test_requests_ahead_of_their_answers_are_bounded(served: str) -> None:
    """Whoever never reads an answer may not make the service keep questions."""
    request = HEALTH + b"\r\n"
    answer = exchange(served, request * 5000)
    assert answer.count(b"HTTP/1.1 200") < 5000
    assert is_well(served)


# Time


def is_closed_within(connection: socket.socket, seconds: float, dribble: bytes = b"") -> bool:
    """Whether the other side closes in time, while a byte of `dribble` is sent now and then."""
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        readable, _, _ = select.select([connection], [], [], 0.2)
        try:
            if readable and not connection.recv(65536):
                return True
            if dribble:
                connection.send(dribble)
        except ConnectionError:
            return True
    return False


@pytest.mark.parametrize(
    ("start", "dribble", "allowed"),
    [
        pytest.param(b"", b"", HEADERS_SECONDS, id="silent"),
        pytest.param(HEALTH, b"", HEADERS_SECONDS, id="half a request"),
        pytest.param(HEALTH + b"X: ", b"x", HEADERS_SECONDS, id="a byte at a time"),
        pytest.param(b"", b"\r\n", HEADERS_SECONDS, id="empty lines"),
        pytest.param(HEALTH + b"\r\nGET", b"x", KEEP_ALIVE_SECONDS + HEADERS_SECONDS, id="after an answer"),
        pytest.param(
            HEALTH + b"Content-Length: 1000000\r\n\r\n", b"x", KEEP_ALIVE_SECONDS + HEADERS_SECONDS, id="a late body"
        ),
    ],
)
def test_a_connection_that_asks_for_nothing_is_closed(
    served: str, start: bytes, dribble: bytes, allowed: float
) -> None:
    """Half-open connections cost their sender nothing, and took the service off the network for as long as they
    stayed."""
    with connected(served) as connection:
        connection.sendall(start)
        assert is_closed_within(connection, allowed + 15, dribble)


@contextmanager
def limited_service(database_url: str, descriptors: int) -> Iterator[str]:
    """The command, with so few descriptors that a stranger can use them up."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = f'ulimit -n {descriptors}; exec "{sys.executable}" -m scenario_pipeline engine --port 0'
    process = subprocess.Popen(
        ["sh", "-c", command],
        env=inherited
        | {"PYTHONPATH": str(PROJECT), "SCENARIO_DATABASE_URL": database_url, "SCENARIO_ENGINE_TOKEN": TOKEN},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
    finally:
        process.kill()
        process.communicate()


def test_more_half_open_connections_than_descriptors_do_not_keep_anybody_out(database_url: str, engine: Engine) -> None:
    """The supervisor took the engine for dead, and a scheduler could not reach it."""
    asked = a_request(quiet_mentors(engine, 3))
    with limited_service(database_url, 256) as url, contextlib.ExitStack() as strangers:
        for _ in range(400):
            connection = strangers.enter_context(connected(url))
            with contextlib.suppress(ConnectionError):
                connection.sendall(HEALTH)
        assert is_well(url)
        assert post(url, asked).status_code == 200
        # Those that came last were not closed for it.
        connection.sendall(b"Connection: close\r\n\r\n")
        assert status_of(received(connection)) == 200


def test_a_client_that_is_answered_keeps_its_connection_when_it_is_full(served: str, engine: Engine) -> None:
    """Making room must not cost anybody an answer."""
    asked = json.dumps(a_request(quiet_mentors(engine, 3))).encode()
    headers = (f"Authorization: Bearer {TOKEN}", "Idempotency-Key: k", "Content-Type: application/json")
    with engine.begin() as held, connected(served) as client, contextlib.ExitStack() as strangers:
        held.execute(text("LOCK TABLE scenario.scenario_notifications IN ACCESS EXCLUSIVE MODE"))
        client.sendall(raw_request(asked, *headers, f"Content-Length: {len(asked)}"))
        wait_until_blocked(engine, 1)
        for _ in range(MAX_CONNECTIONS + 20):
            strangers.enter_context(connected(served))
        assert is_well(served)
        held.rollback()
        assert status_of(received(client)) == 200


# Headers that two readers may read in two ways


def evaluation(*headers: str, body: bytes = b"{}") -> bytes:
    usual = {
        "Authorization": f"Bearer {TOKEN}",
        "Idempotency-Key": "k",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    # Named anew, a header takes the place of the usual one.
    given = {header.split(":", 1)[0].lower() for header in headers}
    kept = (f"{name}: {value}" for name, value in usual.items() if name.lower() not in given)
    return raw_request(body, *kept, *headers)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(("Authorization: Bearer wrong", f"Authorization: Bearer {TOKEN}"), id="wrong and right token"),
        pytest.param((f"Authorization: Bearer {TOKEN}", "authorization: Bearer wrong"), id="right and wrong token"),
        pytest.param((f"Authorization: Bearer {TOKEN}", f"Authorization: Bearer {TOKEN}"), id="the token twice"),
        pytest.param(("Idempotency-Key: a", "Idempotency-Key: b"), id="two keys"),
        pytest.param(("Content-Type: application/json", "Content-Type: text/plain"), id="two content types"),
        pytest.param(("Scenario-Time-Left-Ms: 1000", "Scenario-Time-Left-Ms: 60000"), id="two times left"),
        pytest.param(("Content-Length: 2", "Content-Length: 3"), id="two lengths"),
        pytest.param(("Content-Length: 2, 3",), id="a list of lengths"),
        pytest.param(("Content-Length: +2",), id="a signed length"),
        pytest.param(("Content-Length: 2", "Transfer-Encoding: chunked"), id="a length and an encoding"),
        pytest.param(("Transfer-Encoding: chunked", "Transfer-Encoding: identity"), id="two encodings"),
        pytest.param(("Transfer-Encoding: xchunked",), id="an unknown encoding"),
        pytest.param(("Transfer-Encoding : chunked",), id="a blank before the colon"),
        pytest.param(("Host: other",), id="two hosts"),
        pytest.param(("X: a\x00b",), id="a NUL"),
        pytest.param(("X: a\rb",), id="a bare carriage return"),
        pytest.param(("X\xe5: b",), id="a name outside of ASCII"),
    ],
)
def test_a_request_that_can_be_read_in_two_ways_is_refused(
    served: str, engine: Engine, headers: tuple[str, ...]
) -> None:
    """A proxy that reads the other header lets a stranger in, or takes a part of one request for the next one."""
    body = json.dumps(a_request(quiet_mentors(engine, 1))).encode()
    answer = exchange(served, evaluation(*headers, body=body))
    assert (status_of(answer), answer.count(b"HTTP/1.1")) == (400, 1)
    assert sent(engine) == []
    assert is_well(served)


def test_a_folded_header_is_one_value(served: str, engine: Engine) -> None:
    """RFC 9112 lets a server take a fold for a blank; it must not take it for the end of the value."""
    body = json.dumps(a_request(quiet_mentors(engine, 1))).encode()
    assert status_of(exchange(served, evaluation("Authorization: Bearer\r\n wrong", body=body))) == 401
    assert status_of(exchange(served, evaluation(f"Authorization: Bearer\r\n {TOKEN}", body=body))) == 200
