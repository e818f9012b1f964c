"""What must not be torn apart is not, whichever thread sends the signal."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from scenario_pipeline.signals import is_told_to_stop, uninterrupted


class Stopped(BaseException):
    """What Dagster raises, in the main thread, for a signal of Terminate."""


@pytest.fixture(autouse=True)
def _raising() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def sent_by_another_thread(number: signal.Signals) -> None:
    """As Dagster does it: from a thread of its own, whose mask is not that of the main thread."""
    thread = threading.Thread(target=os.kill, args=(os.getpid(), number))
    thread.start()
    thread.join()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_from_another_thread_waits_for_the_end_of_the_block(number: signal.Signals) -> None:
    """A mask held it back in one thread, and a closing entry was written twice."""
    done = []

    def block() -> None:
        with uninterrupted():
            sent_by_another_thread(number)
            done.append(is_told_to_stop())

    with pytest.raises(Stopped):
        block()
    assert (done, is_told_to_stop()) == ([True], False)


def test_an_inner_block_leaves_the_signal_to_the_outer_one() -> None:
    """Recording a page is part of closing: between the two, a run must not be torn apart either."""
    done = []

    def block() -> None:
        with uninterrupted():
            with uninterrupted():
                sent_by_another_thread(signal.SIGTERM)
            done.append("outer")

    with pytest.raises(Stopped):
        block()
    assert done == ["outer"]


def test_handlers_are_as_before_after_a_block_that_raises() -> None:
    """A process that could not be stopped any more would have to be killed."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="a fault"), uninterrupted():
        raise ValueError("a fault")
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(Stopped):
        sent_by_another_thread(signal.SIGTERM)
