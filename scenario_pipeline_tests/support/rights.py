"""The tables and views that the scheduler may use, and for what.

Belongs here: the grants as a table. Does not belong here: asking the server for them.
"""

from __future__ import annotations

LEDGER = {
    "scheduler_runs": {"SELECT", "INSERT", "UPDATE"},
    "scheduler_run_pages": {"SELECT", "INSERT", "UPDATE"},
    "trigger_engine_replies": {"SELECT", "INSERT", "UPDATE"},
    "scenario_notifications": {"SELECT", "INSERT"},
    "scheduler_run_requests": {"SELECT", "UPDATE(invocation_id,refusal)"},
    "scenario_evaluation_config": {"SELECT", "UPDATE(last_evaluated_at,last_evaluated_count)"},
    "alembic_version": {"SELECT"},
}
SOURCE = {
    "source_organisations": {"SELECT"},
    "source_mentors": {"SELECT"},
    "source_activities": {"SELECT"},
    "source_certifications": {"SELECT"},
    "organisations": {"SELECT"},
    "peer_mentors": {"SELECT(chapter_id,id,joined_on,locale,notifications_opt_out,organisation_id,status)"},
    "mentor_activities": {"SELECT"},
    "mentor_certifications": {"SELECT"},
}
