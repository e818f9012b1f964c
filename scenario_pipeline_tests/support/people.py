"""People for tests that need a database, and what they did.

Belongs here: plain SQL that inserts. Does not belong here: any statement of the project, or a run.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, text

DAY = timedelta(days=1)
# The evaluation date of most tests: 29 February is near, and so is the end of summer time.
D = date(2024, 3, 31)
FIRST_WINDOW = date(1970, 1, 1)


def organisation_id(n: int = 1) -> str:
    """Return the id of the n-th organisation."""
    return f"aaaaaaaa-0000-4000-8000-{n:012x}"


def mentor_id(n: int) -> str:
    """Return the id of the n-th mentor; ids sort as their numbers do."""
    return f"bbbbbbbb-0000-4000-8000-{n:012x}"


def new_invocation_id() -> str:
    """Return an id as Dagster mints it."""
    return str(uuid.uuid4())


def insert_organisation(
    connection: Connection, n: int = 1, *, name: str = "Kreftforeningen", timezone: str = "Europe/Oslo"
) -> str:
    """Insert the n-th organisation."""
    connection.execute(
        text("INSERT INTO scenario.organisations (id, name, timezone) VALUES (:id, :name, :timezone)"),
        {"id": organisation_id(n), "name": name, "timezone": timezone},
    )
    return organisation_id(n)


@dataclass(frozen=True)
class Mentor:
    """A mentor to insert; `certifications` are pairs of type and date of expiry."""

    n: int = 1
    organisation: int = 1
    status: str = "active"
    joined_on: date = date(2015, 1, 1)
    opted_out: bool = False
    activities: Sequence[date] = ()
    certifications: Sequence[tuple[str, date]] = ()
    full_name: str = "Kari Nordmann"
    email: str | None = "kari.nordmann@example.org"
    phone: str | None = "+47 22 22 55 55"

    @property
    def id(self) -> str:
        """The mentor's id."""
        return mentor_id(self.n)


def insert_mentors(connection: Connection, mentors: Iterable[Mentor]) -> list[str]:
    """Insert mentors with their activities and certifications; return their ids."""
    mentors = list(mentors)
    people = [
        {
            "id": m.id,
            "organisation": organisation_id(m.organisation),
            "status": m.status,
            "full_name": m.full_name,
            "email": m.email,
            "phone": m.phone,
            "joined_on": m.joined_on,
            "opted_out": m.opted_out,
        }
        for m in mentors
    ]
    if people:
        connection.execute(
            text(
                "INSERT INTO scenario.peer_mentors "
                "(id, organisation_id, status, full_name, email, phone, locale, joined_on, notifications_opt_out) "
                "VALUES (:id, :organisation, :status, :full_name, :email, :phone, 'nb-NO', :joined_on, :opted_out)"
            ),
            people,
        )
    for m in mentors:
        insert_activities(connection, m.id, m.activities)
        insert_certifications(connection, m.id, m.certifications)
    return [m.id for m in mentors]


def insert_mentor(connection: Connection, n: int = 1, **fields: Any) -> str:
    """Insert one mentor; `fields` are those of `Mentor`."""
    return insert_mentors(connection, [Mentor(n, **fields)])[0]


def insert_activities(connection: Connection, user_id: str, dates: Sequence[date]) -> None:
    """Insert one activity for each date."""
    if dates:
        connection.execute(
            text(
                "INSERT INTO scenario.mentor_activities (user_id, activity_type, activity_date) "
                "SELECT :user_id, 'conversation', unnest(CAST(:dates AS date[]))"
            ),
            {"user_id": user_id, "dates": list(dates)},
        )


def insert_certifications(connection: Connection, user_id: str, certifications: Sequence[tuple[str, date]]) -> None:
    """Insert certifications, given as pairs of type and date of expiry."""
    for certification_type, expires_on in certifications:
        connection.execute(
            text("INSERT INTO scenario.mentor_certifications VALUES (:user_id, :certification_type, :expires_on)"),
            {"user_id": user_id, "certification_type": certification_type, "expires_on": expires_on},
        )


