"""Stdout while Dagster captures that of a step: each line goes to the file and to the process."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.log.stdout import LineSink
from scenario_pipeline_tests.support.descriptors import (
    closed_descriptor,
    duplicate,
    files_limited_to,
    opened,
    pipe_of_writes,
    redirected,
)
from scenario_pipeline_tests.support.logger_promises import COMPLETED, CONTEXT, MENTOR_ERROR, PARTIAL, STARTED, parse


@pytest.mark.parametrize("torn_in", ["the step", "the process"])
def test_a_short_write_on_the_process_stdout_is_remembered_across_a_captured_step(tmp_path: Path, torn_in: str) -> None:
    """The copy and the original lead to one file: whichever of them was torn, the next line of either is fresh."""
    path = tmp_path / "events.ndjson"
    path.write_bytes(b"x" * 999 + b"\n")
    with opened(path) as stdout, duplicate(stdout) as fd:
        logger = StructuredLogger(LineSink(fd), context=CONTEXT)
        if torn_in == "the process":
            with files_limited_to(1020):
                logger.emit(MENTOR_ERROR)
        with logger.sink.copied_to_process_stdout(), redirected(fd, tmp_path / "captured"):
            if torn_in == "the step":
                with files_limited_to(1020):
                    logger.emit(MENTOR_ERROR)
            else:
                logger.emit(COMPLETED)
        if torn_in == "the step":
            logger.emit(COMPLETED)
    _, torn, line = path.read_bytes().splitlines(keepends=True)
    assert len(torn) == 21
    assert parse(line)["event"] == COMPLETED.name


def test_a_captured_step_writes_each_whole_line_to_its_file_and_to_the_process_stdout(tmp_path: Path) -> None:
    """The web UI shows the file; the owner of the process reads its stdout."""
    descriptors = Path("/proc/self/fd")
    with pipe_of_writes() as (stdout, writes), duplicate(stdout) as fd:
        logger = StructuredLogger(LineSink(fd), context=CONTEXT)
        logger.emit(STARTED)
        open_before = len(list(descriptors.iterdir()))
        with logger.sink.copied_to_process_stdout():
            with redirected(fd, tmp_path / "first"):
                logger.emit(MENTOR_ERROR)
            with redirected(fd, tmp_path / "second"):
                logger.emit(PARTIAL)
        assert len(list(descriptors.iterdir())) == open_before
        logger.emit(COMPLETED)
        seen = [parse(line) for line in writes()]
        assert logger.sink.dropped == 0
    captured = [parse((tmp_path / name).read_bytes()) for name in ("first", "second")]
    assert [entry["event"] for entry in seen] == [STARTED.name, MENTOR_ERROR.name, PARTIAL.name, COMPLETED.name]
    assert captured == seen[1:3]


def test_a_captured_step_that_fails_gives_stdout_back(tmp_path: Path) -> None:
    with pipe_of_writes() as (fd, writes):
        logger = StructuredLogger(LineSink(fd), context=CONTEXT)
        with pytest.raises(ZeroDivisionError), logger.sink.copied_to_process_stdout():
            raise ZeroDivisionError
        logger.emit(COMPLETED)
        assert [parse(line)["event"] for line in writes()] == [COMPLETED.name]
        assert logger.sink.dropped == 0


@pytest.mark.parametrize("broken", ["captured", "stdout"])
def test_if_one_of_the_two_descriptors_fails_the_other_still_gets_the_line(tmp_path: Path, broken: str) -> None:
    good, full = tmp_path / "events.ndjson", Path("/dev/full")
    with ExitStack() as stack:
        stdout = stack.enter_context(opened(full if broken == "stdout" else good))
        logger = StructuredLogger(LineSink(stack.enter_context(duplicate(stdout))), context=CONTEXT)
        stack.enter_context(logger.sink.copied_to_process_stdout())
        stack.enter_context(redirected(logger.sink.fd, full if broken == "captured" else good))
        logger.emit(COMPLETED)
    assert parse(good.read_bytes())["event"] == COMPLETED.name
    assert (logger.sink.dropped, logger.sink.dropped_copies) == ((1, 0) if broken == "stdout" else (0, 1))


def test_a_step_without_a_stdout_to_copy_goes_on() -> None:
    with closed_descriptor() as fd:
        logger = StructuredLogger(LineSink(fd), context=CONTEXT)
        with logger.sink.copied_to_process_stdout():
            logger.emit(COMPLETED)
        assert logger.sink.dropped == 1
