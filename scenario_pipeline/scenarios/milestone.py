"""`milestone`: a mentor's T-th activity was registered."""

from __future__ import annotations

from sqlalchemy import Date, Integer, Text, cast, func, select, true

from scenario_pipeline.scenarios import Configuration, EvaluationDate, Matches, Page, Scenario, activities


def matches(page: Page, configuration: Configuration, evaluation_date: EvaluationDate) -> Matches:
    """Select mentors whose T-th activity is dated in the look-back window, at the highest such T.

    A threshold is crossed in the window if it is above the count before the window and not above the count at its end.
    Mentors without an activity in the window are the great majority, and cost one short index range.
    """
    activity = activities
    window_start = evaluation_date - configuration.c.lookback_days
    recent = (
        select(func.count().label("n"))
        .select_from(activity)
        .where(
            activity.c.user_id == page.c.user_id,
            activity.c.activity_date > window_start,
            activity.c.activity_date <= evaluation_date,
        )
        .lateral("recent")
    )
    earlier = (
        select(func.count().label("n"))
        .select_from(activity)
        .where(recent.c.n > 0, activity.c.user_id == page.c.user_id, activity.c.activity_date <= window_start)
        .lateral("earlier")
    )
    threshold = func.unnest(configuration.c.thresholds).column_valued("threshold")
    crossed = (
        select(func.max(threshold).label("threshold"))
        .where(threshold > earlier.c.n, threshold <= earlier.c.n + recent.c.n)
        .lateral("crossed")
    )
    crossing = (
        select(activity.c.activity_date.label("on"))
        .where(activity.c.user_id == page.c.user_id, activity.c.activity_date <= evaluation_date)
        .order_by(activity.c.activity_date)
        .offset(crossed.c.threshold - 1)
        .limit(1)
        .lateral("crossing")
    )
    return (
        select(
            page.c.user_id,
            cast(crossed.c.threshold, Integer).label("threshold"),
            cast(crossing.c.on, Date).label("crossed_on"),
            cast(crossed.c.threshold, Text).label("dedup_key"),
        )
        .select_from(page)
        .join(configuration, configuration.c.organisation_id == page.c.organisation_id)
        .join(recent, recent.c.n > 0)
        .join(earlier, true())
        .join(crossed, crossed.c.threshold.is_not(None))
        .join(crossing, true())
    )


SCENARIO = Scenario(
    scenario_type="milestone",
    description="The mentor's first, tenth, ... thousandth activity.",
    thresholds=(1, 10, 25, 50, 100, 250, 500, 1000),
    lookback_days=7,
    cooldown_days=1,
    matches=matches,
    cron="20 * * * *",
)
