"""The tables of contract sections 2, 4 and 8, and the views on the source, as SQLAlchemy Core objects.

Belongs here: names, columns, types and comments, for statements to be built from and for docs/reference/schema.md. The
migrations create them, with every constraint; a test compares the two. Does not belong here: statements.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Date, DateTime, Identity, Integer, MetaData, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

SCHEMA = "scenario"

metadata = MetaData(schema=SCHEMA)
# Apart from the tables, since a view has no constraint to compare.
source_metadata = MetaData(schema=SCHEMA)

_UUID = Uuid(as_uuid=False)
_MOMENT = DateTime(timezone=True)

organisations = Table(
    "organisations",
    metadata,
    Column("id", _UUID, primary_key=True, comment="The organisation."),
    Column("name", Text, nullable=False, comment="Its name, for reports and the web UI."),
    Column("timezone", Text, nullable=False, comment="IANA name of its time zone."),
    comment="Organisations whose mentors are evaluated.",
)

peer_mentors = Table(
    "peer_mentors",
    metadata,
    Column("id", _UUID, primary_key=True, comment="The mentor."),
    Column("organisation_id", _UUID, nullable=False, comment="The organisation the mentor belongs to."),
    Column("chapter_id", _UUID, comment="The chapter, if any; not evaluated."),
    Column("status", Text, nullable=False, comment="active, paused or left."),
    Column("full_name", Text, nullable=False, comment="Personal data: no evaluation reads it."),
    Column("email", Text, comment="Personal data: no evaluation reads it."),
    Column("phone", Text, comment="Personal data: no evaluation reads it."),
    Column("locale", Text, comment="Language tag for messages, such as nb-NO."),
    Column(
        "joined_on",
        Date,
        nullable=False,
        comment="The day the mentor joined. A mentor is not evaluated for a date before it.",
    ),
    Column("notifications_opt_out", Boolean, nullable=False, comment="Whether the mentor wants no notifications."),
    comment="Volunteers of an organisation. Only mentors whose status is active are evaluated.",
)

mentor_activities = Table(
    "mentor_activities",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True, comment="The row."),
    Column("user_id", _UUID, nullable=False, comment="The mentor."),
    Column("activity_type", Text, nullable=False, comment="Kind of activity, free text."),
    Column("activity_date", Date, nullable=False, comment="The day of the activity."),
    comment="What mentors did, one row an activity.",
)

mentor_certifications = Table(
    "mentor_certifications",
    metadata,
    Column("user_id", _UUID, nullable=False, comment="The mentor."),
    Column("certification_type", Text, nullable=False, comment="Kind of certification, free text."),
    Column("expires_on", Date, nullable=False, comment="The last day on which it is valid."),
    comment="Certifications of mentors, with the day each one expires.",
)

scenario_evaluation_config = Table(
    "scenario_evaluation_config",
    metadata,
    Column("organisation_id", _UUID, comment="The organisation, or null for the default row."),
    Column("scenario_type", Text, nullable=False, comment="Name of the scenario."),
    Column("enabled", Boolean, nullable=False, comment="Whether the scenario is evaluated."),
    Column(
        "thresholds", ARRAY(Integer), nullable=False, comment="Thresholds in days, or activity counts for milestone."
    ),
    Column("lookback_days", Integer, nullable=False, comment="How many days back a crossing still matches."),
    Column(
        "cooldown_days",
        Integer,
        nullable=False,
        comment="Shortest distance in days between two notifications of one mentor.",
    ),
    Column("last_evaluated_count", BigInteger, comment="Mentors that the last run evaluated for this row."),
    Column("last_evaluated_at", _MOMENT, comment="When that run was closed."),
    comment="Thresholds of each scenario. The row with no organisation is the default; an organisation's own row "
    "replaces it entirely.",
)

scenario_notifications = Table(
    "scenario_notifications",
    metadata,
    Column("id", _UUID, primary_key=True, comment="The notification."),
    Column("user_id", _UUID, nullable=False, comment="The mentor who should hear."),
    Column("organisation_id", _UUID, nullable=False, comment="The mentor's organisation at that time."),
    Column("scenario_type", Text, nullable=False, comment="The scenario that matched."),
    Column("evaluation_date", Date, nullable=False, comment="The date that was evaluated."),
    Column(
        "cooldown_window_start",
        Date,
        nullable=False,
        comment="evaluation_date of the mentor's previous notification of this scenario, or 1970-01-01.",
    ),
    Column(
        "dedup_key", Text, nullable=False, comment="Names the crossing: the same crossing always gets the same key."
    ),
    Column("threshold", Integer, nullable=False, comment="The threshold that was crossed."),
    Column("crossed_on", Date, nullable=False, comment="The date on which it was crossed."),
    Column("invocation_id", _UUID, nullable=False, comment="The run that dispatched it."),
    Column(
        "created_at",
        _MOMENT,
        nullable=False,
        comment="When the row was written; rows do not become visible in this order.",
    ),
    comment="One row for each dispatched match: who should hear what. A mentor and scenario have each dedup_key, each "
    "evaluation_date and each cooldown_window_start once.",
)

scheduler_runs = Table(
    "scheduler_runs",
    metadata,
    Column("invocation_id", _UUID, primary_key=True, comment="The invocation, which is the Dagster run id."),
    Column(
        "number",
        BigInteger,
        Identity(always=True),
        unique=True,
        nullable=False,
        comment="Order of the invocations, as the database counted them.",
    ),
    Column(
        "triggered_by",
        Text,
        nullable=False,
        comment="dagster_schedule, manual, backfill, sensor, continuation, retry or pg_cron.",
    ),
    Column("evaluation_date", Date, nullable=False, comment="The date that was evaluated."),
    Column("scenario_types", ARRAY(Text), nullable=False, comment="Scenarios of the run."),
    Column("organisation_ids", ARRAY(_UUID), nullable=False, comment="Organisations of the run; empty means all."),
    Column("dispatch_mode", Text, nullable=False, comment="live or dry_run."),
    Column("engine", Text, nullable=False, comment="Trigger engine of the run: sql or http."),
    Column("time_budget_ms", Integer, nullable=False, comment="Time budget in milliseconds."),
    Column("status", Text, nullable=False, comment="running, completed, partial or failed."),
    Column("started_at", _MOMENT, nullable=False, comment="When the run was opened."),
    Column("finished_at", _MOMENT, comment="When the run was closed; null while it is running."),
    Column("total_active_mentors", Integer, nullable=False, comment="Mentors that the run set out to evaluate."),
    Column("total_evaluated", Integer, nullable=False, comment="Mentors evaluated without an error."),
    Column(
        "total_dispatched",
        Integer,
        nullable=False,
        comment="Notifications dispatched; in a dry run, those that would be.",
    ),
    Column("total_suppressed", Integer, nullable=False, comment="Matches suppressed."),
    Column("total_errors", Integer, nullable=False, comment="Mentors whose evaluation ended in an error."),
    Column("pages_processed", Integer, nullable=False, comment="Pages committed."),
    Column("duration_ms", Integer, comment="Duration in milliseconds; null while it is running."),
    Column("suppressed_by_reason", JSONB, nullable=False, comment="Suppressed matches by reason."),
    Column("dispatched_by_scenario", JSONB, nullable=False, comment="Dispatched notifications by scenario."),
    Column(
        "remaining_unprocessed_count",
        Integer,
        comment="Mentors that were not processed; null where the number is unknown.",
    ),
    Column(
        "resume_after",
        _UUID,
        comment="The next run of the same kind starts with the mentors after this one; null for the beginning.",
    ),
    comment="The ledger: one row for each invocation. The row is open while its status is running.",
)

scheduler_run_pages = Table(
    "scheduler_run_pages",
    metadata,
    Column("invocation_id", _UUID, primary_key=True, comment="The invocation."),
    Column("page_number", Integer, primary_key=True, comment="Number of the page within the run, from 1."),
    Column("last_mentor_id", _UUID, nullable=False, comment="The last mentor of the page who was processed."),
    Column("total_evaluated", Integer, nullable=False, comment="Mentors evaluated without an error."),
    Column("total_dispatched", Integer, nullable=False, comment="Notifications dispatched."),
    Column("total_suppressed", Integer, nullable=False, comment="Matches suppressed."),
    Column("total_errors", Integer, nullable=False, comment="Mentors whose evaluation ended in an error."),
    Column("suppressed_by_reason", JSONB, nullable=False, comment="Suppressed matches by reason."),
    Column("dispatched_by_scenario", JSONB, nullable=False, comment="Dispatched notifications by scenario."),
    Column("evaluated_by_organisation", JSONB, nullable=False, comment="Evaluated mentors by organisation."),
    Column("outcomes", JSONB, nullable=False, comment="Counts by organisation, scenario and outcome."),
    Column("errors", JSONB, nullable=False, comment="Mentors with an error: id, type and message."),
    Column("left_mentor_ids", ARRAY(_UUID), nullable=False, comment="Mentors of the page that were not processed."),
    comment="The ledger: one row for each page, written in the page's own transaction.",
)

trigger_engine_replies = Table(
    "trigger_engine_replies",
    metadata,
    Column("idempotency_key", Text, primary_key=True, comment="Idempotency-Key of the request."),
    Column(
        "request_fingerprint", Text, nullable=False, comment="Hash of the request, to refuse the key for another one."
    ),
    Column("reply", JSONB, comment="The first reply; null only inside the transaction that evaluates."),
    Column("created_at", _MOMENT, nullable=False, comment="When the request arrived."),
    comment="First replies of the project's own trigger engine, so that a repeated request gets the same answer.",
)

scheduler_run_requests = Table(
    "scheduler_run_requests",
    metadata,
    Column("id", _UUID, primary_key=True, comment="The request."),
    Column("requested_at", _MOMENT, nullable=False, comment="When it was made."),
    Column("requested_by", Text, nullable=False, comment="The role that made it."),
    Column("evaluation_date", Date, comment="The date to evaluate; null for the date of the request."),
    Column("scenario_types", ARRAY(Text), nullable=False, comment="Scenarios to evaluate; empty means all."),
    Column("organisation_ids", ARRAY(_UUID), nullable=False, comment="Organisations to evaluate; empty means all."),
    Column("dispatch_mode", Text, nullable=False, comment="auto, live or dry_run."),
    Column("invocation_id", _UUID, comment="The run that was launched for it."),
    Column("refusal", Text, comment="Why it never gets a run."),
    comment="Runs requested in SQL by scenario.request_scheduler_run. Open until there is a run or a refusal.",
)

# What an evaluation reads of the source, and all of it: a user may define these views over tables of their own.

source_organisations = Table(
    "source_organisations",
    source_metadata,
    Column("id", _UUID, comment="The organisation."),
    Column("name", Text, comment="Its name."),
    Column("timezone", Text, comment="IANA name of its time zone."),
    comment="View: the organisations that an evaluation reads.",
)

source_mentors = Table(
    "source_mentors",
    source_metadata,
    Column("id", _UUID, comment="The mentor."),
    Column("organisation_id", _UUID, comment="The organisation the mentor belongs to."),
    Column("status", Text, comment="active, paused or left."),
    Column("joined_on", Date, comment="The day the mentor joined."),
    Column("notifications_opt_out", Boolean, comment="Whether the mentor wants no notifications."),
    comment="View: the mentors that an evaluation reads, one row each and no nulls.",
)

source_activities = Table(
    "source_activities",
    source_metadata,
    Column("user_id", _UUID, comment="The mentor."),
    Column("activity_type", Text, comment="Kind of activity."),
    Column("activity_date", Date, comment="The day of the activity."),
    comment="View: the activities that an evaluation reads.",
)

source_certifications = Table(
    "source_certifications",
    source_metadata,
    Column("user_id", _UUID, comment="The mentor."),
    Column("certification_type", Text, comment="Kind of certification."),
    Column("expires_on", Date, comment="The last day on which it is valid."),
    comment="View: the certifications that an evaluation reads.",
)
