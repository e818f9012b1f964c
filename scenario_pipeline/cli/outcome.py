"""How a run ended, as `scenario-pipeline run` shows it: exit status and summary.

Belongs here: asking the ledger, else the log, and the sentences. Does not belong here: running (`defs.local_run`), or
what the ledger holds (`storage.ledger`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scenario_pipeline.cli.terminal import EXIT_COMPLETED, EXIT_FAILED, EXIT_PARTIAL, counted, echo
from scenario_pipeline.failures import ErrorInfo
from scenario_pipeline.settings import Settings

# The log is closed by now: nobody should wait long for a ledger that is out of reach.
LEDGER_SECONDS = 2
# The ledger's row is there and open, or there is none.
OPEN, ABSENT = "open", "absent"

Entries = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class _Ending:
    """How an invocation ended: `totals` as in `scheduler_run_completed`; `remaining` is None where it is unknown."""

    status: str
    evaluation_date: str
    dispatch_mode: str
    remaining: int | None
    totals: Mapping[str, Any]


def summarise(settings: Settings, run_id: str | None, logged: Entries) -> int:
    """Say how a run ended and return the exit status; the ledger is believed, and the log only without it.

    Args:
        settings: where the ledger is.
        run_id: the run, or None if none was created.
        logged: the last entry of each event that this process wrote.
    """
    ending: _Ending | str | ErrorInfo = ABSENT
    if run_id is not None:
        ending = _from_ledger(settings, run_id)
    if not isinstance(ending, _Ending):
        ending = _from_log(logged) or ending
    if isinstance(ending, _Ending):
        return _shown(ending, logged)
    if ending == ABSENT:
        echo("The run was stopped before it began; nothing was evaluated.")
    elif ending == OPEN:
        echo("The run did not close its invocation: Dagster's daemon will, with what the ledger holds.")
    elif isinstance(ending, ErrorInfo):
        echo(f"How the run ended is unknown: it has no log, and its ledger cannot be read: {ending.error_message}.")
    return EXIT_FAILED


def _from_ledger(settings: Settings, run_id: str) -> _Ending | str | ErrorInfo:
    from sqlalchemy.exc import NoResultFound

    from scenario_pipeline.errors import classify
    from scenario_pipeline.storage.database import connect, limit_statement_time, locate
    from scenario_pipeline.storage.ledger.closed import closed_invocation
    from scenario_pipeline.storage.ledger.invocations import join_invocation

    try:
        database = connect(locate(settings, start=False).scenario, connect_timeout_seconds=LEDGER_SECONDS)
        try:
            with database.connect() as connection:
                limit_statement_time(connection, LEDGER_SECONDS)
                found = closed_invocation(connection, run_id)
                if found is None:
                    join_invocation(connection, run_id)
                    return OPEN
        finally:
            database.dispose()
    except NoResultFound:
        return ABSENT
    except Exception as exc:  # noqa: BLE001 - whatever keeps the ledger from being read, the log is asked next
        return classify(exc)
    return _Ending(found.status, found.evaluation_date.isoformat(), found.dispatch_mode, found.remaining, found.totals)


def _from_log(logged: Entries) -> _Ending | None:
    started, completed = logged.get("scheduler_run_started"), logged.get("scheduler_run_completed")
    if started is None or completed is None:
        return None
    failed, partial = logged.get("scheduler_run_failed"), logged.get("scheduler_run_partial")
    status = "failed" if failed else "partial" if partial else "completed"
    remaining = (failed or partial or {}).get("remaining_unprocessed_count")
    return _Ending(status, started["evaluation_date"], started["dispatch_mode"], remaining, completed)


def _shown(ending: _Ending, logged: Entries) -> int:
    done = ending.totals
    mentors = counted(done["total_active_mentors"], "active mentor")
    echo(
        f"{ending.evaluation_date} ({ending.dispatch_mode}): {done['total_evaluated']:,} of {mentors} "
        f"evaluated in {done['duration_ms']:,} ms, "
        f"{done['total_dispatched']:,} dispatched {_breakdown(done['dispatched_by_scenario'])}, "
        f"{done['total_suppressed']:,} suppressed {_breakdown(done['suppressed_by_reason'])}, "
        f"{counted(done['total_errors'], 'error')}."
    )
    if ending.status == "failed":
        # Why it failed or is partial stands in the log alone.
        failed = logged.get("scheduler_run_failed")
        echo(f"Failed ({failed['error_type']}): {failed['error_message']}." if failed else "Failed.")
        return EXIT_FAILED
    if ending.status == "partial":
        partial = logged.get("scheduler_run_partial")
        reason = f" ({partial['reason']})" if partial else ""
        echo(f"Partial{reason}: {counted(ending.remaining or 0, 'mentor')} left for the next run.")
        return EXIT_PARTIAL
    return EXIT_COMPLETED


def _breakdown(counts: Mapping[str, int]) -> str:
    return f"({', '.join(f'{name} {n:,}' for name, n in counts.items())})" if counts else "(none)"
