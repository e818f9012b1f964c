"""Logs good and broken: our validator against a stranger's checker and the published schema."""

from __future__ import annotations

import json

import pytest

from scenario_pipeline.log.schema import json_schema
from scenario_pipeline.log.validation import violations
from scenario_pipeline_tests.support.json_schema import fits
from scenario_pipeline_tests.support.log_entries import (
    COMPLETED,
    COUNTS,
    ERROR,
    FAILED,
    MENTOR,
    NOT_COMPLETED,
    PARTIAL,
    RETRIED,
    STARTED,
    Entry,
    as_lines,
    but,
    of_second,
    raw,
    without,
)
from scenario_pipeline_tests.support.names import CANARY
from scenario_pipeline_tests.support.stranger import stranger_says


def stranger_accepts(lines: list[bytes]) -> bool:
    """Return what the checker that shares no code with the project says."""
    status, _ = stranger_says(b"".join(line + b"\n" for line in lines))
    return status == 0


GOOD: dict[str, list[Entry | bytes]] = {
    "completed": [STARTED, ERROR, COMPLETED],
    "completed without anybody": [
        STARTED,
        but(
            COMPLETED,
            **dict.fromkeys(COUNTS, 0),
            duration_ms=0,
            suppressed_by_reason={},
            dispatched_by_scenario={},
        ),
    ],
    "partial": [STARTED, ERROR, PARTIAL, NOT_COMPLETED],
    "terminated": [STARTED, ERROR, but(PARTIAL, reason="terminated"), NOT_COMPLETED],
    "failed": [STARTED, ERROR, FAILED, NOT_COMPLETED],
    "failed before the mentors were counted": [
        STARTED,
        ERROR,
        but(FAILED, remaining_unprocessed_count=None),
        NOT_COMPLETED,
    ],
    "two invocations interleaved": [
        STARTED,
        of_second(STARTED),
        of_second(ERROR),
        ERROR,
        PARTIAL,
        of_second(COMPLETED),
        NOT_COMPLETED,
    ],
    "entries of the trigger engine in between": [STARTED, RETRIED, ERROR, of_second(RETRIED), COMPLETED],
    "empty lines": [STARTED, b"", ERROR, COMPLETED, b""],
    "a message of 500 characters": [STARTED, but(ERROR, error_message="x" * 500), COMPLETED],
    "letters of any language": [but(STARTED, dagster_job_name="Blåbær \U0001f600"), ERROR, COMPLETED],
}


@pytest.mark.parametrize("log", GOOD.values(), ids=GOOD)
def test_a_good_log_has_no_violation_for_us_for_a_stranger_and_for_the_published_schema(
    log: list[Entry | bytes],
) -> None:
    lines = as_lines(log)
    assert list(violations(lines)) == []
    assert stranger_accepts(lines)
    schema = json_schema()
    assert [line for line in lines if line and not fits(json.loads(line), schema, schema)] == []


def test_line_feeds_at_the_end_of_lines_change_nothing() -> None:
    """Files are read with them, pipes without."""
    assert list(violations(line + b"\n" for line in as_lines([STARTED, ERROR, COMPLETED]))) == []


