"""Source tables, configuration, notifications and the ledger of runs (contract sections 2 and 4)."""

from alembic import op

revision = "0001"
down_revision = None

UPGRADE = """
CREATE TABLE scenario.organisations (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    -- timezone(text, timestamptz) raises 22023 for a name the server does not know.
    timezone text NOT NULL CHECK (timezone(timezone, timestamptz 'epoch') IS NOT NULL)
);

CREATE TABLE scenario.peer_mentors (
    id uuid PRIMARY KEY,
    organisation_id uuid NOT NULL REFERENCES scenario.organisations (id),
    chapter_id uuid,
    status text NOT NULL CHECK (status IN ('active', 'paused', 'left')),
    full_name text NOT NULL,
    email text,
    phone text,
    locale text,
    joined_on date NOT NULL CHECK (isfinite(joined_on)),
    notifications_opt_out boolean NOT NULL DEFAULT false
);
-- Paging reads active mentors in key order; organisations are the usual filter.
CREATE INDEX peer_mentors_active ON scenario.peer_mentors (id) INCLUDE (organisation_id, joined_on)
    WHERE status = 'active';
CREATE INDEX peer_mentors_organisation ON scenario.peer_mentors (organisation_id);

CREATE TABLE scenario.mentor_activities (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES scenario.peer_mentors (id) ON DELETE CASCADE,
    activity_type text NOT NULL,
    activity_date date NOT NULL CHECK (isfinite(activity_date))
);
CREATE INDEX mentor_activities_user_date ON scenario.mentor_activities (user_id, activity_date);
-- Index-only scans need the visibility map, and fresh rows cost four times as much until it is set.
ALTER TABLE scenario.mentor_activities SET (autovacuum_vacuum_insert_scale_factor = 0.02);

CREATE TABLE scenario.mentor_certifications (
    user_id uuid NOT NULL REFERENCES scenario.peer_mentors (id) ON DELETE CASCADE,
    certification_type text NOT NULL,
    expires_on date NOT NULL CHECK (isfinite(expires_on))
);
CREATE INDEX mentor_certifications_user_expiry ON scenario.mentor_certifications (user_id, expires_on);

CREATE TABLE scenario.scenario_evaluation_config (
    organisation_id uuid REFERENCES scenario.organisations (id) ON DELETE CASCADE,
    scenario_type text NOT NULL CHECK (scenario_type ~ '^[a-z][a-z0-9_]{0,62}$'),
    enabled boolean NOT NULL DEFAULT true,
    thresholds int[] NOT NULL CHECK (
        cardinality(thresholds) BETWEEN 1 AND 100
        AND array_ndims(thresholds) = 1
        AND array_position(thresholds, NULL) IS NULL
        AND 0 <= ALL (thresholds) AND 1000000 >= ALL (thresholds)
    ),
    lookback_days int NOT NULL CHECK (lookback_days BETWEEN 1 AND 36500),
    cooldown_days int NOT NULL CHECK (cooldown_days BETWEEN 1 AND 36500),
    last_evaluated_count bigint,
    last_evaluated_at timestamptz,
    CONSTRAINT scenario_evaluation_config_key UNIQUE NULLS NOT DISTINCT (organisation_id, scenario_type)
);

-- No foreign keys to the source: a notification outlives the mentor it was about, and retention is the source's own.
CREATE TABLE scenario.scenario_notifications (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    organisation_id uuid NOT NULL,
    scenario_type text NOT NULL,
    evaluation_date date NOT NULL,
    cooldown_window_start date NOT NULL,
    dedup_key text NOT NULL,
    threshold int NOT NULL,
    crossed_on date NOT NULL,
    invocation_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT scenario_notifications_cooldown UNIQUE (user_id, scenario_type, cooldown_window_start),
    CONSTRAINT scenario_notifications_evaluation_date UNIQUE (user_id, scenario_type, evaluation_date),
    CONSTRAINT scenario_notifications_dedup_key UNIQUE (user_id, scenario_type, dedup_key)
);
CREATE INDEX scenario_notifications_invocation ON scenario.scenario_notifications (invocation_id);

CREATE TABLE scenario.scheduler_runs (
    invocation_id uuid PRIMARY KEY,
    triggered_by text NOT NULL CHECK (triggered_by IN (
        'dagster_schedule', 'manual', 'backfill', 'sensor', 'continuation', 'retry', 'pg_cron')),
    evaluation_date date NOT NULL,
    scenario_types text[] NOT NULL,
    organisation_ids uuid[] NOT NULL DEFAULT '{}',
    dispatch_mode text NOT NULL CHECK (dispatch_mode IN ('live', 'dry_run')),
    time_budget_ms int NOT NULL,
    status text NOT NULL CHECK (status IN ('running', 'completed', 'partial', 'failed')),
    started_at timestamptz NOT NULL,
    finished_at timestamptz,
    total_active_mentors int NOT NULL DEFAULT 0,
    total_evaluated int NOT NULL DEFAULT 0,
    total_dispatched int NOT NULL DEFAULT 0,
    total_suppressed int NOT NULL DEFAULT 0,
    total_errors int NOT NULL DEFAULT 0,
    pages_processed int NOT NULL DEFAULT 0,
    duration_ms int,
    suppressed_by_reason jsonb NOT NULL DEFAULT '{}',
    dispatched_by_scenario jsonb NOT NULL DEFAULT '{}',
    remaining_unprocessed_count int,
    resume_after uuid,
    CHECK ((status = 'running') = (finished_at IS NULL))
);
CREATE INDEX scheduler_runs_started ON scenario.scheduler_runs (started_at);

CREATE TABLE scenario.scheduler_run_pages (
    invocation_id uuid NOT NULL REFERENCES scenario.scheduler_runs (invocation_id) ON DELETE CASCADE,
    page_number int NOT NULL,
    last_mentor_id uuid NOT NULL,
    total_evaluated int NOT NULL DEFAULT 0,
    total_dispatched int NOT NULL DEFAULT 0,
    total_suppressed int NOT NULL DEFAULT 0,
    total_errors int NOT NULL DEFAULT 0,
    suppressed_by_reason jsonb NOT NULL DEFAULT '{}',
    dispatched_by_scenario jsonb NOT NULL DEFAULT '{}',
    evaluated_by_organisation jsonb NOT NULL DEFAULT '{}',
    outcomes jsonb NOT NULL DEFAULT '[]',
    errors jsonb NOT NULL DEFAULT '[]',
    PRIMARY KEY (invocation_id, page_number)
);
"""


def upgrade() -> None:
    """Create everything in the schema `scenario`, which `database.upgrade` has made."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Refuse: going back would delete the record of what was sent, and so send it again."""
    raise NotImplementedError("restore a backup instead: dropping these tables would re-open every cooldown")
