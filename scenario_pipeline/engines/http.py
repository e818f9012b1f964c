"""The `http` trigger engine: asks a remote engine about a page's mentors, many requests at once (contract section 6).

Belongs here: chunks, deadlines, retries, the breaker, and what a page comes to. Does not belong here: what an answer
means (`engines.api`), or the API's other end (`engines.service`).

The calls run on an event loop in a thread of its own. Dagster turns a signal into an exception that may rise between
any two lines of the main thread, and asyncio swallows a foreign `BaseException` that meets it inside a callback; here
it can only meet the main thread while that waits for the page.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

import httpx
import tenacity
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from scenario_pipeline.batch_stats import DISPATCHED, NO_ORGANISATION, UNKNOWN_SCENARIO, BatchStats, OutcomeKey
from scenario_pipeline.engines.api import (
    EVALUATIONS_PATH,
    HEALTH_PATH,
    TIME_LEFT_HEADER,
    CallFailure,
    EvaluationReply,
    EvaluationRequest,
    MentorResult,
    Verdict,
    failure_of,
    max_reply_bytes,
    read_reply,
    timed_out,
    unreachable,
    verdict_of,
)
from scenario_pipeline.engines.sql import MAX_ATTEMPTS, SETTLING_SECONDS, is_budgets_own
from scenario_pipeline.errors import BudgetSpentError, ErrorInfo, ErrorType, SystemicError, classify
from scenario_pipeline.events import EngineCallRetried, PageRetried
from scenario_pipeline.records import MentorError, Page, PageResult
from scenario_pipeline.storage import ledger
from scenario_pipeline.structured_logger import StructuredLogger, utc_now
from scenario_pipeline.time_budget import TimeBudget

CONNECT_SECONDS = 5.0
# No call lasts longer, however large the budget is.
CALL_SECONDS = 30.0
# How often a chunk is asked about before it is given up.
MAX_CALLS = 3
BACKOFF_SECONDS = 0.25
# So many calls in a row without an answer mean that the engine is down; more than `MAX_CALLS` of a single chunk.
BREAKER_CALLS = 10
# How long after the budget's end it may take to learn what became of the requests in hand. With the second that the
# first page may take although the budget is spent, this stays below the two that a run may last longer.
LAST_ASK_SECONDS = 0.75
CLOSING_SECONDS = 1.0

T = TypeVar("T")

_UNANSWERED = ErrorInfo(ErrorType.TIMEOUT, "the trigger engine did not answer within the time budget")


@dataclass(frozen=True)
class HttpTriggerEngine:
    """Evaluates pages by asking a remote engine; the page's row in the ledger is written here.

    Attributes:
        database: engine on the scheduler's own database.
        url: base URL of the remote engine; None fails the run.
        token: its bearer token, or None to send none.
        concurrency: how many requests are in hand at once.
        chunk_size: mentors a request.
        trust_proxy: whether proxy variables of the environment hold.
        backoff_seconds: about how long to wait before a call is repeated; the second time twice as long.
    """

    database: Engine
    url: str | None = field(repr=False)
    token: str | None = field(repr=False)
    concurrency: int
    chunk_size: int
    trust_proxy: bool = False
    backoff_seconds: float = BACKOFF_SECONDS
    _remote: _Remote = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_remote", _Remote(self))

    def evaluate_page(self, page: Page, invocation_id: str, budget: TimeBudget, logger: StructuredLogger) -> PageResult:
        """Evaluate and commit a page, or the part of it that the budget allows; see `TriggerEngine.evaluate_page`.

        No transaction is open while the engine is asked. A page that is asked about again gets the first replies.
        """
        if self.url is None:
            sentence = "SCENARIO_ENGINE_URL is not set: the http engine needs the address of the trigger engine"
            raise SystemicError(_unusable(sentence))
        try:
            with self.database.connect() as connection, connection.begin():
                ledger.limit_statement_time(connection, max(budget.remaining_seconds, SETTLING_SECONDS))
                committed = ledger.read_page(connection, page.number, invocation_id)
                organisations = ledger.organisations_of(connection, page.mentor_ids)
        except SQLAlchemyError as exc:
            failure = classify(exc)
        else:
            if committed is not None:
                return committed
            return self._ask(_PageCalls(self._remote, page, invocation_id, organisations, logger), budget, logger)
        if is_budgets_own(failure, budget):
            raise BudgetSpentError
        raise SystemicError(failure)

    def _ask(self, calls: _PageCalls, budget: TimeBudget, logger: StructuredLogger) -> PageResult:
        if budget.is_spent:
            raise BudgetSpentError
        running = self._remote.start(calls.run(budget.remaining_seconds))
        try:
            result = running.result()
        except Exception:
            raise
        except BaseException:
            # Told to stop: what is in hand is settled and what was answered is kept, as at the end of a budget.
            self._remote.call(calls.stop)
            with contextlib.suppress(Exception):
                result = running.result(2 * LAST_ASK_SECONDS)
                if result.left != calls.page.mentor_ids:
                    self._commit(calls.page, calls.invocation_id, result, logger)
            raise
        if result.left == calls.page.mentor_ids:
            raise BudgetSpentError if result.failure is None else SystemicError(result.failure)
        return self._commit(calls.page, calls.invocation_id, result, logger)

    def _commit(self, page: Page, invocation_id: str, result: PageResult, logger: StructuredLogger) -> PageResult:
        """Write the page's row, unless another process or a commit without an answer has done so."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                with self.database.begin() as connection:
                    ledger.limit_statement_time(connection, SETTLING_SECONDS)
                    committed = ledger.claim_page(connection, page, invocation_id)
                    if committed is None:
                        ledger.complete_page(connection, page, invocation_id, result)
            except SQLAlchemyError as exc:
                failure = classify(exc)
                was_lost = isinstance(exc, DBAPIError) and exc.connection_invalidated
            else:
                return result if committed is None else committed
            if attempt == MAX_ATTEMPTS or not (was_lost or failure.is_worth_a_retry):
                break
            logger.emit(PageRetried(page.number, attempt, failure.error_type, failure.error_message))
        raise SystemicError(failure)

    def close(self) -> None:
        """Close the connections; waits for nothing that does not end within `CLOSING_SECONDS`."""
        self._remote.close()


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that resolves names in threads nobody waits for: a resolver may hang for half a minute."""

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        found: asyncio.Future[Any] = self.create_future()

        def settle(value: Any, exc: Exception | None) -> None:
            if not found.done():
                found.set_result(value) if exc is None else found.set_exception(exc)

        def resolve() -> None:
            value, failure = None, None
            try:
                value = socket.getaddrinfo(host, port, **options)
            except Exception as exc:  # noqa: BLE001 - whatever it is belongs to whoever asked
                failure = exc
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self.call_soon_threadsafe(settle, value, failure)

        threading.Thread(target=resolve, daemon=True).start()
        return await found


class _Remote:
    """One connection pool, and the thread whose event loop uses it: started by the first page, closed with the run."""

    def __init__(self, options: HttpTriggerEngine) -> None:
        self.options = options
        self.answers = 0
        self.failures_in_a_row = 0
        self.welcome_at = 0.0
        self._loop: _Loop | None = None
        self._thread: threading.Thread | None = None
        self.client: httpx.AsyncClient

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin `work` on the loop."""
        if self._loop is None:
            self._loop = _Loop()
            self.client = self._make_client()
            self._thread = threading.Thread(target=self._run, args=(self._loop,), name="http-engine", daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, function: Callable[[], object]) -> None:
        """Call a function on the loop, soon."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(function)

    def _make_client(self) -> httpx.AsyncClient:
        token = self.options.token
        return httpx.AsyncClient(
            verify=_certificates(),
            trust_env=self.options.trust_proxy,
            follow_redirects=False,
            # The deadline of a whole call is the caller's: these would bound each read only.
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=self.options.concurrency),
            headers={
                "Accept": "application/json",
                # What is compressed can grow a thousandfold in a single read.
                "Accept-Encoding": "identity",
                "Content-Type": "application/json",
                "User-Agent": "scenario-pipeline",
                **({} if token is None else {"Authorization": f"Bearer {token}"}),
            },
        )

    @staticmethod
    def _run(loop: _Loop) -> None:
        if hasattr(signal, "pthread_sigmask"):
            # The main thread must get them: it may be waiting for this one.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        asyncio.set_event_loop(loop)
        loop.run_forever()

    def close(self) -> None:
        """End what runs, close the connections, stop the thread."""
        if self._loop is None or self._thread is None:
            return
        loop, self._loop = self._loop, None
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._end(), loop).result(CLOSING_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join(CLOSING_SECONDS)
        if not self._thread.is_alive():
            loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.client.aclose()


@dataclass(frozen=True)
class _Chunk:
    """Mentors who are asked about in one request.

    Attributes:
        part: its number within the page, and which half of a half: `3`, `3.1`, `3.1.2`.
        mentor_ids: in the order of the page.
    """

    part: str
    mentor_ids: tuple[str, ...]

    def halves(self) -> tuple[_Chunk, _Chunk]:
        middle = len(self.mentor_ids) // 2
        return (
            _Chunk(f"{self.part}.1", self.mentor_ids[:middle]),
            _Chunk(f"{self.part}.2", self.mentor_ids[middle:]),
        )


class _CallFailedError(Exception):
    """Carries a `CallFailure` through the retries."""

    def __init__(self, failure: CallFailure) -> None:
        super().__init__(failure.info.error_message)
        self.failure = failure


class _PageCalls:
    """All calls for one page, and what they came to.

    A chunk is in one of these places: waiting (never sent), in hand, without an answer (its calls failed), or settled.
    What was never sent is left to the next run; what was sent is settled in this one, if need be as an error.
    """

    def __init__(
        self,
        remote: _Remote,
        page: Page,
        invocation_id: str,
        organisations: Mapping[str, str],
        logger: StructuredLogger,
    ) -> None:
        self.page, self.invocation_id = page, invocation_id
        self._remote, self._organisations, self._logger = remote, organisations, logger
        size = remote.options.chunk_size
        starts = range(0, len(page.mentor_ids), size)
        self._waiting = deque(_Chunk(str(n), page.mentor_ids[i : i + size]) for n, i in enumerate(starts, start=1))
        self._in_hand: dict[str, _Chunk] = {}
        self._sent: set[str] = set()
        self._without_answer: dict[str, _Chunk] = {}
        self._last: dict[str, CallFailure] = {}
        self._calls: Counter[str] = Counter()
        self._evaluated: Counter[str] = Counter()
        self._outcomes: Counter[OutcomeKey] = Counter()
        self._errors: dict[str, ErrorInfo] = {}
        self._failure: ErrorInfo | None = None
        self._stopped = False
        self._deadline: asyncio.Timeout | None = None

    async def run(self, seconds: float) -> PageResult:
        """Ask about all chunks for at most `seconds`, then once more about those in hand; return what it came to."""
        try:
            async with asyncio.timeout(seconds) as self._deadline, asyncio.TaskGroup() as workers:
                for _ in range(self._remote.options.concurrency):
                    workers.create_task(self._work())
        except TimeoutError:
            pass
        self._deadline = None
        if self._in_hand and self._failure is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_ASK_SECONDS), asyncio.TaskGroup() as workers:
                    for chunk in tuple(self._in_hand.values()):
                        workers.create_task(self._ask_for_the_last_time(chunk))
        return self._result()

    def stop(self) -> None:
        """End the time for all calls now; who was not answered is left to the next run."""
        self._stopped = True
        self._end_in(0.0)

    def _end_in(self, seconds: float) -> None:
        deadline, soon = self._deadline, asyncio.get_running_loop().time() + seconds
        if deadline is not None and not deadline.expired() and soon < (deadline.when() or soon):
            deadline.reschedule(soon)

    async def _work(self) -> None:
        while self._waiting and self._failure is None:
            chunk = self._waiting.popleft()
            self._in_hand[chunk.part] = chunk
            await self._ask(chunk)

    async def _ask(self, chunk: _Chunk) -> None:
        """Settle a chunk in hand, if need be in halves until the mentors concerned are alone."""
        retrying = tenacity.AsyncRetrying(
            stop=lambda _state: self._calls[chunk.part] >= MAX_CALLS,
            retry=tenacity.retry_if_exception(self._is_worth_a_retry),
            wait=self._wait,
            before_sleep=lambda state: self._tell_retry(chunk, state),
            reraise=True,
        )
        answers_before = self._remote.answers
        try:
            reply: EvaluationReply = await retrying(self._call, chunk)
        except _CallFailedError as exc:
            failure = exc.failure
        else:
            self._settle(chunk, reply)
            return
        del self._in_hand[chunk.part]
        if not failure.splits:
            self._give_up(chunk, answers_before)
        elif len(chunk.mentor_ids) == 1:
            self._errors[chunk.mentor_ids[0]] = failure.info
        else:
            # The second half has not been sent: it waits like any other.
            first, second = chunk.halves()
            self._waiting.appendleft(second)
            self._in_hand[first.part] = first
            await self._ask(first)

    def _give_up(self, chunk: _Chunk, answers_before: int) -> None:
        """Tell a chunk that the engine cannot answer from an engine that answers nothing."""
        if self._failure is None and self._remote.answers > answers_before:
            self._errors |= dict.fromkeys(chunk.mentor_ids, self._last[chunk.part].info)
        else:
            self._without_answer[chunk.part] = chunk

    async def _ask_for_the_last_time(self, chunk: _Chunk) -> None:
        """Get the first reply of an engine that acted on a request, and whose answer was lost or came too late."""
        if self._is_left(chunk):
            return
        with contextlib.suppress(_CallFailedError):
            self._settle(chunk, await self._call(chunk))

    def _is_left(self, chunk: _Chunk) -> bool:
        """Whether nothing was done for a chunk in hand, so that its mentors are left: never sent, or refused whole."""
        last = self._last.get(chunk.part)
        refused = last is not None and (last.splits or last.retry_after_seconds is not None)
        return chunk.part not in self._sent or refused

    def _is_worth_a_retry(self, exc: BaseException) -> bool:
        if not isinstance(exc, _CallFailedError) or not exc.failure.retries or self._failure is not None:
            return False
        return (exc.failure.retry_after_seconds or 0.0) < self._seconds_left()

    def _seconds_left(self) -> float:
        """How long the calls of this page may still take; nothing once it ended, but for the last ask."""
        ends_at = self._deadline.when() if self._deadline is not None else None
        return 0.0 if ends_at is None else ends_at - asyncio.get_running_loop().time()

    def _wait(self, state: tenacity.RetryCallState) -> float:
        """How long to wait, in seconds: what the engine asks for, else longer each time, and never quite the same."""
        exc = state.outcome.exception() if state.outcome is not None else None
        if isinstance(exc, _CallFailedError) and exc.failure.retry_after_seconds is not None:
            return exc.failure.retry_after_seconds
        first = self._remote.options.backoff_seconds
        return tenacity.wait_exponential_jitter(multiplier=first, jitter=first)(state)

    def _tell_retry(self, chunk: _Chunk, state: tenacity.RetryCallState) -> None:
        info = self._last[chunk.part].info
        self._logger.emit(
            EngineCallRetried(self.page.number, chunk.part, state.attempt_number, info.error_type, info.error_message)
        )

    async def _call(self, chunk: _Chunk) -> EvaluationReply:
        """Call once, and note for the breaker whether the engine answered at all.

        Raises:
            _CallFailedError: there are no results; nothing else is raised but a cancellation.
        """
        loop = asyncio.get_running_loop()
        while (wait := self._remote.welcome_at - loop.time()) > 0:
            await asyncio.sleep(wait)
        try:
            reply = await self._post(chunk)
        except _CallFailedError as exc:
            self._last[chunk.part] = exc.failure
            # To be told to come back later is no attempt.
            self._calls[chunk.part] += not exc.failure.retry_after_seconds
            if exc.failure.fails_run:
                self._fail(exc.failure.info)
            elif exc.failure.splits:
                self._heard()
            elif 0 < (exc.failure.retry_after_seconds or 0.0) < self._seconds_left():
                # An engine that asks to be left alone is neither down nor to be called meanwhile.
                self._remote.welcome_at = max(
                    self._remote.welcome_at, loop.time() + (exc.failure.retry_after_seconds or 0.0)
                )
            else:
                self._not_heard(exc.failure.info)
            raise
        self._heard()
        return reply

    def _heard(self) -> None:
        """The engine is up: what it did not answer before is about those chunks, and not about the run."""
        self._remote.answers += 1
        self._remote.failures_in_a_row = 0
        if self._failure is None:
            for chunk in self._without_answer.values():
                self._errors |= dict.fromkeys(chunk.mentor_ids, self._last[chunk.part].info)
            self._without_answer.clear()

    def _not_heard(self, info: ErrorInfo) -> None:
        self._remote.failures_in_a_row += 1
        # Each request in hand may meet the same bad moment: that one of them was repeated in vain is the least.
        if self._remote.failures_in_a_row >= max(BREAKER_CALLS, 2 * self._remote.options.concurrency):
            self._not_answering(info)

    def _not_answering(self, info: ErrorInfo) -> None:
        self._fail(ErrorInfo(info.error_type, f"the trigger engine does not answer: {info.error_message}"))

    def _fail(self, info: ErrorInfo) -> None:
        """Send nothing more, and wait only shortly for what is in hand."""
        self._failure = self._failure or info
        if self._deadline is not None:
            self._end_in(LAST_ASK_SECONDS)

    async def _post(self, chunk: _Chunk) -> EvaluationReply:
        request = self.page.request
        message = EvaluationRequest(
            invocation_id=UUID(self.invocation_id),
            evaluation_date=request.evaluation_date,
            scenario_types=list(request.scenario_types),
            dispatch_mode=request.dispatch_mode,
            peer_mentor_ids=[UUID(mentor_id) for mentor_id in chunk.mentor_ids],
        )
        seconds = min(CALL_SECONDS, max(self._seconds_left(), LAST_ASK_SECONDS))
        self._sent.add(chunk.part)
        try:
            async with (
                asyncio.timeout(seconds),
                self._remote.client.stream(
                    "POST",
                    f"{self._remote.options.url}{EVALUATIONS_PATH}",
                    content=message.model_dump_json(),
                    headers={
                        "Idempotency-Key": f"{self.invocation_id}:{self.page.number}:{chunk.part}",
                        # What is not committed by then is to be rolled back: nobody would count it.
                        TIME_LEFT_HEADER: str(int(1000 * seconds)),
                    },
                ) as response,
            ):
                body = await _bounded_body(response, len(chunk.mentor_ids))
        except _CallFailedError:
            raise
        except Exception as exc:  # noqa: BLE001 - the boundary of a call: whatever happens in one is its failure
            failure = failure_of_exception(exc)
        else:
            headers = {name.lower(): value for name, value in response.headers.items()}
            if verdict_of(response.status_code) is Verdict.ANSWERED:
                reply = read_reply(headers, body)
                if reply is not None and all(self._fits(result) for result in reply.results):
                    return reply
            failure = failure_of(response.status_code, headers, body, utc_now())
        raise _CallFailedError(failure)

    def _fits(self, result: MentorResult) -> bool:
        scenario_types = self.page.request.scenario_types
        matches = sum(result.dispatched.values()) + sum(result.suppressed.values())
        return result.dispatched.keys() <= set(scenario_types) and matches <= len(scenario_types)

    def _settle(self, chunk: _Chunk, reply: EvaluationReply) -> None:
        """Count a reply: one result for each mentor asked about; a result for anybody else counts for nothing."""
        self._in_hand.pop(chunk.part)
        told: dict[str, list[MentorResult]] = {}
        for result in reply.results:
            told.setdefault(str(result.peer_mentor_id), []).append(result)
        for mentor_id in chunk.mentor_ids:
            match told.get(mentor_id, []):
                case [result] if result.error is None:
                    self._count(mentor_id, result)
                case [result] if result.error is not None:
                    self._errors[mentor_id] = result.error.info()
                case []:
                    self._errors[mentor_id] = _unusable("the trigger engine's reply has no result for this mentor")
                case _:
                    self._errors[mentor_id] = _unusable("the trigger engine's reply has two results for this mentor")

    def _count(self, mentor_id: str, result: MentorResult) -> None:
        organisation = self._organisations.get(mentor_id, NO_ORGANISATION)
        self._evaluated[organisation] += 1
        for scenario, n in result.dispatched.items():
            self._outcomes[organisation, scenario, DISPATCHED] += n
        for reason, n in result.suppressed.items():
            self._outcomes[organisation, UNKNOWN_SCENARIO, reason] += n

    def _result(self) -> PageResult:
        """Sum up: each mentor of the page is evaluated, an error, or left."""
        silent = [self._last[part].info for part, chunk in self._without_answer.items() if not self._is_left(chunk)]
        if silent and self._failure is None:
            # Nothing was heard since: however few calls there were, every other one would fare alike.
            self._not_answering(silent[-1])
        left = {mentor_id for chunk in self._waiting for mentor_id in chunk.mentor_ids}
        for chunk in (*self._without_answer.values(), *self._in_hand.values()):
            if self._failure is not None or self._stopped or self._is_left(chunk):
                left |= set(chunk.mentor_ids)
            else:
                last = self._last.get(chunk.part)
                self._errors |= dict.fromkeys(chunk.mentor_ids, _UNANSWERED if last is None else last.info)
        stats = BatchStats(+self._evaluated, +self._outcomes, len(self._errors), pages_processed=1)
        errors = (MentorError(m, self._errors[m]) for m in self.page.mentor_ids if m in self._errors)
        return PageResult(
            stats, tuple(errors), tuple(m for m in self.page.mentor_ids if m in left), self._failure if left else None
        )


def health_failure(url: str, *, trust_proxy: bool) -> ErrorInfo | None:
    """Ask the remote engine at this base URL for its health; return what is wrong, or None."""
    try:
        with httpx.Client(verify=_certificates(), trust_env=trust_proxy, timeout=CONNECT_SECONDS) as client:
            response = client.get(f"{url}{HEALTH_PATH}")
    except Exception as exc:  # noqa: BLE001 - whatever it is, it is told by its class
        return failure_of_exception(exc).info
    if response.status_code == httpx.codes.OK:
        return None
    return failure_of(response.status_code, response.headers, response.content, utc_now()).info


def _certificates() -> ssl.SSLContext:
    """Return the authorities that certifi knows, the system's own, and those of SSL_CERT_FILE."""
    context = httpx.create_ssl_context()
    context.load_default_certs()
    return context


def _unusable(sentence: str) -> ErrorInfo:
    return ErrorInfo(ErrorType.EVALUATION_LOGIC, sentence)


async def _bounded_body(response: httpx.Response, mentors: int) -> bytearray:
    """Read a body as it is sent, up to what the results of so many mentors can need.

    Raises:
        _CallFailedError: it is larger, or compressed although that was not asked for.
    """
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise _CallFailedError(unreachable("the trigger engine compressed its reply, which was not asked for"))
    body, most = bytearray(), max_reply_bytes(mentors)
    async for part in response.aiter_raw():
        body += part
        if len(body) > most:
            raise _CallFailedError(unreachable("the trigger engine's reply is too large"))
    return body


def failure_of_exception(exc: Exception) -> CallFailure:
    """Tell by its class what an exception of the client says; its text may quote the URL or the remote side."""
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
            return unreachable("the trigger engine's reply was cut off or is no HTTP")
        case httpx.UnsupportedProtocol() | httpx.InvalidURL():
            return CallFailure(_unusable("the URL of the trigger engine cannot be called"), fails_run=True)
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
