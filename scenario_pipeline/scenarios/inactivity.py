"""`inactivity`: a mentor has gone quiet for T days since the last activity, or since joining."""

from __future__ import annotations

from sqlalchemy import Date, Integer, Text, cast, func, literal, select, true

from scenario_pipeline.scenarios import Configuration, EvaluationDate, Matches, Page, Scenario, activities


def matches(page: Page, configuration: Configuration, evaluation_date: EvaluationDate) -> Matches:
    """Select mentors whose `last date + T` lies in the look-back window, at the highest such T, the latest crossing."""
    activity = activities
    last_activity = (
        select(func.max(activity.c.activity_date).label("on"))
        .where(activity.c.user_id == page.c.user_id, activity.c.activity_date <= evaluation_date)
        .lateral("last_activity")
    )
    quiet_since = func.coalesce(last_activity.c.on, page.c.joined_on)
    threshold = func.unnest(configuration.c.thresholds).column_valued("threshold")
    crossed = (
        select(func.max(threshold).label("threshold"))
        .where(
            quiet_since + threshold <= evaluation_date,
            quiet_since + threshold > evaluation_date - configuration.c.lookback_days,
        )
        .lateral("crossed")
    )
    return (
        select(
            page.c.user_id,
            cast(crossed.c.threshold, Integer).label("threshold"),
            cast(quiet_since + crossed.c.threshold, Date).label("crossed_on"),
            cast(func.to_char(quiet_since, "YYYY-MM-DD") + literal(":") + cast(crossed.c.threshold, Text), Text).label(
                "dedup_key"
            ),
        )
        .select_from(page)
        .join(configuration, configuration.c.organisation_id == page.c.organisation_id)
        .join(last_activity, true())
        .join(crossed, crossed.c.threshold.is_not(None))
    )


SCENARIO = Scenario(
    scenario_type="inactivity",
    description="No activity for a number of days, counted from the last activity or from joining.",
    thresholds=(30, 90, 180),
    lookback_days=7,
    cooldown_days=30,
    matches=matches,
    cron="10 6 * * *",
)
