"""Stdout that is closed, full, slow or shared: what is lost is counted, and nothing waits for ever."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.log.stdout import STALL_SECONDS, LineSink
from scenario_pipeline.settings import PROJECT_FOLDER
from scenario_pipeline_tests.support.descriptors import (
    broken_pipe,
    closed_descriptor,
    drained,
    files_limited_to,
    full_disk,
    opened,
    pipe_of_writes,
    stallable,
    unread_pipe,
)
from scenario_pipeline_tests.support.logger_promises import COMPLETED, CONTEXT, MENTOR_ERROR, PARTIAL, STARTED, parse


@pytest.mark.parametrize("target", [closed_descriptor, broken_pipe, full_disk], ids=lambda target: target.__name__)
def test_what_cannot_be_written_is_counted_and_raises_nothing(target: Callable[[], Any]) -> None:
    """A reader that goes away must not end the batch."""
    with target() as fd:
        logger = StructuredLogger(LineSink(fd), context=CONTEXT)
        for event in (STARTED, MENTOR_ERROR, COMPLETED):
            logger.emit(event)
        assert logger.sink.dropped == 3


def test_what_was_written_is_not_counted_as_dropped() -> None:
    with pipe_of_writes() as (fd, writes):
        logger = StructuredLogger(LineSink(fd), context=CONTEXT)
        logger.emit(STARTED)
        assert (len(writes()), logger.sink.dropped) == (1, 0)


@stallable
def test_a_reader_that_stalls_holds_up_the_run_once_and_briefly(target: Callable[[], Any], tmp_path: Path) -> None:
    """A viewer of the log that somebody had paused once held a run for ever, and SIGTERM with it."""
    captured = tmp_path / "captured"
    with target() as (writer, reader), opened(captured) as fd:
        logger = StructuredLogger(LineSink(fd), context=CONTEXT)
        began = time.monotonic()
        with logger.sink.copied_to(writer):
            for _ in range(1000):
                logger.emit(MENTOR_ERROR)
            assert time.monotonic() - began < 2 * STALL_SECONDS
            seen = drained(reader)
            assert [parse(line)["event"] for line in seen] == [MENTOR_ERROR.name] * len(seen)
            assert (len(seen) > 0, len(seen) + logger.sink.dropped_copies) == (True, 1000)
            # The file that the web UI shows has them all, and a reader who returns gets the rest.
            assert len(captured.read_bytes().splitlines()) == 1000
            logger.emit(COMPLETED)
            (line,) = drained(reader)
        assert (parse(line)["event"], len(seen) + logger.sink.dropped_copies) == (COMPLETED.name, 1000)


@stallable
def test_a_slow_reader_loses_nothing_not_even_after_a_stall(target: Callable[[], Any]) -> None:
    """A collector that is busy for a moment must not cost an entry."""
    with target() as (writer, reader), ExitStack() as stack:
        logger = StructuredLogger(LineSink(writer), context=CONTEXT)
        while not logger.sink.dropped:
            logger.emit(MENTOR_ERROR)
        drained(reader)
        seen: list[bytes] = []
        stop = threading.Event()

        def read_only_when_full() -> None:
            while not stop.wait(0.01):
                if not select.select([], [writer], [], 0)[1]:
                    seen.extend(drained(reader))

        thread = threading.Thread(target=read_only_when_full)
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        for _ in range(1000):
            logger.emit(MENTOR_ERROR)
        stack.close()
        seen += drained(reader)
        assert (len(seen), logger.sink.dropped) == (1000, 1)


def test_a_reader_of_a_line_now_and_then_holds_a_run_up_no_longer_than_one_who_reads_nothing() -> None:
    """A second for each of a hundred lines was a minute and a half, with SIGTERM held back."""
    with unread_pipe() as (writer, reader), ExitStack() as stack:
        logger = StructuredLogger(LineSink(writer), context=CONTEXT)
        stop = threading.Event()

        def read_a_little() -> None:
            while not stop.wait(0.3):
                os.read(reader, 4096)

        thread = threading.Thread(target=read_a_little)
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        began = time.monotonic()
        while not logger.sink.dropped:
            logger.emit(MENTOR_ERROR)
        for _ in range(100):
            logger.emit(MENTOR_ERROR)
        assert time.monotonic() - began < 2 * STALL_SECONDS


def test_a_process_started_without_stdout_never_writes_into_a_file_that_took_its_number(tmp_path: Path) -> None:
    """The next file to be opened gets number 1; a log line once ended up in the middle of a database."""
    script = (
        "import sys\n"
        "from scenario_pipeline.log.vocabulary import RunFailed\n"
        "from scenario_pipeline.log.logger import StructuredLogger\n"
        "with open(sys.argv[1], 'w') as file:\n"
        "    StructuredLogger().emit(RunFailed('timeout_error', 'timeout', None))\n"
    )
    file = tmp_path / "database"
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" "$@" >&-', sys.executable, "-c", script, str(file)],
        cwd=PROJECT_FOLDER,
        stderr=subprocess.PIPE,
        check=False,
    )
    assert (done.returncode, done.stderr, file.read_bytes()) == (0, b"", b"")


def test_after_a_short_write_the_next_entry_starts_on_a_fresh_line(tmp_path: Path) -> None:
    """A disk that was full for a moment must not cost the entry after it, which may be the closing one."""
    path = tmp_path / "events.ndjson"
    with opened(path) as fd:
        logger = StructuredLogger(LineSink(fd), context=CONTEXT)
        logger.emit(STARTED)
        with files_limited_to(path.stat().st_size + 20):
            logger.emit(MENTOR_ERROR)  # 20 bytes of it
            logger.emit(MENTOR_ERROR)  # nothing of it
        logger.emit(COMPLETED)
        logger.emit(PARTIAL)
    first, torn, *rest = path.read_bytes().splitlines(keepends=True)
    assert [parse(line)["event"] for line in (first, *rest)] == [STARTED.name, COMPLETED.name, PARTIAL.name]
    assert (len(torn), logger.sink.dropped) == (21, 2)


# Fields of up to 2,000 bytes, so that lines of every length up to the limit meet in the pipe.
WRITER = """
import sys
from scenario_pipeline.errors import ErrorType
from scenario_pipeline.log.vocabulary import PageRetried
from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.log.stdout import LineSink

fd, writer = int(sys.argv[1]), int(sys.argv[2])
sys.stdin.read()
logger = StructuredLogger(LineSink(fd)).bind(writer=writer)
for number in range(500):
    padding = {f"padding_{n}": "\\U0001f600" * (number % 128) for n in range(7)}
    logger.bind(**padding).emit(PageRetried(number, 1, ErrorType.DATABASE, "deadlock detected"))
sys.exit(1 if logger.sink.dropped else 0)
"""


def test_eight_processes_that_share_a_pipe_tear_no_line() -> None:
    """Dagster runs steps side by side, and all of them log to one stdout."""
    reader, fd = os.pipe()
    with ExitStack() as stack:
        stack.callback(os.close, reader)
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", WRITER, str(fd), str(writer)],
                    cwd=PROJECT_FOLDER,
                    stdin=subprocess.PIPE,
                    pass_fds=[fd],
                )
            )
            for writer in range(8)
        ]
        os.close(fd)
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        log = b"".join(iter(lambda: os.read(reader, 65536), b""))
    assert [process.returncode for process in processes] == [0] * 8
    lines = log.splitlines(keepends=True)
    entries = [parse(line) for line in lines]
    assert max(map(len, lines)) > 3500
    assert sorted((entry["writer"], entry["page_number"]) for entry in entries) == [
        (writer, number) for writer in range(8) for number in range(500)
    ]
