"""Holds back the signals that tell a process to stop, for as long as something must not be torn apart.

Belongs here: SIGINT and SIGTERM. Does not belong here: what is closed when one of them arrives (`invocation`).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

_held_back: list[int] = []


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM until the block is over; then the first one that arrived is raised again.

    The handlers are exchanged, since a signal mask holds back one thread only. Dagster sends the signal of Terminate
    from a thread of its own, and Python runs the handler in the main thread, inside the block. No handler runs outside
    the main thread, so there is nothing to hold back there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # None was not set from Python and cannot be set again. With ours, an outer block holds the signal back.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    exchanged = {number: handler for number, handler in handlers.items() if handler not in (None, _hold_back)}
    with ExitStack() as at_the_end:
        if exchanged:
            # Called in the reverse order: all handlers are there again before anything is raised.
            at_the_end.callback(_raise_again)
        for number, handler in exchanged.items():
            at_the_end.callback(signal.signal, number, handler)
            signal.signal(number, _hold_back)
        yield


def is_told_to_stop() -> bool:
    """Return whether a signal is held back that tells this process to stop."""
    return bool(_held_back)


def _hold_back(number: int, _frame: FrameType | None) -> None:
    _held_back.append(number)


def _raise_again() -> None:
    if _held_back:
        first = _held_back[0]
        _held_back.clear()
        signal.raise_signal(first)
