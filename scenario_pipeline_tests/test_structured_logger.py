"""The promises of `StructuredLogger` and its sink: one strict line an entry, whatever the value or the descriptor."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import MagicMock
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from scenario_pipeline.errors import ErrorType
from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.log.stdout import STALL_SECONDS, STDOUT_SINK, LineSink
from scenario_pipeline.log.vocabulary import (
    Event,
    MentorEvaluationError,
    PageRetried,
    RunCompleted,
    RunFailed,
    RunPartial,
    RunStarted,
)
from scenario_pipeline.settings import PROJECT_FOLDER

CANARY = "kari.nordmann@example.org"
MENTOR = "0b1f6a2e-7c1d-4a55-9d0e-3f2a1b4c5d6e"
INVOCATION = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
PLACEHOLDER = "[unserialisable]"
CONTEXT: dict[str, Any] = {
    "invocation_id": INVOCATION,
    "dagster_run_id": INVOCATION,
    "dagster_job_name": "scenario_scheduler",
    "dagster_step_key": "summarize_run",
    "dagster_partition_key": None,
}

ANY_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
# The form of each common field (contract section 5).
COMMON_FIELDS: dict[str, Callable[[Any], bool]] = {
    "timestamp": lambda value: isinstance(value, str) and TIMESTAMP.fullmatch(value) is not None,
    "level": lambda value: value in ("info", "warning", "error"),
    "event": lambda value: isinstance(value, str) and re.fullmatch(r"[a-z_]+", value) is not None,
    "component": lambda value: value in ("scenario-scheduler", "scenario-trigger-engine"),
    "invocation_id": lambda value: isinstance(value, str) and UUID4.fullmatch(value) is not None,
    "schema_version": lambda value: type(value) is int and value == 1,
    "dagster_run_id": lambda value: isinstance(value, str) and ANY_UUID.fullmatch(value) is not None,
    "dagster_job_name": lambda value: isinstance(value, str) and value != "",
    "dagster_step_key": lambda value: value is None or isinstance(value, str),
    "dagster_partition_key": lambda value: value is None or isinstance(value, str),
}

STARTED = RunStarted("manual", "2026-03-01", ["inactivity", "milestone"], "live", 30_000)
MENTOR_ERROR = MentorEvaluationError(MENTOR, ErrorType.TIMEOUT, "timeout after 30 s")
PARTIAL = RunPartial(3, "time_budget", 10, 6, 2, 1, 1, 1)
FAILED = RunFailed(ErrorType.DATABASE, "deadlock detected", None)
COMPLETED = RunCompleted(True, 10, 9, 2, 1, 1, 1, 1234, {"cooldown": 1}, {"inactivity": 2})
PAGE_RETRIED = PageRetried(1, 2, ErrorType.DATABASE, "deadlock detected")


class LoggerAndLines(NamedTuple):
    """A logger, and what it wrote since it was last asked: one item a write where that can be told, else a line."""

    logger: StructuredLogger
    lines: Callable[[], list[bytes]]


def parse(line: bytes) -> dict[str, Any]:
    """Read one line as a strict reader would."""
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert len(line) <= 4096
    entry = json.loads(line.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_unique)
    assert isinstance(entry, dict)
    return entry


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), "a key stands twice"
    return dict(pairs)


def assert_common_fields(entry: dict[str, Any]) -> None:
    assert [name for name, fits in COMMON_FIELDS.items() if name not in entry or not fits(entry[name])] == []


def further_fields(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in COMMON_FIELDS}


class Hostile:
    """An object that fails or betrays itself wherever it is asked."""

    def __repr__(self) -> str:
        return CANARY

    def __str__(self) -> str:
        raise ValueError(CANARY)

    def __eq__(self, other: object) -> bool:
        raise ValueError(CANARY)

    def __bool__(self) -> bool:
        raise ValueError(CANARY)

    __hash__ = None  # type: ignore[assignment]


class UnboundProxy:
    """What a lazy proxy outside its context does: it cannot even say what it is."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise RuntimeError(CANARY)


class TellingObject:
    def __str__(self) -> str:
        return CANARY

    __repr__ = __str__


class TellingDate(date):
    def __str__(self) -> str:
        return CANARY

    __repr__ = isoformat = __str__


class TellingId(UUID):
    def __str__(self) -> str:
        return CANARY

    __repr__ = __str__


