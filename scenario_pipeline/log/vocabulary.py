"""The closed vocabulary of events: one typed record for each (contract section 5).

Belongs here: the name of each event and its fields. Does not belong here: the JSON Schema (`log.schema`), the grammar
(`log.validation`), or how a line is written (`log.logger`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from scenario_pipeline.batch_stats import SuppressionReason
from scenario_pipeline.errors import ErrorType
from scenario_pipeline.records import DispatchMode

SCHEDULER = "scenario-scheduler"
TRIGGER_ENGINE = "scenario-trigger-engine"
SCHEMA_VERSION = 1
TriggeredBy = Literal["dagster_schedule", "manual", "backfill", "sensor", "continuation", "retry", "pg_cron"]
TRIGGERED_BY: tuple[TriggeredBy, ...] = get_args(TriggeredBy)
PartialReason = Literal["time_budget", "terminated"]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Message = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\r\n]*$")]
UUID_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
UUID4_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"


@dataclass(frozen=True)
class Event:
    """Base of all events: a name, the component that emits it, and a level that may depend on the fields."""

    name: ClassVar[str]
    component: ClassVar[str] = SCHEDULER
    levels: ClassVar[tuple[str, ...]] = ("info",)
    # Entries of the engine's service may belong to no run, so some of their common fields may be null.
    within_run: ClassVar[bool] = True

    @property
    def level(self) -> str:
        """The level of this entry: `info`, `warning` or `error`."""
        return self.levels[0]

    def fields(self) -> dict[str, Any]:
        """Return the fields of the entry, without the common ones."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}


@dataclass(frozen=True)
class RunStarted(Event):
    """An invocation was opened."""

    name: ClassVar[str] = "scheduler_run_started"
    triggered_by: TriggeredBy
    evaluation_date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    scenario_types: list[Name]
    dispatch_mode: DispatchMode
    time_budget_ms: Count


@dataclass(frozen=True)
class MentorEvaluationError(Event):
    """One mentor could not be evaluated; the batch went on."""

    name: ClassVar[str] = "mentor_evaluation_error"
    levels: ClassVar[tuple[str, ...]] = ("warning",)
    peer_mentor_id: Annotated[str, Field(pattern=UUID_PATTERN)]
    error_type: ErrorType
    error_message: Message


@dataclass(frozen=True)
class RunPartial(Event):
    """The invocation ended before every mentor was evaluated; the next one evaluates the rest."""

    name: ClassVar[str] = "scheduler_run_partial"
    levels: ClassVar[tuple[str, ...]] = ("warning",)
    remaining_unprocessed_count: Count
    reason: PartialReason
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
    suppressed_by_reason: dict[SuppressionReason, Count]
    dispatched_by_scenario: dict[Name, Count]

    @property
    def level(self) -> str:
        """`info` for a completed invocation, else `warning`."""
        return "info" if self.completed else "warning"


@dataclass(frozen=True)
class PageRetried(Event):
    """The trigger engine repeated a page's transaction after a deadlock, or a commit whose reply was lost."""

    name: ClassVar[str] = "trigger_engine_page_retried"
    component: ClassVar[str] = TRIGGER_ENGINE
    levels: ClassVar[tuple[str, ...]] = ("warning",)
    page_number: Count
    attempt: Count
    error_type: ErrorType
    error_message: Message


@dataclass(frozen=True)
class EngineCallRetried(Event):
    """A call by the `http` engine failed and will be repeated with the same key."""

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
    """The engine's service has answered the requests in flight and is ending."""

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
