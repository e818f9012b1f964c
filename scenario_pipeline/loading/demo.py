"""Demonstration data: synthetic, deterministic, and dated so that a run today has something to do.

Belongs here: the invented organisations, mentors, activities and certifications. Does not belong here: anything by
which a real mentor could be recognised, or loading rows in bulk (`loading.bulk`).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from random import Random

from sqlalchemy import Connection, Engine, exists, select
from sqlalchemy.dialects.postgresql import insert

from scenario_pipeline.errors import UserError
from scenario_pipeline.loading.bulk import Progress, copy_rows, loading, lock_loading, reporter
from scenario_pipeline.records import MENTOR_STATUSES, MentorStatus
from scenario_pipeline.storage.tables import SCHEMA, organisations, peer_mentors, source_mentors

MAX_MENTORS = 10_000_000

_ORGANISATIONS = (
    ("Demo Organisation North", "Europe/Oslo"),
    ("Demo Organisation West", "America/New_York"),
    ("Demo Organisation East", "Asia/Tokyo"),
)
_ACTIVITY_TYPES = ("conversation", "group_meeting", "home_visit", "hospital_visit", "phone_call", "training")
_CERTIFICATION_TYPES = ("first_aid", "peer_mentor_basic", "peer_mentor_advanced")
_LOCALES = ("nb", "nn", "en", None)
_MEMBERSHIP_DAYS = 6 * 365

# In each block of 25 mentors, these positions always have something due today, so that even a small set shows each
# scenario. The position of the opted-out mentor advances by one from block to block, and so reaches each of them.
_BLOCK = 25
_QUIET, _AT_MILESTONE, _EXPIRING = 3, 7, 11
_RECENT_DAYS = 7


@dataclass(frozen=True)
class _Mentor:
    """An invented mentor; ages are days before today."""

    number: int
    id: str
    organisation: int
    status: MentorStatus
    locale: str | None
    joined_age: int
    activities: int
    last_activity_age: int | None

    @property
    def opted_out(self) -> bool:
        return self.number % _BLOCK == self.number // _BLOCK % _BLOCK


def is_empty(connection: Connection) -> bool:
    """Return whether there is no peer mentor."""
    return not connection.execute(select(exists(select(source_mentors.c.id)))).scalar_one()


def load_demo(
    database: Engine,
    *,
    mentors: int = 500,
    activities_per_mentor: int = 12,
    seed: int = 1,
    today: date,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Load invented organisations, mentors, activities and certifications, completely or not at all.

    The same arguments give the same rows. The ids of the organisations depend on the seed alone. If they already have
    mentors, nothing is added. So a second load, even on a later day, never mixes two histories of the same mentors. A
    different seed adds another set.

    Args:
        database: on the scheduler's database, whose schema fits the code.
        mentors: how many, 1 to 10,000,000. With 25 or more, each scenario has matches today; with 100 or more, one is
            opted out.
        activities_per_mentor: the mean of a skewed distribution.
        seed: seed of the random numbers.
        today: no mentor joins and no activity happens after this date.
        progress: called with a name and the number of its rows so far, every 20,000 rows and at the end.

    Returns:
        The number of rows added, by the stems of the import's files; zeros if the set was already loaded.

    Raises:
        UserError: `mentors` is out of range.
        SystemicError: the database failed; nothing was loaded.
    """
    if not 1 <= mentors <= MAX_MENTORS:
        raise UserError(f"--mentors must be between 1 and {MAX_MENTORS:,}.")
    maker = _Maker(mentors, activities_per_mentor, seed, today)
    with loading(database) as connection:
        lock_loading(connection)
        if _is_loaded(connection, maker.organisation_ids):
            return dict.fromkeys(("organisations", "mentors", "activities", "certifications"), 0)
        return _load(connection, maker, progress)


def _load(connection: Connection, maker: _Maker, progress: Progress | None) -> dict[str, int]:
    connection.execute(
        insert(organisations).on_conflict_do_nothing(),
        [
            {"id": id_, "name": name, "timezone": timezone}
            for id_, (name, timezone) in zip(maker.organisation_ids, _ORGANISATIONS, strict=True)
        ],
    )
    columns_of_mentors = (
        *("id", "organisation_id", "status", "full_name", "email", "phone", "locale", "joined_on"),
        "notifications_opt_out",
    )
    counts = {"organisations": len(_ORGANISATIONS)}
    for name, table, columns, rows in (
        ("mentors", "peer_mentors", columns_of_mentors, maker.mentor_rows()),
        ("activities", "mentor_activities", ("user_id", "activity_type", "activity_date"), maker.activity_rows()),
        (
            *("certifications", "mentor_certifications"),
            ("user_id", "certification_type", "expires_on"),
            maker.certification_rows(),
        ),
    ):
        counts[name] = copy_rows(connection, (SCHEMA, table), columns, rows, reporter(progress, name))
    return counts