class TornText(str):
    __slots__ = ()

    def __getitem__(self, key: object) -> str:
        raise ValueError(CANARY)

    def __len__(self) -> int:
        raise ValueError(CANARY)


class TornNumber(int):
    def __le__(self, other: object) -> bool:
        raise ValueError(CANARY)

    __ge__ = __lt__ = __gt__ = __le__


class TornMapping(dict[str, int]):
    def items(self) -> Any:
        raise ValueError(CANARY)


class TornList(list[int]):
    def __iter__(self) -> Any:
        raise ValueError(CANARY)


class TornZone(tzinfo):
    def utcoffset(self, _dt: datetime | None) -> timedelta:
        raise ValueError(CANARY)

    dst = utcoffset

    def tzname(self, _dt: datetime | None) -> str:
        return CANARY


def _endless() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


HOSTILE: dict[str, Any] = {
    "object": Hostile(),
    "object that quotes a row": TellingObject(),
    "class": TellingObject,
    "exception": ValueError(CANARY),
    "proxy without a class": UnboundProxy(),
    "mock that poses as text": MagicMock(spec=str),
    "date that quotes a row": TellingDate(2026, 3, 1),
    "id that quotes a row": TellingId(MENTOR),
    "text that cannot be cut": TornText("text"),
    "number that cannot be compared": TornNumber(7),
    "mapping that cannot be read": TornMapping(a=1),
    "list that cannot be read": TornList([1]),
    "time in a broken zone": datetime(2026, 3, 1, tzinfo=TornZone()),
    "generator": (CANARY for _ in range(3)),
    "bytes": CANARY.encode(),
    "recursive list": _endless(),
}
# By name: pytest looks at parameters, and these do not bear it.
hostile_values = pytest.mark.parametrize("hostile", HOSTILE)

_texts = st.text(st.characters(), max_size=700) | st.sampled_from(
    ["a\nb", "a\r\nb", "\x00", "\x1b[31m", "\x85", "\u2028", "\u2029", "\ud800", "\udfff\ud800", "\U0001f600" * 600]
)
_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**400), max_value=10**400)
    | st.floats()
    | _texts
    | st.binary()
    | st.decimals()
    | st.uuids()
    | st.datetimes()
    | st.sampled_from([object(), ErrorType.TIMEOUT, Path("/home/kari"), range(3), ...])
)
ANYTHING = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=80)
        | st.tuples(inner, inner)
        | st.dictionaries(_texts | st.integers() | st.none(), inner, max_size=80)
        | st.frozensets(st.integers() | _texts)
    ),
    max_leaves=100,
)
# One logger serves all examples, and several classes run the same promise.
many_values = settings(
    deadline=None,
    database=None,
    # Shrinking such values takes minutes and tells little more than the first failure.
    phases=[Phase.explicit, Phase.generate],
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)


