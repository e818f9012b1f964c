"""The shared logger in each way in which a process gets one, and who else sees its entries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.log.stdout import STDOUT_SINK, LineSink
from scenario_pipeline_tests.support.descriptors import broken_pipe, duplicate, pipe_of_writes, redirected
from scenario_pipeline_tests.support.logger_promises import (
    COMPLETED,
    CONTEXT,
    MENTOR_ERROR,
    PARTIAL,
    STARTED,
    LoggerAndLines,
    LoggerPromises,
    parse,
)
from scenario_pipeline_tests.support.names import CANARY


class TestLoggerOfAProcess(LoggerPromises):
    @pytest.fixture
    def logger_and_lines(self) -> Iterator[LoggerAndLines]:
        with pipe_of_writes() as (fd, writes):
            yield LoggerAndLines(StructuredLogger(LineSink(fd), context=CONTEXT), writes)


class TestLoggerBoundByAStep(LoggerPromises):
    @pytest.fixture
    def logger_and_lines(self) -> Iterator[LoggerAndLines]:
        with pipe_of_writes() as (fd, writes):
            logger = StructuredLogger(LineSink(fd))
            yield LoggerAndLines(logger.bind(**CONTEXT).bind(dagster_step_key="evaluate_mentor[2]"), writes)


class TestLoggerWhoseStdoutIsCaptured(LoggerPromises):
    """What reaches the process's own stdout while Dagster captures that of the step."""

    @pytest.fixture
    def logger_and_lines(self, tmp_path: Path) -> Iterator[LoggerAndLines]:
        with pipe_of_writes() as (stdout, writes), ExitStack() as stack:
            sink = LineSink(stack.enter_context(duplicate(stdout)))
            stack.enter_context(sink.copied_to_process_stdout())
            stack.enter_context(redirected(sink.fd, tmp_path / "captured"))
            yield LoggerAndLines(StructuredLogger(sink, context=CONTEXT), writes)


@pytest.mark.parametrize(
    ("now", "timestamp"),
    [
        pytest.param(datetime(2026, 3, 1, 12, 0, 0, 0, UTC), "2026-03-01T12:00:00.000Z", id="no microseconds"),
        pytest.param(datetime(2026, 3, 1, 12, 0, 0, 999_999, UTC), "2026-03-01T12:00:00.999Z", id="cut, not rounded"),
        pytest.param(datetime(2026, 3, 1, 12, 0, 0, 7_000, UTC), "2026-03-01T12:00:00.007Z", id="leading zeroes"),
        pytest.param(
            datetime(2026, 3, 1, 0, 30, tzinfo=timezone(timedelta(hours=1))),
            "2026-02-28T23:30:00.000Z",
            id="other zone",
        ),
    ],
)
def test_a_timestamp_is_utc_with_three_digits_and_z(now: datetime, timestamp: str) -> None:
    """Entries of differing widths would not sort."""
    with pipe_of_writes() as (fd, writes):
        StructuredLogger(LineSink(fd), now=lambda: now, context=CONTEXT).emit(STARTED)
        (line,) = writes()
    assert parse(line)["timestamp"] == timestamp


def test_without_a_sink_entries_go_to_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    StructuredLogger(context=CONTEXT).emit(STARTED)
    out, err = capfd.readouterr()
    assert (parse(out.encode())["event"], err) == (STARTED.name, "")


def test_a_fault_of_the_logger_itself_costs_the_entry_and_is_counted() -> None:
    def broken_clock() -> datetime:
        raise OSError(CANARY)

    with pipe_of_writes() as (fd, writes):
        logger = StructuredLogger(LineSink(fd), now=broken_clock)
        logger.emit(STARTED)
        assert (writes(), logger.sink.dropped) == ([], 1)


def test_an_interrupt_is_not_swallowed() -> None:
    """Otherwise the interrupt that ends a run could be lost in the middle of a log entry."""

    def interrupted_clock() -> datetime:
        raise KeyboardInterrupt

    with pipe_of_writes() as (fd, _), pytest.raises(KeyboardInterrupt):
        StructuredLogger(LineSink(fd), now=interrupted_clock).emit(STARTED)


def test_an_observer_sees_each_line_while_it_observes_and_none_after() -> None:
    """The command's summary is made of what was said, not of a second count."""
    outer: list[bytes] = []
    inner: list[bytes] = []
    with pipe_of_writes() as (fd, writes):
        logger = StructuredLogger(LineSink(fd), context=CONTEXT)
        with logger.sink.observed_by(outer.append):
            logger.emit(STARTED)
            with logger.sink.observed_by(inner.append):
                logger.emit(MENTOR_ERROR)
            logger.emit(PARTIAL)
        logger.emit(COMPLETED)
        written = writes()
    assert [*outer, *inner] == [written[0], written[2], written[1]]
    assert parse(written[3])["event"] == COMPLETED.name


def test_an_observer_sees_what_could_not_be_written() -> None:
    """A summary on stderr must be right even when nobody reads stdout."""
    seen: list[bytes] = []
    with broken_pipe() as fd:
        logger = StructuredLogger(LineSink(fd), context=CONTEXT)
        with logger.sink.observed_by(seen.append):
            logger.emit(COMPLETED)
    assert [parse(line)["event"] for line in seen] == [COMPLETED.name]


def test_an_observer_that_fails_fails_nobody_else() -> None:
    def broken(_line: bytes) -> None:
        raise ValueError(CANARY)

    with pipe_of_writes() as (fd, writes):
        logger = StructuredLogger(LineSink(fd), context=CONTEXT)
        with logger.sink.observed_by(broken):
            logger.emit(STARTED)
        logger.emit(COMPLETED)
        assert [parse(line)["event"] for line in writes()] == [STARTED.name, COMPLETED.name]


def test_every_logger_of_a_process_shares_one_sink() -> None:
    """Two sinks on one stdout would not know of each other's torn lines."""
    assert StructuredLogger().sink is STDOUT_SINK
    assert StructuredLogger().bind(a=1).sink is STDOUT_SINK
    assert STDOUT_SINK.fd == 1