def _is_loaded(connection: Connection, organisation_ids: list[str]) -> bool:
    of_the_set = select(peer_mentors.c.id).where(peer_mentors.c.organisation_id.in_(organisation_ids))
    return connection.execute(select(exists(of_the_set))).scalar_one()


class _Maker:
    """Makes the rows of one set, table by table, and stores none of them.

    COPY fills one table at a time, so the mentors are made again for each table. Each stream of random numbers has its
    own generator, which repeats the same numbers.
    """

    def __init__(self, mentors: int, activities_per_mentor: int, seed: int, today: date) -> None:
        self._mentors = mentors
        self._mean = activities_per_mentor
        self._seed = seed
        self._today = today
        self._days_ago = [self._day(age) for age in range(_MEMBERSHIP_DAYS + 1)]
        rng = self._rng("organisations")
        self.organisation_ids = [_uuid(rng) for _ in _ORGANISATIONS]

    def mentor_rows(self) -> Iterator[tuple[object, ...]]:
        """Yield the rows of `peer_mentors`."""
        for mentor in self._make_mentors():
            digits = f"{mentor.number:08d}"
            yield (
                mentor.id,
                self.organisation_ids[mentor.organisation],
                mentor.status,
                f"Demo Mentor {mentor.number:06d}",
                f"demo.{mentor.number:06d}@example.invalid",
                # No Norwegian number begins with 0 or 1, and the numbers never reach a higher first digit.
                f"+47 {digits[:3]} {digits[3:5]} {digits[5:]}",
                mentor.locale,
                self._days_ago[mentor.joined_age],
                mentor.opted_out,
            )

    def activity_rows(self) -> Iterator[tuple[object, ...]]:
        """Yield the rows of `mentor_activities`, mentor by mentor."""
        random = self._rng("activities").random
        days_ago = self._days_ago
        kinds = len(_ACTIVITY_TYPES)
        for mentor in self._make_mentors():
            oldest, newest = mentor.joined_age, 0
            others = mentor.activities
            if mentor.last_activity_age is not None:
                newest = mentor.last_activity_age
                others -= 1
                yield mentor.id, _ACTIVITY_TYPES[0], days_ago[newest]
                if mentor.number % _BLOCK == _AT_MILESTONE:
                    newest = _RECENT_DAYS
            span = oldest - newest + 1
            for _ in range(others):
                yield mentor.id, _ACTIVITY_TYPES[int(random() * kinds)], days_ago[newest + int(random() * span)]

    def certification_rows(self) -> Iterator[tuple[object, ...]]:
        """Yield the rows of `mentor_certifications`; about half of the mentors have one."""
        rng = self._rng("certifications")
        for mentor in self._make_mentors():
            if mentor.number % _BLOCK == _EXPIRING:
                days = rng.choice((60, 30, 7)) - rng.randrange(_RECENT_DAYS)
            elif rng.random() < 0.48:
                days = rng.randrange(-400, 730)
            else:
                continue
            yield mentor.id, rng.choice(_CERTIFICATION_TYPES), self._day(-days)

    def _make_mentors(self) -> Iterator[_Mentor]:
        rng = self._rng("mentors")
        for number in range(1, self._mentors + 1):
            id_ = _uuid(rng)
            organisation = rng.choice((0, 0, 0, 1, 1, 2))
            locale = rng.choice(_LOCALES)
            joined_age = rng.randrange(_MEMBERSHIP_DAYS + 1)
            status = rng.choices(MENTOR_STATUSES, (92, 4, 4))[0]
            activities = round(rng.expovariate(1.0) * self._mean)
            last_activity_age = None
            position = number % _BLOCK
            if position in (_QUIET, _AT_MILESTONE, _EXPIRING):
                status = "active"
            if position == _QUIET:
                last_activity_age = rng.choice((30, 90, 180)) + rng.randrange(_RECENT_DAYS)
                activities = max(activities, 1)
            if position == _AT_MILESTONE:
                last_activity_age = rng.randrange(_RECENT_DAYS)
                activities = rng.choice((1, 10))
            if last_activity_age is not None:
                joined_age = max(joined_age, last_activity_age, _RECENT_DAYS)
            yield _Mentor(number, id_, organisation, status, locale, joined_age, activities, last_activity_age)

    def _rng(self, stream: str) -> Random:
        return Random(f"{self._seed}:{stream}")

    def _day(self, age: int) -> str:
        return (self._today - timedelta(days=age)).isoformat()


def _uuid(rng: Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
