"""The set-based statement that decides and dispatches a page (contract sections 3, 4 and 6).

Belongs here: the statement, built from the scenarios' selects. Does not belong here: running it (`engines.sql`), or the
owner's functions that may replace a select (`engines.functions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    ARRAY,
    Date,
    Executable,
    FromClause,
    Text,
    Uuid,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal,
    null,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import distinct_on, insert

from scenario_pipeline.batch_stats import DISPATCHED
from scenario_pipeline.records import FIRST_WINDOW
from scenario_pipeline.scenarios import registry
from scenario_pipeline.storage import source
from scenario_pipeline.storage.source import MATCH_COLUMNS, Access, function_name
from scenario_pipeline.storage.tables import scenario_evaluation_config, scenario_notifications

# The start of the cooldown window of a mentor's first notification (contract section 4).
EVALUATED, LOST_RACE = "evaluated", "lost_race"
_KEY = Uuid(as_uuid=False)
KEYS = ARRAY(_KEY)


@cache
def decision_statement(scenario_types: tuple[str, ...], access: Access, by_mentor: bool = False) -> Executable:
    """Build the statement that decides and dispatches for a list of mentors.

    The parameters of the statement are `mentor_ids` (uuid[]), `evaluation_date` and `invocation_id`. It returns rows
    (`counted_for`, `scenario_type`, `outcome`, `n`, `mentor_ids`). For each group, one row counts the mentors
    evaluated, and one row counts the matches with each scenario and outcome. If the outcome is a lost race, that row
    also lists the mentors. The groups are organisations or, with `by_mentor`, single mentors. `access` decides how the
    source is read.
    """
    evaluation_date = cast(bindparam("evaluation_date"), Date)
    mentor_ids = cast(bindparam("mentor_ids"), KEYS)
    sent = scenario_notifications
    asked = select(func.unnest(mentor_ids, type_=_KEY).label("user_id")).subquery("asked")
    mentor = source.mentors(access, mentor_ids)
    # Left join: a mentor who has quit since the list was made is evaluated, and matches nothing.
    page = (
        select(asked.c.user_id, mentor.c.organisation_id, mentor.c.joined_on, mentor.c.notifications_opt_out)
        .select_from(asked)
        .join(mentor, (mentor.c.id == asked.c.user_id) & (mentor.c.status == "active"), isouter=True)
        .cte("page")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    configuration = configuration_of(page, scenario_types)
    found = {name: _matches(name, access, page, configuration, mentor_ids, evaluation_date) for name in scenario_types}
    due = union_all(*(_due(name, matches, page, configuration) for name, matches in found.items())).cte("due")
    previous = (
        select(func.max(sent.c.evaluation_date).label("on"))
        .where(sent.c.user_id == due.c.user_id, sent.c.scenario_type == due.c.scenario_type)
        .lateral("previous")
    )
    is_duplicate = exists().where(
        sent.c.user_id == due.c.user_id,
        sent.c.scenario_type == due.c.scenario_type,
        or_(sent.c.dedup_key == due.c.dedup_key, sent.c.evaluation_date == evaluation_date),
    )
    reason = case(
        # A mentor who may have opted out gets nothing.
        (page.c.notifications_opt_out.is_not(False), "opted_out"),
        (is_duplicate, "duplicate"),
        # A notification dated after the evaluation date counts too: the distance is negative.
        (previous.c.on > evaluation_date - due.c.cooldown_days, "cooldown"),
    )
    decided = (
        select(due, page.c.organisation_id, previous.c.on.label("previous"), reason.label("reason"))
        .select_from(due)
        .join(page, page.c.user_id == due.c.user_id)
        .join(previous, true())
        .cte("decided")
    )
    dispatched = (
        insert(sent)
        .from_select(
            [
                sent.c.id,
                sent.c.user_id,
                sent.c.organisation_id,
                sent.c.scenario_type,
                sent.c.evaluation_date,
                sent.c.cooldown_window_start,
                sent.c.dedup_key,
                sent.c.threshold,
                sent.c.crossed_on,
                sent.c.invocation_id,
            ],
            select(
                func.gen_random_uuid(),
                decided.c.user_id,
                decided.c.organisation_id,
                decided.c.scenario_type,
                evaluation_date,
                func.coalesce(decided.c.previous, literal(FIRST_WINDOW, Date)),
                decided.c.dedup_key,
                decided.c.threshold,
                decided.c.crossed_on,
                cast(bindparam("invocation_id"), _KEY),
            )
            .where(decided.c.reason.is_(None))
            # One order for all writers; without it, two overlapping pages deadlock.
            .order_by(decided.c.user_id, decided.c.scenario_type),
        )
        .on_conflict_do_nothing()
        .returning(sent.c.user_id, sent.c.scenario_type)
        .cte("dispatched")
    )
    outcome = case(
        (decided.c.reason.is_not(None), decided.c.reason),
        (dispatched.c.user_id.is_not(None), DISPATCHED),
        else_=LOST_RACE,
    )
    matches = (
        select(
            decided.c.user_id,
            (decided.c.user_id if by_mentor else decided.c.organisation_id).label("counted_for"),
            decided.c.scenario_type,
            outcome.label("outcome"),
        )
        .select_from(decided)
        .join(
            dispatched,
            (dispatched.c.user_id == decided.c.user_id) & (dispatched.c.scenario_type == decided.c.scenario_type),
            isouter=True,
        )
        .subquery("matches")
    )
    evaluated_for = page.c.user_id if by_mentor else page.c.organisation_id
    return union_all(
        select(
            evaluated_for.label("counted_for"),
            cast(null(), Text).label("scenario_type"),
            literal(EVALUATED).label("outcome"),
            func.count().label("n"),
            cast(null(), KEYS).label("mentor_ids"),
        ).group_by(evaluated_for),
        select(
            matches.c.counted_for,
            matches.c.scenario_type,
            matches.c.outcome,
            func.count(),
            func.array_agg(matches.c.user_id, type_=KEYS).filter(matches.c.outcome == LOST_RACE),
        ).group_by(matches.c.counted_for, matches.c.scenario_type, matches.c.outcome),
    )


def configuration_of(page: FromClause, scenario_types: Sequence[str]) -> FromClause:
    """Select the effective configuration of each organisation on the page: one row a scenario, even if disabled."""
    config = scenario_evaluation_config
    members = select(page.c.organisation_id).distinct().subquery("members")
    # An organisation's own row replaces the default row entirely: NULLs sort last, so its own row comes first.
    return (
        select(
            members.c.organisation_id,
            config.c.scenario_type,
            config.c.enabled,
            config.c.thresholds,
            config.c.lookback_days,
            config.c.cooldown_days,
        )
        .join(config, or_(config.c.organisation_id == members.c.organisation_id, config.c.organisation_id.is_(None)))
        .where(config.c.scenario_type.in_(scenario_types), members.c.organisation_id.is_not(None))
        .ext(distinct_on(members.c.organisation_id, config.c.scenario_type))
        .order_by(members.c.organisation_id, config.c.scenario_type, config.c.organisation_id.nulls_last())
        .cte("configuration")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )


def own_configuration(name: str, configuration: FromClause) -> FromClause:
    """Select the enabled configuration of one scenario."""
    return (
        select(
            configuration.c.organisation_id,
            configuration.c.thresholds,
            configuration.c.lookback_days,
            configuration.c.cooldown_days,
        )
        .where(configuration.c.scenario_type == name, configuration.c.enabled)
        .subquery()
    )


def _matches(
    name: str, access: Access, page: FromClause, configuration: FromClause, mentor_ids: Any, evaluation_date: Any
) -> FromClause:
    """Select the matches of one scenario: user_id, threshold, crossed_on, dedup_key."""
    if access is Access.FUNCTIONS:
        return source.called(function_name(name), "found", MATCH_COLUMNS, mentor_ids, evaluation_date)
    # It gets no name, because another part of the statement might have the scenario's name.
    return registry()[name].matches(page, own_configuration(name, configuration), evaluation_date).subquery()


def _due(name: str, matches: FromClause, page: FromClause, configuration: FromClause) -> Any:
    """Select the matches of one scenario, with its name and the cooldown that applies to them."""
    own = own_configuration(name, configuration)
    return (
        select(
            matches.c.user_id,
            literal(name).label("scenario_type"),
            matches.c.threshold,
            matches.c.crossed_on,
            matches.c.dedup_key,
            own.c.cooldown_days,
        )
        .select_from(matches)
        .join(page, page.c.user_id == matches.c.user_id)
        .join(own, own.c.organisation_id == page.c.organisation_id)
    )
