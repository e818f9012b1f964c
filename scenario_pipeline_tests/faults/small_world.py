"""The people of the fault tests: three pages with every outcome in them, and what a run over them is to send.

Belongs here: the data, which is the same for every fault. Does not belong here: making a fault, or judging a run.
"""

from __future__ import annotations

from sqlalchemy import Engine, text

from scenario_pipeline_tests.faults.checker import Sent
from scenario_pipeline_tests.support.people import (
    DAY,
    D,
    Mentor,
    insert_mentors,
    insert_notification,
    insert_organisation,
    mentor_id,
)
from scenario_pipeline_tests.support.triggers import refuse_notifications_of

PAGE_SIZE = 9
OPTED_OUT, ALREADY_TOLD, POISON = 4, 7, 13
# On the second page of three: whatever holds a run at this mentor holds it in the middle.
IN_THE_MIDDLE = 15

_LAST_SEEN = D - 32 * DAY
_EXPIRES_ON = D + 30 * DAY
_QUIET = (1, OPTED_OUT, ALREADY_TOLD, 8, POISON, IN_THE_MIDDLE, 16, 20, 25)
_REACHED_TEN = (2, 8, 11, 22)
_EXPIRING = (3, 12, 22, 24)


def mentors() -> list[Mentor]:
    """Twenty-five active mentors of one organisation."""
    return [
        Mentor(
            n,
            activities=[_LAST_SEEN if n in _QUIET else D - DAY] * (10 if n in _REACHED_TEN else 2),
            certifications=[("first aid", _EXPIRES_ON)] if n in _EXPIRING else (),
            opted_out=n == OPTED_OUT,
        )
        for n in range(1, 26)
    ]


def insert(engine: Engine) -> None:
    """Insert them, the notification that one of them has had, and the rule that fails for another."""
    with engine.begin() as connection:
        insert_organisation(connection)
        insert_mentors(connection, mentors())
    refuse_notifications_of(engine, [mentor_id(POISON)])
    _tell_before(engine)


def _tell_before(engine: Engine) -> None:
    with engine.begin() as connection:
        insert_notification(
            connection, mentor_id(ALREADY_TOLD), D - DAY, dedup_key=f"{_LAST_SEEN}:30", invocation_id=None
        )


def forget_runs(engine: Engine) -> None:
    """Bring the database back to where no run had been made."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "TRUNCATE scenario.scenario_notifications, scenario.scheduler_runs, scenario.scheduler_run_pages;"
                "UPDATE scenario.scenario_evaluation_config SET last_evaluated_count = NULL, last_evaluated_at = NULL"
            )
        )
    _tell_before(engine)


def expected() -> Sent:
    """Return the notifications expected after a run, by the contract's rules and without any SQL."""
    inactive = {(n, "inactivity", f"{_LAST_SEEN}:30") for n in _QUIET if n not in (OPTED_OUT, POISON)}
    expiring = {(n, "certification_expiry", f"first aid:{_EXPIRES_ON}:30") for n in _EXPIRING}
    # The tenth activity of those who are quiet as well is too long ago.
    reached = {(n, "milestone", "10") for n in _REACHED_TEN if n not in _QUIET}
    first = {(n, "milestone", "1") for n in range(1, 26) if n not in (*_QUIET, *_REACHED_TEN)}
    return frozenset((mentor_id(n), name, key) for n, name, key in inactive | expiring | reached | first)
