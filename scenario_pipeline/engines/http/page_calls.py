"""All calls for one page of the `http` trigger engine, and what they add up to (contract section 6).

Belongs here: chunks, deadlines, retries and the breaker. Does not belong here: connections (`engines.http.client`), or
what an answer means (`engines.api`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

import tenacity

from scenario_pipeline.batch_stats import DISPATCHED, NO_ORGANISATION, UNKNOWN_SCENARIO, BatchStats, OutcomeKey
from scenario_pipeline.engines.api import (
    EVALUATIONS_PATH,
    TIME_LEFT_HEADER,
    CallFailure,
    EvaluationReply,
    EvaluationRequest,
    MentorResult,
    Verdict,
    failure_of,
    read_reply,
    verdict_of,
)
from scenario_pipeline.engines.http.client import (
    LAST_ASK_SECONDS,
    CallFailedError,
    RemoteEngine,
    bounded_body,
    failure_of_exception,
    unusable,
)
from scenario_pipeline.errors import ErrorInfo, ErrorType
from scenario_pipeline.log.logger import StructuredLogger, utc_now
from scenario_pipeline.log.vocabulary import EngineCallRetried
from scenario_pipeline.records import MentorError, Page, PageResult, RunOrder

# No call lasts longer, however large the budget is.
CALL_SECONDS = 30.0
# How often a chunk is asked about before it is given up.
MAX_CALLS = 3
# So many calls in a row without an answer mean that the engine is down; more than `MAX_CALLS` of a single chunk.
BREAKER_CALLS = 10
_UNANSWERED = ErrorInfo(ErrorType.TIMEOUT, "the trigger engine did not answer within the time budget")


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


class PageCalls:
    """All calls for one page, and what they came to.

    A chunk is in one of these places: waiting (never sent), in hand, without an answer (its calls failed), or settled.
    What was never sent is left to the next run; what was sent is settled in this one, if need be as an error.
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
            before_sleep=lambda state: self._log_retry(chunk, state),
            reraise=True,
        )
        answers_before = self._remote.answers
        try:
            reply: EvaluationReply = await retrying(self._call, chunk)
        except CallFailedError as exc:
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
        if self._is_untouched(chunk):
            return
        with contextlib.suppress(CallFailedError):
            self._settle(chunk, await self._call(chunk))

    def _is_untouched(self, chunk: _Chunk) -> bool:
        """Whether nothing was done for a chunk in hand, so that its mentors are left: never sent, or refused whole."""
        last = self._last.get(chunk.part)
        refused = last is not None and (last.splits or last.retry_after_seconds is not None)
        return chunk.part not in self._sent or refused

    def _is_worth_a_retry(self, exc: BaseException) -> bool:
        if not isinstance(exc, CallFailedError) or not exc.failure.retries or self._failure is not None:
            return False
        return (exc.failure.retry_after_seconds or 0.0) < self._seconds_left()

    def _seconds_left(self) -> float:
        """How long the calls of this page may still take; nothing once it ended, but for the last ask."""
        ends_at = self._deadline.when() if self._deadline is not None else None
        return 0.0 if ends_at is None else ends_at - asyncio.get_running_loop().time()

    def _wait(self, state: tenacity.RetryCallState) -> float:
        """How long to wait, in seconds: what the engine asks for, else longer each time, and never quite the same."""
        exc = state.outcome.exception() if state.outcome is not None else None
        if isinstance(exc, CallFailedError) and exc.failure.retry_after_seconds is not None:
            return exc.failure.retry_after_seconds
        first = self._remote.options.backoff_seconds
        return tenacity.wait_exponential_jitter(multiplier=first, jitter=first)(state)

    def _log_retry(self, chunk: _Chunk, state: tenacity.RetryCallState) -> None:
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
        except CallFailedError as exc:
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
        order = self._order
        message = EvaluationRequest(
            invocation_id=UUID(self.invocation_id),
            evaluation_date=order.evaluation_date,
            scenario_types=list(order.scenario_types),
            dispatch_mode=order.dispatch_mode,
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
                body = await bounded_body(response, len(chunk.mentor_ids))
        except CallFailedError:
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
        raise CallFailedError(failure)

    def _fits(self, result: MentorResult) -> bool:
        scenario_types = self._order.scenario_types
        matches = sum(result.dispatched.values()) + sum(result.suppressed.values())
        return result.dispatched.keys() <= set(scenario_types) and matches <= len(scenario_types)

    def _settle(self, chunk: _Chunk, reply: EvaluationReply) -> None:
        """Count a reply: one result for each mentor asked about; a result for anybody else counts for nothing."""
        self._in_hand.pop(chunk.part)
        reported: dict[str, list[MentorResult]] = {}
        for result in reply.results:
            reported.setdefault(str(result.peer_mentor_id), []).append(result)
        for mentor_id in chunk.mentor_ids:
            match reported.get(mentor_id, []):
                case [result] if result.error is None:
                    self._count(mentor_id, result)
                case [result] if result.error is not None:
                    self._errors[mentor_id] = result.error.info()
                case []:
                    self._errors[mentor_id] = unusable("the trigger engine's reply has no result for this mentor")
                case _:
                    self._errors[mentor_id] = unusable("the trigger engine's reply has two results for this mentor")

    def _count(self, mentor_id: str, result: MentorResult) -> None:
        organisation = self._organisations.get(mentor_id, NO_ORGANISATION)
        self._evaluated[organisation] += 1
        for scenario, n in result.dispatched.items():
            self._outcomes[organisation, scenario, DISPATCHED] += n
        for reason, n in result.suppressed.items():
            self._outcomes[organisation, UNKNOWN_SCENARIO, reason] += n

    def _result(self) -> PageResult:
        """Sum up: each mentor of the page is evaluated, an error, or left."""
        silent = [
            self._last[part].info for part, chunk in self._without_answer.items() if not self._is_untouched(chunk)
        ]
        if silent and self._failure is None:
            # Nothing was heard since: however few calls there were, every other one would fare alike.
            self._not_answering(silent[-1])
        unprocessed = {mentor_id for chunk in self._waiting for mentor_id in chunk.mentor_ids}
        for chunk in (*self._without_answer.values(), *self._in_hand.values()):
            if self._failure is not None or self._stopped or self._is_untouched(chunk):
                unprocessed |= set(chunk.mentor_ids)
            else:
                last = self._last.get(chunk.part)
                self._errors |= dict.fromkeys(chunk.mentor_ids, _UNANSWERED if last is None else last.info)
        stats = BatchStats(+self._evaluated, +self._outcomes, len(self._errors), pages_processed=1)
        errors = (MentorError(m, self._errors[m]) for m in self.page.mentor_ids if m in self._errors)
        return PageResult(
            stats,
            tuple(errors),
            tuple(m for m in self.page.mentor_ids if m in unprocessed),
            self._failure if unprocessed else None,
        )
