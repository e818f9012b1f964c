"""Servers as they are met and cannot be installed: one that refuses in another language, a pooler that drops options.

Belongs here: the few messages of Postgres' protocol before a session begins (the manual, chapter "Message Formats").
Does not belong here: what is expected of those who connect.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_ASKS_FOR_TLS, _ASKS_FOR_GSS = 80877103, 80877104


def error_response(state: str, text: str, *, routine: str | None = None, severity: str = "FATAL") -> bytes:
    """Return the message by which a server refuses a connection; a pooler names no routine."""
    fields = {"S": severity, "V": "FATAL", "C": state, "M": text}
    if routine is not None:
        fields |= {"F": "source.c", "L": "1", "R": routine}
    body = b"".join(f"{name}{value}".encode() + b"\0" for name, value in fields.items()) + b"\0"
    return b"E" + struct.pack("!i", len(body) + 4) + body


def _exactly(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count and (more := connection.recv(count - len(found))):
        found += more
    return found


@contextmanager
def refusing(answer: Callable[[], bytes], tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Answer each connection that has said who it is with `answer()`, then close it; yield the port."""

    def refuse(connection: socket.socket, stack: contextlib.ExitStack) -> None:
        connection, _ = _begun(connection, stack, tls)
        connection.sendall(answer())

    with _serving(refuse) as port:
        yield port


@contextmanager
def dropping_options(server_port: int) -> Iterator[int]:
    """Pass each connection on to a server of this machine without the options of its session; yield the port."""

    def pass_on(connection: socket.socket, stack: contextlib.ExitStack) -> None:
        connection, startup = _begun(connection, stack, None)
        version, pairs = startup[:4], startup[4:].split(b"\0")
        kept = b"".join(
            name + b"\0" + value + b"\0"
            for name, value in zip(pairs[0::2], pairs[1::2], strict=False)
            if name not in (b"", b"options")
        )
        server = stack.enter_context(socket.create_connection(("127.0.0.1", server_port)))
        server.sendall(struct.pack("!i", len(kept) + 9) + version + kept + b"\0")
        peers = {connection: server, server: connection}
        while True:
            for ready in select.select(list(peers), [], [])[0]:
                if not (found := ready.recv(65_536)):
                    return
                peers[ready].sendall(found)

    with _serving(pass_on) as port:
        yield port


def _begun(
    connection: socket.socket, stack: contextlib.ExitStack, tls: ssl.SSLContext | None
) -> tuple[socket.socket, bytes]:
    """Read what a client begins with; return the connection, encrypted if that was agreed on, and who it says it is."""
    while True:
        length, code = struct.unpack("!ii", _exactly(connection, 8))
        if code == _ASKS_FOR_TLS and tls is not None:
            connection.sendall(b"S")
            connection = stack.enter_context(tls.wrap_socket(connection, server_side=True))
        elif code in (_ASKS_FOR_TLS, _ASKS_FOR_GSS):
            connection.sendall(b"N")
        else:
            return connection, struct.pack("!i", code) + _exactly(connection, length - 8)


@contextmanager
def _serving(handle: Callable[[socket.socket, contextlib.ExitStack], None]) -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def served(connection: socket.socket) -> None:
        # A client that does not trust the certificate, or has what it wanted, just goes away.
        with contextlib.suppress(OSError, struct.error), contextlib.ExitStack() as stack:
            handle(stack.enter_context(connection), stack)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.settimeout(10)
                threads.append(threading.Thread(target=served, args=(connection,)))
                threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(10)
        for thread in threads:
            thread.join(10)
