"""The closed vocabulary of events (contract section 5): one typed record each, the JSON Schema, and the grammar.

Belongs here: what an event is called, which fields it has, in which order events follow one another. Does not belong
here: how a line is written (`structured_logger`) or when (`invocation`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Union, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from scenario_pipeline.batch_stats import SUPPRESSION_REASONS, BatchStats
from scenario_pipeline.errors import ErrorInfo, ErrorType

SCHEDULER = "scenario-scheduler"
TRIGGER_ENGINE = "scenario-trigger-engine"
SCHEMA_VERSION = 1
TRIGGERED_BY = ("dagster_schedule", "manual", "backfill", "sensor", "continuation", "retry", "pg_cron")

Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Reason = Literal["opted_out", "duplicate", "cooldown"]
Message = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\r\n]*$")]
_UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
UUID4_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"


@dataclass(frozen=True)
class Event:
    """Base of all events: a name, the component that speaks, and a level that may depend on the fields."""

    name: ClassVar[str]
    component: ClassVar[str] = SCHEDULER
    levels: ClassVar[tuple[str, ...]] = ("info",)
    # Entries of the engine's service may stand outside any run: their common fields may be null.
    within_run: ClassVar[bool] = True

    @property
    def level(self) -> str:
        """How grave this entry is: `info`, `warning` or `error`."""
        return self.levels[0]

    def fields(self) -> dict[str, Any]:
        """Return the further fields of the entry, without the common ones."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}


@dataclass(frozen=True)
class RunStarted(Event):
    """An invocation was opened."""

    name: ClassVar[str] = "scheduler_run_started"
    triggered_by: Literal["dagster_schedule", "manual", "backfill", "sensor", "continuation", "retry", "pg_cron"]
    evaluation_date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    scenario_types: list[Name]
    dispatch_mode: Literal["live", "dry_run"]
    time_budget_ms: Count


@dataclass(frozen=True)
class MentorEvaluationError(Event):
    """One mentor could not be evaluated; the batch went on."""

    name: ClassVar[str] = "mentor_evaluation_error"
    levels: ClassVar[tuple[str, ...]] = ("warning",)
    peer_mentor_id: Annotated[str, Field(pattern=_UUID)]
    error_type: ErrorType
    error_message: Message


@dataclass(frozen=True)
class RunPartial(Event):
    """The invocation ended before every mentor was evaluated; the rest is left to the next one."""

    name: ClassVar[str] = "scheduler_run_partial"
    levels: ClassVar[tuple[str, ...]] = ("warning",)
    remaining_unprocessed_count: Count
    reason: Literal["time_budget", "terminated"]
    total_active_mentors: Count
    total_evaluated: Count
    total_dispatched: Count
    total_suppressed: Count
    total_errors: Count
    pages_processed: Count


@dataclass(frozen=True)
class RunFailed(Event):
    """The invocation failed as a whole."""

    name: ClassVar[str] = "scheduler_run_failed"
    levels: ClassVar[tuple[str, ...]] = ("error",)
    error_type: ErrorType
    error_message: Message
    remaining_unprocessed_count: Count | None


@dataclass(frozen=True)
class RunCompleted(Event):
    """The invocation is closed: always the last entry, exactly once for each `scheduler_run_started`."""

    name: ClassVar[str] = "scheduler_run_completed"
    levels: ClassVar[tuple[str, ...]] = ("info", "warning")
    completed: bool
    total_active_mentors: Count
    total_evaluated: Count
    total_dispatched: Count
    total_suppressed: Count
    total_errors: Count
    pages_processed: Count
    duration_ms: Count
    suppressed_by_reason: dict[Reason, Count]
    dispatched_by_scenario: dict[Name, Count]

    @property
    def level(self) -> str:
        """`info` for a completed invocation, else `warning`."""
        return "info" if self.completed else "warning"


@dataclass(frozen=True)
class PageRetried(Event):
    """The trigger engine repeated a page's transaction: a deadlock, or a commit whose answer was lost."""

    name: ClassVar[str] = "trigger_engine_page_retried"
    component: ClassVar[str] = TRIGGER_ENGINE
    levels: ClassVar[tuple[str, ...]] = ("warning",)
    page_number: Count
    attempt: Count
    error_type: ErrorType
    error_message: Message


@dataclass(frozen=True)
class EngineCallRetried(Event):
    """A call of the `http` engine failed and will be repeated with the same key."""

    name: ClassVar[str] = "trigger_engine_call_retried"
    component: ClassVar[str] = TRIGGER_ENGINE
    levels: ClassVar[tuple[str, ...]] = ("warning",)
    page_number: Count
    chunk: Annotated[str, Field(pattern=r"^[0-9.]+$")]
    attempt: Count
    error_type: ErrorType
    error_message: Message


@dataclass(frozen=True)
class EngineStarted(Event):
    """The engine's service accepts requests."""

    name: ClassVar[str] = "trigger_engine_started"
    component: ClassVar[str] = TRIGGER_ENGINE
    within_run: ClassVar[bool] = False
    port: Count
    needs_token: bool


