"""The HTTP client of the `http` trigger engine: one connection pool on an event loop of its own.

Belongs here: the loop's thread, connections, bounded bodies, and the meaning of httpx's exceptions. Does not belong
here: which calls are made (`engines.http.page_calls`).

Dagster turns a signal into an exception, which can interrupt the main thread at any line. asyncio swallows a
`BaseException` that hits a callback. With the loop in its own thread, the exception can only interrupt the main thread,
which is waiting for the page.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from scenario_pipeline.engines.api import HEALTH_PATH, CallFailure, failure_of, max_reply_bytes, timed_out, unreachable
from scenario_pipeline.engines.http.breaker import Breaker
from scenario_pipeline.errors import ErrorInfo, ErrorType, classify
from scenario_pipeline.log.logger import utc_now

ENGINE_CONNECT_SECONDS = 5.0
BACKOFF_SECONDS = 0.25
CLIENT_CLOSING_SECONDS = 1.0
T = TypeVar("T")


@dataclass(frozen=True)
class RemoteOptions:
    """Where the remote engine is and how it is called.

    Attributes:
        url: its base URL; None fails the run.
        token: its bearer token, or None to send none.
        concurrency: number of simultaneous requests.
        chunk_size: mentors in one request.
        trust_proxy: whether proxy variables of the environment apply.
        backoff_seconds: approximate wait before a call is repeated; it doubles each time.
    """

    url: str | None = field(repr=False)
    token: str | None = field(repr=False)
    concurrency: int
    chunk_size: int
    trust_proxy: bool = False
    backoff_seconds: float = BACKOFF_SECONDS


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that never waits for its name-resolving threads: a resolver may hang for half a minute."""

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        found: asyncio.Future[Any] = self.create_future()

        def finish(value: Any, exc: Exception | None) -> None:
            if not found.done():
                found.set_result(value) if exc is None else found.set_exception(exc)

        def resolve() -> None:
            value, failure = None, None
            try:
                value = socket.getaddrinfo(host, port, **options)
            except Exception as exc:  # noqa: BLE001 - any exception is passed to the caller
                failure = exc
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                self.call_soon_threadsafe(finish, value, failure)

        threading.Thread(target=resolve, daemon=True).start()
        return await found