# What one line says wrong, whatever stands around it: the entry that is broken, and where.
BROKEN_ENTRIES: dict[str, tuple[Entry, str]] = {
    "missing field": (without(ERROR, "error_type"), "error_type"),
    "missing common field": (without(ERROR, "dagster_partition_key"), "dagster_partition_key"),
    "field that does not exist": (but(ERROR, attempt=CANARY), ""),
    "text for a number": (but(COMPLETED, total_errors=CANARY), "total_errors"),
    "truth for a number": (but(COMPLETED, total_errors=True), "total_errors"),
    "truth for the version": (but(ERROR, schema_version=True), "schema_version"),
    "another version": (but(ERROR, schema_version=2), "schema_version"),
    "fraction": (but(COMPLETED, duration_ms=1.5), "duration_ms"),
    "negative number": (but(COMPLETED, pages_processed=-1), "pages_processed"),
    "number that readers round": (but(COMPLETED, duration_ms=2**53), "duration_ms"),
    "number for a truth": (but(COMPLETED, completed=1), "completed"),
    "null for a number": (but(PARTIAL, remaining_unprocessed_count=None), "remaining_unprocessed_count"),
    "text for a list": (but(STARTED, scenario_types=CANARY), "scenario_types"),
    "list for a mapping": (but(COMPLETED, dispatched_by_scenario=[CANARY]), "dispatched_by_scenario"),
    "unknown event": (but(ERROR, event=CANARY), "event"),
    "no event": (without(ERROR, "event"), "event"),
    "unknown level": (but(ERROR, level=CANARY), "level"),
    "level of another event": (but(ERROR, level="error"), "level"),
    "unknown component": (but(ERROR, component=CANARY), "component"),
    "unknown error type": (but(ERROR, error_type=CANARY), "error_type"),
    "unknown trigger": (but(STARTED, triggered_by=CANARY), "triggered_by"),
    "unknown dispatch mode": (but(STARTED, dispatch_mode="auto"), "dispatch_mode"),
    "unknown reason of a partial run": (but(PARTIAL, reason=CANARY), "reason"),
    "unknown reason of suppression": (but(COMPLETED, suppressed_by_reason={CANARY: 2}), "suppressed_by_reason"),
    "scenario that is no name": (but(COMPLETED, dispatched_by_scenario={CANARY: 3}), "dispatched_by_scenario"),
    "text counted by scenario": (
        but(COMPLETED, dispatched_by_scenario={"inactivity": CANARY}),
        "dispatched_by_scenario",
    ),
    "message of two lines": (but(ERROR, error_message=f"a\n{CANARY}"), "error_message"),
    "message of 501 characters": (but(ERROR, error_message="x" * 501), "error_message"),
    "empty message": (but(ERROR, error_message=""), "error_message"),
    "mentor that is no id": (but(ERROR, peer_mentor_id=CANARY), "peer_mentor_id"),
    "invocation that is no random id": (but(ERROR, invocation_id=MENTOR), "invocation_id"),
    "timestamp without milliseconds": (but(ERROR, timestamp="2026-03-01T12:00:00Z"), "timestamp"),
    "timestamp with an offset": (but(ERROR, timestamp="2026-03-01T12:00:00.000+00:00"), "timestamp"),
    "date with a time": (but(STARTED, evaluation_date="2026-03-01T00:00:00"), "evaluation_date"),
    "empty job name": (but(ERROR, dagster_job_name=""), "dagster_job_name"),
}
broken_entries = pytest.mark.parametrize(("broken", "place"), BROKEN_ENTRIES.values(), ids=BROKEN_ENTRIES)


@broken_entries
def test_a_broken_entry_is_named_by_its_line_and_place_and_never_quoted(broken: Entry, place: str) -> None:
    """The list of violations is read by more people than the log."""
    lines = as_lines([of_second(STARTED), of_second(ERROR), broken, of_second(COMPLETED)])
    assert [sentence.partition(": ")[0] for sentence in violations(lines)] == ["line 3"]
    (sentence,) = violations(lines)
    assert place in sentence
    assert [part for part in (CANARY, "kari", "\n") if part in sentence] == []


@broken_entries
def test_the_published_schema_refuses_what_we_refuse(broken: Entry, place: str) -> None:
    """A consumer who validates with the schema must not accept what we call broken."""
    schema = json_schema()
    assert not fits(broken, schema, schema)


def test_a_field_that_does_not_exist_is_not_quoted_either() -> None:
    lines = as_lines([STARTED, ERROR, but(COMPLETED, **{CANARY: 1})])
    assert [sentence for sentence in violations(lines) if sentence.startswith("line 3: ")]
    assert CANARY not in " ".join(violations(lines))


BROKEN_LINES: dict[str, bytes] = {
    "nan": raw(ERROR, '"timeout after 30 s"', b"NaN"),
    "infinity": raw(ERROR, '"timeout after 30 s"', b"-Infinity"),
    "key that stands twice": raw(ERROR, '"error_type"', b'"level": "warning", "error_type"'),
    "not utf-8": raw(ERROR, "timeout after", b"bl\xe5b\xe6r " + CANARY.encode()),
    "byte order mark": b"\xef\xbb\xbf" + json.dumps(ERROR).encode(),
    "half a line": json.dumps(ERROR).encode()[:-20],
    "two entries on one line": json.dumps(ERROR).encode() * 2,
    "words": CANARY.encode(),
    "deep nesting": b"[" * 100_000,
    "list": b"[]",
    "number": b"1",
}


@pytest.mark.parametrize("line", BROKEN_LINES.values(), ids=BROKEN_LINES)
def test_a_line_that_is_no_strict_json_object_is_named_and_never_quoted(line: bytes) -> None:
    lines = [*as_lines([of_second(STARTED), of_second(ERROR)]), line, *as_lines([of_second(COMPLETED)])]
    (sentence,) = violations(lines)
    assert sentence.startswith("line 3: ")
    assert CANARY not in sentence
    assert not stranger_accepts(lines)


def test_a_lone_surrogate_is_a_violation() -> None:
    """It is JSON by its grammar, and no text that could be written on in UTF-8."""
    lines = [*as_lines([STARTED]), raw(ERROR, "timeout after", b"\\ud800"), *as_lines([COMPLETED])]
    assert [sentence for sentence in violations(lines) if sentence.startswith("line 2: ")]