@dataclass(frozen=True)
class EngineAnswered(Event):
    """The engine's service evaluated a list of mentors, or repeated its first reply."""

    name: ClassVar[str] = "trigger_engine_answered"
    component: ClassVar[str] = TRIGGER_ENGINE
    within_run: ClassVar[bool] = False
    total_evaluated: Count
    total_dispatched: Count
    total_suppressed: Count
    total_errors: Count
    repeated: bool
    duration_ms: Count


@dataclass(frozen=True)
class EngineRefused(Event):
    """The engine's service answered a request with an error: `warning` for the caller's, `error` for its own."""

    name: ClassVar[str] = "trigger_engine_refused"
    component: ClassVar[str] = TRIGGER_ENGINE
    levels: ClassVar[tuple[str, ...]] = ("warning", "error")
    within_run: ClassVar[bool] = False
    status: Count
    error_type: ErrorType
    error_message: Message

    @property
    def level(self) -> str:
        """`error` from status 500 on."""
        return "error" if self.status >= 500 else "warning"


@dataclass(frozen=True)
class EngineStopped(Event):
    """The engine's service has answered what it had in hand and ends."""

    name: ClassVar[str] = "trigger_engine_stopped"
    component: ClassVar[str] = TRIGGER_ENGINE
    within_run: ClassVar[bool] = False
    requests: Count


VOCABULARY: tuple[type[Event], ...] = (
    RunStarted,
    MentorEvaluationError,
    RunPartial,
    RunFailed,
    RunCompleted,
    PageRetried,
    EngineCallRetried,
    EngineStarted,
    EngineAnswered,
    EngineRefused,
    EngineStopped,
)


@dataclass(frozen=True)
class Report:
    """How an invocation ended: what the closing events, the ledger and Dagster's metadata say alike.

    Attributes:
        status: `completed`, `partial` or `failed`.
        total_active_mentors: mentors the invocation set out to evaluate.
        stats: what became of those that were evaluated.
        duration_ms: whole milliseconds on a monotonic clock.
        remaining: mentors left unprocessed, or None where the failure left it unknown.
        reason: why it is partial: `time_budget` or `terminated`.
        failure: why it failed.
    """

    status: Literal["completed", "partial", "failed"]
    total_active_mentors: int
    stats: BatchStats
    duration_ms: int
    remaining: int | None = 0
    reason: Literal["time_budget", "terminated"] | None = None
    failure: ErrorInfo | None = None

    def totals(self) -> dict[str, Any]:
        """Return the totals of `scheduler_run_completed` by name."""
        return {
            "total_active_mentors": self.total_active_mentors,
            **self.stats.totals(),
            "pages_processed": self.stats.pages_processed,
            "duration_ms": self.duration_ms,
        }

    def closing_events(self) -> Iterator[Event]:
        """Yield `[partial | failed] completed`, in that order."""
        totals = self.totals()
        counts = {name: value for name, value in totals.items() if isinstance(value, int) and name != "duration_ms"}
        if self.status == "partial":
            yield RunPartial(
                remaining_unprocessed_count=self.remaining or 0, reason=self.reason or "time_budget", **counts
            )
        if self.status == "failed":
            failure = self.failure or ErrorInfo(ErrorType.EVALUATION_LOGIC, "the run ended without a reason")
            yield RunFailed(failure.error_type, failure.error_message, self.remaining)
        yield RunCompleted(completed=self.status == "completed", **totals)


_OF_THE_RUN = frozenset({"invocation_id", "dagster_run_id", "dagster_job_name"})


@cache
def _lines() -> tuple[type[BaseModel], ...]:
    """Build the strict models of whole log lines: the common fields plus those of each event."""
    common: dict[str, Any] = {
        "timestamp": (Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")], ...),
        "invocation_id": (Annotated[str, Field(pattern=UUID4_PATTERN)], ...),
        # Not a literal: `true` and `1.0` equal 1.
        "schema_version": (Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)], ...),
        "dagster_run_id": (Annotated[str, Field(pattern=_UUID)], ...),
        "dagster_job_name": (Annotated[str, Field(min_length=1)], ...),
        "dagster_step_key": (str | None, ...),
        "dagster_partition_key": (str | None, ...),
    }
    lines = []
    for kind in VOCABULARY:
        hints = get_type_hints(kind, include_extras=True)
        further: dict[str, Any] = {item.name: (hints[item.name], ...) for item in dataclasses.fields(kind)}
        for name, allowed in (("event", kind.name), ("level", kind.levels), ("component", kind.component)):
            further[name] = (Literal[allowed], ...)
        if not kind.within_run:
            further |= {name: (kept | None, ...) for name, (kept, _) in common.items() if name in _OF_THE_RUN}
        line = create_model(
            kind.__name__,
            __config__=ConfigDict(extra="forbid", strict=True),
            __doc__=kind.__doc__,
            **(common | further),
        )
        lines.append(line)
    return tuple(lines)


