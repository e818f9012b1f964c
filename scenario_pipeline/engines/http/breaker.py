"""Whether the remote engine replies at all; shared by all pages of a run.

Belongs here: counting replies and failures, pauses that the engine requests, waiting for its health. Does not belong
here: the calls (`engines.http.page_calls`), or connections (`engines.http.client`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

# The longest pause between two health checks, so that a run continues soon after a restart of the engine.
MAX_HEALTH_PAUSE_SECONDS = 1.0


def backoff(first: float, repetition: int) -> float:
    """Return a pause in seconds, which doubles each time and varies at random."""
    return first * 2.0 ** min(repetition, 30) + random.uniform(0, first)


class Breaker:
    """Holds calls back while the engine is down or has requested a pause.

    Args:
        is_well: checks the health of the engine once.
        backoff_seconds: approximate wait before the second health check.

    Attributes:
        answers: how many replies the engine has sent.
        failures_in_a_row: failed calls since the latest reply, or since the end of the latest outage.
        is_down: whether the engine failed its latest health check.
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
        """Record a reply."""
        self.answers += 1
        self.failures_in_a_row = 0

    def not_heard(self) -> None:
        """Record a failed call."""
        self.failures_in_a_row += 1

    def pause(self, seconds: float) -> None:
        """Hold all calls back for the pause that the engine requests."""
        self._welcome_at = max(self._welcome_at, asyncio.get_running_loop().time() + seconds)

    async def admit(self, *, asks_for_health: bool) -> bool:
        """Wait until the engine may be called; if it stays down, only a cancellation ends the wait.

        Args:
            asks_for_health: whether the engine must pass a health check before the call.

        Returns:
            Whether the engine was down during the wait, so that earlier failures mean nothing for the call.
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
