"""All calls for one page of the `http` trigger engine (contract section 6).

Belongs here: chunks, deadlines and retries. Does not belong here: connections (`engines.http.client`), what a reply
means (`engines.api`), whether to call at all (`engines.http.breaker`), or the sum of the replies
(`engines.http.tally`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from scenario_pipeline.engines.api import (
    EVALUATIONS_PATH,
    TIME_LEFT_HEADER,
    CallFailure,
    EvaluationReply,
    EvaluationRequest,
    Verdict,
    failure_of,
    read_reply,
    verdict_of,
)
from scenario_pipeline.engines.http.breaker import backoff
from scenario_pipeline.engines.http.client import (
    CallFailedError,
    RemoteEngine,
    bounded_body,
    failure_of_exception,
)
from scenario_pipeline.engines.http.tally import Tally
from scenario_pipeline.errors import ErrorInfo, ErrorType
from scenario_pipeline.limits import LAST_ASK_SECONDS
from scenario_pipeline.log.logger import StructuredLogger, utc_now
from scenario_pipeline.log.vocabulary import EngineCallRetried
from scenario_pipeline.records import Page, PageResult, RunOrder

# The limit of one call, however large the budget is.
CALL_SECONDS = 30.0
# How many attempts a chunk gets.
MAX_CALLS = 3
# After this many calls in a row without a reply, the engine counts as not replying although it is healthy. It is more
# than the `MAX_CALLS` of a single chunk.
BREAKER_CALLS = 10
_UNANSWERED = ErrorInfo(ErrorType.TIMEOUT, "the trigger engine did not answer within the time budget")


@dataclass(eq=False)
class _Chunk:
    """The mentors of one request.

    Attributes:
        part: its number within the page, with a digit for each halving: `3`, `3.1`, `3.1.2`.
        mentor_ids: in the order of the page.
        is_sent: whether it has been sent at least once.
        attempts: number of failed calls; neither a refusal with a pause nor a call during an outage counts.
        answers_before: how many replies the engine had sent when the attempts began.
        last_failure: why the latest call failed.
    """

    part: str
    mentor_ids: tuple[str, ...]
    is_sent: bool = False
    attempts: int = 0
    answers_before: int = 0
    last_failure: CallFailure | None = None

    def halves(self) -> tuple[_Chunk, _Chunk]:
        middle = len(self.mentor_ids) // 2
        return (
            _Chunk(f"{self.part}.1", self.mentor_ids[:middle]),
            _Chunk(f"{self.part}.2", self.mentor_ids[middle:]),
        )

    @property
    def is_untouched(self) -> bool:
        """Whether the engine did nothing for it, because it was never sent or refused as a whole."""
        last = self.last_failure
        refused = last is not None and (last.splits or last.retry_after_seconds is not None)
        return not self.is_sent or refused

    @property
    def error(self) -> ErrorInfo:
        """Why the mentors have no result."""
        return _UNANSWERED if self.last_failure is None else self.last_failure.info


class PageCalls:
    """All calls for one page.

    A chunk is waiting (never sent), in flight, without an answer (its calls failed), or counted. The next run evaluates
    chunks that were never sent. Chunks that were sent are counted in this run, if necessary as errors.
    """

    def __init__(
        self,
        remote: RemoteEngine,
        order: RunOrder,
        page: Page,
        invocation_id: str,
        organisations: Mapping[str, str],
        logger: StructuredLogger,
    ) -> None:
        self.page, self.invocation_id, self._order = page, invocation_id, order
        self._remote, self._breaker, self._logger = remote, remote.breaker, logger
        size = remote.options.chunk_size
        starts = range(0, len(page.mentor_ids), size)
        self._waiting = deque(_Chunk(str(n), page.mentor_ids[i : i + size]) for n, i in enumerate(starts, start=1))
        self._in_flight: dict[str, _Chunk] = {}
        self._without_answer: list[_Chunk] = []
        self._tally = Tally(order, page, organisations)
        self._failure: ErrorInfo | None = None
        self._stopped = False
        self._deadline: asyncio.Timeout | None = None

    async def run(self, seconds: float) -> PageResult:
        """Call for all chunks for at most `seconds`, then once more for those in flight; return the result."""
        try:
            async with asyncio.timeout(seconds) as self._deadline, asyncio.TaskGroup() as workers:
                for _ in range(self._remote.options.concurrency):
                    workers.create_task(self._work())
        except TimeoutError:
            pass
        self._deadline = None
        if self._breaker.is_down:
            # The engine failed its health checks until now.
            self._not_answering(self._silence())
        if self._in_flight and self._failure is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_ASK_SECONDS), asyncio.TaskGroup() as workers:
                    for chunk in tuple(self._in_flight.values()):
                        workers.create_task(self._final_attempt(chunk))
        return self._result()

    def stop(self) -> None:
        """End the time for all calls now; the next run evaluates mentors without a result."""
        self._stopped = True
        self._end_in(0.0)

    def _end_in(self, seconds: float) -> None:
        deadline, soon = self._deadline, asyncio.get_running_loop().time() + seconds
        if deadline is not None and not deadline.expired() and soon < (deadline.when() or soon):
            deadline.reschedule(soon)

    async def _work(self) -> None:
        while self._waiting and self._failure is None:
            chunk = self._waiting.popleft()
            self._in_flight[chunk.part] = chunk
            await self._ask(chunk)

    async def _ask(self, chunk: _Chunk) -> None:
        """Count a chunk in flight; if necessary, halve it until the mentors concerned are alone."""
        chunk.answers_before = self._breaker.answers
        try:
            reply = await self._call_repeatedly(chunk)
        except CallFailedError as exc:
            failure = exc.failure
        else:
            self._count(chunk, reply)
            return
        del self._in_flight[chunk.part]
        if not failure.splits:
            self._give_up(chunk)
        elif len(chunk.mentor_ids) == 1:
            self._tally.add_errors(chunk.mentor_ids, failure.info)
        else:
            # The second half has not been sent, so it waits like any other.
            first, second = chunk.halves()
            self._waiting.appendleft(second)
            self._in_flight[first.part] = first
            await self._ask(first)

    def _count(self, chunk: _Chunk, reply: EvaluationReply) -> None:
        del self._in_flight[chunk.part]
        self._tally.add_reply(chunk.mentor_ids, reply)

    def _give_up(self, chunk: _Chunk) -> None:
        """Distinguish a chunk that the engine cannot evaluate from an engine that does not reply at all."""
        # All requests in flight may fail for one momentary cause, so at least one more must have failed.
        if self._breaker.failures_in_a_row >= max(BREAKER_CALLS, 2 * self._remote.options.concurrency):
            self._not_answering(chunk.error)
        if self._failure is None and self._breaker.answers > chunk.answers_before:
            self._tally.add_errors(chunk.mentor_ids, chunk.error)
        else:
            self._without_answer.append(chunk)

    async def _final_attempt(self, chunk: _Chunk) -> None:
        """Get the first reply again, if the engine acted on a request but its reply was lost or late."""
        if chunk.is_untouched:
            return
        with contextlib.suppress(CallFailedError):
            self._count(chunk, await self._call(chunk))

    async def _call_repeatedly(self, chunk: _Chunk) -> EvaluationReply:
        """Call until there is a reply, as long as a repetition may help.

        Raises:
            CallFailedError: the latest call failed, and no further one follows.
        """
        repetition = 0
        while True:
            try:
                return await self._call(chunk)
            except CallFailedError as exc:
                failure = exc.failure
                if not self._may_be_repeated(failure):
                    raise
                if chunk.attempts >= MAX_CALLS and not await self._was_away(chunk, asks_for_health=True):
                    raise
            repetition += 1
            self._logger.emit(
                EngineCallRetried(
                    self.page.number, chunk.part, repetition, failure.info.error_type, failure.info.error_message
                )
            )
            await asyncio.sleep(self._pause(chunk, failure))

    def _may_be_repeated(self, failure: CallFailure) -> bool:
        pause = failure.retry_after_seconds or 0.0
        return failure.retries and self._failure is None and pause < self._seconds_left()

    async def _was_away(self, chunk: _Chunk, *, asks_for_health: bool) -> bool:
        """Wait until the engine may be called; return whether it was down, in which case the attempts start again."""
        was_away = await self._breaker.admit(asks_for_health=asks_for_health)
        if was_away:
            chunk.attempts, chunk.answers_before = 0, self._breaker.answers
        return was_away

    def _seconds_left(self) -> float:
        """Return the seconds left for the calls of this page; 0 once the time is over, also in the final attempt."""
        ends_at = self._deadline.when() if self._deadline is not None else None
        return 0.0 if ends_at is None else ends_at - asyncio.get_running_loop().time()

    def _pause(self, chunk: _Chunk, failure: CallFailure) -> float:
        """Return how many seconds to wait: as long as the engine requests, else longer each time."""
        if failure.retry_after_seconds is not None:
            return failure.retry_after_seconds
        return backoff(self._remote.options.backoff_seconds, max(0, chunk.attempts - 1))

    async def _call(self, chunk: _Chunk) -> EvaluationReply:
        """Call once, and record for the breaker whether the engine replied at all.

        Raises:
            CallFailedError: there are no results. Apart from a cancellation, nothing else is raised.
        """
        # The engine must pass a health check before and after the last attempt.
        is_last = self._deadline is not None and chunk.attempts == MAX_CALLS - 1
        await self._was_away(chunk, asks_for_health=is_last)
        try:
            reply = await self._post(chunk)
        except CallFailedError as exc:
            self._record(chunk, exc.failure)
            raise
        self._heard()
        return reply

    def _record(self, chunk: _Chunk, failure: CallFailure) -> None:
        chunk.last_failure = failure
        pause = failure.retry_after_seconds or 0.0
        # A request to call later does not count as an attempt.
        chunk.attempts += not pause
        if failure.fails_run:
            self._fail(failure.info)
        elif failure.splits:
            self._heard()
        elif 0 < pause < self._seconds_left():
            # An engine that requests a pause is not down, and must not be called during it.
            self._breaker.pause(pause)
        else:
            self._breaker.not_heard()

    def _heard(self) -> None:
        """The engine is up, so earlier failures concern those chunks, and not the run."""
        self._breaker.heard()
        if self._failure is None:
            for chunk in self._without_answer:
                self._tally.add_errors(chunk.mentor_ids, chunk.error)
            self._without_answer.clear()

    def _silence(self) -> ErrorInfo:
        """Return why the latest calls failed."""
        failures = [chunk.last_failure for chunk in (*self._in_flight.values(), *self._without_answer)]
        return next((failure.info for failure in failures if failure is not None), _UNANSWERED)

    def _not_answering(self, info: ErrorInfo) -> None:
        self._fail(ErrorInfo(info.error_type, f"the trigger engine does not answer: {info.error_message}"))

    def _fail(self, info: ErrorInfo) -> None:
        """Send nothing more, and wait only briefly for requests in flight."""
        self._failure = self._failure or info
        if self._deadline is not None:
            self._end_in(LAST_ASK_SECONDS)

    def _message(self, chunk: _Chunk) -> str:
        order = self._order
        return EvaluationRequest(
            invocation_id=UUID(self.invocation_id),
            evaluation_date=order.evaluation_date,
            scenario_types=list(order.scenario_types),
            dispatch_mode=order.dispatch_mode,
            peer_mentor_ids=[UUID(mentor_id) for mentor_id in chunk.mentor_ids],
        ).model_dump_json()

    async def _post(self, chunk: _Chunk) -> EvaluationReply:
        seconds = min(CALL_SECONDS, max(self._seconds_left(), LAST_ASK_SECONDS))
        chunk.is_sent = True
        try:
            async with (
                asyncio.timeout(seconds),
                self._remote.client.stream(
                    "POST",
                    f"{self._remote.options.url}{EVALUATIONS_PATH}",
                    content=self._message(chunk),
                    headers={
                        "Idempotency-Key": f"{self.invocation_id}:{self.page.number}:{chunk.part}",
                        # The engine rolls back work that it has not committed by then, because nobody would count it.
                        TIME_LEFT_HEADER: str(int(1000 * seconds)),
                    },
                ) as response,
            ):
                body = await bounded_body(response, len(chunk.mentor_ids))
        except CallFailedError:
            raise
        except Exception as exc:  # noqa: BLE001 - the boundary of a call: any exception is its failure
            failure = failure_of_exception(exc)
        else:
            headers = {name.lower(): value for name, value in response.headers.items()}
            if verdict_of(response.status_code) is Verdict.ANSWERED:
                reply = read_reply(headers, body)
                if reply is not None and self._tally.fits(reply):
                    return reply
            failure = failure_of(response.status_code, headers, body, utc_now())
        raise CallFailedError(failure)

    def _result(self) -> PageResult:
        """Return the sum: each mentor of the page is evaluated, an error, or unprocessed."""
        silent = [chunk.error for chunk in self._without_answer if not chunk.is_untouched]
        if silent and self._failure is None:
            # There was no reply since: even after few calls, any further one would fail in the same way.
            self._not_answering(silent[-1])
        unprocessed = {mentor_id for chunk in self._waiting for mentor_id in chunk.mentor_ids}
        for chunk in (*self._without_answer, *self._in_flight.values()):
            if self._failure is not None or self._stopped or chunk.is_untouched:
                unprocessed |= set(chunk.mentor_ids)
            else:
                self._tally.add_errors(chunk.mentor_ids, chunk.error)
        return self._tally.result(unprocessed, self._failure)
