"""The trigger engine that the project serves: the API of `engines.api` over the `sql` engine.

Belongs here: routes and refusals; FastAPI is imported here alone. Does not belong here: the replies and the work behind
them (`engines.service.replies`), or the server's start and end (`engines.service.server`).
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, BeforeValidator, ValidationError
from sqlalchemy import Engine
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from scenario_pipeline.engines.api import (
    EVALUATIONS_PATH,
    HEALTH_PATH,
    TIME_LEFT_HEADER,
    ErrorReply,
    EvaluationReply,
    EvaluationRequest,
)
from scenario_pipeline.engines.service.replies import RefusedError, refused, remote_error, reply_to
from scenario_pipeline.errors import BudgetSpentError, ErrorInfo, ErrorType, SystemicError, classify
from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.log.vocabulary import EngineAnswered, EngineRefused
from scenario_pipeline.scenarios import registry
from scenario_pipeline.storage.database import check_schema, limit_statement_time
from scenario_pipeline.time_budget import TimeBudget

MAX_REQUEST_BYTES = 1024 * 1024
# How long a client may take to send a request, and how long its evaluation may take.
READING_SECONDS = 10.0
REQUEST_SECONDS = 25.0
HEALTH_SECONDS = 2.0
# How many requests are evaluated at the same time; others wait for their turn.
EVALUATIONS = 8
# One more, so that a busy service can still answer a health check.
CONNECTIONS = EVALUATIONS + 1
MAX_TIME_LEFT_MS = 24 * 60 * 60 * 1000
NOT_IN_A_RUN = dict.fromkeys(
    ("invocation_id", "dagster_run_id", "dagster_job_name", "dagster_step_key", "dagster_partition_key")
)
_BEARER = HTTPBearer(auto_error=False)
_SINGLE_HEADERS = (
    b"host",
    b"authorization",
    b"content-type",
    b"content-length",
    b"transfer-encoding",
    b"idempotency-key",
    TIME_LEFT_HEADER.lower().encode(),
)
_STATUSES = {
    400: "The body is not JSON of the agreed shape, or a header is repeated.",
    401: "The bearer token is missing or wrong.",
    404: "There is no such path.",
    405: "The path has no such method.",
    408: "The request was not sent in time.",
    409: "The run is closed; nothing was done for the request.",
    413: "The body is larger than 1 MiB.",
    415: "The body is not declared as application/json.",
    422: "A header is not as described, the key was used for another request, or a scenario is not installed.",
    500: "The evaluation failed.",
    503: "The database is out of reach or busy: repeat the request.",
    504: "The evaluation took too long; none of it was kept.",
}


def _documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorReply, "description": _STATUSES[status]} for status in statuses}


def _request_body() -> dict[str, Any]:
    schema = EvaluationRequest.model_json_schema()
    schema["properties"]["scenario_types"]["items"]["enum"] = list(registry())
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _refuse_repeats(request: Request) -> None:
    """Refuse repeated headers: a proxy may have read one of them, and the service another."""
    names = [name for name, _ in request.headers.raw]
    if any(names.count(name) > 1 for name in _SINGLE_HEADERS):
        raise refused(400, "a header is repeated that may be sent only once")
    if b"content-length" in names and b"transfer-encoding" in names:
        raise refused(400, "the request has a content length and a transfer encoding")


def _digits(value: object) -> object:
    """Accept only ASCII digits: Python reads `+5`, `1_000` and `5.0` as whole numbers, other clients do not."""
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise ValueError
    return value


class Health(BaseModel):
    """The service can answer, and so can its database."""

    status: str


@asynccontextmanager
async def _turn(turns: asyncio.Semaphore, status: int, seconds: float) -> AsyncIterator[None]:
    """Wait for a turn; during a turn, a database connection is free."""
    try:
        async with asyncio.timeout(seconds):
            await turns.acquire()
    except TimeoutError:
        raise refused(status, "no database connection became free in time", ErrorType.TIMEOUT) from None
    try:
        yield
    finally:
        turns.release()


@dataclass
class EngineService:
    """Answers requests for evaluations.

    Attributes:
        database: pool of `CONNECTIONS` connections to the scheduler's own database.
        token: the token that callers must send, or None to let anyone call.
        logger: the shared logger.
        requests: how many have been answered so far.
    """

    database: Engine
    token: str | None = field(repr=False)
    logger: StructuredLogger
    requests: int = 0
    _evaluations: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(EVALUATIONS), init=False, repr=False
    )
    _healths: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1), init=False, repr=False)

    def app(self) -> FastAPI:
        """Return the ASGI application; its OpenAPI document is at /v1/openapi.json."""
        app = FastAPI(
            title="Scenario trigger engine",
            version="1",
            openapi_url="/v1/openapi.json",
            docs_url=None,
            redoc_url=None,
            # A redirect would contain any host that the caller named.
            redirect_slashes=False,
            dependencies=[Depends(_refuse_repeats)],
            responses=_documented(400, 404, 405, 500),
        )
        app.post(
            EVALUATIONS_PATH,
            name="evaluate",
            dependencies=[Depends(self._authorise)],
            responses=_documented(401, 408, 409, 413, 415, 422, 503, 504),
            openapi_extra={"requestBody": _request_body()},
            response_model=EvaluationReply,
        )(self._answer_evaluation)
        app.get(HEALTH_PATH, name="health", responses=_documented(503))(self._answer_health)
        app.exception_handler(RefusedError)(self._refuse)
        app.exception_handler(RequestValidationError)(self._refuse_headers)
        app.exception_handler(HTTPException)(self._refuse_path)
        return app

    def _authorise(self, found: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        given = b"" if found is None else found.credentials.encode("utf-8", "surrogateescape")
        if self.token is not None and not hmac.compare_digest(given, self.token.encode()):
            raise refused(401, "the bearer token is missing or wrong")

    async def _answer_evaluation(
        self,
        request: Request,
        idempotency_key: Annotated[str, Header(min_length=1, max_length=200, pattern=r"^[!-~]+$")],
        scenario_time_left_ms: Annotated[
            int,
            BeforeValidator(_digits),
            Header(ge=1, le=MAX_TIME_LEFT_MS, description="Nothing is committed after this many milliseconds."),
        ] = MAX_TIME_LEFT_MS,
    ) -> JSONResponse:
        """Evaluate a list of mentors once, however often it is requested with the same Idempotency-Key."""
        budget = TimeBudget.start(min(REQUEST_SECONDS, scenario_time_left_ms / 1000))
        asked = await _read(request, budget)
        async with _turn(self._evaluations, 504, budget.remaining_seconds):
            answer = await run_in_threadpool(self.evaluate, idempotency_key, asked, budget)
        self.requests += 1
        return JSONResponse(answer)

    async def _answer_health(self) -> Health:
        """Report that the service can answer, and that its database fits."""
        async with _turn(self._healths, 503, HEALTH_SECONDS):
            return await run_in_threadpool(self.health)

    async def _refuse(self, _request: Request, exc: RefusedError) -> JSONResponse:
        self._logger_of(exc.invocation_id).emit(EngineRefused(exc.status, exc.info.error_type, exc.info.error_message))
        self.requests += 1
        body = ErrorReply(error=remote_error(exc.info))
        headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(exc.status, {})
        return JSONResponse(body.model_dump(), status_code=exc.status, headers=headers)

    async def _refuse_headers(self, request: Request, exc: RequestValidationError) -> JSONResponse:
        sentence = "the idempotency key must have 1 to 200 ASCII characters"
        if not any("idempotency-key" in error["loc"] for error in exc.errors()):
            sentence = "the time left must be whole milliseconds, at most a day"
        return await self._refuse(request, refused(422, sentence))

    async def _refuse_path(self, request: Request, exc: HTTPException) -> JSONResponse:
        sentence = "there is no such path" if exc.status_code == 404 else "the request is not understood"
        response = await self._refuse(request, refused(exc.status_code, sentence))
        response.headers.update(exc.headers or {})
        return response

    def _logger_of(self, invocation_id: str | None) -> StructuredLogger:
        """Return the logger with the common fields, which are null if a request belongs to no known run."""
        return self.logger.bind(**NOT_IN_A_RUN | {"invocation_id": invocation_id, "dagster_run_id": invocation_id})

    def health(self) -> Health:
        """Check the database.

        Raises:
            RefusedError: the database is out of reach, or its schema does not fit.
        """
        try:
            with self.database.connect() as connection, connection.begin():
                limit_statement_time(connection, HEALTH_SECONDS)
                check_schema(connection)
        except Exception as exc:  # noqa: BLE001 - the boundary of the request: after any exception, the service cannot work
            failure = classify(exc)
        else:
            return Health(status="ok")
        raise RefusedError(503, failure)

    def evaluate(self, idempotency_key: str, asked: EvaluationRequest, budget: TimeBudget) -> dict[str, Any]:
        """Return the reply to a request within its budget: the first one if the key was used before.

        Raises:
            RefusedError: the request cannot be answered now, or never.
        """
        started = time.monotonic()
        invocation_id = str(asked.invocation_id)
        try:
            unknown = sorted(set(asked.scenario_types) - set(registry()))
            if unknown:
                raise refused(422, "a scenario of scenario_types is not installed here")
            reply, repeated = reply_to(self.database, idempotency_key, asked, budget)
        except RefusedError:
            raise
        except Exception as exc:  # noqa: BLE001 - the boundary of the request: every failure becomes a reply
            failure = exc.info if isinstance(exc, SystemicError) else classify(exc)
            refusal = RefusedError(_status_of(failure, exc), failure, invocation_id)
        else:
            results = reply["results"]
            errors = sum(result["error"] is not None for result in results)
            self._logger_of(invocation_id).emit(
                EngineAnswered(
                    total_evaluated=len(results) - errors,
                    total_dispatched=sum(sum(result["dispatched"].values()) for result in results),
                    total_suppressed=sum(sum(result["suppressed"].values()) for result in results),
                    total_errors=errors,
                    repeated=repeated,
                    duration_ms=int((time.monotonic() - started) * 1000),
                )
            )
            return reply
        raise refusal


def _status_of(failure: ErrorInfo, exc: Exception) -> int:
    if isinstance(exc, BudgetSpentError) or failure.error_type is ErrorType.TIMEOUT:
        return 504
    return 503 if failure.error_type is ErrorType.NETWORK or failure.is_worth_a_retry else 500


async def _read(request: Request, budget: TimeBudget) -> EvaluationRequest:
    """Read a body of bounded size in bounded time, and check its shape.

    Raises:
        RefusedError: it is not a valid request; the message names places, never values.
    """
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise refused(415, "the body must be application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(min(READING_SECONDS, budget.remaining_seconds)):
            async for part in request.stream():
                body += part
                if len(body) > MAX_REQUEST_BYTES:
                    raise refused(413, "the body is larger than 1024 KB")
    except ClientDisconnect:
        raise refused(400, "the request was cut off") from None
    except TimeoutError:
        raise refused(408, "the request was not sent in time", ErrorType.TIMEOUT) from None
    return _checked(bytes(body))


def _checked(body: bytes) -> EvaluationRequest:
    """Return the request in a body.

    Raises:
        RefusedError: it is not a valid request; the message names places, never values.
    """
    try:
        asked = EvaluationRequest.model_validate_json(body)
    except ValidationError as exc:
        ours = EvaluationRequest.model_fields
        places = sorted({str(error["loc"][0]) for error in exc.errors() if error["loc"] and error["loc"][0] in ours})
        sentence = (
            f"the body does not fit at {', '.join(places)}" if places else "the body is not a request for evaluations"
        )
        raise refused(400, sentence) from None
    try:
        # A body that fits the shape is shallow enough to be parsed again.
        written = json.loads(body, object_pairs_hook=_without_repeats)
    except ValueError:  # a repeated name, or a number that a repeat had hidden
        raise refused(400, "the body names a field twice") from None
    written_ids = [written["invocation_id"], *written["peer_mentor_ids"]]
    # It may be in braces or a URN, for example. The schema promises one form, and other engines know no other.
    if [one.lower() for one in written_ids] != [str(one) for one in (asked.invocation_id, *asked.peer_mentor_ids)]:
        raise refused(400, "an id of the body is not written as a UUID")
    if len(set(asked.peer_mentor_ids)) != len(asked.peer_mentor_ids):
        raise refused(400, "the body names a mentor twice in peer_mentor_ids")
    return asked


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object from its members; of two with the same name, the parser would choose one: a dry run, or not."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError
    return members
