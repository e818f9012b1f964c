"""What `doctor` checks: the scheduler's database, its source and its plans.

Belongs here: everything that a connection shows, except rights (`rights`) and past runs (`history`). Does not belong
here: fixing anything; every transaction is read-only, and nothing is started or created.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, select, text

from scenario_pipeline.doctor.findings import STATEMENT_SECONDS, YOUR_OWN_TABLES, Finding, Look, Status, as_sentence
from scenario_pipeline.doctor.history import examine_error_rate, examine_last_run, examine_reach
from scenario_pipeline.doctor.rights import examine_roles, examine_row_level_security
from scenario_pipeline.engines.statement import decision_statement
from scenario_pipeline.errors import UserError, classify
from scenario_pipeline.records import choose_page_size
from scenario_pipeline.scenarios import registry
from scenario_pipeline.settings import Settings
from scenario_pipeline.storage import columns, source
from scenario_pipeline.storage.database import (
    ENCODING_REMEDY,
    NO_ENCODING,
    OLDEST_SERVER,
    UPGRADE_COMMAND,
    WRONG_ENCODING,
    code_version,
    connect,
    limit_statement_time,
    locate,
    mismatch,
    schema_version,
    server_encoding,
    server_major,
    why_unusable,
)
from scenario_pipeline.storage.roles import OWNER, SCHEDULER
from scenario_pipeline.storage.source import Access, unknown_organisations
from scenario_pipeline.storage.tables import SCHEMA, metadata, scenario_evaluation_config, source_activities

# Reading every mentor once takes longer than anything else.
SUMMARY_SECONDS = 15.0
# A run's age is measured by the database's clock, and its start by this machine's.
MAX_SKEW_SECONDS = 1.0
# Below this a sequential scan is no mistake of the planner.
SMALL_TABLE_BYTES = 1_000_000
# Zones differ in rules that come into force within the years to come, if at all.
ZONE_YEARS = 3
_NOBODY = "00000000-0000-0000-0000-000000000000"

Check = Callable[[Look], Iterator[Finding]]


def examine_database(settings: Settings, *, last_due: datetime | None = None) -> Iterator[Finding]:
    """Look at the scheduler's database; the embedded server is not started for it.

    Args:
        settings: of this installation.
        last_due: when the schedule last asked for a run that should be over by now, if that is known.
    """
    name = "database_connection"
    try:
        urls = locate(settings, start=False)
    except UserError as exc:
        yield Finding(name, Status.UNKNOWN, str(exc), "scenario-pipeline up")
        return
    database = connect(urls.scenario)
    try:
        setting = "the embedded Postgres" if urls.embedded else "SCENARIO_DATABASE_URL"
        unusable = why_unusable(database, setting)
        if unusable is not None:
            # Not psql with the URL: every user of the machine may read what a process is called with.
            yield Finding(name, Status.UNKNOWN, unusable.sentence, unusable.remedy)
            return
        yield from _examine(database, settings, setting, last_due)
    finally:
        database.dispose()


def _examine(database: Engine, settings: Settings, setting: str, last_due: datetime | None) -> Iterator[Finding]:
    with database.connect() as connection:
        role, is_member, inherits = connection.execute(
            text(
                "SELECT quote_ident(current_user), coalesce(pg_has_role(to_regrole(:scheduler), 'MEMBER'), false), "
                "coalesce(pg_has_role(to_regrole(:scheduler), 'USAGE'), false)"
            ),
            {"scheduler": SCHEDULER},
        ).one()
        has_inherit_option = server_major(connection) >= 16
    rights_remedy = f"{UPGRADE_COMMAND}, as {OWNER}" if inherits else f"GRANT {SCHEDULER} TO {role}"
    if is_member and not inherits:
        rights_remedy = f"{rights_remedy} WITH INHERIT TRUE" if has_inherit_option else f"ALTER ROLE {role} INHERIT"
    yield Finding("database_connection", Status.OK, f"The database of {setting} answers; the role is {role}.")
    fits = True
    for name, check in _CHECKS.items():
        if not fits and name not in _ANY_SCHEMA:
            continue
        try:
            with database.connect() as connection, connection.begin():
                connection.execute(text("SET TRANSACTION READ ONLY"))
                # So that objects are named with their schema, whatever the role's own path is.
                connection.execute(text("SET LOCAL search_path = pg_catalog"))
                limit_statement_time(connection, STATEMENT_SECONDS)
                access = Access.VIEWS if name in _ANY_SCHEMA else source.access_of(connection)
                look = Look(connection, settings, role, rights_remedy, access, last_due)
                findings = list(check(look))
        except Exception as exc:  # noqa: BLE001 - the boundary of a check: whatever it is, the other checks go on
            failure = classify(exc)
            sentence = f"This could not be checked: {failure.error_message}."
            remedy = rights_remedy if failure.sqlstate == "42501" else None
            findings = [Finding(name, Status.UNKNOWN, sentence, remedy)]
        if name in _GATES:
            fits = fits and findings[0].status is Status.OK
        yield from findings


def _server_version(look: Look) -> Iterator[Finding]:
    version = look.scalar("SHOW server_version")
    if server_major(look.connection) < OLDEST_SERVER:
        sentence = f"The server is PostgreSQL {version}; version {OLDEST_SERVER} or newer is needed."
        yield Finding("server_version", Status.PROBLEM, sentence, "pg_upgrade")
    else:
        yield Finding("server_version", Status.OK, f"The server is PostgreSQL {version}.")


def _server_encoding(look: Look) -> Iterator[Finding]:
    name, encoding = "server_encoding", server_encoding(look.connection)
    if encoding == NO_ENCODING:
        yield Finding(name, Status.PROBLEM, as_sentence(WRONG_ENCODING), ENCODING_REMEDY)
    elif encoding == "UTF8":
        yield Finding(name, Status.OK, "The encoding of the database is UTF8, which can store every character.")
    else:
        sentence = f"The encoding of the database is {encoding}; an import of other letters is refused."
        yield Finding(name, Status.OK, sentence)


def _session_options(look: Look) -> Iterator[Finding]:
    """Whether a session has what it was started with: some poolers drop it, and a policy could hide rows."""
    name = "session_options"
    if look.scalar("SHOW row_security") != "off":
        sentence = "row_security is on in a session that was started with off: a pooler drops the options of sessions."
        yield Finding(name, Status.PROBLEM, sentence, f"ALTER ROLE {look.role} SET row_security = off")
    else:
        yield Finding(name, Status.OK, "Sessions keep their startup options.")


def _schema_version(look: Look) -> Iterator[Finding]:
    version, expected = schema_version(look.connection), code_version()
    if version == expected:
        yield Finding("schema_version", Status.OK, f"The schema is at version {version}, as this release requires.")
        return
    sentence, _, remedy = mismatch(version).partition(": ")
    yield Finding("schema_version", Status.PROBLEM, as_sentence(sentence), remedy.removeprefix("run "))


def _tables(look: Look) -> Iterator[Finding]:
    """Whether the tables are those of this code: two editions of one migration leave the same version behind."""
    # An installation with tables of its own may do as it likes with those of the source.
    wanted = metadata.tables.values() if source.reads_bundled_tables(look.connection) else columns.OWN_TABLES
    found = [
        Finding("tables", Status.PROBLEM, as_sentence(sentence), columns.TABLES_REMEDY)
        for sentence in columns.misfits(look.connection, wanted, "table")
    ]
    yield from found
    if not found:
        yield Finding("tables", Status.OK, f"The {len(wanted)} tables have the columns that this release needs.")


def _views(look: Look) -> Iterator[Finding]:
    found = [Finding("views", Status.PROBLEM, as_sentence(s), YOUR_OWN_TABLES) for s in source.misfits(look.connection)]
    yield from found
    if not found:
        yield Finding("views", Status.OK, "The four source views have the columns that an evaluation reads.")


def _mentors(look: Look) -> Iterator[Finding]:
    """Whether `source_mentors` has each mentor once and whole: views over tables of one's own need not."""
    statement = "SELECT * FROM scenario.mentors_summary()"
    if look.access is Access.VIEWS:
        # Without the owner's rights it asks the same.
        body = "SELECT prosrc FROM pg_proc WHERE oid = to_regprocedure('scenario.mentors_summary()')"
        statement = str(look.scalar(body))
    limit_statement_time(look.connection, SUMMARY_SECONDS)
    mentors, active, incomplete, repeated = look.connection.execute(text(statement)).one()
    wrong = False
    for number, what in (
        (repeated, "is there more than once"),
        (incomplete, "lacks an id, an organisation, a status, a date of joining or an opt-out"),
    ):
        if number:
            wrong = True
            sentence = f"The view {SCHEMA}.source_mentors has {number} rows whose mentor {what}."
            yield Finding("mentors", Status.PROBLEM, sentence, YOUR_OWN_TABLES)
    if mentors and not active:
        wrong = True
        sentence = f"The view {SCHEMA}.source_mentors has {mentors} mentors, and the status of none is 'active'."
        yield Finding("mentors", Status.PROBLEM, sentence, YOUR_OWN_TABLES)
    if not wrong:
        yield Finding("mentors", Status.OK, f"{active} active mentors, no duplicates.")


