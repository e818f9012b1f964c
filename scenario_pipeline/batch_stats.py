"""Counters of a page, a run or a part of either, as values that can be added.

The identities between them (contract section 5) hold by construction: every total is derived from the counts per
organisation, scenario and outcome. So nothing can be counted in one place and forgotten in another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

DISPATCHED = "dispatched"
# In the order in which they are checked (contract section 4): the first that applies is the reason.
SuppressionReason = Literal["opted_out", "duplicate", "cooldown"]
SUPPRESSION_REASONS: tuple[SuppressionReason, ...] = get_args(SuppressionReason)
# A mentor on the page's list who has gone or is no longer active belongs to no organisation.
NO_ORGANISATION = ""
# A remote engine reports why a match was suppressed, but not for which scenario.
UNKNOWN_SCENARIO = ""

OutcomeKey = tuple[str, str, str]
"""Organisation id, scenario type, and `dispatched` or the reason for suppression."""


@dataclass(frozen=True)
class BatchStats:
    """What happened to a set of mentors.

    Attributes:
        evaluated_by_organisation: mentors evaluated without an error, by organisation id.
        outcomes: matches by organisation, scenario and outcome.
        total_errors: mentors whose evaluation failed.
        pages_processed: pages committed.
    """

    evaluated_by_organisation: Mapping[str, int] = field(default_factory=dict)
    outcomes: Mapping[OutcomeKey, int] = field(default_factory=dict)
    total_errors: int = 0
    pages_processed: int = 0

    def __add__(self, other: BatchStats) -> BatchStats:
        return BatchStats(
            dict(Counter(self.evaluated_by_organisation) + Counter(other.evaluated_by_organisation)),
            dict(Counter(self.outcomes) + Counter(other.outcomes)),
            self.total_errors + other.total_errors,
            self.pages_processed + other.pages_processed,
        )

    def dispatched_beyond(self, other: BatchStats) -> BatchStats:
        """Return the dispatched matches that `other` has not counted.

        They are compared by scenario, since a mentor may have changed organisation between the two counts. Each is
        attributed to an organisation for which `self` has more than `other`.
        """
        missing = Counter(self.dispatched_by_scenario) - Counter(other.dispatched_by_scenario)
        outcomes: dict[OutcomeKey, int] = {}
        for key, n in sorted((Counter(self.outcomes) - Counter(other.outcomes)).items()):
            _, scenario, outcome = key
            if outcome == DISPATCHED and missing[scenario]:
                outcomes[key] = min(n, missing[scenario])
                missing[scenario] -= outcomes[key]
        return BatchStats(outcomes=outcomes)

    @classmethod
    def sum(cls, parts: Iterable[BatchStats]) -> BatchStats:
        """Add any number of parts; the sum of no parts is zero."""
        return sum(parts, start=cls())

    @property
    def total_evaluated(self) -> int:
        """Mentors evaluated without an error."""
        return sum(self.evaluated_by_organisation.values())

    @property
    def total_settled(self) -> int:
        """Mentors who need no further evaluation in this run: evaluated, or recorded as an error."""
        return self.total_evaluated + self.total_errors

    @property
    def error_rate(self) -> float:
        """Share of the settled mentors who had an error, 0 to 1; 0 if no mentor was settled."""
        return self.total_errors / self.total_settled if self.total_settled else 0.0

    def remaining_of(self, total_active_mentors: int) -> int:
        """Return how many of the active mentors remain to be evaluated."""
        return max(0, total_active_mentors - self.total_settled)

    @property
    def total_dispatched(self) -> int:
        """Matches for which a notification row was inserted (in a dry run: would have been)."""
        return sum(self.dispatched_by_scenario.values())

    @property
    def total_suppressed(self) -> int:
        """Matches that were suppressed, each for one reason."""
        return sum(self.suppressed_by_reason.values())

    @property
    def dispatched_by_scenario(self) -> dict[str, int]:
        """Dispatched matches by scenario type; scenarios with none are omitted."""
        return _tally((scenario, n) for (_, scenario, outcome), n in self.outcomes.items() if outcome == DISPATCHED)

    @property
    def suppressed_by_reason(self) -> dict[str, int]:
        """Suppressed matches by reason; reasons with none are omitted."""
        return _tally((outcome, n) for (_, _, outcome), n in self.outcomes.items() if outcome != DISPATCHED)

    def totals(self) -> dict[str, Any]:
        """Return the totals under their names in the events, the ledger and Dagster's metadata."""
        return {
            "total_evaluated": self.total_evaluated,
            "total_dispatched": self.total_dispatched,
            "total_suppressed": self.total_suppressed,
            "total_errors": self.total_errors,
            "suppressed_by_reason": self.suppressed_by_reason,
            "dispatched_by_scenario": self.dispatched_by_scenario,
        }

    def outcome_rows(self) -> list[tuple[str, str, str, int]]:
        """Return the outcomes as sorted rows (organisation id, scenario type, outcome, count)."""
        return sorted((*key, n) for key, n in self.outcomes.items())


def _tally(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    counter: Counter[str] = Counter()
    for key, n in pairs:
        counter[key] += n
    return dict(sorted((+counter).items()))
