"""The bounds after a time budget, which together keep one promise."""

from __future__ import annotations

from scenario_pipeline.limits import (
    CLOSING_SECONDS,
    GRACE_SECONDS,
    LAST_ASK_SECONDS,
    LAST_STATEMENT_SECONDS,
    OVERTIME_SECONDS,
)
from scenario_pipeline.time_budget import TimeBudget

PROMISED_SECONDS = 2.0


def test_the_bounds_after_a_budget_add_up_to_the_promised_two_seconds() -> None:
    """A run that ends later than promised is taken for a dead one."""
    assert OVERTIME_SECONDS + CLOSING_SECONDS == GRACE_SECONDS == PROMISED_SECONDS
    assert LAST_ASK_SECONDS + LAST_STATEMENT_SECONDS <= OVERTIME_SECONDS
    assert LAST_STATEMENT_SECONDS <= CLOSING_SECONDS


def test_overtime_is_shared_by_all_that_may_not_be_cut_off() -> None:
    """Two waits of a second each, after one another, would break the promise."""
    now = [0.0]
    budget = TimeBudget.start(30.0, clock=lambda: now[0])
    now[0] = 30.4
    assert (budget.is_spent, round(budget.overtime_seconds, 6)) == (True, 0.6)
    now[0] = 31.5
    assert budget.overtime_seconds == 0.0
