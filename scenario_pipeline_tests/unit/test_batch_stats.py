"""The values a run is counted, timed and cut with: statistics, time budget, dispatch mode and pages."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenario_pipeline.batch_stats import DISPATCHED, SUPPRESSION_REASONS, BatchStats
from scenario_pipeline.errors import UserError
from scenario_pipeline.records import Page, RunOrder, choose_page_size, paginate, resolve_dispatch_mode
from scenario_pipeline.time_budget import TimeBudget

ORGANISATIONS = ("", "oslo", "bergen", "tromsø")
SCENARIOS = ("milestone", "inactivity", "certification_expiry")
TODAY = date(2026, 3, 1)
REQUEST = RunOrder(TODAY, ("inactivity", "milestone"), (), "live", "sql", 30.0, None, "manual")

_counts = st.integers(min_value=1, max_value=10**6)
_outcomes = st.tuples(
    st.sampled_from(ORGANISATIONS), st.sampled_from(SCENARIOS), st.sampled_from((DISPATCHED, *SUPPRESSION_REASONS))
)
STATS = st.builds(
    BatchStats,
    st.dictionaries(st.sampled_from(ORGANISATIONS), _counts),
    st.dictionaries(_outcomes, _counts),
    st.integers(min_value=0, max_value=10**6),
    st.integers(min_value=0, max_value=10**4),
)
without_database = settings(database=None, deadline=None)

PART = BatchStats(
    {"oslo": 7, "bergen": 2},
    {
        ("oslo", "milestone", "dispatched"): 3,
        ("bergen", "inactivity", "dispatched"): 1,
        ("bergen", "milestone", "dispatched"): 2,
        ("oslo", "inactivity", "opted_out"): 4,
        ("oslo", "inactivity", "cooldown"): 5,
        ("bergen", "milestone", "cooldown"): 6,
    },
    total_errors=2,
    pages_processed=1,
)


def test_a_mentor_who_changed_organisation_between_two_counts_counts_once() -> None:
    """The notification names the new organisation and the page the old one: a total of two would never be explained."""
    counted = BatchStats({"oslo": 1}, {("oslo", "inactivity", DISPATCHED): 1})
    moved = BatchStats(outcomes={("bergen", "inactivity", DISPATCHED): 1})
    assert moved.dispatched_beyond(counted) == BatchStats()


def test_what_was_not_counted_is_attributed_to_organisations_that_have_it() -> None:
    rows = BatchStats(
        outcomes={
            ("bergen", "inactivity", DISPATCHED): 2,
            ("oslo", "inactivity", DISPATCHED): 5,
            ("tromsø", "milestone", DISPATCHED): 3,
        }
    )
    counted = BatchStats(
        outcomes={
            ("", "inactivity", DISPATCHED): 1,
            ("oslo", "inactivity", DISPATCHED): 3,
            ("tromsø", "milestone", "cooldown"): 9,
        }
    )
    assert rows.dispatched_beyond(counted) == BatchStats(
        outcomes={
            ("bergen", "inactivity", DISPATCHED): 2,
            ("oslo", "inactivity", DISPATCHED): 1,
            ("tromsø", "milestone", DISPATCHED): 3,
        }
    )


@given(STATS, STATS)
@without_database
def test_with_what_was_missing_each_scenario_has_the_larger_count(rows: BatchStats, counted: BatchStats) -> None:
    """Totals that fall behind the notifications, or run ahead of them, would be wrong for good."""
    ours, theirs = rows.dispatched_by_scenario, counted.dispatched_by_scenario
    larger = {s: max(ours.get(s, 0), theirs.get(s, 0)) for s in ours | theirs}
    assert (counted + rows.dispatched_beyond(counted)).dispatched_by_scenario == larger


@given(STATS, STATS, STATS)
@without_database
def test_parts_add_up_to_the_same_in_any_order_and_grouping(a: BatchStats, b: BatchStats, c: BatchStats) -> None:
    """Pages end in any order, in any process."""
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert BatchStats.sum([a, b, c]) == BatchStats.sum([c, a, b]) == a + b + c


@given(STATS)
@without_database
def test_adding_nothing_changes_nothing(stats: BatchStats) -> None:
    assert stats + BatchStats() == BatchStats() + stats == BatchStats.sum([stats]) == stats


def test_no_parts_add_up_to_nothing() -> None:
    assert BatchStats.sum([]) == BatchStats()
    assert BatchStats().totals() == {
        "total_evaluated": 0,
        "total_dispatched": 0,
        "total_suppressed": 0,
        "total_errors": 0,
        "suppressed_by_reason": {},
        "dispatched_by_scenario": {},
    }


@given(STATS, STATS)
@without_database
def test_addition_leaves_both_parts_as_they_were(a: BatchStats, b: BatchStats) -> None:
    """A page's own row is written from the same value that goes into the sum."""
    before = pickle.dumps((a, b))
    BatchStats.sum([a, b, a])
    assert pickle.loads(before) == (a, b)


