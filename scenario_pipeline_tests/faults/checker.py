"""The one checker of the fault tests: what a run left behind when a fault had hit it is held against every promise.

Belongs here: what must be true after any fault, and the fault-free run that must then do the rest. Does not belong
here: making a fault. It says what is wrong in sentences, so that a test can demand the sentence that names a promise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, text

from scenario_pipeline.invocation.closing import close_dead_invocation
from scenario_pipeline_tests.support import invariants
from scenario_pipeline_tests.support.invariants import check_invariants
from scenario_pipeline_tests.support.runs import Log
from scenario_pipeline_tests.support.stranger import stranger_accepts
from scenario_pipeline_tests.support.waiting import wait_until

Sent = frozenset[tuple[str, str, str]]
"""What was sent to whom: mentor, scenario and `dedup_key` of each notification."""

# What a run has for closing when its time budget is spent.
GRACE_SECONDS = 2.0
# What its process has for its own end after that: Dagster's last entries, on a machine that does other things.
ENDING_SECONDS = 5.0
# How long a terminated run may take to close its log.
STOPPING_SECONDS = 2.0
# How far what a run measures of itself may be from the timestamps of its log, on a machine that does other things.
CLOCK_SECONDS = 1.0

_OF_THE_LEDGER = (
    "total_active_mentors",
    "total_evaluated",
    "total_dispatched",
    "total_suppressed",
    "total_errors",
    "pages_processed",
    "suppressed_by_reason",
    "dispatched_by_scenario",
)
_STATUSES = {"scheduler_run_partial": "partial", "scheduler_run_failed": "failed"}
_EXIT_STATUSES = {"completed": 0, "partial": 3, "failed": 1}


@dataclass(frozen=True)
class Evidence:
    """What a run left behind.

    Attributes:
        log: its event log, byte for byte.
        time_budget_seconds: what it was allowed.
        exit_status: of its process; None if the run had no process of its own.
        killed: its process was killed, so that others have to close its log.
        ledger_lost: the fault took the ledger away, so that the row may be open or missing although the log is closed.
        log_lost: stdout was the fault, and `log` is what Dagster captured; the exit status must tell.
        told_to_stop_at: when it was sent SIGTERM.
        ended_at: when its process had ended.
    """

    log: bytes
    time_budget_seconds: float
    exit_status: int | None = None
    killed: bool = False
    ledger_lost: bool = False
    log_lost: bool = False
    told_to_stop_at: datetime | None = None
    ended_at: datetime | None = None


def check(evidence: Evidence, database: Engine, undisturbed: Sent, next_run: Callable[[], bytes]) -> None:
    """Demand everything that must be true after a fault.

    Args:
        evidence: what the run left behind.
        database: as the owner of the tables sees it; there is no fault any more.
        undisturbed: what a run over the same data sends when nothing happens to it.
        next_run: makes one more run of the same kind, and returns its log.

    Raises:
        AssertionError: with one sentence for each promise that is broken.
    """
    found = list(complaints(evidence, database, undisturbed, next_run))
    assert not found, "\n".join(found)


def complaints(evidence: Evidence, database: Engine, undisturbed: Sent, next_run: Callable[[], bytes]) -> Iterator[str]:
    """Yield one sentence for each promise that is broken; the arguments are those of `check`."""
    _wait_for_the_end_of_its_backends(database)
    yield from _in_time(evidence)
    yield from _by_another_clock(evidence)
    yield from _torn(evidence.log)
    written = _entries(evidence.log)
    still_open = _still_open(database)
    if still_open and not (evidence.killed or evidence.ledger_lost):
        yield "the process was not killed, and its invocation is open in the ledger"
    closing = _closed_for_it(database, still_open, written)
    if closing and not evidence.killed:
        yield "the process was not killed, and its log had to be closed for it"
    log = evidence.log + closing
    yield from _exit_status(evidence, log)
    yield from _unlike_the_ledger(database, log, ledger_lost=evidence.ledger_lost)
    yield from _broken_invariants(database)

    following = next_run()
    yield from _refused_by_a_stranger(log + following)
    if [entry["completed"] for entry in _entries(following) if entry["event"] == "scheduler_run_completed"] != [True]:
        yield "the next run, which nothing disturbed, is not completed"
    yield from _unlike_the_ledger(database, following)
    yield from _broken_invariants(database)
    sent = {(row[0], row[1], row[4]) for row in invariants.sent(database)}
    yield from (f"{name} {key} of mentor {user_id} is lost" for user_id, name, key in sorted(undisturbed - sent))
    yield from (f"{name} {key} of mentor {user_id} was not due" for user_id, name, key in sorted(sent - undisturbed))


def _entries(log: bytes) -> list[dict[str, Any]]:
    """Return the entries of the scheduler; a line that is no JSON is the stranger's to report."""
    entries = []
    for line in log.split(b"\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("component") == "scenario-scheduler":
            entries.append(entry)
    return entries


def _invocations(log: bytes) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the entries by invocation and event; of the mentors' errors, the last of each."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in _entries(log):
        found.setdefault(entry["invocation_id"], {})[entry["event"]] = entry
    return found


def _torn(log: bytes) -> Iterator[str]:
    if log and not log.endswith(b"\n"):
        yield "the last line of the log is torn"


def _in_time(evidence: Evidence) -> Iterator[str]:
    allowed = evidence.time_budget_seconds + GRACE_SECONDS
    for events in _invocations(evidence.log).values():
        if not {"scheduler_run_started", "scheduler_run_completed"} <= set(events):
            continue  # the grammar has it
        started, completed = (
            datetime.fromisoformat(events[f"scheduler_run_{name}"]["timestamp"]) for name in ("started", "completed")
        )
        took = (completed - started).total_seconds()
        if took > allowed:
            yield f"the log was closed {took:.1f} s after it was begun, {allowed:.1f} s are allowed"
        if evidence.told_to_stop_at is not None:
            took = (completed - evidence.told_to_stop_at).total_seconds()
            if took > STOPPING_SECONDS:
                yield f"the log was closed {took:.1f} s after SIGTERM, {STOPPING_SECONDS:.1f} s are allowed"
        if evidence.ended_at is not None:
            took = (evidence.ended_at - started).total_seconds()
            if took > allowed + ENDING_SECONDS:
                yield f"the process ended {took:.1f} s after it began, {allowed + ENDING_SECONDS:.1f} s are allowed"


def _by_another_clock(evidence: Evidence) -> Iterator[str]:
    """Hold what a run says of its time against the timestamps of its log and against its budget."""
    allowed = evidence.time_budget_seconds + GRACE_SECONDS
    for events in _invocations(evidence.log).values():
        if not {"scheduler_run_started", "scheduler_run_completed"} <= set(events):
            continue  # the grammar has it
        started, completed = (
            datetime.fromisoformat(events[f"scheduler_run_{name}"]["timestamp"]) for name in ("started", "completed")
        )
        took, duration = (completed - started).total_seconds(), events["scheduler_run_completed"]["duration_ms"] / 1000
        # It may have waited before it could announce itself, so a longer duration is none of another clock.
        if not took - CLOCK_SECONDS <= duration <= allowed + CLOCK_SECONDS:
            yield f"duration_ms says {duration:.1f} s, the log {took:.1f} s, and {allowed:.1f} s are allowed"
        reason = events.get("scheduler_run_partial", {}).get("reason")
        if reason == "time_budget" and duration < evidence.time_budget_seconds - CLOCK_SECONDS:
            yield f"its budget of {evidence.time_budget_seconds:.1f} s was spent after {duration:.1f} s"


def _still_open(database: Engine) -> list[str]:
    with database.connect() as connection:
        statement = text("SELECT invocation_id::text FROM scenario.scheduler_runs WHERE status = 'running'")
        return list(connection.execute(statement).scalars())


def _closed_for_it(database: Engine, still_open: list[str], written: list[dict[str, Any]]) -> bytes:
    """Close what is open in the ledger, as the sensors do, and return what that wrote."""
    log = Log()
    for invocation_id in still_open:
        own = [entry for entry in written if entry["invocation_id"] == invocation_id]
        close_dead_invocation(database, invocation_id, log.logger(invocation_id), logged=own)
    return b"".join(log.lines)


def _refused_by_a_stranger(log: bytes) -> Iterator[str]:
    try:
        stranger_accepts(log.decode("utf-8", errors="backslashreplace"))
    except AssertionError as exc:
        yield f"the stranger's checker refuses the log: {exc}"


def _status_of(events: dict[str, dict[str, Any]]) -> str:
    return next((status for event, status in _STATUSES.items() if event in events), "completed")


def _exit_status(evidence: Evidence, log: bytes) -> Iterator[str]:
    if evidence.exit_status is None or evidence.killed:
        return
    statuses = [_EXIT_STATUSES[_status_of(events)] for events in _invocations(log).values()] or [1]
    expected = [status or 1 for status in statuses] if evidence.log_lost else statuses
    if [evidence.exit_status] != expected:
        yield f"the exit status is {evidence.exit_status}, the log says {expected}"


def _unlike_the_ledger(database: Engine, log: bytes, *, ledger_lost: bool = False) -> Iterator[str]:
    """Hold each closing entry against the invocation's row and its notifications."""
    with database.connect() as connection:
        rows = {
            str(row["invocation_id"]): row
            for row in connection.execute(text("SELECT * FROM scenario.scheduler_runs")).mappings()
        }
        for invocation_id, events in _invocations(log).items():
            completed = events.get("scheduler_run_completed")
            if completed is None:
                continue  # the grammar has it
            live = events.get("scheduler_run_started", {}).get("dispatch_mode") == "live"
            sent = _number_sent(connection, invocation_id)
            if sent != (completed["total_dispatched"] if live else 0):
                yield f"the log says {completed['total_dispatched']} dispatched, there are {sent} notifications"
            row = rows.get(invocation_id)
            if row is None:
                if not ledger_lost:
                    yield "the invocation is in the log and not in the ledger"
                continue
            # A row that was closed for a process without a ledger says how long that took.
            names = _OF_THE_LEDGER if ledger_lost else (*_OF_THE_LEDGER, "duration_ms")
            yield from (
                f"{name} is {completed[name]} in the log and {row[name]} in the ledger"
                for name in names
                if completed[name] != row[name]
            )
            if row["status"] != _status_of(events):
                yield f"the invocation is {_status_of(events)} in the log and {row['status']} in the ledger"


def _number_sent(connection: Connection, invocation_id: str) -> int:
    statement = text("SELECT count(*) FROM scenario.scenario_notifications WHERE invocation_id = :id")
    number: int = connection.execute(statement, {"id": invocation_id}).scalar_one()
    return number


def _broken_invariants(database: Engine) -> Iterator[str]:
    with database.connect() as connection:
        try:
            check_invariants(connection)
        except AssertionError as exc:
            yield str(exc)


def _wait_for_the_end_of_its_backends(database: Engine) -> None:
    """Let the server notice that a killed client is gone, which it does within a second.

    A commit that was on its way would otherwise come to pass while it is being counted.
    """
    database.dispose()
    statement = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name = 'scenario-pipeline' AND pid <> pg_backend_pid()"
    )
    with database.connect() as connection:
        wait_until(lambda: connection.execute(statement).scalar_one() == 0, "the backends of the run end")
