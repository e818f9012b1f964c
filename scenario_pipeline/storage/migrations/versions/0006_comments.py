"""Comments on the tables, the views and their columns, so that `psql` and database browsers explain them."""

from alembic import op

revision = "0006"
down_revision = "0005"

UPGRADE = """
DO $do$
DECLARE
    item record;
BEGIN
    FOR item IN SELECT found.oid::regclass AS relation, found.relkind, said.attribute, said.words FROM (VALUES
        ('organisations', NULL, 'Organisations whose mentors are evaluated.'),
        ('organisations', 'id', 'The organisation.'),
        ('organisations', 'name', 'Its name, for reports and the web UI.'),
        ('organisations', 'timezone', 'IANA name of its time zone.'),
        ('peer_mentors', NULL, 'Volunteers of an organisation. Only mentors whose status is active are evaluated.'),
        ('peer_mentors', 'id', 'The mentor.'),
        ('peer_mentors', 'organisation_id', 'The organisation the mentor belongs to.'),
        ('peer_mentors', 'chapter_id', 'The chapter, if any; not evaluated.'),
        ('peer_mentors', 'status', 'active, paused or left.'),
        ('peer_mentors', 'full_name', 'Personal data: no evaluation reads it.'),
        ('peer_mentors', 'email', 'Personal data: no evaluation reads it.'),
        ('peer_mentors', 'phone', 'Personal data: no evaluation reads it.'),
        ('peer_mentors', 'locale', 'Language tag for messages, such as nb-NO.'),
        ('peer_mentors', 'joined_on', 'The day the mentor joined. A mentor is not evaluated for a date before it.'),
        ('peer_mentors', 'notifications_opt_out', 'Whether the mentor wants no notifications.'),
        ('mentor_activities', NULL, 'What mentors did, one row an activity.'),
        ('mentor_activities', 'id', 'The row.'),
        ('mentor_activities', 'user_id', 'The mentor.'),
        ('mentor_activities', 'activity_type', 'Kind of activity, free text.'),
        ('mentor_activities', 'activity_date', 'The day of the activity.'),
        ('mentor_certifications', NULL, 'Certifications of mentors, with the day each one expires.'),
        ('mentor_certifications', 'user_id', 'The mentor.'),
        ('mentor_certifications', 'certification_type', 'Kind of certification, free text.'),
        ('mentor_certifications', 'expires_on', 'The last day on which it is valid.'),
        ('scenario_evaluation_config', NULL,
            'Thresholds of each scenario. The row with no organisation is the default; an organisation''s own ' ||
            'row replaces it entirely.'),
        ('scenario_evaluation_config', 'organisation_id', 'The organisation, or null for the default row.'),
        ('scenario_evaluation_config', 'scenario_type', 'Name of the scenario.'),
        ('scenario_evaluation_config', 'enabled', 'Whether the scenario is evaluated.'),
        ('scenario_evaluation_config', 'thresholds', 'Thresholds in days, or activity counts for milestone.'),
        ('scenario_evaluation_config', 'lookback_days', 'How many days back a crossing still matches.'),
        ('scenario_evaluation_config', 'cooldown_days',
            'Shortest distance in days between two notifications of one mentor.'),
        ('scenario_evaluation_config', 'last_evaluated_count', 'Mentors that the last run evaluated for this row.'),
        ('scenario_evaluation_config', 'last_evaluated_at', 'When that run was closed.'),
        ('scenario_notifications', NULL,
            'One row for each dispatched match: who should hear what. A mentor and scenario have each ' ||
            'dedup_key, each evaluation_date and each cooldown_window_start once.'),
        ('scenario_notifications', 'id', 'The notification.'),
        ('scenario_notifications', 'user_id', 'The mentor who should hear.'),
        ('scenario_notifications', 'organisation_id', 'The mentor''s organisation at that time.'),
        ('scenario_notifications', 'scenario_type', 'The scenario that matched.'),
        ('scenario_notifications', 'evaluation_date', 'The date that was evaluated.'),
        ('scenario_notifications', 'cooldown_window_start',
            'evaluation_date of the mentor''s previous notification of this scenario, or 1970-01-01.'),
        ('scenario_notifications', 'dedup_key', 'Names the crossing: the same crossing always gets the same key.'),
        ('scenario_notifications', 'threshold', 'The threshold that was crossed.'),
        ('scenario_notifications', 'crossed_on', 'The date on which it was crossed.'),
        ('scenario_notifications', 'invocation_id', 'The run that dispatched it.'),
        ('scenario_notifications', 'created_at',
            'When the row was written; rows do not become visible in this order.'),
        ('scheduler_runs', NULL,
            'The ledger: one row for each invocation. The row is open while its status is running.'),
        ('scheduler_runs', 'invocation_id', 'The invocation, which is the Dagster run id.'),
        ('scheduler_runs', 'number', 'Order of the invocations, as the database counted them.'),
        ('scheduler_runs', 'triggered_by',
            'dagster_schedule, manual, backfill, sensor, continuation, retry or pg_cron.'),
        ('scheduler_runs', 'evaluation_date', 'The date that was evaluated.'),
        ('scheduler_runs', 'scenario_types', 'Scenarios of the run.'),
        ('scheduler_runs', 'organisation_ids', 'Organisations of the run; empty means all.'),
        ('scheduler_runs', 'dispatch_mode', 'live or dry_run.'),
        ('scheduler_runs', 'engine', 'Trigger engine of the run: sql or http.'),
        ('scheduler_runs', 'time_budget_ms', 'Time budget in milliseconds.'),
        ('scheduler_runs', 'status', 'running, completed, partial or failed.'),
        ('scheduler_runs', 'started_at', 'When the run was opened.'),
        ('scheduler_runs', 'finished_at', 'When the run was closed; null while it is running.'),
        ('scheduler_runs', 'total_active_mentors', 'Mentors that the run set out to evaluate.'),
        ('scheduler_runs', 'total_evaluated', 'Mentors evaluated without an error.'),
        ('scheduler_runs', 'total_dispatched', 'Notifications dispatched; in a dry run, those that would be.'),
        ('scheduler_runs', 'total_suppressed', 'Matches suppressed.'),
        ('scheduler_runs', 'total_errors', 'Mentors whose evaluation ended in an error.'),
        ('scheduler_runs', 'pages_processed', 'Pages committed.'),
        ('scheduler_runs', 'duration_ms', 'Duration in milliseconds; null while it is running.'),
        ('scheduler_runs', 'suppressed_by_reason', 'Suppressed matches by reason.'),
        ('scheduler_runs', 'dispatched_by_scenario', 'Dispatched notifications by scenario.'),
        ('scheduler_runs', 'remaining_unprocessed_count',
            'Mentors that were not processed; null where the number is unknown.'),
        ('scheduler_runs', 'resume_after',
            'The next run of the same kind starts with the mentors after this one; null for the beginning.'),
        ('scheduler_run_pages', NULL, 'The ledger: one row for each page, written in the page''s own transaction.'),
        ('scheduler_run_pages', 'invocation_id', 'The invocation.'),
        ('scheduler_run_pages', 'page_number', 'Number of the page within the run, from 1.'),
        ('scheduler_run_pages', 'last_mentor_id', 'The last mentor of the page who was processed.'),
        ('scheduler_run_pages', 'total_evaluated', 'Mentors evaluated without an error.'),
        ('scheduler_run_pages', 'total_dispatched', 'Notifications dispatched.'),
        ('scheduler_run_pages', 'total_suppressed', 'Matches suppressed.'),
        ('scheduler_run_pages', 'total_errors', 'Mentors whose evaluation ended in an error.'),
        ('scheduler_run_pages', 'suppressed_by_reason', 'Suppressed matches by reason.'),
        ('scheduler_run_pages', 'dispatched_by_scenario', 'Dispatched notifications by scenario.'),
        ('scheduler_run_pages', 'evaluated_by_organisation', 'Evaluated mentors by organisation.'),
        ('scheduler_run_pages', 'outcomes', 'Counts by organisation, scenario and outcome.'),
        ('scheduler_run_pages', 'errors', 'Mentors with an error: id, type and message.'),
        ('scheduler_run_pages', 'left_mentor_ids', 'Mentors of the page that were not processed.'),
        ('trigger_engine_replies', NULL,
            'First replies of the project''s own trigger engine, so that a repeated request gets the same ' ||
            'answer.'),
        ('trigger_engine_replies', 'idempotency_key', 'Idempotency-Key of the request.'),
        ('trigger_engine_replies', 'request_fingerprint', 'Hash of the request, to refuse the key for another one.'),
        ('trigger_engine_replies', 'reply', 'The first reply; null only inside the transaction that evaluates.'),
        ('trigger_engine_replies', 'created_at', 'When the request arrived.'),
        ('scheduler_run_requests', NULL,
            'Runs requested in SQL by scenario.request_scheduler_run. Open until there is a run or a refusal.'),
        ('scheduler_run_requests', 'id', 'The request.'),
        ('scheduler_run_requests', 'requested_at', 'When it was made.'),
        ('scheduler_run_requests', 'requested_by', 'The role that made it.'),
        ('scheduler_run_requests', 'evaluation_date', 'The date to evaluate; null for the date of the request.'),
        ('scheduler_run_requests', 'scenario_types', 'Scenarios to evaluate; empty means all.'),
        ('scheduler_run_requests', 'organisation_ids', 'Organisations to evaluate; empty means all.'),
        ('scheduler_run_requests', 'dispatch_mode', 'auto, live or dry_run.'),
        ('scheduler_run_requests', 'invocation_id', 'The run that was launched for it.'),
        ('scheduler_run_requests', 'refusal', 'Why it never gets a run.'),
        ('source_organisations', NULL, 'View: the organisations that an evaluation reads.'),
        ('source_organisations', 'id', 'The organisation.'),
        ('source_organisations', 'name', 'Its name.'),
        ('source_organisations', 'timezone', 'IANA name of its time zone.'),
        ('source_mentors', NULL, 'View: the mentors that an evaluation reads, one row each and no nulls.'),
        ('source_mentors', 'id', 'The mentor.'),
        ('source_mentors', 'organisation_id', 'The organisation the mentor belongs to.'),
        ('source_mentors', 'status', 'active, paused or left.'),
        ('source_mentors', 'joined_on', 'The day the mentor joined.'),
        ('source_mentors', 'notifications_opt_out', 'Whether the mentor wants no notifications.'),
        ('source_activities', NULL, 'View: the activities that an evaluation reads.'),
        ('source_activities', 'user_id', 'The mentor.'),
        ('source_activities', 'activity_type', 'Kind of activity.'),
        ('source_activities', 'activity_date', 'The day of the activity.'),
        ('source_certifications', NULL, 'View: the certifications that an evaluation reads.'),
        ('source_certifications', 'user_id', 'The mentor.'),
        ('source_certifications', 'certification_type', 'Kind of certification.'),
        ('source_certifications', 'expires_on', 'The last day on which it is valid.')
    ) AS said (relation, attribute, words)
    -- A view that somebody else defined, or without a column of ours, is left as it is.
    JOIN pg_class AS found ON found.oid = to_regclass('scenario.' || said.relation)
        AND pg_has_role(found.relowner, 'USAGE')
    WHERE said.attribute IS NULL
        OR EXISTS (SELECT FROM pg_attribute WHERE attrelid = found.oid AND attname = said.attribute)
    LOOP
        IF item.attribute IS NOT NULL THEN
            EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', item.relation, item.attribute, item.words);
        ELSIF item.relkind = 'v' THEN
            EXECUTE format('COMMENT ON VIEW %s IS %L', item.relation, item.words);
        ELSE
            EXECUTE format('COMMENT ON TABLE %s IS %L', item.relation, item.words);
        END IF;
    END LOOP;
END $do$;
"""


def upgrade() -> None:
    """Set the comments."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Refuse, as every migration here does; comments do no harm."""
    raise NotImplementedError("restore a backup instead: migrations of this project have no way back")
