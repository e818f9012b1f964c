"""What every logger of the project promises, as a class of tests to inherit from.

Belongs here: promises that hold for each way to get a logger. Does not belong here: one way's own behaviour.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given

from scenario_pipeline.errors import ErrorType
from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.log.vocabulary import (
    Event,
    MentorEvaluationError,
    PageRetried,
    RunCompleted,
    RunFailed,
    RunPartial,
    RunStarted,
)
from scenario_pipeline_tests.support.hostile_values import ANYTHING, HOSTILE, MENTOR, hostile_values, many_values
from scenario_pipeline_tests.support.names import CANARY

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
    """A logger, and what it wrote since the last call: one item per write where writes can be seen, else per line."""

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


class LoggerPromises:
    """What any code that emits an event may rely on; a subclass says which logger is held to it.

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
        """Without this, a mentor's address would stand in every copy of the log."""
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
