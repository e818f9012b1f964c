"""The views that an evaluation reads, row-level security on the source, and functions for who may not pass it by."""

from alembic import op

revision = "0004"
down_revision = "0003"

UPGRADE = """
-- What an evaluation reads, and all of it; a user may define these over tables of their own. With the rights of whoever
-- asks: a view with its owner's would show every row to each app user who may read it.
CREATE VIEW scenario.source_organisations WITH (security_invoker = true) AS
    SELECT id, name, timezone FROM scenario.organisations;
CREATE VIEW scenario.source_mentors WITH (security_invoker = true) AS
    SELECT id, organisation_id, status, joined_on, notifications_opt_out FROM scenario.peer_mentors;
CREATE VIEW scenario.source_activities WITH (security_invoker = true) AS
    SELECT user_id, activity_type, activity_date FROM scenario.mentor_activities;
CREATE VIEW scenario.source_certifications WITH (security_invoker = true) AS
    SELECT user_id, certification_type, expires_on FROM scenario.mentor_certifications;

-- An organisation may be one of the user's own table, which a constraint here cannot know.
ALTER TABLE scenario.scenario_evaluation_config DROP CONSTRAINT scenario_evaluation_config_organisation_id_fkey;

-- Whom the session works for; an installation that carries it elsewhere (a claim of a JWT, say) replaces this function.
CREATE FUNCTION scenario.current_organisation_id() RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT nullif(current_setting('scenario.organisation_id', true), '')::uuid
$$;

-- Users of an app see and change their own organisation, as far as they are granted anything. No policy holds for the
-- owner of the tables or a role with BYPASSRLS. In a sub-select, so that the function is asked once a statement.
ALTER TABLE scenario.organisations ENABLE ROW LEVEL SECURITY;
ALTER TABLE scenario.peer_mentors ENABLE ROW LEVEL SECURITY;
ALTER TABLE scenario.mentor_activities ENABLE ROW LEVEL SECURITY;
ALTER TABLE scenario.mentor_certifications ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_organisation ON scenario.organisations
    USING (id = (SELECT scenario.current_organisation_id()));
CREATE POLICY own_organisation ON scenario.peer_mentors
    USING (organisation_id = (SELECT scenario.current_organisation_id()));
CREATE POLICY own_organisation ON scenario.mentor_activities
    USING (user_id IN (SELECT id FROM scenario.peer_mentors
                       WHERE organisation_id = (SELECT scenario.current_organisation_id())));
CREATE POLICY own_organisation ON scenario.mentor_certifications
    USING (user_id IN (SELECT id FROM scenario.peer_mentors
                       WHERE organisation_id = (SELECT scenario.current_organisation_id())));

-- For a scheduler that row-level security holds for: whole pages with the owner's rights, and nothing else. Where the
-- owner is held back itself, row_security = off makes that an error. `db upgrade` makes one more for each scenario.
CREATE FUNCTION scenario.organisations_of(organisation_ids uuid[])
    RETURNS TABLE (id uuid, name text, timezone text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT id, name, timezone FROM scenario.source_organisations WHERE id = ANY ($1)
$$;
CREATE FUNCTION scenario.mentors_of(mentor_ids uuid[])
    RETURNS TABLE (id uuid, organisation_id uuid, status text, joined_on date, notifications_opt_out boolean)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT id, organisation_id, status, joined_on, notifications_opt_out
    FROM scenario.source_mentors WHERE id = ANY ($1)
$$;
CREATE FUNCTION scenario.active_mentors(evaluation_date date, organisation_ids uuid[])
    RETURNS TABLE (id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT id FROM scenario.source_mentors
    WHERE status = 'active' AND joined_on <= $1 AND ($2 = '{}' OR organisation_id = ANY ($2))
$$;

-- What `doctor` asks, for a role that may not see it: how activities are found in order, and what the mentors lack.
CREATE FUNCTION scenario.activities_plan() RETURNS json
    -- Postgres explains nothing inside a function that promises to change nothing.
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off
    SET enable_seqscan = off SET enable_sort = off SET enable_incremental_sort = off AS $$
DECLARE
    plan json;
BEGIN
    EXECUTE 'EXPLAIN (VERBOSE, FORMAT JSON) SELECT user_id, activity_date FROM scenario.source_activities '
        'ORDER BY user_id, activity_date LIMIT 1' INTO plan;
    RETURN plan;
END $$;
CREATE FUNCTION scenario.mentors_summary()
    RETURNS TABLE (mentors bigint, active bigint, incomplete bigint, repeated bigint)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    SELECT count(*), count(*) FILTER (WHERE status = 'active'),
        count(*) FILTER (WHERE num_nulls(id, organisation_id, status, joined_on, notifications_opt_out) > 0),
        count(id) - count(DISTINCT id)
    FROM scenario.source_mentors
$$;

-- The one thing that the scheduler deletes, so that it needs no right to delete anything else.
CREATE FUNCTION scenario.remove_old_replies(kept interval, most int) RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
    DELETE FROM scenario.trigger_engine_replies WHERE idempotency_key IN (
        SELECT idempotency_key FROM scenario.trigger_engine_replies
        WHERE created_at < clock_timestamp() - greatest($1, interval '1 day')
        ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED)
$$;

-- A clock may ask for an organisation of the user's own table.
DO $do$
BEGIN
    EXECUTE replace(
        pg_get_functiondef('scenario.request_scheduler_run'::regproc),
        'scenario.organisations',
        'scenario.source_organisations');
    ALTER FUNCTION scenario.request_scheduler_run(date, text[], uuid[], text) SET row_security = off;
END $do$;
"""


def upgrade() -> None:
    """Add the views, the policies and the functions; `database.upgrade` grants them."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Refuse: without the policies, who was kept to one organisation would see all of them."""
    raise NotImplementedError("restore a backup instead: dropping the policies would open every organisation to all")
