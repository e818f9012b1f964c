"""What stands in the database after a test, and what must hold whatever the test did.

Belongs here: reading notifications and pages, and contract section 4 as assertions over rows. Does not belong here:
what one test expects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import date
from typing import Any

from sqlalchemy import Connection, Engine, text

Notification = tuple[str, str, date, date, str, int, date]
"""user_id, scenario_type, evaluation_date, cooldown_window_start, dedup_key, threshold, crossed_on."""


def notifications(connection: Connection) -> list[Notification]:
    """Return all notifications as tuples, in order of mentor, scenario and date."""
    rows = connection.execute(
        text(
            "SELECT user_id::text, scenario_type, evaluation_date, cooldown_window_start, dedup_key, threshold,"
            " crossed_on FROM scenario.scenario_notifications ORDER BY 1, 2, 3"
        )
    )
    return [tuple(row) for row in rows]


def sent(engine: Engine) -> list[Notification]:
    """Return all notifications, from a connection of its own."""
    with engine.connect() as connection:
        return notifications(connection)


def number_of_pages(engine: Engine) -> int:
    """Return how many pages were committed."""
    with engine.connect() as connection:
        n: int = connection.execute(text("SELECT count(*) FROM scenario.scheduler_run_pages")).scalar_one()
        return n


def check_invariants(connection: Connection, *, cooldown_days: Mapping[str, int] | None = None) -> None:
    """Check what must hold after any test: cooldowns, uniqueness, and counters that equal the rows.

    Args:
        connection: sees everything that was committed.
        cooldown_days: the cooldown in force by scenario, where it is not what is configured now.

    Raises:
        AssertionError: with one sentence a violation.
    """
    found = [*_too_close(connection, cooldown_days or {}), *_not_unique(connection), *_miscounted(connection)]
    if found:
        raise AssertionError("\n".join(found))


def _too_close(connection: Connection, cooldown_days: Mapping[str, int]) -> list[str]:
    configured = {
        (row.organisation_id, row.scenario_type): row.cooldown_days
        for row in connection.execute(
            text("SELECT organisation_id::text, scenario_type, cooldown_days FROM scenario.scenario_evaluation_config")
        )
    }
    rows = connection.execute(
        text(
            "SELECT user_id::text, organisation_id::text, scenario_type, evaluation_date, cooldown_window_start,"
            " lag(evaluation_date) OVER (PARTITION BY user_id, scenario_type ORDER BY evaluation_date) AS before "
            "FROM scenario.scenario_notifications ORDER BY 1, 3, 4"
        )
    )
    found = []
    for row in rows:
        who = f"{row.scenario_type} of mentor {row.user_id}"
        own = configured.get((row.organisation_id, row.scenario_type))
        cooldown = cooldown_days.get(row.scenario_type, own or configured.get((None, row.scenario_type), 1))
        if row.before is not None and (row.evaluation_date - row.before).days < cooldown:
            found.append(f"{who}: {row.before} and {row.evaluation_date} are less than {cooldown} days apart")
        if row.before is not None and row.cooldown_window_start != row.before:
            found.append(
                f"{who}: the window of {row.evaluation_date} starts on {row.cooldown_window_start}, not {row.before}"
            )
    return found


def _not_unique(connection: Connection) -> list[str]:
    found = []
    for key in ("cooldown_window_start", "evaluation_date", "dedup_key"):
        rows = connection.execute(
            text(
                f"SELECT user_id, scenario_type, {key}, count(*) AS n FROM scenario.scenario_notifications "
                "GROUP BY 1, 2, 3 HAVING count(*) > 1"
            )
        )
        found += [f"{row.scenario_type} of mentor {row.user_id}: {row.n} rows with {key} {row[2]}" for row in rows]
    return found


_COUNTERS = ("total_evaluated", "total_dispatched", "total_suppressed", "total_errors")
_TALLIES = ("suppressed_by_reason", "dispatched_by_scenario")


def _miscounted(connection: Connection) -> list[str]:
    found = []
    for row in connection.execute(text("SELECT * FROM scenario.scheduler_runs")).all():
        run = row._asdict()
        of_run = {"id": run["invocation_id"]}
        pages = connection.execute(
            text("SELECT * FROM scenario.scheduler_run_pages WHERE invocation_id = :id"), of_run
        ).mappings()
        sums: Counter[str] = Counter()
        tallies: dict[str, Counter[str]] = {name: Counter() for name in _TALLIES}
        for page in pages:
            sums["pages_processed"] += 1
            for name in _COUNTERS:
                sums[name] += page[name]
            for name in _TALLIES:
                tallies[name].update(page[name])
        rows = connection.execute(
            text("SELECT count(*) FROM scenario.scenario_notifications WHERE invocation_id = :id"), of_run
        ).scalar_one()
        found += [f"invocation {run['invocation_id']}: {why}" for why in _unbalanced(run, sums, tallies, rows)]
    return found


def _unbalanced(
    run: Mapping[str, Any], sums: Mapping[str, int], tallies: Mapping[str, Counter[str]], rows: int
) -> list[str]:
    found = []
    expected_rows = sums.get("total_dispatched", 0) if run["dispatch_mode"] == "live" else 0
    if rows != expected_rows:
        found.append(f"{rows} notifications of a {run['dispatch_mode']} run, its pages say {expected_rows}")
    for tally, total in (("suppressed_by_reason", "total_suppressed"), ("dispatched_by_scenario", "total_dispatched")):
        if tallies[tally].total() != sums.get(total, 0):
            found.append(f"{tally} of its pages does not add up to {total}")
    if run["status"] == "running":
        return found
    added_up = {name: sums.get(name, 0) for name in (*_COUNTERS, "pages_processed")}
    added_up_by = {name: dict(tallies[name]) for name in _TALLIES}
    found += [
        f"{name} is {run[name]}, its pages add up to {expected}"
        for name, expected in {**added_up, **added_up_by}.items()
        if run[name] != expected
    ]
    if run["status"] == "failed" and run["remaining_unprocessed_count"] is None:
        return found
    covered = run["total_evaluated"] + run["total_errors"] + (run["remaining_unprocessed_count"] or 0)
    if covered != run["total_active_mentors"]:
        found.append(f"evaluated, errors and remaining are {covered}, active are {run['total_active_mentors']}")
    return found


def consistent(engine: Engine) -> None:
    """Check the invariants on a connection of its own."""
    with engine.connect() as connection:
        check_invariants(connection)
