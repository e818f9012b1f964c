"""The vocabulary of events against the contract's table, and the checker of logs against a stranger's."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenario_pipeline.batch_stats import BatchStats
from scenario_pipeline.errors import ErrorInfo, ErrorType
from scenario_pipeline.log.schema import json_schema
from scenario_pipeline.log.validation import violations
from scenario_pipeline.log.vocabulary import TRIGGERED_BY, VOCABULARY, Event, RunCompleted, RunFailed, RunPartial
from scenario_pipeline.report import Report

CANARY = "kari.nordmann@example.org"
FIRST = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
SECOND = "16fd2706-8baf-433b-82eb-8c7fada847da"
MENTOR = "0b1f6a2e-7c1d-1a55-9d0e-3f2a1b4c5d6e"
STRANGER = Path(__file__).with_name("check_events.py")

Entry = dict[str, Any]

# Contract section 5, word for word.
COMMON = (
    *("timestamp", "level", "event", "component", "invocation_id", "schema_version"),
    *("dagster_run_id", "dagster_job_name", "dagster_step_key", "dagster_partition_key"),
)
TOTALS = ("total_active_mentors", "total_evaluated", "total_dispatched", "total_suppressed", "total_errors")
CONTRACT: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "scheduler_run_started": (
        ("info",),
        ("triggered_by", "evaluation_date", "scenario_types", "dispatch_mode", "time_budget_ms"),
    ),
    "mentor_evaluation_error": (("warning",), ("peer_mentor_id", "error_type", "error_message")),
    "scheduler_run_partial": (
        ("warning",),
        ("remaining_unprocessed_count", "reason", *TOTALS, "pages_processed"),
    ),
    "scheduler_run_failed": (("error",), ("error_type", "error_message", "remaining_unprocessed_count")),
    "scheduler_run_completed": (
        ("info", "warning"),
        (
            *("completed", *TOTALS, "pages_processed", "duration_ms"),
            *("suppressed_by_reason", "dispatched_by_scenario"),
        ),
    ),
}
CLOSED_SETS = {
    ("RunStarted", "triggered_by"): [
        *("dagster_schedule", "manual", "backfill", "sensor", "continuation", "retry", "pg_cron"),
    ],
    ("RunStarted", "dispatch_mode"): ["live", "dry_run"],
    ("RunPartial", "reason"): ["time_budget", "terminated"],
    ("RunCompleted", "level"): ["info", "warning"],
}


def entry(event: str, level: str, **further: Any) -> Entry:
    """One entry of the first invocation."""
    return {
        "timestamp": "2026-03-01T12:00:00.000Z",
        "level": level,
        "event": event,
        "component": "scenario-scheduler",
        "invocation_id": FIRST,
        "schema_version": 1,
        "dagster_run_id": FIRST,
        "dagster_job_name": "scenario_scheduler",
        "dagster_step_key": None,
        "dagster_partition_key": "2026-03-01",
        **further,
    }


STARTED = entry(
    "scheduler_run_started",
    "info",
    triggered_by="manual",
    evaluation_date="2026-03-01",
    scenario_types=["inactivity", "milestone"],
    dispatch_mode="live",
    time_budget_ms=30_000,
)
ERROR = entry(
    "mentor_evaluation_error",
    "warning",
    peer_mentor_id=MENTOR,
    error_type="timeout_error",
    error_message="timeout after 30 s",
)
COUNTS: Entry = {
    "total_active_mentors": 10,
    "total_evaluated": 9,
    "total_dispatched": 3,
    "total_suppressed": 2,
    "total_errors": 1,
    "pages_processed": 1,
}
LEFT: Entry = {**COUNTS, "total_active_mentors": 15}
BY: Entry = {
    "duration_ms": 1234,
    "suppressed_by_reason": {"cooldown": 2},
    "dispatched_by_scenario": {"inactivity": 1, "milestone": 2},
}
COMPLETED = entry("scheduler_run_completed", "info", completed=True, **COUNTS, **BY)
PARTIAL = entry("scheduler_run_partial", "warning", remaining_unprocessed_count=5, reason="time_budget", **LEFT)
FAILED = entry(
    "scheduler_run_failed",
    "error",
    error_type="database_error",
    error_message="deadlock detected",
    remaining_unprocessed_count=5,
)
NOT_COMPLETED = entry("scheduler_run_completed", "warning", completed=False, **LEFT, **BY)
RETRIED = {
    **entry("trigger_engine_page_retried", "warning"),
    "component": "scenario-trigger-engine",
    "page_number": 1,
    "attempt": 2,
    "error_type": "database_error",
    "error_message": "deadlock detected",
}


def but(original: Entry, **changes: Any) -> Entry:
    return {**original, **changes}


def without(original: Entry, name: str) -> Entry:
    return {key: value for key, value in original.items() if key != name}


def of_second(original: Entry) -> Entry:
    return but(original, invocation_id=SECOND, dagster_run_id=SECOND)


def as_lines(log: list[Entry | bytes]) -> list[bytes]:
    return [item if isinstance(item, bytes) else json.dumps(item, ensure_ascii=False).encode() for item in log]


def raw(original: Entry, old: str, new: bytes) -> bytes:
    """An entry with something in it that no JSON encoder writes."""
    line = json.dumps(original).encode()
    assert old.encode() in line
    return line.replace(old.encode(), new, 1)


def stranger_accepts(lines: list[bytes]) -> bool:
    """What the checker that shares no code with the project says."""
    done = subprocess.run(
        [sys.executable, str(STRANGER)],
        input=b"".join(line + b"\n" for line in lines),
        capture_output=True,
        check=False,
    )
    assert (done.returncode in (0, 1), done.stderr) == (True, b"")
    return done.returncode == 0


def test_the_vocabulary_is_the_contracts_table() -> None:
    """Whoever reads the contract knows every entry there is."""
    table = {
        kind.name: (kind.levels, tuple(item.name for item in dataclasses.fields(kind)))
        for kind in VOCABULARY
        if kind.component == "scenario-scheduler"
    }
    assert table == CONTRACT


def test_what_is_not_in_the_table_is_said_by_the_trigger_engine() -> None:
    others = [kind for kind in VOCABULARY if kind.name not in CONTRACT]
    assert {kind.component for kind in others} == {"scenario-trigger-engine"}
    assert [kind.name for kind in others if not kind.name.startswith("trigger_engine_")] == []


def test_every_name_stands_for_one_event() -> None:
    assert len({kind.name for kind in VOCABULARY}) == len(VOCABULARY)


def test_the_closed_sets_are_the_contracts() -> None:
    definitions = json_schema()["$defs"]
    published = {(kind, name): definitions[kind]["properties"][name]["enum"] for kind, name in CLOSED_SETS}
    assert published == CLOSED_SETS
    assert definitions["ErrorType"]["enum"] == [
        *("network_error", "timeout_error", "evaluation_logic_error", "database_error"),
    ]
    assert list(TRIGGERED_BY) == CLOSED_SETS["RunStarted", "triggered_by"]


def test_the_schema_asks_for_every_field_of_each_event_and_allows_no_other() -> None:
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    lines = [schema["$defs"][reference["$ref"].removeprefix("#/$defs/")] for reference in schema["oneOf"]]
    assert sorted(line["properties"]["event"]["const"] for line in lines) == sorted(kind.name for kind in VOCABULARY)
    for line in lines:
        name = line["properties"]["event"]["const"]
        assert (line["type"], line["additionalProperties"]) == ("object", False)
        assert set(line["required"]) == set(line["properties"])
        assert set(line["properties"]) >= set(COMMON)
        if name in CONTRACT:
            assert set(line["properties"]) == {*COMMON, *CONTRACT[name][1]}


def test_the_schema_is_plain_json_and_the_same_each_time() -> None:
    assert json.loads(json.dumps(json_schema(), allow_nan=False)) == json_schema()


# A reader of JSON Schema for the keywords that stand in ours, written after the specification (draft 2020-12).
NOTES = {"$schema", "$defs", "title", "description", "discriminator"}
TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0,
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}


def fits(value: Any, schema: Any, root: Mapping[str, Any]) -> bool:
    if isinstance(schema, bool):
        return schema
    return all(_fits_keyword(value, word, schema, root) for word in schema.keys() - NOTES)


def _fits_keyword(value: Any, word: str, schema: Mapping[str, Any], root: Mapping[str, Any]) -> bool:
    want = schema[word]
    is_object, is_text = isinstance(value, dict), isinstance(value, str)
    match word:
        case "type":
            return TYPES[want](value)
        case "$ref":
            return fits(value, root["$defs"][want.removeprefix("#/$defs/")], root)
        case "const":
            return type(value) is type(want) and bool(value == want)
        case "enum":
            return value in want
        case "anyOf":
            return any(fits(value, each, root) for each in want)
        case "oneOf":
            return sum(fits(value, each, root) for each in want) == 1
        case "minimum":
            return not TYPES["integer"](value) or value >= want
        case "maximum":
            return not TYPES["integer"](value) or value <= want
        case "minLength":
            return not is_text or len(value) >= want
        case "maxLength":
            return not is_text or len(value) <= want
        case "pattern":
            return not is_text or re.search(want, value) is not None
        case "items":
            return not isinstance(value, list) or all(fits(item, want, root) for item in value)
        case "required":
            return not is_object or set(want) <= set(value)
        case "properties":
            return not is_object or all(fits(value[name], want[name], root) for name in want.keys() & value.keys())
        case "propertyNames":
            return not is_object or all(fits(name, want, root) for name in value)
        case "patternProperties":
            return not is_object or all(
                fits(item, inner, root)
                for pattern, inner in want.items()
                for name, item in value.items()
                if re.search(pattern, name)
            )
        case "additionalProperties":
            known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
            return not is_object or all(
                fits(item, want, root)
                for name, item in value.items()
                if name not in known and not any(re.search(pattern, name) for pattern in patterns)
            )
        case _:
            raise AssertionError(f"{word} is no keyword that this reader knows")


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


STATS = BatchStats(
    {"oslo": 9},
    {
        ("oslo", "inactivity", "dispatched"): 1,
        ("oslo", "milestone", "dispatched"): 2,
        ("oslo", "milestone", "cooldown"): 2,
    },
    total_errors=1,
    pages_processed=1,
)
BROKEN_DATABASE = ErrorInfo(ErrorType.DATABASE, "deadlock detected", "40P01")


def completed(total_active_mentors: int, *, is_completed: bool) -> RunCompleted:
    by_reason, by_scenario = {"cooldown": 2}, {"inactivity": 1, "milestone": 2}
    return RunCompleted(is_completed, total_active_mentors, 9, 3, 2, 1, 1, 1234, by_reason, by_scenario)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("report", "closing"),
    [
        pytest.param(Report("completed", 10, STATS, 1234), [completed(10, is_completed=True)], id="completed"),
        pytest.param(
            Report("partial", 15, STATS, 1234, 5, reason="time_budget"),
            [RunPartial(5, "time_budget", 15, 9, 3, 2, 1, 1), completed(15, is_completed=False)],
            id="partial",
        ),
        pytest.param(
            Report("partial", 15, STATS, 1234, 5, reason="terminated"),
            [RunPartial(5, "terminated", 15, 9, 3, 2, 1, 1), completed(15, is_completed=False)],
            id="terminated",
        ),
        pytest.param(
            Report("failed", 15, STATS, 1234, 5, failure=BROKEN_DATABASE),
            [RunFailed(ErrorType.DATABASE, "deadlock detected", 5), completed(15, is_completed=False)],
            id="failed",
        ),
        pytest.param(
            Report("failed", 10, STATS, 1234, None, failure=BROKEN_DATABASE),
            [RunFailed(ErrorType.DATABASE, "deadlock detected", None), completed(10, is_completed=False)],
            id="failed, number of mentors unknown",
        ),
    ],
)
def test_a_report_says_how_the_invocation_ended_and_then_closes_it(report: Report, closing: list[Event]) -> None:
    assert list(report.closing_events()) == closing


def test_a_failure_without_a_reason_is_still_reported_as_one() -> None:
    failed, last = Report("failed", 10, STATS, 1234, None).closing_events()
    assert isinstance(failed, RunFailed)
    assert (failed.error_type, bool(failed.error_message)) == (ErrorType.EVALUATION_LOGIC, True)
    assert last == completed(10, is_completed=False)


def test_the_totals_of_a_report_are_the_fields_of_the_last_entry() -> None:
    """Ledger and Dagster's metadata are filled from the same mapping."""
    report = Report("completed", 10, STATS, 1234)
    assert {"completed": True, **report.totals()} == completed(10, is_completed=True).fields()