def _activity_index(look: Look) -> Iterator[Finding]:
    """Whether activities can be found by (user_id, activity_date), and whether the statement of a page does so."""
    name = "activity_index"
    connection, activity = look.connection, source_activities
    if look.access is Access.FUNCTIONS:
        plan = look.scalar(f"SELECT {SCHEMA}.activities_plan()")[0]["Plan"]
    else:
        in_order = (activity.c.user_id, activity.c.activity_date)
        for other in _OTHER_PLANS:
            connection.execute(text(f"SET LOCAL enable_{other} = off"))
        plan = _explain(connection, select(*in_order).order_by(*in_order).limit(1))
        for other in _OTHER_PLANS:
            connection.execute(text(f"SET LOCAL enable_{other} TO DEFAULT"))
    nodes = list(_nodes(plan))
    tables = {(node["Schema"], node["Relation Name"]) for node in nodes if "Relation Name" in node}
    shown = ", ".join(".".join(table) for table in sorted(tables))
    # Where an index has this order, nothing need be sorted.
    if any("Sort" in node["Node Type"] for node in nodes):
        sentence = f"No index on (user_id, activity_date) serves {activity.fullname}: each page reads all activities."
        remedy = f"CREATE INDEX CONCURRENTLY ON {shown} (user_id, activity_date)"
        if tables != {(SCHEMA, "mentor_activities")}:
            remedy = f"CREATE INDEX CONCURRENTLY, on what the view shows as user_id and activity_date, of {shown}"
        yield Finding(name, Status.PROBLEM, sentence, remedy)
    elif look.access is Access.FUNCTIONS:
        sentence = "An index on (user_id, activity_date) exists; the plan of a page can be seen by the owner only."
        yield Finding(name, Status.OK, sentence)
    else:
        yield _page_plan(look, name, tables, shown)


