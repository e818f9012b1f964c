-- The three roles of the scenario pipeline, in the database that you are connected to. Safe to run again.
--
-- `scenario-pipeline db upgrade` runs this by itself where its role may create roles. Otherwise an administrator runs it
-- once, before the first upgrade:
--
--     psql -v ON_ERROR_STOP=1 -f scenario_pipeline/storage/roles.sql postgresql://administrator@host/database
--
-- What each role may do is granted by `db upgrade`, run as scenario_owner. None can log in yet; see docs/how-to/install.md:
--
--     ALTER ROLE scenario_scheduler LOGIN PASSWORD '...';
--
-- Where policy forbids BYPASSRLS: ALTER ROLE scenario_scheduler NOBYPASSRLS. The scheduler then reads the source through
-- SECURITY DEFINER functions; this file never gives the attribute to a role that exists.

DO $$
DECLARE
    name text;
BEGIN
    -- Owns the schema: migrations, imports, retention.
    -- Reads reports.
    FOREACH name IN ARRAY '{scenario_owner,scenario_reader}'::text[] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', name);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL; -- another database of this server is upgraded at the same moment
            END;
        END IF;
    END LOOP;
    -- Runs the scheduler: reads what it evaluates, writes notifications and the ledger.
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'scenario_scheduler') THEN
        BEGIN
            CREATE ROLE scenario_scheduler NOLOGIN BYPASSRLS;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN
                NULL;
            WHEN insufficient_privilege THEN
                CREATE ROLE scenario_scheduler NOLOGIN;
        END;
    END IF;
    -- Whoever made the owner hands over to it what it made before. From Postgres 16 on, a maker that is no superuser is
    -- a member that may not act as the role, until it grants itself that.
    IF NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) THEN
        BEGIN
            GRANT scenario_owner TO CURRENT_USER;
        EXCEPTION WHEN insufficient_privilege OR invalid_grant_operation THEN
            NULL; -- may not, or is the owner itself
        END;
    END IF;
    -- A database may be closed to everybody who is not named.
    IF pg_catalog.pg_has_role((SELECT datdba FROM pg_catalog.pg_database WHERE datname = current_database()), 'USAGE')
    THEN
        EXECUTE format('GRANT CONNECT, CREATE, TEMPORARY ON DATABASE %I TO scenario_owner', current_database());
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO scenario_scheduler, scenario_reader', current_database());
    END IF;
END $$;