class LoggerPromises:
    """What whoever emits an event may rely on; a subclass says which logger is held to it.

    Override the fixture `logger_and_lines`; the logger must be bound to the context of a run.
    """

    @pytest.fixture
    def logger_and_lines(self) -> Iterator[LoggerAndLines]:
        raise NotImplementedError("a subclass names its logger")

    @pytest.mark.parametrize(
        ("event", "level", "component"),
        [
            pytest.param(STARTED, "info", "scenario-scheduler", id="started"),
            pytest.param(MENTOR_ERROR, "warning", "scenario-scheduler", id="mentor error"),
            pytest.param(PARTIAL, "warning", "scenario-scheduler", id="partial"),
            pytest.param(FAILED, "error", "scenario-scheduler", id="failed"),
            pytest.param(COMPLETED, "info", "scenario-scheduler", id="completed"),
            pytest.param(replace(COMPLETED, completed=False), "warning", "scenario-scheduler", id="not completed"),
            pytest.param(PAGE_RETRIED, "warning", "scenario-trigger-engine", id="trigger engine"),
        ],
    )
    def test_each_event_is_one_line_of_strict_json_with_every_common_field(
        self, logger_and_lines: LoggerAndLines, event: Event, level: str, component: str
    ) -> None:
        logger, lines = logger_and_lines
        logger.emit(event)
        (line,) = lines()
        entry = parse(line)
        assert_common_fields(entry)
        assert (entry["event"], entry["level"], entry["component"]) == (event.name, level, component)
        assert further_fields(entry) == event.fields()

    def test_two_events_are_two_lines_in_their_order(self, logger_and_lines: LoggerAndLines) -> None:
        logger, lines = logger_and_lines
        logger.emit(STARTED)
        logger.emit(COMPLETED)
        assert [parse(line)["event"] for line in lines()] == [STARTED.name, COMPLETED.name]

    def test_bound_context_stays_and_does_not_leak_into_the_parent(self, logger_and_lines: LoggerAndLines) -> None:
        """A step that names itself must not name the steps of others."""
        logger, lines = logger_and_lines
        step = logger.bind(dagster_step_key="evaluate_mentor[1]", attempt=2)
        for each in (logger, step, step, logger):
            each.emit(STARTED)
        before, *bound, after = [parse(line) for line in lines()]
        assert [(entry["dagster_step_key"], entry["attempt"]) for entry in bound] == [("evaluate_mentor[1]", 2)] * 2
        assert [entry["invocation_id"] for entry in bound] == [before["invocation_id"]] * 2
        for entry in (before, after):
            assert "attempt" not in entry
            assert entry["dagster_step_key"] != "evaluate_mentor[1]"

    def test_context_cannot_overwrite_what_the_event_says(self, logger_and_lines: LoggerAndLines) -> None:
        logger, lines = logger_and_lines
        logger.bind(event="x", level="x", component="x", schema_version=9, timestamp="x").emit(STARTED)
        (line,) = lines()
        assert_common_fields(parse(line))
        assert parse(line)["event"] == STARTED.name

    @pytest.mark.parametrize("event", [MENTOR_ERROR, FAILED, PAGE_RETRIED], ids=lambda event: event.name)
    def test_an_error_message_is_sanitised_and_keeps_what_is_useful(
        self, logger_and_lines: LoggerAndLines, event: Any
    ) -> None:
        """Without this the address of a mentor stands in the log of whoever collects it."""
        logger, lines = logger_and_lines
        logger.emit(replace(event, error_message=f"timeout for {MENTOR}\nasked by {CANARY}: " + "timeout " * 200))
        (line,) = lines()
        message = parse(line)["error_message"]
        assert 0 < len(message) <= 500
        assert "timeout" in message
        assert [secret for secret in (MENTOR, CANARY, "kari", "nordmann", "\n") if secret in message.lower()] == []

    @given(value=ANYTHING)
    @many_values
    def test_any_value_comes_out_as_strict_json(self, logger_and_lines: LoggerAndLines, value: Any) -> None:
        logger, lines = logger_and_lines
        logger.bind(extra=value).emit(MentorEvaluationError(value, value, value))
        (line,) = lines()
        entry = parse(line)
        assert_common_fields(entry)
        assert " object at 0x" not in line.decode()
        assert re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", line.decode()[:-1]) is None
        assert set(further_fields(entry)) == {"extra", "peer_mentor_id", "error_type", "error_message"}

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            pytest.param("Blåbærsyltetøy \U0001f600", "Blåbærsyltetøy \U0001f600", id="text is left alone"),
            pytest.param("a\r\nb\tc\u2028d\x00e\x85f", "a b c d e f", id="line breaks and control characters"),
            pytest.param("a\udce2b", "a\ufffdb", id="lone surrogate"),
            pytest.param('"\\', '"\\', id="quotation mark and backslash"),
            pytest.param("x" * 501, "x" * 500, id="long text"),
            pytest.param(None, None, id="none"),
            pytest.param(True, True, id="truth"),
            pytest.param(-7, -7, id="integer"),
            pytest.param(2**53 - 1, 2**53 - 1, id="largest exact integer"),
            pytest.param(2**53, PLACEHOLDER, id="integer that readers round"),
            pytest.param(-(2**53), PLACEHOLDER, id="negative integer that readers round"),
            pytest.param(10**5000, PLACEHOLDER, id="integer without a decimal form"),
            pytest.param(math.nan, PLACEHOLDER, id="nan"),
            pytest.param(math.inf, PLACEHOLDER, id="infinity"),
            pytest.param(Decimal("NaN"), PLACEHOLDER, id="decimal"),
            pytest.param(b"bytes", PLACEHOLDER, id="bytes"),
            pytest.param(object(), PLACEHOLDER, id="object"),
            pytest.param(ErrorType.TIMEOUT, "timeout_error", id="enumeration"),
            pytest.param(Enum("Colour", "red").red, 1, id="enumeration of numbers"),  # type: ignore[attr-defined]
            pytest.param(UUID(MENTOR), MENTOR, id="uuid"),
            pytest.param(date(2026, 3, 1), "2026-03-01", id="date"),
            pytest.param((1, [2, {"three": math.nan}]), [1, [2, {"three": PLACEHOLDER}]], id="nested"),
            pytest.param({7: 1}, {PLACEHOLDER: 1}, id="key that is no text"),
            pytest.param({"a\nb": 1}, {"a b": 1}, id="key with a line break"),
        ],
    )
    def test_a_value_keeps_its_meaning_or_gives_way_to_a_placeholder(
        self, logger_and_lines: LoggerAndLines, value: Any, expected: Any
    ) -> None:
        logger, lines = logger_and_lines
        logger.bind(extra=value).emit(STARTED)
        (line,) = lines()
        entry = parse(line)
        assert entry["extra"] == expected
        assert type(entry["extra"]) is type(expected)

    @hostile_values
    def test_a_hostile_value_costs_the_value_and_not_the_entry(
        self, logger_and_lines: LoggerAndLines, hostile: str
    ) -> None:
        """An entry lost to a broken object would leave total_errors without its mentor_evaluation_error."""
        logger, lines = logger_and_lines
        value = HOSTILE[hostile]
        logger.bind(extra=value, nested=[value, {"key": value}]).emit(STARTED)
        (line,) = lines()
        entry = parse(line)
        assert_common_fields(entry)
        assert set(further_fields(entry)) == {*STARTED.fields(), "extra", "nested"}
        assert CANARY not in line.decode()

    @hostile_values
    def test_a_hostile_value_in_any_field_leaves_the_entry_its_other_fields(
        self, logger_and_lines: LoggerAndLines, hostile: str
    ) -> None:
        """Without its closing entry an invocation looks as if its process had died."""
        logger, lines = logger_and_lines
        value = HOSTILE[hostile]
        entries = {}
        for event in (STARTED, MENTOR_ERROR, PARTIAL, FAILED, COMPLETED, PAGE_RETRIED):
            for name in event.fields():
                logger.emit(replace(event, **{name: value}))
                entries[event.name, name] = lines()
        assert [field for field, written in entries.items() if len(written) != 1] == []
        for (event_name, field), (line,) in entries.items():
            entry = parse(line)
            assert_common_fields(entry)
            assert (entry["event"], field in entry) == (event_name, True)
            assert CANARY not in line.decode()

    @pytest.mark.parametrize(
        "context",
        [
            pytest.param({"extra": "x" * 10**6}, id="long text"),
            pytest.param({"extra": ['"' * 500] * 64}, id="long list of escapes"),
            pytest.param({f"extra_{n}": "\U0001f600" * 128 for n in range(40)}, id="many texts of four bytes"),
            pytest.param({f"extra_{n}": n for n in range(1000)}, id="a thousand fields"),
            pytest.param({"e" * 5000: 1}, id="long name"),
            pytest.param(
                dict.fromkeys(("dagster_job_name", "dagster_step_key", "dagster_partition_key"), "\U0001f600" * 500),
                id="long common fields",
            ),
            pytest.param({"\ud800": 1}, id="name with a lone surrogate"),
        ],
    )
    def test_whatever_is_bound_a_line_stays_within_4096_bytes_and_says_whose_it_is(
        self, logger_and_lines: LoggerAndLines, context: dict[str, Any]
    ) -> None:
        """Longer writes to a pipe are torn, and a line without its invocation_id belongs to nobody."""
        logger, lines = logger_and_lines
        logger.bind(**context).emit(STARTED)
        (line,) = lines()
        entry = parse(line)
        assert_common_fields(entry)
        assert entry["event"] == STARTED.name

    def test_an_event_of_any_size_stays_within_4096_bytes(self, logger_and_lines: LoggerAndLines) -> None:
        logger, lines = logger_and_lines
        names = [f"scenario_{n}_" + "x" * 40 for n in range(500)]
        logger.emit(replace(STARTED, scenario_types=names))
        logger.emit(replace(COMPLETED, dispatched_by_scenario=dict.fromkeys(names, 2**53 - 1)))
        entries = [parse(line) for line in lines()]
        assert [entry["event"] for entry in entries] == [STARTED.name, COMPLETED.name]
        for entry in entries:
            assert_common_fields(entry)


