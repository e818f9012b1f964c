"""Requests for runs within bounds: a clock that asks too often or for too much holds nobody up (contract section 8)."""

from alembic import op

revision = "0007"
down_revision = "0006"

# The 14 hours: where it is already tomorrow on Kiribati, a live run for tomorrow is one for today.
# The quarter of an hour: no zone's day begins within one, so two requests without a date then mean the same date.
UPGRADE = """
CREATE OR REPLACE FUNCTION scenario.request_scheduler_run(
    evaluation_date date DEFAULT NULL,
    scenario_types text[] DEFAULT '{}',
    organisation_ids uuid[] DEFAULT '{}',
    dispatch_mode text DEFAULT 'auto'
) RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET row_security = off SET lock_timeout = '10s' AS $$
#variable_conflict use_variable
DECLARE
    most_scenario_types CONSTANT int := 64;
    most_organisations CONSTANT int := 1000;
    most_open CONSTANT int := 1000;
    unknown text;
    asked_at timestamptz;
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
    IF cardinality(scenario_types) > most_scenario_types THEN
        RAISE EXCEPTION 'scenario_types has % entries and may have %: leave it out for all scenarios',
            cardinality(scenario_types), most_scenario_types USING ERRCODE = 'program_limit_exceeded';
    END IF;
    IF cardinality(organisation_ids) > most_organisations THEN
        RAISE EXCEPTION 'organisation_ids has % entries and may have %: leave it out for all organisations',
            cardinality(organisation_ids), most_organisations USING ERRCODE = 'program_limit_exceeded';
    END IF;
    IF dispatch_mode NOT IN ('auto', 'live', 'dry_run') THEN
        RAISE EXCEPTION 'dispatch_mode must be auto, live or dry_run' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF dispatch_mode = 'live' AND evaluation_date > (clock_timestamp() AT TIME ZONE 'UTC' + interval '14 hours')::date
    THEN
        RAISE EXCEPTION 'a live run for %, which is after today, is refused: ask for auto or dry_run', evaluation_date
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF dispatch_mode = 'live' AND evaluation_date <= '1970-01-01' THEN
        RAISE EXCEPTION 'a live run for a date up to 1970-01-01 is refused: ask for auto or dry_run'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT left(string_agg(asked, ', '), 200) INTO unknown FROM unnest(scenario_types) AS asked WHERE NOT EXISTS (
        SELECT FROM scenario.scenario_evaluation_config AS c
        WHERE c.scenario_type = asked AND c.organisation_id IS NULL);
    IF unknown IS NOT NULL OR array_position(scenario_types, NULL) IS NOT NULL THEN
        RAISE EXCEPTION 'not a scenario: %', coalesce(unknown, 'NULL') USING ERRCODE = 'invalid_parameter_value',
            HINT = 'SELECT scenario_type FROM scenario.scenario_evaluation_config WHERE organisation_id IS NULL';
    END IF;
    SELECT left(string_agg(asked::text, ', '), 200) INTO unknown FROM unnest(organisation_ids) AS asked
        WHERE NOT EXISTS (SELECT FROM scenario.source_organisations AS o WHERE o.id = asked);
    IF unknown IS NOT NULL OR array_position(organisation_ids, NULL) IS NOT NULL THEN
        RAISE EXCEPTION 'not an organisation: %', coalesce(unknown, 'NULL')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'SELECT id FROM scenario.source_organisations';
    END IF;
    scenario_types := ARRAY(SELECT DISTINCT asked COLLATE "C" FROM unnest(scenario_types) AS asked ORDER BY 1);
    organisation_ids := ARRAY(SELECT DISTINCT asked FROM unnest(organisation_ids) AS asked ORDER BY 1);

    -- Whoever asks for the same at the same moment waits here, and then sees the request of the other.
    PERFORM pg_advisory_xact_lock(1558816786, hashtext(
        concat_ws('|', coalesce(evaluation_date::text, ''), dispatch_mode, scenario_types::text, organisation_ids::text)
    ));
    asked_at := clock_timestamp();
    SELECT r.id INTO request FROM scenario.scheduler_run_requests AS r
    WHERE r.invocation_id IS NULL AND r.refusal IS NULL
        AND r.evaluation_date IS NOT DISTINCT FROM evaluation_date AND r.dispatch_mode = dispatch_mode
        AND r.scenario_types = scenario_types AND r.organisation_ids = organisation_ids
        AND (evaluation_date IS NOT NULL
            OR date_bin('15 minutes', r.requested_at, timestamptz '2000-01-01 00:00+00')
                = date_bin('15 minutes', asked_at, timestamptz '2000-01-01 00:00+00'))
    ORDER BY r.requested_at LIMIT 1;
    IF FOUND THEN
        RETURN request;
    END IF;
    IF (SELECT count(*) FROM (
        SELECT FROM scenario.scheduler_run_requests AS r WHERE r.invocation_id IS NULL AND r.refusal IS NULL
        LIMIT most_open) AS waiting) >= most_open
    THEN
        RAISE EXCEPTION '% requests wait for their runs, and no more are taken', most_open
            USING ERRCODE = 'configuration_limit_exceeded',
            HINT = 'Dagster''s sensor pg_cron_requests launches them: switch it on, and ask less often.';
    END IF;
    INSERT INTO scenario.scheduler_run_requests
        (requested_at, requested_by, evaluation_date, scenario_types, organisation_ids, dispatch_mode)
    VALUES (asked_at, session_user, evaluation_date, scenario_types, organisation_ids, dispatch_mode)
    RETURNING id INTO request;
    RETURN request;
END $$;
COMMENT ON FUNCTION scenario.request_scheduler_run IS
    'Asks for one run of the scheduler; Dagster''s sensor pg_cron_requests launches it. Returns the request''s id, '
    'that of an equal request where one waits.';
"""


def upgrade() -> None:
    """Replace the function; whoever may call it still may."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Refuse: requests without bounds would be taken again."""
    raise NotImplementedError("restore a backup instead: the function of before takes any number of requests")