@cache
def _adapter() -> TypeAdapter[Any]:
    union: Any = Union[_lines()]  # noqa: UP007 - made of a tuple
    return TypeAdapter(Annotated[union, Field(discriminator="event")])


def json_schema() -> dict[str, Any]:
    """Return the published JSON Schema (draft 2020-12) of one line of the event log."""
    schema = _closed(_adapter().json_schema())
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Scenario pipeline event",
        "description": "One line of the NDJSON event log, schema_version 1.",
        **schema,
    }


def _closed(schema: Any) -> Any:
    """Refuse names that fit no pattern: a mapping with patterns alone would let any other name pass."""
    match schema:
        case dict():
            closed = {word: _closed(inner) for word, inner in schema.items()}
            return closed | ({"additionalProperties": False} if "patternProperties" in schema else {})
        case list():
            return [_closed(inner) for inner in schema]
        case _:
            return schema


@dataclass
class _Invocation:
    """What was read of one invocation so far."""

    line: int
    kinds: list[str] = field(default_factory=list)
    closing: Mapping[str, Any] | None = None
    completed: Mapping[str, Any] | None = None


def violations(lines: Iterable[bytes]) -> Iterator[str]:
    """Check an event log line by line: strict JSON, the schema, the grammar and the identities.

    Args:
        lines: the log, split at line feeds only; empty lines are passed over.

    Yields:
        One sentence a violation, with its line number and without any value of the line.
    """
    invocations: dict[str, _Invocation] = {}
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        try:
            entry = json.loads(raw.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_unique_keys)
        except (ValueError, RecursionError):
            yield f"line {number}: is no strict JSON in UTF-8"
            continue
        try:
            # JSON has no tuples or enumerations, so strictness is asked of JSON types.
            _adapter().validate_json(raw, strict=True)
        except ValidationError as exc:
            yield f"line {number}: does not fit the schema at {', '.join(sorted(_places(exc)))}"
            continue
        if entry["component"] == SCHEDULER:
            seen = invocations.setdefault(entry["invocation_id"], _Invocation(number))
            yield from _follow(seen, number, entry)
    for seen in invocations.values():
        if seen.completed is None:
            yield f"line {seen.line}: the invocation is never closed by scheduler_run_completed"
        else:
            yield from _unbalanced(seen)


def _places(exc: ValidationError) -> set[str]:
    """Return the fields in which a line does not fit; a name that is not ours may be anything, so it is not told."""
    ours = {name for line in _lines() for name in line.model_fields}
    found = {str(error["loc"][1]) if len(error["loc"]) > 1 else "event" for error in exc.errors()}
    return {place if place in ours else "a field that does not exist" for place in found}


def _follow(seen: _Invocation, number: int, entry: Mapping[str, Any]) -> Iterator[str]:
    """Hold one more entry against the grammar `started (error)* [partial | failed] completed`."""
    kind = entry["event"]
    match kind, seen.kinds[-1:]:
        case RunStarted.name, []:
            pass
        case _, []:
            yield f"line {number}: the invocation does not begin with scheduler_run_started"
        case _, [RunCompleted.name]:
            yield f"line {number}: {kind} follows scheduler_run_completed"
        case RunStarted.name, _:
            yield f"line {number}: scheduler_run_started stands twice"
        case ((RunPartial.name | RunFailed.name | MentorEvaluationError.name), [RunPartial.name | RunFailed.name]):
            yield f"line {number}: {kind} follows a closing entry"
        case _:
            pass
    seen.kinds.append(kind)
    if kind in (RunPartial.name, RunFailed.name):
        seen.closing = entry
    if kind == RunCompleted.name:
        seen.completed = entry


def _unbalanced(seen: _Invocation) -> Iterator[str]:
    """Check the identities of contract section 5 for one closed invocation."""
    done, closing = seen.completed or {}, seen.closing
    if done["level"] != ("info" if done["completed"] else "warning"):
        yield f"line {seen.line}: the level of scheduler_run_completed contradicts completed"
    if done["completed"] is (closing is not None):
        yield f"line {seen.line}: completed contradicts the closing entry"
    if seen.kinds.count(MentorEvaluationError.name) != done["total_errors"]:
        yield f"line {seen.line}: total_errors is not the number of mentor_evaluation_error entries"
    remaining = 0 if closing is None else closing["remaining_unprocessed_count"]
    covered = done["total_evaluated"] + done["total_errors"]
    if remaining is not None and covered + remaining != done["total_active_mentors"]:
        yield f"line {seen.line}: evaluated, errors and remaining do not add up to total_active_mentors"
    if sum(done["suppressed_by_reason"].values()) != done["total_suppressed"]:
        yield f"line {seen.line}: suppressed_by_reason does not add up to total_suppressed"
    if sum(done["dispatched_by_scenario"].values()) != done["total_dispatched"]:
        yield f"line {seen.line}: dispatched_by_scenario does not add up to total_dispatched"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


if set(SUPPRESSION_REASONS) != set(Reason.__args__):  # type: ignore[attr-defined]
    raise TypeError("Reason and SUPPRESSION_REASONS must name the same reasons")