@contextmanager
def pipe_of_writes() -> Iterator[tuple[int, Callable[[], list[bytes]]]]:
    """A pipe in packet mode: its writing end, and a function that returns what came, one item a write."""
    reader, writer = os.pipe2(os.O_DIRECT | os.O_NONBLOCK)

    def writes() -> list[bytes]:
        packets = []
        with suppress(BlockingIOError):
            while packet := os.read(reader, 8192):
                packets.append(packet)
        return packets

    try:
        yield writer, writes
    finally:
        os.close(writer)
        os.close(reader)


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


@contextmanager
def duplicate(fd: int) -> Iterator[int]:
    """Another number for the same open file, far from those that anything else would be given next."""
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 700)
    try:
        yield copy
    finally:
        os.close(copy)


@contextmanager
def opened(path: Path, flags: int = os.O_WRONLY | os.O_CREAT | os.O_APPEND) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def redirected(fd: int, path: Path) -> Iterator[None]:
    """Let `fd` lead to a file, as a captured stdout does."""
    with duplicate(fd) as before:
        with opened(path) as captured:
            os.dup2(captured, fd)
        try:
            yield
        finally:
            os.dup2(before, fd)


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes: the write that reaches the limit is a short one, like on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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


@contextmanager
def closed_descriptor() -> Iterator[int]:
    with pipe_of_writes() as (fd, _), duplicate(fd) as copy:
        number = copy
    yield number


