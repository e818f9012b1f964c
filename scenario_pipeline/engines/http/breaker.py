"""Whether the remote engine answers at all; one value for all pages of a run.

Belongs here: counting answers and silence, pauses the engine asked for, waiting for its health. Does not belong here:
what is asked (`engines.http.page_calls`), or connections (`engines.http.client`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

# The longest pause between two questions for the engine's health, so that a run goes on soon after a restart.
MAX_HEALTH_PAUSE_SECONDS = 1.0


def backoff(first: float, repetition: int) -> float:
    """Return a pause in seconds: twice as long each time, and never quite the same."""
    return first * 2.0 ** min(repetition, 30) + random.uniform(0, first)


class Breaker:
    """Keeps calls back while the engine is down or has asked for a pause.

    Args:
        is_well: asks the engine for its health, once.
        backoff_seconds: about how long to wait before asking again the first time.

    Attributes:
        answers: how often the engine answered anything.
        failures_in_a_row: calls in vain since the latest answer, or since the end of the latest outage.
        is_down: whether the engine's latest health was bad.
    """

    def __init__(self, is_well: Callable[[], Awaitable[bool]], backoff_seconds: float) -> None:
        self.answers = 0
        self.failures_in_a_row = 0
        self.is_down = False
        self._is_well, self._backoff_seconds = is_well, backoff_seconds
        self._outages = 0
        self._welcome_at = 0.0
        self._asking = asyncio.Lock()

    def heard(self) -> None:
        """Record an answer."""
        self.answers += 1
        self.failures_in_a_row = 0

    def not_heard(self) -> None:
        """Record a call in vain."""
        self.failures_in_a_row += 1

    def pause(self, seconds: float) -> None:
        """Keep all calls back for as long as the engine asks for."""
        self._welcome_at = max(self._welcome_at, asyncio.get_running_loop().time() + seconds)

    async def admit(self, *, asks_for_health: bool) -> bool:
        """Wait until the engine may be called; only a cancellation ends the wait for an engine that stays down.

        Args:
            asks_for_health: whether the call matters so much that the engine must be well before it.

        Returns:
            Whether the engine was down meanwhile, so that earlier failures say nothing about the call.
        """
        outages = self._outages
        while (wait := self._welcome_at - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(wait)
        if self.is_down or asks_for_health:
            async with self._asking:
                await self._wait_until_well()
        return self._outages > outages

    async def _wait_until_well(self) -> None:
        repetition = 0
        while not await self._is_well():
            if not self.is_down:
                self.is_down = True
                self._outages += 1
            await asyncio.sleep(min(backoff(self._backoff_seconds, repetition), MAX_HEALTH_PAUSE_SECONDS))
            repetition += 1
        if self.is_down:
            self.is_down = False
            self.failures_in_a_row = 0
