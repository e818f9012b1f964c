"""Small worlds for tests that need a database: people, what they did, a run over them, and what must hold afterwards.

Belongs here: plain SQL and the contract's rules told a second time in Python. Does not belong here: any statement of
the project, or a test.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, text

from scenario_pipeline.engines import TriggerEngine
from scenario_pipeline.engines.sql import SqlTriggerEngine
from scenario_pipeline.invocation.run import Invocation
from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.log.stdout import LineSink
from scenario_pipeline.records import DispatchMode, Page, PageResult, RunOrder
from scenario_pipeline.report import Report
from scenario_pipeline.storage.ledger.invocations import open_invocation
from scenario_pipeline.time_budget import TimeBudget

DAY = timedelta(days=1)
# The evaluation date of most tests: 29 February is near, and so is the end of summer time.
D = date(2024, 3, 31)
FIRST_WINDOW = date(1970, 1, 1)
ALL_SCENARIOS = ("certification_expiry", "inactivity", "milestone")

Notification = tuple[str, str, date, date, str, int, date]
"""user_id, scenario_type, evaluation_date, cooldown_window_start, dedup_key, threshold, crossed_on."""


def organisation_id(n: int = 1) -> str:
    """Return the id of the n-th organisation."""
    return f"aaaaaaaa-0000-4000-8000-{n:012x}"


def mentor_id(n: int) -> str:
    """Return the id of the n-th mentor; ids sort as their numbers do."""
    return f"bbbbbbbb-0000-4000-8000-{n:012x}"


def new_invocation_id() -> str:
    """Return an id as Dagster mints it."""
    return str(uuid.uuid4())


# People and what they did


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
    """A mentor as a world is told; `certifications` are pairs of type and date of expiry."""

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


# Runs


class Log(LineSink):
    """A sink in memory; `entries` are its lines, read back."""

    def __init__(self) -> None:
        super().__init__(-1)
        self.lines: list[bytes] = []
        self._guard = threading.Lock()

    def write(self, line: bytes) -> None:
        """Keep a line."""
        with self._guard:
            self.lines.append(line)

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The entries so far."""
        return [json.loads(line) for line in self.lines]

    def logger(self, invocation_id: str) -> StructuredLogger:
        """Return a logger that writes here, with the common fields of contract section 5."""
        context = {
            "invocation_id": invocation_id,
            "dagster_run_id": invocation_id,
            "dagster_job_name": "scenario_scheduler",
            "dagster_step_key": None,
            "dagster_partition_key": None,
        }
        return StructuredLogger(self, context=context)


def make_request(
    evaluation_date: date = D,
    *,
    scenario_types: Sequence[str] = ALL_SCENARIOS,
    organisation_ids: Sequence[str] = (),
    dispatch_mode: DispatchMode = "live",
    time_budget_seconds: float = 60.0,
    page_size: int | None = None,
    triggered_by: str = "manual",
) -> RunOrder:
    """Return what a run is asked for."""
    return RunOrder(
        evaluation_date,
        tuple(scenario_types),
        tuple(organisation_ids),
        dispatch_mode,
        "sql",
        time_budget_seconds,
        page_size,
        triggered_by,
    )


@dataclass(frozen=True, kw_only=True)
class PageOfRun(Page):
    """A page with the order it is evaluated for."""

    order: RunOrder


def make_page(mentor_ids: Sequence[str], evaluation_date: date = D, *, number: int = 1, **request: Any) -> PageOfRun:
    """Return a page; `request` are the keyword arguments of `make_request`."""
    return PageOfRun(number=number, mentor_ids=tuple(mentor_ids), order=make_request(evaluation_date, **request))


def open_run(connection: Connection, request: RunOrder, invocation_id: str) -> None:
    """Make sure that the ledger has a row for this invocation."""
    open_invocation(connection, request, invocation_id, parent_invocation_id=None)


def run_page(
    engine: Engine,
    page: PageOfRun,
    *,
    invocation_id: str | None = None,
    budget: TimeBudget | None = None,
    log: Log | None = None,
    evaluate_with: Engine | None = None,
) -> PageResult:
    """Evaluate one page with the `sql` engine, in an invocation of its own unless one is named.

    Args:
        engine: where the invocation is opened.
        page: the page.
        invocation_id: the invocation; opened here unless it is open.
        budget: what may be spent; the request's own if None.
        log: where entries go.
        evaluate_with: what the trigger engine connects with, if not `engine`: a broken network, a role without rights.
    """
    invocation_id = invocation_id or new_invocation_id()
    with engine.begin() as connection:
        open_run(connection, page.order, invocation_id)
    budget = budget or TimeBudget.start(page.order.time_budget_seconds)
    logger = (log or Log()).logger(invocation_id)
    return SqlTriggerEngine(evaluate_with or engine).evaluate_page(page.order, page, invocation_id, budget, logger)


