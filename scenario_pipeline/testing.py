"""A test helper for authors of scenarios: one mentor, one date, and the expected match.

Belongs here: running a scenario's own select on a disposable database. Does not belong here: tests, or anything of a
test runner.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Date, Engine, bindparam, cast, delete, insert, select, text

from scenario_pipeline.engines.statement import configuration_of, own_configuration
from scenario_pipeline.scenarios import Scenario
from scenario_pipeline.storage.database import connect, create_database
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline.storage.roles import SCHEDULER
from scenario_pipeline.storage.source import MATCH_COLUMNS
from scenario_pipeline.storage.tables import (
    mentor_activities,
    mentor_certifications,
    organisations,
    peer_mentors,
    scenario_evaluation_config,
    source_mentors,
)
from scenario_pipeline.upgrade import upgrade

_COLUMNS = tuple(column.name for column in MATCH_COLUMNS)
_ASKED = _COLUMNS[1:]
_NOT_DUE = "not due"


def assert_due(
    scenario: Scenario,
    *,
    on: date,
    expected: tuple[int, date, str] | None,
    joined_on: date = date(2000, 1, 1),
    activities: Iterable[date | tuple[str, date]] = (),
    certifications: Iterable[tuple[str, date]] = (),
    thresholds: Sequence[int] | None = None,
    lookback_days: int | None = None,
) -> None:
    """Check what a scenario finds for one mentor on one date.

    The scenario's own select runs with the rights of the scheduler, on an embedded Postgres. That server starts with
    the first call in a process, keeps nothing, and ends with the process. The scenario need not be installed.

    Args:
        scenario: the scenario.
        on: the evaluation date.
        expected: `threshold`, `crossed_on` and `dedup_key` of the match, or None if nothing is due.
        joined_on: when the mentor joined; a mentor who joins after `on` is not evaluated.
        activities: dates of activities, or pairs of `activity_type` and date.
        certifications: pairs of `certification_type` and expiry date.
        thresholds: replace the scenario's own.
        lookback_days: replaces the scenario's own.

    Raises:
        AssertionError: something else is due; the message shows both side by side.
    """
    __tracebackhide__ = True  # pytest then shows the caller's line
    with _database().connect() as connection, connection.begin() as transaction:
        _insert_configuration(connection, scenario, thresholds, lookback_days)
        mentor_id = _insert_mentor(connection, joined_on, activities, certifications)
        # A test must not be able to read what a run may not read.
        connection.execute(text(f"SET LOCAL ROLE {SCHEDULER}"))
        found = _matches(connection, scenario, mentor_id, on)
        transaction.rollback()
    shown = f"{scenario.scenario_type} on {on}, for a mentor who joined on {joined_on}"
    if len(found) > 1:
        raise AssertionError(f"{shown}: {len(found)} rows for one mentor, at most one is allowed\n" + _lines(found))
    if found != ([] if expected is None else [tuple(expected)]):
        raise AssertionError(_difference(shown, expected, found[0] if found else None))


@cache
def _database() -> Engine:
    folder = Path(tempfile.mkdtemp(prefix="scenario-pipeline-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    server = EmbeddedPostgres(folder / "postgres")
    atexit.register(server.stop)
    server.start()
    create_database(server.url("postgres"), "scenario")
    database = connect(server.url("scenario"))
    atexit.register(database.dispose)
    upgrade(database)
    return database


def _insert_configuration(
    connection: Connection, scenario: Scenario, thresholds: Sequence[int] | None, lookback_days: int | None
) -> None:
    config = scenario_evaluation_config
    # An installed scenario already has its default row.
    connection.execute(delete(config).where(config.c.scenario_type == scenario.scenario_type))
    connection.execute(
        insert(config).values(
            scenario_type=scenario.scenario_type,
            enabled=True,
            thresholds=list(scenario.thresholds if thresholds is None else thresholds),
            lookback_days=scenario.lookback_days if lookback_days is None else lookback_days,
            cooldown_days=scenario.cooldown_days,
        )
    )


def _insert_mentor(
    connection: Connection,
    joined_on: date,
    activities: Iterable[date | tuple[str, date]],
    certifications: Iterable[tuple[str, date]],
) -> str:
    mentor_id, organisation_id = str(uuid4()), str(uuid4())
    connection.execute(insert(organisations).values(id=organisation_id, name="Organisation", timezone="Europe/Oslo"))
    connection.execute(
        insert(peer_mentors).values(
            id=mentor_id,
            organisation_id=organisation_id,
            status="active",
            full_name="Mentor",
            joined_on=joined_on,
            notifications_opt_out=False,
        )
    )
    for activity in activities:
        kind, day = ("activity", activity) if isinstance(activity, date) else activity
        values = {"user_id": mentor_id, "activity_type": kind, "activity_date": day}
        connection.execute(insert(mentor_activities).values(values))
    for kind, day in certifications:
        values = {"user_id": mentor_id, "certification_type": kind, "expires_on": day}
        connection.execute(insert(mentor_certifications).values(values))
    return mentor_id


def _matches(connection: Connection, scenario: Scenario, mentor_id: str, on: date) -> list[tuple[Any, ...]]:
    """Return threshold, crossing date and key of each row that the select returns for the mentor."""
    evaluation_date = cast(bindparam("evaluation_date", on), Date)
    mentor = source_mentors
    page = (
        select(mentor.c.id.label("user_id"), mentor.c.organisation_id, mentor.c.joined_on)
        .where(mentor.c.id == mentor_id, mentor.c.joined_on <= evaluation_date)
        .cte("page")
    )
    name = scenario.scenario_type
    configuration = own_configuration(name, configuration_of(page, [name]))
    found = scenario.matches(page, configuration, evaluation_date).subquery()
    missing = [column for column in _COLUMNS if column not in found.c]
    if missing:
        raise AssertionError(f"the select of {name} has no column {' and no column '.join(missing)}")
    return [tuple(row) for row in connection.execute(select(*(found.c[column] for column in _ASKED)))]


def _difference(shown: str, expected: tuple[Any, ...] | None, found: tuple[Any, ...] | None) -> str:
    if expected is None or found is None:
        return f"{shown}:\n  expected: {_line(expected)}\n  found:    {_line(found)}"
    width = max(map(len, _ASKED))
    lines = [
        f"  {name:{width}}  {_value(wanted)}" + ("" if wanted == got else f" expected, found {_value(got)}")
        for name, wanted, got in zip(_ASKED, expected, found, strict=True)
    ]
    return "\n".join([f"{shown}, another match is due than expected:", *lines])


def _lines(rows: Iterable[tuple[Any, ...]]) -> str:
    return "\n".join(f"  {_line(row)}" for row in rows)


def _line(match: tuple[Any, ...] | None) -> str:
    if match is None:
        return _NOT_DUE
    return ", ".join(f"{name} {_value(value)}" for name, value in zip(_ASKED, match, strict=True))


def _value(value: object) -> str:
    return value.isoformat() if isinstance(value, date) else repr(value)