# What may stand for an index in a plan.
_OTHER_PLANS = ("seqscan", "sort", "incremental_sort")
_INDEX_SCANS = ("enable_indexscan", "enable_indexonlyscan", "enable_bitmapscan")


def _page_plan(look: Look, name: str, tables: set[tuple[str, str]], shown: str) -> Finding:
    """Look at the plan of the statement of a first page."""
    connection = look.connection
    today = look.settings.today(datetime.now(UTC))
    mentor = source.active_mentors(look.access, today, ())
    size = look.settings.page_size or choose_page_size(None, 0)
    page = list(connection.execute(select(mentor.c.id).order_by(mentor.c.id).limit(size)).scalars())
    connection.execute(text("SET LOCAL search_path TO DEFAULT"))
    statement = decision_statement(tuple(registry()), look.access)
    parameters = {"mentor_ids": page, "evaluation_date": today, "invocation_id": _NOBODY}
    scanned = any(
        node["Node Type"] == "Seq Scan" and (node["Schema"], node["Relation Name"]) in tables
        for node in _nodes(_explain(connection, statement, parameters))
    )
    size_of_tables = look.scalar(
        "SELECT coalesce(sum(pg_relation_size(c.oid)), 0) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace "
        "WHERE (nspname, relname) IN (SELECT * FROM unnest(CAST(:schemas AS text[]), CAST(:names AS text[])))",
        schemas=[schema for schema, _ in sorted(tables)],
        names=[table for _, table in sorted(tables)],
    )
    if not scanned or size_of_tables <= SMALL_TABLE_BYTES:
        return Finding(name, Status.OK, "The statement of a page can use the index on (user_id, activity_date).")
    off = [setting for setting in _INDEX_SCANS if look.scalar(f"SHOW {setting}") == "off"]
    if off:
        sentence = f"The statement of a page reads all of {shown}, since {off[0]} is off."
        database_name = look.scalar("SELECT quote_ident(current_database())")
        remedy = "; ".join(f"ALTER DATABASE {database_name} RESET {setting}" for setting in off)
        return Finding(name, Status.PROBLEM, sentence, remedy)
    sentence = f"The statement of a page reads all of {shown} in spite of its index."
    return Finding(name, Status.PROBLEM, sentence, f"ANALYZE {shown}")