@given(STATS, STATS)
@without_database
def test_each_total_of_a_sum_is_the_sum_of_the_totals(a: BatchStats, b: BatchStats) -> None:
    both = a + b
    for name in ("total_evaluated", "total_dispatched", "total_suppressed", "total_errors", "pages_processed"):
        assert getattr(both, name) == getattr(a, name) + getattr(b, name)


@given(STATS)
@without_database
def test_every_match_is_dispatched_or_suppressed_and_never_both(stats: BatchStats) -> None:
    assert stats.total_dispatched + stats.total_suppressed == sum(stats.outcomes.values())
    assert sum(stats.dispatched_by_scenario.values()) == stats.total_dispatched
    assert sum(stats.suppressed_by_reason.values()) == stats.total_suppressed
    assert set(stats.suppressed_by_reason) <= {"opted_out", "duplicate", "cooldown"}


def test_totals_are_derived_from_the_outcomes() -> None:
    assert PART.totals() == {
        "total_evaluated": 9,
        "total_dispatched": 6,
        "total_suppressed": 15,
        "total_errors": 2,
        "suppressed_by_reason": {"cooldown": 11, "opted_out": 4},
        "dispatched_by_scenario": {"inactivity": 1, "milestone": 5},
    }


def test_an_outcome_that_did_not_occur_does_not_appear() -> None:
    """Log and ledger would differ by entries of 0 that one of them went through an addition for."""
    part = BatchStats({"oslo": 1}, {("oslo", "inactivity", "dispatched"): 0, ("oslo", "milestone", "cooldown"): 0})
    assert (part.dispatched_by_scenario, part.suppressed_by_reason) == ({}, {})
    assert (part + BatchStats()).totals() == part.totals()


@given(STATS)
@without_database
def test_what_is_shown_is_sorted(stats: BatchStats) -> None:
    """Two runs with the same result have the same log lines."""
    rows = stats.outcome_rows()
    assert rows == sorted(rows)
    assert {(organisation, scenario, outcome): n for organisation, scenario, outcome, n in rows} == stats.outcomes
    for shown in (stats.dispatched_by_scenario, stats.suppressed_by_reason):
        assert list(shown) == sorted(shown)


def test_outcome_rows_come_by_organisation_scenario_and_outcome() -> None:
    assert PART.outcome_rows() == [
        ("bergen", "inactivity", "dispatched", 1),
        ("bergen", "milestone", "cooldown", 6),
        ("bergen", "milestone", "dispatched", 2),
        ("oslo", "inactivity", "cooldown", 5),
        ("oslo", "inactivity", "opted_out", 4),
        ("oslo", "milestone", "dispatched", 3),
    ]


@dataclass
class Clock:
    """A clock that only moves when it is told to."""

    reading: float = 1000.0

    def __call__(self) -> float:
        return self.reading


@pytest.mark.parametrize(
    ("passed", "elapsed", "remaining", "is_spent"),
    [
        pytest.param(0.0, 0.0, 30.0, False, id="just begun"),
        pytest.param(29.75, 29.75, 0.25, False, id="almost over"),
        pytest.param(30.0, 30.0, 0.0, True, id="exactly over"),
        pytest.param(31.5, 31.5, 0.0, True, id="long over"),
        pytest.param(-5.0, 0.0, 30.0, False, id="another machine's clock"),
    ],
)
def test_a_time_budget_tells_what_is_left(passed: float, elapsed: float, remaining: float, is_spent: bool) -> None:
    clock = Clock()
    budget = TimeBudget.start(30.0, clock=clock)
    clock.reading += passed
    assert (budget.elapsed_seconds, budget.elapsed_ms) == (elapsed, int(elapsed * 1000))
    assert (budget.remaining_seconds, budget.is_spent) == (remaining, is_spent)