_counts = st.integers(min_value=1, max_value=1000)


@given(
    st.sampled_from(["completed", "partial", "failed"]),
    st.dictionaries(st.sampled_from(["oslo", "bergen"]), _counts),
    st.dictionaries(
        st.tuples(
            st.sampled_from(["oslo", "bergen"]),
            st.sampled_from(["inactivity", "milestone"]),
            st.sampled_from(["dispatched", "opted_out", "duplicate", "cooldown"]),
        ),
        _counts,
    ),
    st.integers(min_value=0, max_value=3),
    st.integers(min_value=0, max_value=1000),
)
@settings(database=None, deadline=None)
def test_whatever_was_counted_the_closing_entries_keep_the_identities(
    status: Any, evaluated: dict[str, int], outcomes: dict[tuple[str, str, str], int], errors: int, left: int
) -> None:
    stats = BatchStats(evaluated, outcomes, errors, 1)
    remaining = 0 if status == "completed" else left
    total = stats.total_evaluated + errors + remaining
    report = Report(status, total, stats, 7, remaining, reason="time_budget", failure=BROKEN_DATABASE)
    closing = [entry(event.name, event.level, **event.fields()) for event in report.closing_events()]
    assert list(violations(as_lines([STARTED, *[ERROR] * errors, *closing]))) == []