def run_invocation(
    engine: Engine,
    request: RunOrder | None = None,
    *,
    invocation_id: str | None = None,
    log: Log | None = None,
    trigger_engine: TriggerEngine | None = None,
) -> Report:
    """Run a whole invocation in this process."""
    invocation_id = invocation_id or new_invocation_id()
    invocation = Invocation(
        request or make_request(),
        invocation_id,
        database=engine,
        trigger_engine=trigger_engine or SqlTriggerEngine(engine),
        logger=(log or Log()).logger(invocation_id),
    )
    invocation.open()
    return invocation.finish([invocation.evaluate(page) for page in invocation.plan()])


# What came of it


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


def wait_until(condition: Callable[[], object], what: str, seconds: float = 30.0, *, every: float = 0.005) -> None:
    """Poll until `condition` holds; fail after `seconds`, which bound the test and measure nothing."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"waited {seconds} s in vain: {what}"
        time.sleep(every)


def blocked_backends(engine: Engine) -> list[int]:
    """Return the pids of backends of this database that wait for a lock."""
    with engine.connect() as connection:
        statement = text(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
            "AND cardinality(pg_blocking_pids(pid)) > 0 ORDER BY pid"
        )
        return list(connection.execute(statement).scalars())


def wait_until_blocked(engine: Engine, backends: int = 1) -> list[int]:
    """Wait until so many backends wait for a lock; return their pids."""
    wait_until(lambda: len(blocked_backends(engine)) == backends, f"{backends} backends wait for a lock")
    return blocked_backends(engine)


# Invariants


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


# The contract's rules a second time, without SQL


@dataclass(frozen=True)
class Configuration:
    """One row of `scenario_evaluation_config`."""

    thresholds: Sequence[int]
    lookback_days: int = 7
    cooldown_days: int = 1
    enabled: bool = True


@dataclass(frozen=True)
class Match:
    """A scenario that is due for a mentor."""

    threshold: int
    crossed_on: date
    dedup_key: str


def due(scenario_type: str, mentor: Mentor, configuration: Configuration, evaluation_date: date) -> Match | None:
    """Return the match that contract section 3 asks for, if any; slow, plain, and without a look at the statement."""
    if mentor.status != "active" or not configuration.enabled:
        return None
    crossings = [
        (order, Match(threshold, crossed_on, key))
        for threshold in configuration.thresholds
        for order, crossed_on, key in _crossings(scenario_type, mentor, threshold, evaluation_date)
        if evaluation_date - configuration.lookback_days * DAY < crossed_on <= evaluation_date
    ]
    return min(crossings, key=lambda crossing: crossing[0])[1] if crossings else None


def _crossings(
    scenario_type: str, mentor: Mentor, threshold: int, evaluation_date: date
) -> list[tuple[tuple[Any, ...], date, str]]:
    """Return the crossings of a threshold with their rank (the lowest wins), date and key."""
    known = sorted(on for on in mentor.activities if on <= evaluation_date)
    match scenario_type:
        case "inactivity":
            last = known[-1] if known else mentor.joined_on
            crossed_on = last + threshold * DAY
            return [((-crossed_on.toordinal(), -threshold), crossed_on, f"{last}:{threshold}")]
        case "milestone":
            if not 1 <= threshold <= len(known):
                return []
            crossed_on = known[threshold - 1]
            return [((-crossed_on.toordinal(), -threshold), crossed_on, f"{threshold}")]
        case "certification_expiry":
            return [
                (
                    (expires_on, name, -(expires_on - threshold * DAY).toordinal(), threshold),
                    expires_on - threshold * DAY,
                    f"{name}:{expires_on}:{threshold}",
                )
                for name, expires_on in mentor.certifications
                if expires_on >= evaluation_date
            ]
        case _:
            raise AssertionError(f"no rule is told here for {scenario_type}")


@dataclass
class History:
    """What was sent, as contract section 4 has it when runs follow one another."""

    rows: list[Notification] = field(default_factory=list)

    def settle(
        self, scenario_type: str, mentor: Mentor, match: Match, cooldown_days: int, evaluation_date: date
    ) -> str:
        """Dispatch a match or return the first reason that holds it back."""
        own = [row for row in self.rows if row[:2] == (mentor.id, scenario_type)]
        if mentor.opted_out:
            return "opted_out"
        if any(row[4] == match.dedup_key or row[2] == evaluation_date for row in own):
            return "duplicate"
        if any((evaluation_date - row[2]).days < cooldown_days for row in own):
            return "cooldown"
        previous = max((row[2] for row in own), default=FIRST_WINDOW)
        row = (mentor.id, scenario_type, evaluation_date, previous)
        self.rows.append((*row, match.dedup_key, match.threshold, match.crossed_on))
        return "dispatched"
