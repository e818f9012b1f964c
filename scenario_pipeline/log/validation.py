"""Checks an event log: strict JSON, the schema, the grammar and the identities (contract section 5).

Belongs here: reading a log without trusting its writer. Does not belong here: comparing it with the ledger
(`defs.reconcile`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from scenario_pipeline.log.schema import line_adapter, line_models
from scenario_pipeline.log.vocabulary import (
    SCHEDULER,
    MentorEvaluationError,
    RunCompleted,
    RunFailed,
    RunPartial,
    RunStarted,
)


@dataclass
class _Invocation:
    """What has been read of one invocation so far."""

    line: int
    kinds: list[str] = field(default_factory=list)
    closing: Mapping[str, Any] | None = None
    completed: Mapping[str, Any] | None = None


def violations(lines: Iterable[bytes], *, seen_ids: set[str] | None = None) -> Iterator[str]:
    """Check an event log line by line: strict JSON, the schema, the grammar and the identities.

    Args:
        lines: the log, split at line feeds only; empty lines are skipped.
        seen_ids: is given the id of each invocation in the log.

    Yields:
        One sentence for each violation, with its line number and without any value from the line.
    """
    invocations: dict[str, _Invocation] = {}
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        try:
            entry = json.loads(raw.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_unique_keys)
        except (ValueError, RecursionError):
            yield f"line {number}: is not strict JSON in UTF-8"
            continue
        try:
            # JSON has no tuples or enumerations, so strictness applies to JSON types.
            line_adapter().validate_json(raw, strict=True)
        except ValidationError as exc:
            yield f"line {number}: does not fit the schema at {', '.join(sorted(_places(exc)))}"
            continue
        if entry["component"] == SCHEDULER:
            seen = invocations.setdefault(entry["invocation_id"], _Invocation(number))
            yield from _follow(seen, number, entry)
    if seen_ids is not None:
        seen_ids.update(invocations)
    for seen in invocations.values():
        if seen.completed is None:
            yield f"line {seen.line}: the invocation is never closed by scheduler_run_completed"
        else:
            yield from _unbalanced(seen)


def _places(exc: ValidationError) -> set[str]:
    """Return the fields in which a line does not fit; a name that is not ours may be anything, so it is not shown."""
    ours = {name for line in line_models() for name in line.model_fields}
    found = {str(error["loc"][1]) if len(error["loc"]) > 1 else "event" for error in exc.errors()}
    return {place if place in ours else "a field that does not exist" for place in found}


def _follow(seen: _Invocation, number: int, entry: Mapping[str, Any]) -> Iterator[str]:
    """Check one more entry against the grammar `started (error)* [partial | failed] completed`."""
    kind = entry["event"]
    match kind, seen.kinds[-1:]:
        case RunStarted.name, []:
            pass
        case _, []:
            yield f"line {number}: the invocation does not begin with scheduler_run_started"
        case _, [RunCompleted.name]:
            yield f"line {number}: {kind} follows scheduler_run_completed"
        case RunStarted.name, _:
            yield f"line {number}: scheduler_run_started appears twice"
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
        raise ValueError("a key appears twice")
    return dict(pairs)
