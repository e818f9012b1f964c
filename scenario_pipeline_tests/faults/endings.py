"""How a run's log ends, and what the command says of a log that it could not write.

Belongs here: reading an ending. Does not belong here: judging a run (`checker`).
"""

from __future__ import annotations

import json

from scenario_pipeline_tests.faults import small_world
from scenario_pipeline_tests.faults.checker import Evidence

FAILED, PARTIAL = "scheduler_run_failed", "scheduler_run_partial"
# In the middle, one page is committed.
LEFT = 25 - small_world.PAGE_SIZE


def ending(evidence: Evidence) -> tuple[str, str | None, int | None]:
    """Return how a log ends: the entry before the last, its error type or reason, and how many remain."""
    entry = json.loads(evidence.log.splitlines()[-2])
    return entry["event"], entry.get("error_type") or entry.get("reason"), entry["remaining_unprocessed_count"]


def lost(entries: int) -> str:
    """Return what the command says of a log that it could not write."""
    noun = "entry" if entries == 1 else "entries"
    return f"{entries} {noun} could not be written to stdout: the log is incomplete; the ledger is complete."
