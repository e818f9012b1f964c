"""The records that travel between the parts: the order for a run, its pages, and the result of a page.

Belongs here: frozen values, safe to pickle between Dagster's steps. Does not belong here: behaviour.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal, get_args

from scenario_pipeline.batch_stats import BatchStats
from scenario_pipeline.failures import ErrorInfo, UserError

DispatchMode = Literal["live", "dry_run"]
DISPATCH_MODES: tuple[str, ...] = ("auto", *get_args(DispatchMode))
MentorStatus = Literal["active", "paused", "left"]
MENTOR_STATUSES: tuple[MentorStatus, ...] = get_args(MentorStatus)
# `auto` sends for today and the three days before it (contract section 4).
LIVE_DAYS = 3
# The start of the cooldown window of a mentor's first notification (contract section 4).
FIRST_WINDOW = date(1970, 1, 1)


@dataclass(frozen=True)
class RunOrder:
    """What one invocation is to do.

    Attributes:
        evaluation_date: the date for which every scenario is evaluated.
        scenario_types: sorted names of installed scenarios.
        organisation_ids: sorted ids of the organisations to evaluate; empty for all.
        dispatch_mode: `live` writes notifications, `dry_run` rolls them back.
        engine_name: name of the trigger engine.
        time_budget_seconds: how long the invocation may evaluate.
        page_size: mentors a page, or None to choose by the number of mentors.
        triggered_by: what started it, one of `log.vocabulary.TRIGGERED_BY`.
        continues: the partial invocation whose unprocessed mentors come first; None for the latest one.
    """

    evaluation_date: date
    scenario_types: tuple[str, ...]
    organisation_ids: tuple[str, ...]
    dispatch_mode: DispatchMode
    engine_name: str
    time_budget_seconds: float
    page_size: int | None
    triggered_by: str
    continues: str | None = None

    @property
    def time_budget_ms(self) -> int:
        """The time budget in whole milliseconds, at least 1."""
        return max(1, round(self.time_budget_seconds * 1000))


@dataclass(frozen=True)
class Page:
    """A fixed list of mentors, evaluated by one mapped step and committed in one transaction.

    Attributes:
        number: 1 for the first page.
        mentor_ids: in the order of evaluation.
        planned_by: the invocation that made the list; a re-execution from failure evaluates pages of its parent.
    """

    number: int
    mentor_ids: tuple[str, ...]
    planned_by: str | None = None


@dataclass(frozen=True)
class MentorError:
    """One mentor whose evaluation failed."""

    peer_mentor_id: str
    error: ErrorInfo


@dataclass(frozen=True)
class PageResult:
    """What a trigger engine did with a page.

    Attributes:
        stats: what happened to the mentors who were settled.
        errors: the settled mentors whose evaluation failed.
        unprocessed: the mentors whom the next run evaluates, in the order of the page.
        failure: why the run cannot go on; None if it can, or if the time budget ended.
    """

    stats: BatchStats
    errors: tuple[MentorError, ...] = ()
    unprocessed: tuple[str, ...] = ()
    failure: ErrorInfo | None = None


@dataclass(frozen=True)
class PageEvaluated:
    """The named invocation committed the page."""

    invocation_id: str
    page_number: int
    stats: BatchStats


@dataclass(frozen=True)
class PageUnprocessed:
    """Some or all of the page was not evaluated: the budget was spent, or the run had failed (see `failure`)."""

    invocation_id: str
    page: Page
    failure: ErrorInfo | None = None


PageOutcome = PageEvaluated | PageUnprocessed


def parse_date(text: str) -> date | None:
    """Return the date that `text` gives as YYYY-MM-DD, or None; a week date of the same length gives None."""
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text) is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def resolve_dispatch_mode(mode: str, evaluation_date: date, today: date) -> DispatchMode:
    """Resolve `auto` for this date: a backfill of an old month never sends.

    Args:
        mode: `auto`, `live` or `dry_run`.
        evaluation_date: the date to evaluate.
        today: the current date in the configured time zone.

    Raises:
        UserError: `live` for a date for which nothing can be sent.
    """
    match mode:
        case "live":
            check_live_date(evaluation_date, today)
            return "live"
        case "dry_run":
            return "dry_run"
        case _:
            age = (today - evaluation_date).days
            return "live" if 0 <= age <= LIVE_DAYS else "dry_run"


def check_live_date(evaluation_date: date, today: date) -> None:
    """Refuse to send for a date after today, or for one not after `FIRST_WINDOW`.

    A notification dated after today would keep its mentor in cooldown until then. `FIRST_WINDOW` stands for "no
    notification before", so nothing can be dated up to it (contract section 4).

    Raises:
        UserError: the message says what to do instead.
    """
    if evaluation_date > today:
        raise UserError(
            f"A live run for {evaluation_date}, which is after today ({today}), is refused: "
            "choose the dispatch mode dry_run, or wait for that date."
        )
    if evaluation_date <= FIRST_WINDOW:
        raise UserError(
            f"A live run for {evaluation_date} is refused: notifications begin after {FIRST_WINDOW}; "
            "choose the dispatch mode dry_run, or a later date."
        )


def choose_page_size(requested: int | None, mentors: int) -> int:
    """Return how many mentors a page holds.

    Each mapped step costs Dagster tens of milliseconds, so pages grow and their number stays at or below 64 (contract
    section 7).
    """
    if requested is not None:
        return requested
    return max(1000, -(-mentors // 64))


def paginate(mentor_ids: Sequence[str], page_size: int | None, *, planned_by: str | None = None) -> list[Page]:
    """Divide the mentors into pages, in order; with no page size, pages grow with the number of mentors."""
    size = choose_page_size(page_size, len(mentor_ids))
    return [
        Page(start // size + 1, tuple(mentor_ids[start : start + size]), planned_by)
        for start in range(0, len(mentor_ids), size)
    ]
