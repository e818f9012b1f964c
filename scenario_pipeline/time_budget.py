"""The time budget of a run: how much may still be spent, on a monotonic clock (contract section 1)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class TimeBudget:
    """A deadline that can be asked what is left.

    Attributes:
        started_at: reading of `clock` when the invocation began, in seconds.
        seconds: length of the budget.
        clock: a monotonic clock in seconds; an argument, so that tests need not wait.
    """

    started_at: float
    seconds: float
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def start(
        cls, seconds: float, *, already_spent: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> TimeBudget:
        """Begin a budget now; `already_spent` seconds went by in another process of the same invocation."""
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
        """Seconds that may still be spent, never below 0."""
        return max(0.0, self.seconds - self.elapsed_seconds)

    @property
    def is_spent(self) -> bool:
        """Whether nothing more may be begun."""
        return self.remaining_seconds <= 0
