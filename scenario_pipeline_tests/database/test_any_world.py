"""The statement against a second telling of the rules, over worlds that nobody thought of."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from scenario_pipeline_tests.support.decisions import evaluate
from scenario_pipeline_tests.support.invariants import check_invariants, notifications
from scenario_pipeline_tests.support.people import (
    DAY,
    D,
    Mentor,
    configure,
    insert_mentors,
    insert_organisation,
    organisation_id,
)
from scenario_pipeline_tests.support.rules import Configuration, History, due
from scenario_pipeline_tests.support.runs import ALL_SCENARIOS

_OFFSETS = st.integers(-3, 20)
_MENTORS = st.lists(
    st.builds(
        lambda organisation, status, opted_out, joined, activities, certifications: Mentor(
            organisation=organisation,
            status=status,
            opted_out=opted_out,
            joined_on=D - joined * DAY,
            activities=[D - offset * DAY for offset in activities],
            certifications=[(name, D + offset * DAY) for name, offset in certifications],
        ),
        organisation=st.integers(1, 3),
        status=st.sampled_from(["active", "active", "active", "active", "paused", "left"]),
        opted_out=st.sampled_from([False, False, False, True]),
        joined=st.integers(0, 20),
        activities=st.lists(_OFFSETS, max_size=8),
        certifications=st.lists(st.tuples(st.sampled_from("ab"), _OFFSETS), max_size=4),
    ),
    min_size=1,
    max_size=30,
)
_CONFIGURATION = st.builds(
    Configuration,
    thresholds=st.lists(st.integers(0, 10), min_size=1, max_size=5),
    lookback_days=st.integers(1, 9),
    cooldown_days=st.integers(1, 9),
    enabled=st.sampled_from([True, True, True, False]),
)
_CONFIGURATIONS = st.fixed_dictionaries(dict.fromkeys(ALL_SCENARIOS, _CONFIGURATION))
# Dates of consecutive evaluations, in any order: what was sent before decides what is sent next.
_DATES = st.lists(st.integers(-3, 12), min_size=1, max_size=4)


@settings(
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(told=_MENTORS, default=_CONFIGURATIONS, own=_CONFIGURATIONS, offsets=_DATES)
def test_any_world_is_evaluated_as_the_contract_tells_it(
    untouched: Engine,
    told: list[Mentor],
    default: dict[str, Configuration],
    own: dict[str, Configuration],
    offsets: list[int],
) -> None:
    """Whatever the tables above forgot: whom, for which threshold, under which key, and why not."""
    mentors = [Mentor(**{**vars(mentor), "n": n}) for n, mentor in enumerate(told, start=1)]
    history = History()
    with untouched.connect() as connection, connection.begin() as transaction:
        for n in (1, 2, 3):
            insert_organisation(connection, n)
        for name in ALL_SCENARIOS:
            configure(connection, name, **vars(default[name]))
            configure(connection, name, organisation=2, **vars(own[name]))
        mentor_ids = insert_mentors(connection, mentors)
        for offset in offsets:
            evaluation_date = D + offset * DAY
            outcomes: Counter[tuple[str, str, str]] = Counter()
            for mentor in mentors:
                for name in ALL_SCENARIOS:
                    configuration = (own if mentor.organisation == 2 else default)[name]
                    match = due(name, mentor, configuration, evaluation_date)
                    if match is not None:
                        outcome = history.settle(name, mentor, match, configuration.cooldown_days, evaluation_date)
                        outcomes[(organisation_id(mentor.organisation), name, outcome)] += 1

            stats = evaluate(connection, mentor_ids, evaluation_date)

            assert stats.outcomes == outcomes
            assert stats.total_evaluated == len(mentors)
            assert notifications(connection) == sorted(history.rows)
        check_invariants(connection)
        transaction.rollback()
