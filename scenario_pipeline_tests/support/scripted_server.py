"""An HTTP server whose every answer is a script of the test's.

Belongs here: reading a request, and the answers that several tests give. Does not belong here: what the client makes
of them.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from scenario_pipeline.engines.api import EVALUATIONS_PATH
from scenario_pipeline_tests.support.service import TOKEN


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
    return None if asks_for_health else Asked(headers, json.loads(stream.read(int(headers.get("content-length", "0")))))


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


def never(asked: Asked, connection: socket.socket) -> None:
    connection.recv(1)


def results(change: Callable[[list[dict[str, Any]]], list[Any]]) -> Script:
    return lambda asked, connection: send(connection, reply(change([result(m) for m in asked.ids])))


def answering(body: bytes, **options: Any) -> Script:
    return lambda _asked, connection: send(connection, body, **options)


def told(kind: str) -> bytes:
    message = f"Kari Nordmann <kari.nordmann@example.org> +47 22 22 55 55 password=s3cret Bearer {TOKEN}"
    trace = 'Traceback (most recent call last):\n  File "/srv/engine.py", line 1\nKeyError: Kari Nordmann'
    return json.dumps({"error": {"error_type": kind, "error_message": f"{message}\n{trace}"}}).encode()


def pass_on(asked: Asked, url: str) -> httpx.Response:
    """Let the real engine act on a request."""
    return httpx.post(
        f"{url}{EVALUATIONS_PATH}",
        content=json.dumps(asked.body),
        headers={name: asked.headers[name] for name in ("authorization", "idempotency-key", "content-type")},
        trust_env=False,
    )
