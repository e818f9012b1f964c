"""Trigger engines: what evaluates a page and dispatches or suppresses its matches (contract section 6)."""

from __future__ import annotations

from typing import Protocol

from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.records import Page, PageResult, RunOrder
from scenario_pipeline.time_budget import TimeBudget


class TriggerEngine(Protocol):
    """Evaluates one page of mentors, exactly once however often it is asked."""

    def evaluate_page(
        self, order: RunOrder, page: Page, invocation_id: str, budget: TimeBudget, logger: StructuredLogger
    ) -> PageResult:
        """Evaluate and commit a page together with its row in the ledger.

        Raises:
            BudgetSpentError: the budget ended first; nothing of the page was committed.
            SystemicError: the failure concerns the run and not a mentor; nothing of the page is known to be committed.

        The result of a page that was committed in part names the unprocessed mentors, and why the run cannot go on.
        """
        ...