def _explain(connection: Connection, statement: Any, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the plan of a statement, which is not executed."""
    compiled = statement.params(parameters or {}).compile(dialect=connection.dialect).construct_expanded_state()
    plan = connection.exec_driver_sql(f"EXPLAIN (VERBOSE, FORMAT JSON) {compiled.statement}", compiled.parameters)
    found: dict[str, Any] = plan.scalar_one()[0]["Plan"]
    return found


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _configuration(look: Look) -> Iterator[Finding]:
    """Scenarios without a default row, and rows of organisations that are nobody's: no constraint can know those."""
    name, table = "configuration", scenario_evaluation_config
    rows = look.connection.execute(select(table.c.organisation_id, table.c.scenario_type)).all()
    missing = registry().keys() - {row.scenario_type for row in rows if row.organisation_id is None}
    if missing:
        sentence = f"There is no default configuration of {', '.join(sorted(missing))}."
        yield Finding(name, Status.PROBLEM, sentence, UPGRADE_COMMAND)
    own = {row.organisation_id for row in rows if row.organisation_id is not None}
    unknown = unknown_organisations(look.connection, tuple(own))
    if unknown:
        sentence = f"The configuration has rows of {len(unknown)} organisations that do not exist, {unknown[0]} is one."
        remedy = f"DELETE FROM {table.fullname} WHERE organisation_id = '{unknown[0]}'"  # noqa: S608 - it is only shown
        yield Finding(name, Status.PROBLEM, sentence, remedy)
    if not missing and not unknown:
        yield Finding(name, Status.OK, f"All {len(registry())} scenarios are configured.")


def _clock(look: Look) -> Iterator[Finding]:
    before = time.time()
    there = float(look.scalar("SELECT extract(epoch FROM clock_timestamp())"))
    after = time.time()
    skew = max(there - after, before - there, 0.0)
    if skew > MAX_SKEW_SECONDS:
        sentence = f"The clocks of the database and of this machine are {skew:.1f} seconds apart."
        yield Finding("clock", Status.PROBLEM, sentence, "timedatectl set-ntp true, on both machines")
    else:
        yield Finding("clock", Status.OK, "The clocks of the database and of this machine agree.")


def _time_zones(look: Look) -> Iterator[Finding]:
    """Whether Python and the server know the same zones, by the same rules."""
    name, zone = "time_zones", look.settings.timezone.key
    if not look.scalar("SELECT EXISTS (SELECT FROM pg_timezone_names WHERE name = :zone)", zone=zone):
        sentence = f"The server does not know the time zone {zone}."
        yield Finding(name, Status.PROBLEM, sentence, "apt-get install --only-upgrade tzdata, on the server")
        return
    moments = [datetime.now(UTC) + timedelta(days=7 * n) for n in range(52 * ZONE_YEARS)]
    here = [moment.astimezone(look.settings.timezone).replace(tzinfo=None) for moment in moments]
    statement = text("SELECT timezone(:zone, moment) FROM unnest(CAST(:moments AS timestamptz[])) AS moment")
    there = list(look.connection.execute(statement, {"zone": zone, "moments": moments}).scalars())
    if here != there:
        sentence = f"The server and Python have different rules for the time zone {zone}."
        yield Finding(name, Status.PROBLEM, sentence, "pip install --upgrade tzdata; apt-get install tzdata")
    else:
        yield Finding(name, Status.OK, f"The server and Python have the same rules for the time zone {zone}.")


def _durability(look: Look) -> Iterator[Finding]:
    settings = {name: look.scalar(f"SHOW {name}") for name in ("synchronous_commit", "fsync", "full_page_writes")}
    off = [name for name, value in settings.items() if value == "off"]
    if "synchronous_commit" in off:
        sentence = "synchronous_commit is off: a crash of the server can forget notifications counted as sent."
        yield Finding("durability", Status.PROBLEM, sentence, f"ALTER ROLE {look.role} SET synchronous_commit = on")
    for name in off:
        if name != "synchronous_commit":
            sentence = f"{name} is off: a crash of the server can destroy the database."
            yield Finding(
                "durability", Status.PROBLEM, sentence, f"ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf()"
            )
    if not off:
        yield Finding(
            "durability",
            Status.OK,
            f"What is committed is kept: synchronous_commit is {settings['synchronous_commit']}.",
        )


def _writable(look: Look) -> Iterator[Finding]:
    if look.scalar("SELECT pg_is_in_recovery()"):
        sentence = "The server is a standby, which only reads."
        yield Finding("writable", Status.PROBLEM, sentence, "set SCENARIO_DATABASE_URL to the primary")
    elif look.scalar("SHOW default_transaction_read_only") == "on":
        name = look.scalar("SELECT quote_ident(current_database())")
        sentence = "Sessions of this role and database only read: default_transaction_read_only is on."
        remedy = f"ALTER DATABASE {name} RESET default_transaction_read_only"
        yield Finding("writable", Status.PROBLEM, sentence, remedy)
    else:
        yield Finding("writable", Status.OK, "The server accepts writes.")


_CHECKS: dict[str, Check] = {
    "server_version": _server_version,
    "server_encoding": _server_encoding,
    "session_options": _session_options,
    "writable": _writable,
    "schema_version": _schema_version,
    "tables": _tables,
    "views": _views,
    "roles": examine_roles,
    "row_level_security": examine_row_level_security,
    "mentors": _mentors,
    "configuration": _configuration,
    "activity_index": _activity_index,
    "clock": _clock,
    "time_zones": _time_zones,
    "durability": _durability,
    "last_run": examine_last_run,
    "everyone_evaluated": examine_reach,
    "error_rate": examine_error_rate,
}
# Where one of these finds something, what depends on it is not checked.
_GATES = frozenset({"session_options", "schema_version", "tables", "views"})
# What can be checked whatever the schema is.
_ANY_SCHEMA = frozenset(
    {"server_version", "server_encoding", "session_options", "writable", "schema_version", "clock", "durability"}
)