def configure(
    connection: Connection,
    scenario_type: str,
    *,
    organisation: int | None = None,
    enabled: bool = True,
    thresholds: Sequence[int] = (30,),
    lookback_days: int = 7,
    cooldown_days: int = 1,
) -> None:
    """Write the configuration row of an organisation, or the default row; a row that is there is replaced."""
    connection.execute(
        text(
            "INSERT INTO scenario.scenario_evaluation_config "
            "(organisation_id, scenario_type, enabled, thresholds, lookback_days, cooldown_days) "
            "VALUES (:organisation, :scenario_type, :enabled, :thresholds, :lookback_days, :cooldown_days) "
            "ON CONFLICT ON CONSTRAINT scenario_evaluation_config_key DO UPDATE SET enabled = excluded.enabled, "
            "thresholds = excluded.thresholds, lookback_days = excluded.lookback_days, "
            "cooldown_days = excluded.cooldown_days"
        ),
        {
            "organisation": None if organisation is None else organisation_id(organisation),
            "scenario_type": scenario_type,
            "enabled": enabled,
            "thresholds": list(thresholds),
            "lookback_days": lookback_days,
            "cooldown_days": cooldown_days,
        },
    )


def insert_notification(
    connection: Connection,
    user_id: str,
    evaluation_date: date,
    *,
    scenario_type: str = "inactivity",
    cooldown_window_start: date = FIRST_WINDOW,
    dedup_key: str = "an earlier crossing",
    organisation: int = 1,
    invocation_id: str | None = None,
) -> None:
    """Insert a notification that was dispatched before the test begins."""
    connection.execute(
        text(
            "INSERT INTO scenario.scenario_notifications (id, user_id, organisation_id, scenario_type, evaluation_date,"
            " cooldown_window_start, dedup_key, threshold, crossed_on, invocation_id) "
            "VALUES (gen_random_uuid(), :user_id, :organisation, :scenario_type, :evaluation_date,"
            " :cooldown_window_start, :dedup_key, 1, :evaluation_date, :invocation_id)"
        ),
        {
            "user_id": user_id,
            "organisation": organisation_id(organisation),
            "scenario_type": scenario_type,
            "evaluation_date": evaluation_date,
            "cooldown_window_start": cooldown_window_start,
            "dedup_key": dedup_key,
            "invocation_id": invocation_id or new_invocation_id(),
        },
    )


def quiet_mentors(
    engine: Engine, n: int, *, opted_out: Collection[int] = (4,), busy: int = 0, cooldown_days: int | None = None
) -> list[str]:
    """Insert an organisation with n active mentors for whom `inactivity` is due on D, and nothing else.

    Args:
        engine: where; the organisation must not be there yet.
        n: how many.
        opted_out: the numbers of those who have opted out.
        busy: how many follow them for whom nothing is due.
        cooldown_days: of `inactivity`, if it is not the default configuration that is to hold.

    Returns:
        The ids of all of them, in order.
    """
    with engine.begin() as connection:
        insert_organisation(connection)
        if cooldown_days is not None:
            configure(connection, "inactivity", thresholds=[30], cooldown_days=cooldown_days)
        quiet = [Mentor(i, activities=[D - 30 * DAY] * 2, opted_out=i in opted_out) for i in range(1, n + 1)]
        return insert_mentors(
            connection, [*quiet, *(Mentor(n + i, activities=[D - 20 * DAY] * 2) for i in range(1, busy + 1))]
        )


def ten_mentors(engine: Engine) -> list[str]:
    """Insert ten active mentors, four of them quiet (one has opted out), and three who are not evaluated."""
    active = quiet_mentors(engine, 4, busy=6)
    with engine.begin() as connection:
        away = [Mentor(11, status="paused"), Mentor(12, status="left"), Mentor(13, joined_on=D + DAY)]
        return [*active, *insert_mentors(connection, away)]