@pytest.mark.parametrize("name", ["total_errors", "schema_version"])
def test_a_whole_number_written_as_a_fraction_is_a_violation(name: str) -> None:
    lines = [*as_lines([STARTED, ERROR]), raw(COMPLETED, f'"{name}": 1', f'"{name}": 1.0'.encode())]
    assert [sentence for sentence in violations(lines) if sentence.startswith("line 3: ") and name in sentence]


# Entries that are right one by one: the line that is named, and a word of the sentence.
BROKEN_LOGS: dict[str, tuple[list[Entry | bytes], int, str]] = {
    "no started": ([ERROR, COMPLETED], 1, "scheduler_run_started"),
    "started twice": ([STARTED, STARTED, ERROR, COMPLETED], 2, "twice"),
    "started after an error": ([STARTED, ERROR, STARTED, COMPLETED], 3, "twice"),
    "error after completed": ([STARTED, COMPLETED, ERROR], 3, "follows"),
    "completed twice": ([STARTED, ERROR, COMPLETED, COMPLETED], 4, "follows"),
    "partial after completed": ([STARTED, ERROR, COMPLETED, PARTIAL], 4, "follows"),
    "begun again": ([STARTED, ERROR, COMPLETED, STARTED, ERROR, COMPLETED], 4, "follows"),
    "never completed": ([STARTED, ERROR], 1, "closed"),
    "partial and never completed": ([STARTED, ERROR, PARTIAL], 1, "closed"),
    "partial and failed": ([STARTED, ERROR, PARTIAL, FAILED, NOT_COMPLETED], 4, "follows"),
    "failed and partial": ([STARTED, ERROR, FAILED, PARTIAL, NOT_COMPLETED], 4, "follows"),
    "error after partial": ([STARTED, PARTIAL, ERROR, NOT_COMPLETED], 3, "follows"),
    "partial and yet completed": (
        [STARTED, ERROR, PARTIAL, but(NOT_COMPLETED, completed=True, level="info")],
        1,
        "contradicts",
    ),
    "failed and yet completed": (
        [STARTED, ERROR, FAILED, but(NOT_COMPLETED, completed=True, level="info")],
        1,
        "contradicts",
    ),
    "not completed and no reason": (
        [STARTED, ERROR, but(COMPLETED, completed=False, level="warning")],
        1,
        "contradicts",
    ),
    "an error too few": ([STARTED, COMPLETED], 1, "total_errors"),
    "an error too many": ([STARTED, ERROR, ERROR, COMPLETED], 1, "total_errors"),
    "a mentor lost": ([STARTED, ERROR, but(COMPLETED, total_active_mentors=11)], 1, "total_active_mentors"),
    "a mentor twice": ([STARTED, ERROR, but(COMPLETED, total_evaluated=10)], 1, "total_active_mentors"),
    "a mentor left over unsaid": (
        [STARTED, ERROR, but(PARTIAL, remaining_unprocessed_count=4), NOT_COMPLETED],
        1,
        "remaining",
    ),
    "a failure that forgets the rest": (
        [STARTED, ERROR, but(FAILED, remaining_unprocessed_count=0), NOT_COMPLETED],
        1,
        "remaining",
    ),
    "suppressions without a reason": (
        [STARTED, ERROR, but(COMPLETED, total_suppressed=3)],
        1,
        "suppressed_by_reason",
    ),
    "dispatches without a scenario": (
        [STARTED, ERROR, but(COMPLETED, dispatched_by_scenario={})],
        1,
        "dispatched_by_scenario",
    ),
    "the other invocation is the broken one": (
        [STARTED, of_second(STARTED), ERROR, of_second(COMPLETED), COMPLETED],
        2,
        "total_errors",
    ),
}


@pytest.mark.parametrize(("log", "line", "word"), BROKEN_LOGS.values(), ids=BROKEN_LOGS)
def test_a_broken_invocation_is_named_by_us_and_refused_by_a_stranger(
    log: list[Entry | bytes], line: int, word: str
) -> None:
    lines = as_lines(log)
    assert [sentence for sentence in violations(lines) if sentence.startswith(f"line {line}: ") and word in sentence]
    assert not stranger_accepts(lines)


@pytest.mark.parametrize(
    "log",
    [
        pytest.param([STARTED, ERROR, but(COMPLETED, level="warning")], id="completed as a warning"),
        pytest.param([STARTED, ERROR, PARTIAL, but(NOT_COMPLETED, level="info")], id="not completed as information"),
    ],
)
def test_the_level_of_the_last_entry_says_whether_the_run_was_completed(log: list[Entry | bytes]) -> None:
    """Alerts are set on the level."""
    assert [sentence for sentence in violations(as_lines(log)) if "level" in sentence]