def test_a_step_in_another_process_goes_on_with_what_the_first_left() -> None:
    """Otherwise each step of a run would have the whole budget to itself."""
    clock = Clock()
    budget = TimeBudget.start(30.0, already_spent=12.5, clock=clock)
    assert (budget.elapsed_ms, budget.remaining_seconds) == (12_500, 17.5)
    clock.reading += 17.5
    assert budget.is_spent


@pytest.mark.parametrize(
    ("seconds", "milliseconds"),
    [(30.0, 30_000), (0.5, 500), (0.0015, 2), (0.0001, 1), (86_400.0, 86_400_000)],
)
def test_a_budget_is_reported_in_whole_milliseconds_and_never_as_none(seconds: float, milliseconds: int) -> None:
    request = RunOrder(TODAY, (), (), "live", "sql", seconds, None, "manual")
    assert (request.time_budget_ms, type(request.time_budget_ms)) == (milliseconds, int)


@pytest.mark.parametrize(
    ("mode", "days", "resolved"),
    [
        pytest.param("auto", 0, "live", id="auto today"),
        pytest.param("auto", -1, "live", id="auto yesterday"),
        pytest.param("auto", -3, "live", id="auto three days ago"),
        pytest.param("auto", -4, "dry_run", id="auto four days ago"),
        pytest.param("auto", -400, "dry_run", id="auto last year"),
        pytest.param("auto", 1, "dry_run", id="auto tomorrow"),
        pytest.param("live", -400, "live", id="live last year"),
        pytest.param("dry_run", 0, "dry_run", id="dry run today"),
        pytest.param("dry_run", -400, "dry_run", id="dry run last year"),
    ],
)
def test_only_recent_dates_are_sent_unless_somebody_says_so(mode: str, days: int, resolved: str) -> None:
    """A backfill of an old month never sends."""
    assert resolve_dispatch_mode(mode, TODAY + timedelta(days=days), TODAY) == resolved


@pytest.mark.parametrize(
    ("evaluation_date", "words"),
    [(TODAY + timedelta(days=1), "after today"), (date(1970, 1, 1), "notifications begin after 1970-01-01")],
)
def test_a_live_run_for_a_date_that_cannot_be_sent_for_is_refused(evaluation_date: date, words: str) -> None:
    """It would send, and keep its mentors in cooldown until that date; up to 1970 their next match never ends."""
    with pytest.raises(UserError, match=words):
        resolve_dispatch_mode("live", evaluation_date, TODAY)
    assert resolve_dispatch_mode("dry_run", evaluation_date, TODAY) == "dry_run"


@pytest.mark.parametrize(
    ("requested", "mentors", "size"),
    [
        (None, 0, 1000),
        (None, 500, 1000),
        (None, 64_000, 1000),
        (None, 64_001, 1001),
        (None, 850_000, 13_282),
        (1, 500, 1),
        (200, 64_001, 200),
        (100_000, 500, 100_000),
    ],
)
def test_pages_grow_rather_than_pass_sixty_four_unless_a_size_was_asked_for(
    requested: int | None, mentors: int, size: int
) -> None:
    assert choose_page_size(requested, mentors) == size


@given(st.integers(min_value=0, max_value=3_000_000))
@without_database
def test_no_number_of_mentors_needs_more_than_sixty_four_pages(mentors: int) -> None:
    """Each mapped step costs Dagster tens of milliseconds."""
    assert -(-mentors // choose_page_size(None, mentors)) <= 64


@given(st.lists(st.uuids().map(str), unique=True, max_size=60), st.none() | st.integers(min_value=1, max_value=70))
@without_database
def test_pages_hold_every_mentor_once_and_in_order(mentors: list[str], size: int | None) -> None:
    """A mentor on no page is never evaluated; the order is what lets the next run go on where this one ended."""
    request = RunOrder(TODAY, ("inactivity",), (), "live", "sql", 30.0, size, "manual")
    pages = paginate(mentors, request.page_size)
    assert [mentor for page in pages for mentor in page.mentor_ids] == mentors
    assert [page.number for page in pages] == list(range(1, len(pages) + 1))
    assert all(len(page.mentor_ids) == (size or 1000) for page in pages[:-1])
    assert all(page.mentor_ids for page in pages)


def test_no_mentors_make_no_page() -> None:
    assert paginate([], REQUEST.page_size) == []


def test_a_page_reaches_another_process_as_it_was() -> None:
    page = Page(3, ("a", "b"))
    assert pickle.loads(pickle.dumps(page)) == page