@contextmanager
def broken_pipe() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


@contextmanager
def full_disk() -> Iterator[int]:
    with opened(Path("/dev/full"), os.O_WRONLY) as fd:
        yield fd


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


@contextmanager
def unread_pipe() -> Iterator[tuple[int, int]]:
    """A pipe that nobody reads from: its writing end, and its reading end."""
    reader, writer = os.pipe()
    try:
        yield writer, reader
    finally:
        os.close(writer)
        os.close(reader)


@contextmanager
def unread_pipe_that_does_not_block() -> Iterator[tuple[int, int]]:
    """What a parent leaves behind that reads its pipes in an event loop."""
    with unread_pipe() as (writer, reader):
        os.set_blocking(writer, False)
        yield writer, reader


@contextmanager
def unread_socket() -> Iterator[tuple[int, int]]:
    """What the journal of a host hands to a service."""
    writer, reader = socket.socketpair()
    with writer, reader:
        yield writer.fileno(), reader.fileno()


stallable = pytest.mark.parametrize(
    "target", [unread_pipe, unread_pipe_that_does_not_block, unread_socket], ids=lambda target: target.__name__
)


def drained(reader: int) -> list[bytes]:
    """Return the lines that wait at the reading end."""
    os.set_blocking(reader, False)
    parts = []
    with suppress(BlockingIOError):
        while part := os.read(reader, 65536):
            parts.append(part)
    return b"".join(parts).splitlines(keepends=True)


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
            assert (len(seen) > 0, len(seen) + logger.sink.dropped) == (True, 1000)
            # The file that the web UI shows has them all, and whoever reads again is told the rest.
            assert len(captured.read_bytes().splitlines()) == 1000
            logger.emit(COMPLETED)
            (line,) = drained(reader)
        assert (parse(line)["event"], len(seen) + logger.sink.dropped) == (COMPLETED.name, 1000)


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


# Fields of up to 2,000 bytes, so that lines of every length up to the limit meet in the pipe.
WRITER = """
import sys
from scenario_pipeline.errors import ErrorType
from scenario_pipeline.events import PageRetried
from scenario_pipeline.structured_logger import LineSink, StructuredLogger

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


def test_a_captured_step_writes_each_whole_line_to_its_file_and_to_the_process_stdout(tmp_path: Path) -> None:
    """The web UI shows the file; whoever runs the process reads its stdout."""
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
    assert logger.sink.dropped == 1


def test_a_step_without_a_stdout_to_copy_goes_on() -> None:
    with closed_descriptor() as fd:
        logger = StructuredLogger(LineSink(fd), context=CONTEXT)
        with logger.sink.copied_to_process_stdout():
            logger.emit(COMPLETED)
        assert logger.sink.dropped == 1


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
