"""What a report of an invocation writes at its end, and that its totals add up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenario_pipeline.batch_stats import BatchStats
from scenario_pipeline.errors import ErrorInfo, ErrorType
from scenario_pipeline.log.validation import violations
from scenario_pipeline.log.vocabulary import Event, RunCompleted, RunFailed, RunPartial
from scenario_pipeline.report import Report
from scenario_pipeline_tests.support.log_entries import ERROR, STARTED, as_lines, entry

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
