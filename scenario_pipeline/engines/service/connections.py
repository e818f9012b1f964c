"""The HTTP server of the trigger engine, and limits on what an unknown client may send.

Belongs here: connections, from accepting them to closing them; uvicorn is imported here alone. Does not belong here:
routes (`engines.service.app`), or starting and stopping (`engines.service.server`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from scenario_pipeline.engines.service.app import REQUEST_SECONDS, EngineService

try:
    import resource
except ImportError:  # Windows
    _DESCRIPTORS = 512
else:
    _DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)[0]

# How many connections are open at once. A whole burst is accepted before its first connection is closed, and the
# database and the log also need descriptors. A descriptor limit of -1 means none.
MAX_CONNECTIONS = 256 if _DESCRIPTORS < 0 else max(16, min(256, _DESCRIPTORS // 4))
# How long a client may take from connecting to the end of the headers, or stay idle between two requests.
HEADERS_SECONDS = 5.0
KEEP_ALIVE_SECONDS = 5
# How long a request may go without its complete reply, since some clients never read it.
ANSWER_SECONDS = REQUEST_SECONDS + 5.0
MAX_HEADER_BYTES = 16 * 1024
# Each piece of a body costs a step of the parser, however small it is.
MAX_BODY_PARTS = 4096
_READ_BYTES = 4 * 1024


class _BoundedParser(h11.Connection):
    """Refuses a body in too many pieces; h11 itself limits headers that have not ended."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEADER_BYTES)
        self._parts = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._parts = 0
        elif isinstance(event, h11.Data):
            self._parts += 1
            if self._parts > MAX_BODY_PARTS:
                raise h11.RemoteProtocolError("too many pieces")
        return event


class _BoundedProtocol(H11Protocol):
    """HTTP/1.1 from unknown clients, limited in bytes before parsing, and in time from the connection on.

    uvicorn limits neither: its C parser collects endless headers, and its time-outs begin after a reply. This was read
    in version 0.54.

    Attributes:
        waits_since: when the connection was made or its latest reply was complete, by the loop's clock.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = _BoundedParser()
        self.waits_since = self.loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._early_bytes = 0

    @property
    def can_go(self) -> bool:
        """Whether the connection is open and no request on it is being read or answered."""
        return not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete)

    def _end_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock, and make room for the connection."""
        super().connection_made(transport)
        self._end_in(HEADERS_SECONDS)
        others = [cast("_BoundedProtocol", one) for one in self.connections if one is not self]
        if sum(not one.transport.is_closing() for one in others) >= MAX_CONNECTIONS:
            # Of the idle connections, the oldest is closed: a new client always gets time for a request.
            candidates = (one for one in others if one.can_go)
            min(candidates, key=lambda one: one.waits_since, default=self).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse in small pieces, so that too many headers are refused before they are parsed."""
        for start in range(0, len(data), _READ_BYTES):
            piece = data[start : start + _READ_BYTES]
            if self.transport.is_closing():
                return
            if self.conn.their_state is h11.DONE:
                # This is the next request, sent before the current one is answered; keep it unparsed.
                self._early_bytes += len(piece)
                if self._early_bytes > MAX_HEADER_BYTES:
                    self.transport.abort()
                    return
            super().data_received(piece)

    def handle_events(self) -> None:
        """Start the time for the reply to a new request."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._early_bytes = 0
            self._end_in(ANSWER_SECONDS)

    def on_response_complete(self) -> None:
        """Start the time for the client's next request."""
        self.waits_since = self.loop.time()
        self._end_in(KEEP_ALIVE_SECONDS + HEADERS_SECONDS)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse invalid HTTP, unless a reply has already started or ended, since there is no place for another."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()


def _nothing() -> None:
    pass


def make_server(
    service: EngineService, *, on_start: Callable[[], None] = _nothing, on_stop: Callable[[], None] = _nothing
) -> uvicorn.Server:
    """Return a server that runs when its `run` is called, and ends once its `should_exit` is set.

    Args:
        service: the service that answers.
        on_start: called before the first request.
        on_stop: called after the last reply.
    """
    app = service.app()

    @asynccontextmanager
    async def lifespan(_app: object) -> AsyncIterator[None]:
        on_start()
        yield
        on_stop()

    app.router.lifespan_context = lifespan
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=_BoundedProtocol,
            ws="none",
            access_log=False,
            log_config=None,
            # stdout holds events only, and a stack trace may quote anything.
            log_level="critical",
            # asyncio accepts this many before it serves the first of them.
            backlog=min(128, MAX_CONNECTIONS),
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(REQUEST_SECONDS),
            server_header=False,
        )
    )
