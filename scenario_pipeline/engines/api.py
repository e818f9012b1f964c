"""The HTTP API of a trigger engine (contract section 6): its messages, and the meaning of each reply.

Belongs here: the shapes on which both ends agree, and total functions from status code, headers and body to a verdict.
Does not belong here: calling (`engines.http`) or replying (`engines.service`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Annotated, assert_never
from uuid import UUID

from pydantic import UUID4, BaseModel, ConfigDict, FailFast, Field, ValidationError

from scenario_pipeline.batch_stats import SuppressionReason
from scenario_pipeline.errors import ErrorInfo, ErrorType
from scenario_pipeline.log.vocabulary import UUID4_PATTERN, Name
from scenario_pipeline.records import DispatchMode
from scenario_pipeline.sanitiser import sanitise
from scenario_pipeline.settings import MAX_ENGINE_CHUNK_SIZE

EVALUATIONS_PATH = "/v1/evaluations"
HEALTH_PATH = "/v1/health"
# How long the caller waits for the reply; work committed later would be in no total.
TIME_LEFT_HEADER = "Scenario-Time-Left-Ms"
MAX_REPLY_BYTES = 10 * 1024 * 1024
# The limit of brackets and commas in a reply: `[],[],[]` needs many times more memory than it has bytes on the wire.
MAX_REPLY_PARTS = 100_000

_SHAPE = ConfigDict(frozen=True, strict=True, hide_input_in_errors=True)
_Matches = Annotated[int, Field(ge=0, le=64)]


class EvaluationRequest(BaseModel):
    """A list of mentors to evaluate."""

    model_config = ConfigDict(**_SHAPE, extra="forbid")

    invocation_id: UUID4 = Field(json_schema_extra={"format": "uuid", "pattern": UUID4_PATTERN})
    evaluation_date: date
    scenario_types: Annotated[list[Name], Field(min_length=1, max_length=64), FailFast()]
    dispatch_mode: DispatchMode
    peer_mentor_ids: Annotated[
        list[UUID],
        Field(min_length=1, max_length=MAX_ENGINE_CHUNK_SIZE, json_schema_extra={"uniqueItems": True}),
        FailFast(),
    ]


class RemoteError(BaseModel):
    """An error as an engine reports it."""

    model_config = _SHAPE

    error_type: str = Field(json_schema_extra={"enum": [kind.value for kind in ErrorType]})
    error_message: str = ""

    def info(self) -> ErrorInfo:
        """Return it as our own value: an unknown type becomes `evaluation_logic_error`; the message is sanitised."""
        known = self.error_type in {kind.value for kind in ErrorType}
        kind = ErrorType(self.error_type) if known else ErrorType.EVALUATION_LOGIC
        message = sanitise(self.error_message) if self.error_message else "the trigger engine gave no reason"
        return ErrorInfo(kind, message)


class MentorResult(BaseModel):
    """The result for one mentor."""

    model_config = _SHAPE

    peer_mentor_id: UUID
    # At most one notification for each mentor, scenario and date (contract section 4).
    dispatched: dict[Name, Annotated[int, Field(ge=0, le=1)]]
    suppressed: dict[SuppressionReason, _Matches]
    error: RemoteError | None = None


class EvaluationReply(BaseModel):
    """One result for each mentor of the request."""

    model_config = _SHAPE

    results: Annotated[list[MentorResult], FailFast()]


class ErrorReply(BaseModel):
    """The body of every reply that is not 200."""

    model_config = _SHAPE

    error: RemoteError


class Verdict(Enum):
    """The meaning of a status code for a call.

    `ANSWERED` has results to read. `CONTENT` concerns the mentors of the request. `MISCONFIGURED` would be the same for
    any other mentor, and fails the run. The others may be different next time.
    """

    ANSWERED = "answered"
    CONTENT = "content"
    MISCONFIGURED = "misconfigured"
    CONFLICT = "conflict"
    TIMED_OUT = "timed out"
    UNAVAILABLE = "unavailable"


def verdict_of(status: int) -> Verdict:
    """Return the verdict for any number in the place of a status code."""
    match status:
        case 200:
            return Verdict.ANSWERED
        case 400 | 413 | 422:
            return Verdict.CONTENT
        case 408 | 504:
            return Verdict.TIMED_OUT
        # Another request with the same key, or for the same mentors, is in flight.
        case 409 | 423 | 425:
            return Verdict.CONFLICT
        case 429:
            return Verdict.UNAVAILABLE
        case _ if 400 <= status <= 499:
            return Verdict.MISCONFIGURED
        case _:
            return Verdict.UNAVAILABLE


@dataclass(frozen=True)
class CallFailure:
    """Why a call brought no results, and what to do about it.

    Attributes:
        info: the failure to report.
        fails_run: whether every other call would fail the same way.
        splits: whether to ask again for the mentors of the chunk in two halves.
        retries: whether the same call may succeed later.
        retry_after_seconds: the pause for which the engine asks; None if it asks for none.
    """

    info: ErrorInfo
    fails_run: bool = False
    splits: bool = False
    retries: bool = False
    retry_after_seconds: float | None = None


def unreachable(message: str) -> CallFailure:
    """Return the failure of a call that was refused, cut off, or answered with an invalid reply."""
    return CallFailure(ErrorInfo(ErrorType.NETWORK, message), retries=True)


def timed_out(message: str) -> CallFailure:
    """Return the failure of a call that was not answered in time."""
    return CallFailure(ErrorInfo(ErrorType.TIMEOUT, message), retries=True)


def failure_of(status: int, headers: Mapping[str, str], body: bytes | bytearray, now: datetime) -> CallFailure:
    """Return what went wrong with a call that brought no results.

    Args:
        status: any status code; 200 if the body was invalid.
        headers: of the reply, with names in lower case.
        body: of the reply; any bytes.
        now: the current time, for a `Retry-After` that is a date.
    """
    reported = reported_error(body) if is_json(headers) else None
    sentence = f"the trigger engine answered with HTTP status {status}"
    if reported is not None:
        sentence = f"{sentence}: {reported.error_message}"
    match verdict := verdict_of(status):
        case Verdict.CONTENT:
            return CallFailure(ErrorInfo(ErrorType.EVALUATION_LOGIC, sentence), splits=True)
        case Verdict.MISCONFIGURED:
            advice = f"{sentence}; check SCENARIO_ENGINE_URL and SCENARIO_ENGINE_TOKEN"
            return CallFailure(ErrorInfo(ErrorType.EVALUATION_LOGIC, advice), fails_run=True)
        case Verdict.CONFLICT:
            kind = ErrorType.EVALUATION_LOGIC
        case Verdict.TIMED_OUT:
            kind = ErrorType.TIMEOUT
        case Verdict.UNAVAILABLE:
            kind = ErrorType.NETWORK
        case Verdict.ANSWERED:
            kind = ErrorType.NETWORK
            sentence = sentence if reported is not None else "the trigger engine's reply has an unexpected shape"
        case _:
            assert_never(verdict)
    splits = False
    if reported is not None:
        kind = reported.error_type
        splits = kind is ErrorType.EVALUATION_LOGIC and verdict is not Verdict.CONFLICT
    after = retry_after_seconds(headers.get("retry-after"), now) if status in (429, 503) else None
    return CallFailure(ErrorInfo(kind, sentence), splits=splits, retries=not splits, retry_after_seconds=after)


def reported_error(body: bytes | bytearray) -> ErrorInfo | None:
    """Return the error in a body `{"error": {"error_type": ...}}` with one of the four types, else None."""
    if not is_modest(body):
        return None
    try:
        error = ErrorReply.model_validate_json(body).error
    except ValidationError:
        return None
    return error.info() if error.error_type in {kind.value for kind in ErrorType} else None


def max_reply_bytes(mentors: int) -> int:
    """Return the size limit of a reply about this number of mentors; many replies are in memory at once."""
    return min(MAX_REPLY_BYTES, 64 * 1024 + mentors * 16 * 1024)


def read_reply(headers: Mapping[str, str], body: bytes | bytearray) -> EvaluationReply | None:
    """Return the results in a body, or None if it is not a valid reply."""
    if not is_json(headers) or not is_modest(body):
        return None
    try:
        return EvaluationReply.model_validate_json(body)
    except ValidationError:
        return None


def is_json(headers: Mapping[str, str]) -> bool:
    """Whether the headers declare the body as JSON."""
    return headers.get("content-type", "").split(";")[0].strip().lower() == "application/json"


def is_modest(body: bytes | bytearray) -> bool:
    """Whether a body cannot grow beyond a few megabytes when it is parsed."""
    return sum(body.count(sign) for sign in (b"[", b"{", b",")) <= MAX_REPLY_PARTS


_SECONDS = re.compile(r"[0-9]{1,9}")


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """Read a `Retry-After` (RFC 9110, section 10.2.3): seconds or a date; None if it is neither."""
    text = (value or "").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    except (ValueError, TypeError, OverflowError):  # TypeError: a date without a zone
        return None
