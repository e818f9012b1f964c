"""The tables of contract sections 2, 4 and 8, and the views on the source, as SQLAlchemy Core objects.

Belongs here: names, columns and types, for statements to be built from. The migrations create them, with every
constraint; a test compares the two. Does not belong here: statements.
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
    Column("id", _UUID, primary_key=True),
    Column("name", Text, nullable=False),
    Column("timezone", Text, nullable=False),
)

peer_mentors = Table(
    "peer_mentors",
    metadata,
    Column("id", _UUID, primary_key=True),
    Column("organisation_id", _UUID, nullable=False),
    Column("chapter_id", _UUID),
    Column("status", Text, nullable=False),
    Column("full_name", Text, nullable=False),
    Column("email", Text),
    Column("phone", Text),
    Column("locale", Text),
    Column("joined_on", Date, nullable=False),
    Column("notifications_opt_out", Boolean, nullable=False),
)

mentor_activities = Table(
    "mentor_activities",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("user_id", _UUID, nullable=False),
    Column("activity_type", Text, nullable=False),
    Column("activity_date", Date, nullable=False),
)

mentor_certifications = Table(
    "mentor_certifications",
    metadata,
    Column("user_id", _UUID, nullable=False),
    Column("certification_type", Text, nullable=False),
    Column("expires_on", Date, nullable=False),
)

scenario_evaluation_config = Table(
    "scenario_evaluation_config",
    metadata,
    Column("organisation_id", _UUID),
    Column("scenario_type", Text, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("thresholds", ARRAY(Integer), nullable=False),
    Column("lookback_days", Integer, nullable=False),
    Column("cooldown_days", Integer, nullable=False),
    Column("last_evaluated_count", BigInteger),
    Column("last_evaluated_at", _MOMENT),
)

scenario_notifications = Table(
    "scenario_notifications",
    metadata,
    Column("id", _UUID, primary_key=True),
    Column("user_id", _UUID, nullable=False),
    Column("organisation_id", _UUID, nullable=False),
    Column("scenario_type", Text, nullable=False),
    Column("evaluation_date", Date, nullable=False),
    Column("cooldown_window_start", Date, nullable=False),
    Column("dedup_key", Text, nullable=False),
    Column("threshold", Integer, nullable=False),
    Column("crossed_on", Date, nullable=False),
    Column("invocation_id", _UUID, nullable=False),
    Column("created_at", _MOMENT, nullable=False),
)

scheduler_runs = Table(
    "scheduler_runs",
    metadata,
    Column("invocation_id", _UUID, primary_key=True),
    Column("number", BigInteger, Identity(always=True), unique=True, nullable=False),
    Column("triggered_by", Text, nullable=False),
    Column("evaluation_date", Date, nullable=False),
    Column("scenario_types", ARRAY(Text), nullable=False),
    Column("organisation_ids", ARRAY(_UUID), nullable=False),
    Column("dispatch_mode", Text, nullable=False),
    Column("engine", Text, nullable=False),
    Column("time_budget_ms", Integer, nullable=False),
    Column("status", Text, nullable=False),
    Column("started_at", _MOMENT, nullable=False),
    Column("finished_at", _MOMENT),
    Column("total_active_mentors", Integer, nullable=False),
    Column("total_evaluated", Integer, nullable=False),
    Column("total_dispatched", Integer, nullable=False),
    Column("total_suppressed", Integer, nullable=False),
    Column("total_errors", Integer, nullable=False),
    Column("pages_processed", Integer, nullable=False),
    Column("duration_ms", Integer),
    Column("suppressed_by_reason", JSONB, nullable=False),
    Column("dispatched_by_scenario", JSONB, nullable=False),
    Column("remaining_unprocessed_count", Integer),
    Column("resume_after", _UUID),
)

scheduler_run_pages = Table(
    "scheduler_run_pages",
    metadata,
    Column("invocation_id", _UUID, primary_key=True),
    Column("page_number", Integer, primary_key=True),
    Column("last_mentor_id", _UUID, nullable=False),
    Column("total_evaluated", Integer, nullable=False),
    Column("total_dispatched", Integer, nullable=False),
    Column("total_suppressed", Integer, nullable=False),
    Column("total_errors", Integer, nullable=False),
    Column("suppressed_by_reason", JSONB, nullable=False),
    Column("dispatched_by_scenario", JSONB, nullable=False),
    Column("evaluated_by_organisation", JSONB, nullable=False),
    Column("outcomes", JSONB, nullable=False),
    Column("errors", JSONB, nullable=False),
    Column("left_mentor_ids", ARRAY(_UUID), nullable=False),
)

trigger_engine_replies = Table(
    "trigger_engine_replies",
    metadata,
    Column("idempotency_key", Text, primary_key=True),
    Column("request_fingerprint", Text, nullable=False),
    Column("reply", JSONB),
    Column("created_at", _MOMENT, nullable=False),
)

scheduler_run_requests = Table(
    "scheduler_run_requests",
    metadata,
    Column("id", _UUID, primary_key=True),
    Column("requested_at", _MOMENT, nullable=False),
    Column("requested_by", Text, nullable=False),
    Column("evaluation_date", Date),
    Column("scenario_types", ARRAY(Text), nullable=False),
    Column("organisation_ids", ARRAY(_UUID), nullable=False),
    Column("dispatch_mode", Text, nullable=False),
    Column("invocation_id", _UUID),
    Column("refusal", Text),
)

# What an evaluation reads of the source, and all of it: a user may define these views over tables of their own.

source_organisations = Table(
    "source_organisations",
    source_metadata,
    Column("id", _UUID),
    Column("name", Text),
    Column("timezone", Text),
)

source_mentors = Table(
    "source_mentors",
    source_metadata,
    Column("id", _UUID),
    Column("organisation_id", _UUID),
    Column("status", Text),
    Column("joined_on", Date),
    Column("notifications_opt_out", Boolean),
)

source_activities = Table(
    "source_activities",
    source_metadata,
    Column("user_id", _UUID),
    Column("activity_type", Text),
    Column("activity_date", Date),
)

source_certifications = Table(
    "source_certifications",
    source_metadata,
    Column("user_id", _UUID),
    Column("certification_type", Text),
    Column("expires_on", Date),
)
