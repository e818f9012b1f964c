"""Whether log, ledger, notifications and Dagster's metadata agree about an invocation (contract section 5).

Belongs here: comparing what was read. Does not belong here: reading it, or deciding what a difference means.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scenario_pipeline.log.validation import violations
from scenario_pipeline.log.vocabulary import RunCompleted, RunStarted
from scenario_pipeline.storage.ledger.closed import ClosedInvocation


def disagreements(
    invocation: ClosedInvocation, lines: Sequence[bytes], metadata: Mapping[str, Any] | None
) -> Iterator[str]:
    """Compare the places that record an invocation.

    Args:
        invocation: what the ledger and the notifications say.
        lines: the entries of this invocation in the event log; none if the log cannot be read.
        metadata: values of Dagster's metadata by name, or None if there is none.

    Yields:
        One sentence a disagreement, with the numbers of both sides.
    """
    # How long it took is measured twice where a process could not close its invocation itself.
    totals = {name: value for name, value in invocation.totals.items() if name != "duration_ms"}
    expected = 0 if invocation.dispatch_mode == "dry_run" else totals["total_dispatched"]
    # A remote engine that keeps its notifications elsewhere has none here.
    kept_elsewhere = invocation.engine == "http" and invocation.notifications == 0
    if invocation.notifications != expected and not kept_elsewhere:
        yield f"{invocation.notifications} notifications, expected {expected}"
    covered = totals["total_evaluated"] + totals["total_errors"] + (invocation.remaining or 0)
    if invocation.remaining is not None and covered != totals["total_active_mentors"]:
        yield f"evaluated, errors and remaining are {covered}, active are {totals['total_active_mentors']}"
    pages = {**invocation.pages.totals(), "pages_processed": invocation.pages.pages_processed}
    if invocation.engine == "http" and _dispatched_at_least(totals, pages):
        # A reply may be lost after the engine has dispatched. Closing counts these matches from their notifications, so
        # the ledger may have more of them than its pages, never fewer.
        pages = {name: value for name, value in pages.items() if "dispatched" not in name}
    yield from _differences("the ledger", totals, "its pages", pages)
    if metadata is not None:
        yield from _differences("the ledger", totals, "the metadata", metadata)
    if lines:
        yield from (f"log, {sentence}" for sentence in violations(lines))
        ours = {**totals, "completed": invocation.status == "completed"}
        for entry in map(json.loads, lines):
            if entry["event"] == RunCompleted.name:
                yield from _differences("the ledger", ours, "the log", entry)


def is_log_at_hand(lines: Sequence[bytes]) -> bool:
    """Whether these entries are the log of an invocation, or else the end of one that another machine holds.

    The first step writes how a log begins; where it ran on another machine, or its file is gone, nothing can be said
    of the entries that are left.
    """
    return any(json.loads(line)["event"] == RunStarted.name for line in lines)


def _dispatched_at_least(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    by_scenario = "dispatched_by_scenario"
    return ours["total_dispatched"] >= theirs["total_dispatched"] and Counter(ours[by_scenario]) >= Counter(
        theirs[by_scenario]
    )


def _differences(left: str, ours: Mapping[str, Any], right: str, theirs: Mapping[str, Any]) -> Iterator[str]:
    for name in ours.keys() & theirs.keys():
        if ours[name] != theirs[name]:
            yield f"{name} is {ours[name]} in {left} and {theirs[name]} in {right}"
