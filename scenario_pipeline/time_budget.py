"""The time budget of a run: how much may still be spent, on a monotonic clock (contract section 1).

Belongs here: deadlines, and the pauses between attempts. Does not belong here: how long anything may take (`limits`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from scenario_pipeline.limits import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, OVERTIME_SECONDS


@dataclass(frozen=True)
class TimeBudget:
    """A deadline that knows how much time remains.

    Attributes:
        started_at: reading of `clock` when the invocation began, in seconds.
        seconds: length of the budget.
        clock: a monotonic clock in seconds; an argument, so that tests need not wait.
        overtime: seconds after the end of the budget for work that must not be cut off there.
    """

    started_at: float
    seconds: float
    clock: Callable[[], float] = time.monotonic
    overtime: float = OVERTIME_SECONDS

    @classmethod
    def start(
        cls, seconds: float, *, already_spent: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> TimeBudget:
        """Start a budget now; another process of the same invocation has spent `already_spent` seconds of it."""
        return cls(clock() - already_spent, seconds, clock)

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since the invocation began."""
        return max(0.0, self.clock() - self.started_at)

    @property
    def elapsed_ms(self) -> int:
        """Whole milliseconds since the invocation began."""
        return int(self.elapsed_seconds * 1000)

    @property
    def remaining_seconds(self) -> float:
        """Seconds that remain, never below 0."""
        return max(0.0, self.seconds - self.elapsed_seconds)

    @property
    def overtime_seconds(self) -> float:
        """Seconds that remain with the overtime included, never below 0."""
        return max(0.0, self.seconds + self.overtime - self.elapsed_seconds)

    @property
    def is_spent(self) -> bool:
        """Whether no further work may begin."""
        return self.remaining_seconds <= 0


class Pauses:
    """Growing pauses between attempts to reach a database that is out of reach.

    Args:
        first: length of the first pause, in seconds; each later one is twice as long, up to `LONGEST_PAUSE_SECONDS`.
    """

    def __init__(self, first: float = FIRST_PAUSE_SECONDS) -> None:
        self._next = first

    def wait(self, seconds_left: float) -> bool:
        """Wait before the next attempt; return False at once if the pause is longer than `seconds_left`."""
        if self._next >= seconds_left:
            return False
        time.sleep(self._next)
        self._next = min(2 * self._next, LONGEST_PAUSE_SECONDS)
        return True
