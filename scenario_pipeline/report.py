"""How an invocation ended: the totals that log, ledger and metadata share (contract section 5).

Belongs here: the report as a value, and the events that close a log. Does not belong here: writing it anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from scenario_pipeline.batch_stats import BatchStats
from scenario_pipeline.errors import ErrorInfo, ErrorType
from scenario_pipeline.log.vocabulary import Event, PartialReason, RunCompleted, RunFailed, RunPartial


@dataclass(frozen=True)
class Report:
    """How an invocation ended, as the closing events, the ledger and Dagster's metadata all state it.

    Attributes:
        status: `completed`, `partial` or `failed`.
        total_active_mentors: mentors the invocation set out to evaluate.
        stats: what happened to the mentors who were evaluated.
        duration_ms: whole milliseconds on a monotonic clock.
        remaining: unprocessed mentors, or None if the failure makes their number unknown.
        reason: why the invocation is partial: `time_budget` or `terminated`.
        failure: why the invocation failed.
    """

    status: Literal["completed", "partial", "failed"]
    total_active_mentors: int
    stats: BatchStats
    duration_ms: int
    remaining: int | None = 0
    reason: PartialReason | None = None
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
