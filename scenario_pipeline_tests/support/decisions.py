"""The decision statement over a few mentors, in a transaction of the test's own.

Belongs here: enabling one scenario, evaluating, reading the matches. Does not belong here: a rule (`rules`).
"""

from __future__ import annotations

from datetime import date

from sqlalchemy import Connection

from scenario_pipeline.batch_stats import BatchStats
from scenario_pipeline.engines.sql import Evaluation
from scenario_pipeline.time_budget import TimeBudget
from scenario_pipeline_tests.support.invariants import notifications
from scenario_pipeline_tests.support.people import D, configure, new_invocation_id
from scenario_pipeline_tests.support.runs import ALL_SCENARIOS, make_page


def evaluate(connection: Connection, mentors: list[str], evaluation_date: date = D) -> BatchStats:
    """Run the decision statement over all mentors at once, in the caller's transaction."""
    page = make_page(mentors, evaluation_date)
    return Evaluation(connection, page.order, page.mentor_ids, new_invocation_id(), TimeBudget.start(60)).run().stats


def only(connection: Connection, scenario_type: str, *thresholds: int, lookback_days: int = 7) -> None:
    """Enable one scenario with these thresholds, and no other."""
    for name in ALL_SCENARIOS:
        configure(connection, name, enabled=False)
    configure(connection, scenario_type, thresholds=thresholds, lookback_days=lookback_days)


def matches(connection: Connection) -> list[tuple[int, date, str]]:
    """Return threshold, crossing date and key of what was dispatched."""
    return [(threshold, crossed_on, key) for *_, key, threshold, crossed_on in notifications(connection)]
