"""What `doctor` looks at in Dagster's database.

Belongs here: findings about Dagster's tables, its daemon and its asset checks. Does not belong here: the scheduler's
own database (`doctor.database`).
"""

from collections.abc import Iterator
from datetime import timedelta

from dagster_postgres.run_storage import run_storage
from dagster_postgres.utils import pg_alembic_config
from sqlalchemy import Engine, text

from scenario_pipeline.defs.dagster_private import check_alembic_revision
from scenario_pipeline.defs.instance.home import dagster_home
from scenario_pipeline.defs.instance.storage import _ANOTHERS, _IS_ANOTHERS
from scenario_pipeline.doctor.findings import STATEMENT_SECONDS, Finding, Status
from scenario_pipeline.errors import UserError, classify
from scenario_pipeline.settings import Settings
from scenario_pipeline.storage.database import connect, limit_statement_time, locate, remedy_of

# The daemon writes a heartbeat every 30 seconds; Dagster's web UI allows as much before it warns.
DAEMON_SILENCE_SECONDS = 300


def examine_instance(settings: Settings) -> Iterator[Finding]:
    """Look at Dagster's records for `scenario-pipeline doctor`, without creating what is missing."""
    name = "dagster_instance"
    try:
        urls = locate(settings, start=False)
    except UserError as exc:
        yield Finding(name, Status.UNKNOWN, str(exc), "scenario-pipeline up")
        return
    database = connect(urls.dagster)
    try:
        instance = _instance_finding(name, database, settings)
        yield instance
        name = "asset_checks"
        checks = _checks_finding(name, database)
        # Where Dagster's tables are the problem, their emptiness is no good news.
        if instance.status is Status.OK or checks.status is Status.PROBLEM:
            yield checks
    except Exception as exc:  # noqa: BLE001 - the boundary of a check: whatever it is, it is one finding
        failure = classify(exc)
        sentence = f"Dagster's database cannot be checked: {failure.error_message}."
        remedy = remedy_of(exc, database, "SCENARIO_DAGSTER_DATABASE_URL")
        remedy = remedy or "check SCENARIO_DAGSTER_DATABASE_URL and its role, with psql"
        yield Finding(name, Status.UNKNOWN, sentence, remedy)
    finally:
        database.dispose()


def _instance_finding(name: str, database: Engine, settings: Settings) -> Finding:
    with database.connect() as connection, connection.begin():
        connection.execute(text("SET TRANSACTION READ ONLY"))
        limit_statement_time(connection, STATEMENT_SECONDS)
        if connection.execute(text(_IS_ANOTHERS)).scalar_one():
            return Finding(name, Status.PROBLEM, _ANOTHERS, "CREATE DATABASE dagster OWNER scenario_scheduler")
        has_tables, may_create = connection.execute(
            text(
                "SELECT to_regclass('runs') IS NOT NULL, "
                "coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)"
            )
        ).one()
        if not has_tables and not may_create:
            sentence = "Dagster's database has no tables, and this role may not create them."
            role = connection.execute(text("SELECT format('%I', current_user)")).scalar_one()
            return Finding(name, Status.PROBLEM, sentence, f"ALTER DATABASE dagster OWNER TO {role}")
        if not has_tables:
            return Finding(name, Status.OK, "Dagster's database has no tables yet: the first run creates them.")
        version, head = check_alembic_revision(pg_alembic_config(run_storage.__file__), connection)
        if version != head:
            sentence = "The tables of Dagster are those of another release of Dagster."
            return Finding(
                name, Status.PROBLEM, sentence, f"DAGSTER_HOME={dagster_home(settings)} dagster instance migrate"
            )
        # Dagster stores moments in UTC, without a zone.
        silent_seconds = connection.execute(
            text(
                "SELECT extract(epoch FROM timezone('UTC', clock_timestamp()) - max(timestamp)) FROM daemon_heartbeats"
            )
        ).scalar_one()
    if silent_seconds is None:
        return Finding(name, Status.OK, "Dagster's records are usable; its daemon never ran, so no schedule ticks.")
    if silent_seconds > DAEMON_SILENCE_SECONDS:
        sentence = f"Dagster's daemon was silent for {timedelta(seconds=int(silent_seconds))}: no schedule ticks."
        return Finding(name, Status.PROBLEM, sentence, "scenario-pipeline up")
    return Finding(name, Status.OK, "Dagster's records are usable and its daemon is running.")


# The newest evaluation of each check; one that was planned and never made is not one.
_FAILED_CHECKS = """
    SELECT check_name, run_id FROM (
        SELECT DISTINCT ON (asset_key, check_name) check_name, run_id, execution_status
        FROM asset_check_executions WHERE execution_status <> 'PLANNED' ORDER BY asset_key, check_name, id DESC
    ) AS newest WHERE execution_status = 'FAILED' ORDER BY check_name"""


def _checks_finding(name: str, database: Engine) -> Finding:
    with database.connect() as connection, connection.begin():
        connection.execute(text("SET TRANSACTION READ ONLY"))
        limit_statement_time(connection, STATEMENT_SECONDS)
        has_table = connection.execute(text("SELECT to_regclass('asset_check_executions') IS NOT NULL")).scalar_one()
        failed = connection.execute(text(_FAILED_CHECKS)).all() if has_table else []
    if not failed:
        return Finding(name, Status.OK, "No asset check failed when it was made last.")
    names = ", ".join(row.check_name for row in failed)
    sentence = f"The asset {'check' if len(failed) == 1 else 'checks'} {names} failed when made last."
    remedy = f"read what was found at /runs/{failed[0].run_id} in the web UI, and execute the checks once more"
    return Finding(name, Status.PROBLEM, sentence, remedy)
