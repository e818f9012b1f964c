"""`certification_expiry`: a certification expires in T days or less and has not expired yet."""

from __future__ import annotations

from sqlalchemy import Date, Integer, Text, cast, func, literal, select, true

from scenario_pipeline.scenarios import (
    Configuration,
    EvaluationDate,
    Matches,
    Page,
    Scenario,
    bounded_text,
    certifications,
)


def matches(page: Page, configuration: Configuration, evaluation_date: EvaluationDate) -> Matches:
    """Select the due certification that expires first (then by type), at its lowest crossed T, the latest crossing."""
    certification = certifications
    thresholds = func.unnest(configuration.c.thresholds).table_valued("days", name="thresholds").render_derived()
    threshold = thresholds.c.days
    crossed_on = certification.c.expires_on - threshold
    due = (
        select(
            certification.c.certification_type,
            certification.c.expires_on,
            threshold.label("threshold"),
        )
        .select_from(certification)
        .join(thresholds, true())
        .where(
            certification.c.user_id == page.c.user_id,
            certification.c.expires_on >= evaluation_date,
            crossed_on <= evaluation_date,
            crossed_on > evaluation_date - configuration.c.lookback_days,
        )
        .order_by(certification.c.expires_on, certification.c.certification_type, threshold)
        .limit(1)
        .lateral("due")
    )
    return (
        select(
            page.c.user_id,
            cast(due.c.threshold, Integer).label("threshold"),
            cast(due.c.expires_on - due.c.threshold, Date).label("crossed_on"),
            cast(
                bounded_text(due.c.certification_type)
                + literal(":")
                + func.to_char(due.c.expires_on, "YYYY-MM-DD")
                + literal(":")
                + cast(due.c.threshold, Text),
                Text,
            ).label("dedup_key"),
        )
        .select_from(page)
        .join(configuration, configuration.c.organisation_id == page.c.organisation_id)
        .join(due, true())
    )


SCENARIO = Scenario(
    scenario_type="certification_expiry",
    description="A certification expires within a number of days.",
    thresholds=(60, 30, 7),
    lookback_days=7,
    cooldown_days=7,
    matches=matches,
    cron="30 6 * * *",
)
