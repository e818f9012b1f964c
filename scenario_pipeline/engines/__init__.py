"""Trigger engines: they evaluate a page, and dispatch or suppress its matches (contract section 6)."""

from __future__ import annotations

from typing import Protocol

from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.records import Page, PageResult, RunOrder
from scenario_pipeline.time_budget import TimeBudget


class TriggerEngine(Protocol):
    """Evaluates a page of mentors exactly once, however often it is asked."""

    def evaluate_page(
        self, order: RunOrder, page: Page, invocation_id: str, budget: TimeBudget, logger: StructuredLogger
    ) -> PageResult:
        """Evaluate a page and commit it together with its row in the ledger.

        Raises:
            BudgetSpentError: the budget ended first; nothing of the page was committed.
            SystemicError: the failure concerns the run and not a mentor; as far as is known, nothing of the page was
                committed.

        The result of a partly committed page names its unprocessed mentors, and why the run cannot go on.
        """
        ...
