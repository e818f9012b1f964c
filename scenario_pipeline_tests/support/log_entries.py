"""Entries and logs as the contract writes them, to be changed in one place each.

Belongs here: data and the edits made to them. Does not belong here: the product's classes of events.
"""

from __future__ import annotations

import json
from typing import Any

FIRST = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
SECOND = "16fd2706-8baf-433b-82eb-8c7fada847da"
MENTOR = "0b1f6a2e-7c1d-1a55-9d0e-3f2a1b4c5d6e"

Entry = dict[str, Any]

# Contract section 5, word for word.
COMMON = (
    *("timestamp", "level", "event", "component", "invocation_id", "schema_version"),
    *("dagster_run_id", "dagster_job_name", "dagster_step_key", "dagster_partition_key"),
)
TOTALS = ("total_active_mentors", "total_evaluated", "total_dispatched", "total_suppressed", "total_errors")


def entry(event: str, level: str, **further: Any) -> Entry:
    """One entry of the first invocation."""
    return {
        "timestamp": "2026-03-01T12:00:00.000Z",
        "level": level,
        "event": event,
        "component": "scenario-scheduler",
        "invocation_id": FIRST,
        "schema_version": 1,
        "dagster_run_id": FIRST,
        "dagster_job_name": "scenario_scheduler",
        "dagster_step_key": None,
        "dagster_partition_key": "2026-03-01",
        **further,
    }


STARTED = entry(
    "scheduler_run_started",
    "info",
    triggered_by="manual",
    evaluation_date="2026-03-01",
    scenario_types=["inactivity", "milestone"],
    dispatch_mode="live",
    time_budget_ms=30_000,
)
ERROR = entry(
    "mentor_evaluation_error",
    "warning",
    peer_mentor_id=MENTOR,
    error_type="timeout_error",
    error_message="timeout after 30 s",
)
COUNTS: Entry = {
    "total_active_mentors": 10,
    "total_evaluated": 9,
    "total_dispatched": 3,
    "total_suppressed": 2,
    "total_errors": 1,
    "pages_processed": 1,
}
LEFT: Entry = {**COUNTS, "total_active_mentors": 15}
BY: Entry = {
    "duration_ms": 1234,
    "suppressed_by_reason": {"cooldown": 2},
    "dispatched_by_scenario": {"inactivity": 1, "milestone": 2},
}
COMPLETED = entry("scheduler_run_completed", "info", completed=True, **COUNTS, **BY)
PARTIAL = entry("scheduler_run_partial", "warning", remaining_unprocessed_count=5, reason="time_budget", **LEFT)
FAILED = entry(
    "scheduler_run_failed",
    "error",
    error_type="database_error",
    error_message="deadlock detected",
    remaining_unprocessed_count=5,
)
NOT_COMPLETED = entry("scheduler_run_completed", "warning", completed=False, **LEFT, **BY)
RETRIED = {
    **entry("trigger_engine_page_retried", "warning"),
    "component": "scenario-trigger-engine",
    "page_number": 1,
    "attempt": 2,
    "error_type": "database_error",
    "error_message": "deadlock detected",
}


def but(original: Entry, **changes: Any) -> Entry:
    return {**original, **changes}


def without(original: Entry, name: str) -> Entry:
    return {key: value for key, value in original.items() if key != name}


def of_second(original: Entry) -> Entry:
    return but(original, invocation_id=SECOND, dagster_run_id=SECOND)


def as_lines(log: list[Entry | bytes]) -> list[bytes]:
    return [item if isinstance(item, bytes) else json.dumps(item, ensure_ascii=False).encode() for item in log]


def raw(original: Entry, old: str, new: bytes) -> bytes:
    """An entry with something in it that no JSON encoder writes."""
    line = json.dumps(original).encode()
    assert old.encode() in line
    return line.replace(old.encode(), new, 1)
