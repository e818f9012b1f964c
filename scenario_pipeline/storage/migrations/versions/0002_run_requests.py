"""Runs asked for in SQL, so that an existing pg_cron entry stays the clock (contract section 8)."""

from alembic import op

revision = "0002"
down_revision = "0001"

UPGRADE = """
CREATE TABLE scenario.scheduler_run_requests (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    requested_by text NOT NULL,
    -- The dates that Python knows.
    evaluation_date date CHECK (evaluation_date BETWEEN '0001-01-01' AND '9999-12-31'),
    scenario_types text[] NOT NULL,
    organisation_ids uuid[] NOT NULL,
    dispatch_mode text NOT NULL CHECK (dispatch_mode IN ('auto', 'live', 'dry_run')),
    -- NULL while no run has been launched for it.
    invocation_id uuid UNIQUE,
    -- Why it never gets a run.
    refusal text,
    CHECK (invocation_id IS NULL OR refusal IS NULL)
);
CREATE INDEX scheduler_run_requests_open ON scenario.scheduler_run_requests (requested_at, id)
    WHERE invocation_id IS NULL AND refusal IS NULL;

-- With the owner's rights, so that a clock needs no right but to call it; the pinned search_path keeps a caller's
-- temporary tables and functions out.
CREATE FUNCTION scenario.request_scheduler_run(
    evaluation_date date DEFAULT NULL,
    scenario_types text[] DEFAULT '{}',
    organisation_ids uuid[] DEFAULT '{}',
    dispatch_mode text DEFAULT 'auto'
) RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    unknown text;
    request uuid;
BEGIN
    IF scenario_types IS NULL OR organisation_ids IS NULL OR dispatch_mode IS NULL THEN
        RAISE EXCEPTION 'scenario_types, organisation_ids and dispatch_mode must not be NULL: leave them out'
            USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF evaluation_date NOT BETWEEN '0001-01-01' AND '9999-12-31' THEN
        RAISE EXCEPTION 'evaluation_date must be from 0001-01-01 to 9999-12-31: leave it out for today'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF array_ndims(scenario_types) > 1 OR array_ndims(organisation_ids) > 1 THEN
        RAISE EXCEPTION 'scenario_types and organisation_ids must be arrays of one dimension'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF dispatch_mode NOT IN ('auto', 'live', 'dry_run') THEN
        RAISE EXCEPTION 'dispatch_mode must be auto, live or dry_run' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT string_agg(asked, ', ') INTO unknown FROM unnest(scenario_types) AS asked WHERE NOT EXISTS (
        SELECT FROM scenario.scenario_evaluation_config AS c
        WHERE c.scenario_type = asked AND c.organisation_id IS NULL);
    IF unknown IS NOT NULL OR array_position(scenario_types, NULL) IS NOT NULL THEN
        RAISE EXCEPTION 'not a scenario: %', coalesce(unknown, 'NULL') USING ERRCODE = 'invalid_parameter_value',
            HINT = 'SELECT scenario_type FROM scenario.scenario_evaluation_config WHERE organisation_id IS NULL';
    END IF;
    SELECT string_agg(asked::text, ', ') INTO unknown FROM unnest(organisation_ids) AS asked WHERE NOT EXISTS (
        SELECT FROM scenario.organisations AS o WHERE o.id = asked);
    IF unknown IS NOT NULL OR array_position(organisation_ids, NULL) IS NOT NULL THEN
        RAISE EXCEPTION 'not an organisation: %', coalesce(unknown, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'SELECT id FROM scenario.organisations';
    END IF;
    INSERT INTO scenario.scheduler_run_requests
        (requested_by, evaluation_date, scenario_types, organisation_ids, dispatch_mode)
    VALUES (session_user, evaluation_date, scenario_types, organisation_ids, dispatch_mode)
    RETURNING id INTO request;
    RETURN request;
END $$;
COMMENT ON FUNCTION scenario.request_scheduler_run IS
    'Asks for one run of the scheduler; Dagster''s sensor pg_cron_requests launches it. Returns the request''s id.';
REVOKE ALL ON FUNCTION scenario.request_scheduler_run FROM PUBLIC;
"""


def upgrade() -> None:
    """Create the table of requests and the function that fills it."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Refuse: the requests are kept as a record."""
    raise NotImplementedError("restore a backup instead: dropping this table would lose the record of requests")