class RemoteEngine:
    """One connection pool, and the thread whose event loop uses it; the first page starts it, and the run closes it."""

    def __init__(self, options: RemoteOptions) -> None:
        self.options = options
        self.breaker = Breaker(self.is_well, options.backoff_seconds)
        self._loop: _Loop | None = None
        self._thread: threading.Thread | None = None
        self.client: httpx.AsyncClient

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start `work` on the loop."""
        if self._loop is None:
            self._loop = _Loop()
            self.client = self._make_client()
            self._thread = threading.Thread(target=self._run, args=(self._loop,), name="http-engine", daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, function: Callable[[], object]) -> None:
        """Schedule a function call on the loop."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(function)

    async def is_well(self) -> bool:
        """Check the engine's health; any reply counts unless it is a failure or asks for a pause."""
        try:
            async with (
                asyncio.timeout(ENGINE_CONNECT_SECONDS),
                self.client.stream("GET", f"{self.options.url}{HEALTH_PATH}") as response,
            ):
                return response.status_code < 500 and response.status_code != httpx.codes.TOO_MANY_REQUESTS
        except Exception as exc:  # noqa: BLE001 - after any exception, the engine is not known to be healthy
            # A wrong certificate will not change, so let the next call report it.
            return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(exc))

    def _make_client(self) -> httpx.AsyncClient:
        token = self.options.token
        return httpx.AsyncClient(
            verify=_certificates(),
            trust_env=self.options.trust_proxy,
            follow_redirects=False,
            # The caller sets the deadline of the whole call; these would only limit each read.
            timeout=httpx.Timeout(None, connect=ENGINE_CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=self.options.concurrency),
            headers={
                "Accept": "application/json",
                # Compressed data can grow a thousandfold in a single read.
                "Accept-Encoding": "identity",
                "Content-Type": "application/json",
                "User-Agent": "scenario-pipeline",
                **({} if token is None else {"Authorization": f"Bearer {token}"}),
            },
        )

    @staticmethod
    def _run(loop: _Loop) -> None:
        if hasattr(signal, "pthread_sigmask"):
            # The main thread must get the signals, because it may be waiting for this thread.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        asyncio.set_event_loop(loop)
        loop.run_forever()

    def close(self) -> None:
        """Cancel running work, close the connections, and stop the thread."""
        if self._loop is None or self._thread is None:
            return
        loop, self._loop = self._loop, None
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._end(), loop).result(CLIENT_CLOSING_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join(CLIENT_CLOSING_SECONDS)
        if not self._thread.is_alive():
            loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.client.aclose()


class CallFailedError(Exception):
    """Carries a `CallFailure` through the retries."""

    def __init__(self, failure: CallFailure) -> None:
        super().__init__(failure.info.error_message)
        self.failure = failure


def health_failure(url: str, *, trust_proxy: bool) -> ErrorInfo | None:
    """Check the health of the remote engine at this base URL; return what is wrong, or None."""
    try:
        with httpx.Client(verify=_certificates(), trust_env=trust_proxy, timeout=ENGINE_CONNECT_SECONDS) as client:
            response = client.get(f"{url}{HEALTH_PATH}")
    except Exception as exc:  # noqa: BLE001 - any exception is reported by its class
        return failure_of_exception(exc).info
    if response.status_code == httpx.codes.OK:
        return None
    return failure_of(response.status_code, response.headers, response.content, utc_now()).info


def _certificates() -> ssl.SSLContext:
    """Return a TLS context with the authorities of certifi, the system and SSL_CERT_FILE."""
    context = httpx.create_ssl_context()
    context.load_default_certs()
    return context


def unusable(sentence: str) -> ErrorInfo:
    """Return the error for an engine or a reply that cannot be used."""
    return ErrorInfo(ErrorType.EVALUATION_LOGIC, sentence)


async def bounded_body(response: httpx.Response, mentors: int) -> bytearray:
    """Read a body as it arrives, up to the size limit for this number of mentors.

    Raises:
        CallFailedError: it is larger, or is compressed, which was not requested.
    """
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise CallFailedError(unreachable("the trigger engine compressed its reply, which was not requested"))
    body, most = bytearray(), max_reply_bytes(mentors)
    async for part in response.aiter_raw():
        body += part
        if len(body) > most:
            raise CallFailedError(unreachable("the trigger engine's reply is too large"))
    return body


def failure_of_exception(exc: Exception) -> CallFailure:
    """Classify an exception of the client; its text is not used, as it may quote the URL or the engine."""
    match exc:
        case httpx.ConnectTimeout():
            return timed_out("the trigger engine accepted no connection in time")
        case httpx.TimeoutException() | TimeoutError():
            return timed_out("the trigger engine did not answer in time")
        case httpx.NetworkError() if any(isinstance(cause, ssl.SSLError) for cause in _causes(exc)):
            return unreachable("the trigger engine's TLS certificate or protocol was not accepted")
        case httpx.NetworkError() if any(isinstance(cause, socket.gaierror) for cause in _causes(exc)):
            return unreachable("the name of the trigger engine's host could not be resolved")
        case httpx.NetworkError():
            return unreachable("the connection to the trigger engine was refused or lost")
        case httpx.ProxyError():
            return unreachable("the proxy did not connect to the trigger engine")
        case httpx.ProtocolError() | httpx.DecodingError() | httpx.TooManyRedirects():
            return unreachable("the trigger engine's reply was cut off or is not HTTP")
        case httpx.UnsupportedProtocol() | httpx.InvalidURL():
            return CallFailure(unusable("the URL of the trigger engine cannot be called"), fails_run=True)
        case httpx.HTTPError() | httpx.StreamError():
            return unreachable(f"the call of the trigger engine failed ({type(exc).__name__})")
        case _:
            info = classify(exc)
            return CallFailure(ErrorInfo(info.error_type, info.error_message), retries=True)


def _causes(exc: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = exc
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
