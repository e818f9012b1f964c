"""The contract's rules a second time, in plain Python without SQL.

Belongs here: when a scenario is due and which reason holds a match back. Does not belong here: any import from the
statement that it is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from scenario_pipeline_tests.support.invariants import Notification
from scenario_pipeline_tests.support.people import DAY, FIRST_WINDOW, Mentor


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
            raise AssertionError(f"no rule is written here for {scenario_type}")


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
