"""`scenario-pipeline doctor`: what would keep the scheduler from working, and the command that mends it.

Belongs here: what is looked at, and what a finding means. Does not belong here: mending anything; every transaction is
read-only, and nothing is started or created. What Dagster keeps is looked at in `defs.instance`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from ipaddress import ip_address
from typing import Any

import psutil
from sqlalchemy import Connection, Engine, select, text

from scenario_pipeline.engines.http import health_failure
from scenario_pipeline.engines.statement import decision_statement, readings, unfit_functions
from scenario_pipeline.errors import UserError, classify
from scenario_pipeline.records import choose_page_size
from scenario_pipeline.scenarios import registry
from scenario_pipeline.settings import Settings
from scenario_pipeline.storage import database, ledger, roles, source
from scenario_pipeline.storage.roles import GRANTS, OWNER, PERSONAL_COLUMNS, READER, ROLES_FILE, SCHEDULER, Grant
from scenario_pipeline.storage.source import Access
from scenario_pipeline.storage.tables import (
    SCHEMA,
    scenario_evaluation_config,
    source_activities,
    source_metadata,
)

# Nothing that is looked at takes longer on a healthy server.
STATEMENT_SECONDS = 5.0
# A run's age is told by the database's clock and its start by this machine's.
MAX_SKEW_SECONDS = 1.0
# Below this a sequential scan is no mistake of the planner.
SMALL_TABLE_ROWS = 10_000
_NOBODY = "00000000-0000-0000-0000-000000000000"
# Zones differ in rules that come into force within the years to come, if at all.
ZONE_YEARS = 3

YOUR_OWN_TABLES = "define the view as docs/deploy.md (Your own tables) shows"


class Status(StrEnum):
    """What came of a check."""

    OK = "ok"
    PROBLEM = "problem"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """What was found, in one sentence.

    Attributes:
        check: name of the check, the same in every release.
        status: whether something is to be mended, or could not be looked at.
        finding: one sentence, without a secret.
        remedy: the command that mends it, or None where nothing is to be mended.
    """

    check: str
    status: Status
    finding: str
    remedy: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the finding as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Look:
    """What a check of the database is given.

    Attributes:
        connection: inside a read-only transaction.
        settings: of this installation.
        role: the role that the pipeline connects as.
        rights_remedy: what gives that role the rights of a scheduler.
        access: how that role reads the source.
    """

    connection: Connection
    settings: Settings
    role: str
    rights_remedy: str
    access: Access

    def scalar(self, statement: str, **parameters: object) -> Any:
        """Return the one value of a statement."""
        return self.connection.execute(text(statement), parameters).scalar_one()


Check = Callable[[Look], Iterator[Finding]]


def overall(findings: Sequence[Finding]) -> Status:
    """Return what all findings come to: a problem outweighs what could not be looked at."""
    found = {finding.status for finding in findings}
    return next((status for status in (Status.PROBLEM, Status.UNKNOWN) if status in found), Status.OK)


def examine_database(settings: Settings) -> Iterator[Finding]:
    """Look at the scheduler's database; the embedded server is not started for it."""
    name = "database_connection"
    try:
        urls = database.locate(settings, start=False)
    except UserError as exc:
        yield Finding(name, Status.UNKNOWN, str(exc), "scenario-pipeline up")
        return
    engine = database.connect(urls.scenario)
    try:
        setting = "the embedded Postgres" if urls.embedded else "SCENARIO_DATABASE_URL"
        try:
            database.reachable_or_explain(engine, setting)
        except UserError as exc:
            yield Finding(name, Status.UNKNOWN, str(exc), 'psql "$SCENARIO_DATABASE_URL" -c "SELECT 1"')
            return
        yield from _examine(engine, settings, setting)
    finally:
        engine.dispose()


def _examine(engine: Engine, settings: Settings, setting: str) -> Iterator[Finding]:
    with engine.connect() as connection:
        role, is_scheduler = connection.execute(
            text("SELECT current_user, coalesce(pg_has_role(to_regrole(:scheduler), 'USAGE'), false)"),
            {"scheduler": SCHEDULER},
        ).one()
    rights_remedy = database.UPGRADE_COMMAND if is_scheduler else f'GRANT {SCHEDULER} TO "{role}"'
    yield Finding("database_connection", Status.OK, f"The database of {setting} answers; the role is {role}.")
    fits = True
    for name, check in _CHECKS.items():
        if not fits and name not in _ANY_SCHEMA:
            continue
        try:
            with engine.connect() as connection, connection.begin():
                connection.execute(text("SET TRANSACTION READ ONLY"))
                ledger.limit_statement_time(connection, STATEMENT_SECONDS)
                access = Access.VIEWS if name in _ANY_SCHEMA else source.access_of(connection)
                findings = list(check(Look(connection, settings, role, rights_remedy, access)))
        except Exception as exc:  # noqa: BLE001 - the boundary of a check: whatever it is, the others are looked at
            failure = classify(exc)
            sentence = f"This could not be looked at: {failure.error_message}."
            remedy = rights_remedy if failure.sqlstate == "42501" else None
            findings = [Finding(name, Status.UNKNOWN, sentence, remedy)]
        if name in _GATES:
            fits = fits and findings[0].status is Status.OK
        yield from findings


def _server_version(look: Look) -> Iterator[Finding]:
    version = look.scalar("SHOW server_version")
    if database.server_major(look.connection) < database.OLDEST_SERVER:
        sentence = f"The server is PostgreSQL {version}; version {database.OLDEST_SERVER} or newer is needed."
        yield Finding("server_version", Status.PROBLEM, sentence, "pg_upgrade")
    else:
        yield Finding("server_version", Status.OK, f"The server is PostgreSQL {version}.")


def _schema_version(look: Look) -> Iterator[Finding]:
    version, expected = database.schema_version(look.connection), database.code_version()
    if version == expected:
        yield Finding("schema_version", Status.OK, f"The schema has version {version}, as this release needs it.")
        return
    sentence = database.mismatch(version).partition(":")[0]
    yield Finding("schema_version", Status.PROBLEM, f"{_sentence(sentence)}", database.UPGRADE_COMMAND)


def _roles(look: Look) -> Iterator[Finding]:
    """Whether the roles exist, the role in use has what it needs, and the scheduler's role no more than that."""
    problems = [*_missing_roles(look), *_missing_rights(look), *_surplus_rights(look), *_open_functions(look)]
    yield from problems
    if not problems:
        yield Finding("roles", Status.OK, f"The role {look.role} may do what a run needs.")


def _missing_roles(look: Look) -> Iterator[Finding]:
    missing = {OWNER, SCHEDULER, READER} - set(roles.existing_roles(look.connection))
    if missing:
        sentence = f"The server has no role {', '.join(sorted(missing))}."
        remedy = f'psql -v ON_ERROR_STOP=1 -f {ROLES_FILE.name} "$ADMINISTRATOR_URL" && {database.UPGRADE_COMMAND}'
        yield Finding("roles", Status.PROBLEM, sentence, remedy)


def _missing_rights(look: Look) -> Iterator[Finding]:
    # Whether the source can be read is tried out below: its views may be over anybody's tables.
    needed = [grant for grant in GRANTS if grant.role == SCHEDULER and grant.relation not in roles.SOURCE]
    lacking = [str(grant) for grant in needed if not _has(look, grant)]
    called = text("SELECT coalesce(has_function_privilege(to_regprocedure(:function), 'EXECUTE'), false)")
    for function in roles.SCHEDULERS_FUNCTIONS:
        name = f"{SCHEMA}.{function}"
        if not look.connection.execute(called, {"function": name}).scalar_one():
            lacking.append(f"EXECUTE ON FUNCTION {name}")
    if lacking:
        yield Finding("roles", Status.PROBLEM, f"The role {look.role} lacks {'; '.join(lacking)}.", look.rights_remedy)


def _has(look: Look, grant: Grant) -> bool:
    relation = f"{SCHEMA}.{grant.relation}"
    if not grant.columns:
        return bool(
            look.scalar(
                "SELECT coalesce(has_table_privilege(to_regclass(:relation), :privilege), false)",
                relation=relation,
                privilege=grant.privilege,
            )
        )
    return all(
        look.scalar(
            "SELECT has_column_privilege(to_regclass(:relation), :column, :privilege)",
            relation=relation,
            column=name,
            privilege=grant.privilege,
        )
        for name in grant.columns
    )


def _surplus_rights(look: Look) -> Iterator[Finding]:
    """What the scheduler's role could do by mistake or by break-in, and never needs."""
    if SCHEDULER not in roles.existing_roles(look.connection):
        return
    surplus = list(
        look.connection.execute(
            text(
                "SELECT privilege || ' ON ' || oid::regclass FROM pg_class, "
                "unnest('{DELETE,TRUNCATE,TRIGGER}'::text[]) AS privilege "
                "WHERE relnamespace = to_regnamespace(:schema) AND relkind IN ('r', 'v') "
                "AND has_table_privilege(:role, oid, privilege) "
                "UNION ALL SELECT 'SELECT (' || attname || ') ON ' || attrelid::regclass FROM pg_attribute "
                "WHERE attrelid = to_regclass(:mentors) AND attname = ANY (:personal) "
                "AND has_column_privilege(:role, attrelid, attnum, 'SELECT') "
                "UNION ALL SELECT 'CREATE ON SCHEMA ' || nspname FROM pg_namespace WHERE nspname = :schema "
                "AND has_schema_privilege(:role, oid, 'CREATE') ORDER BY 1"
            ),
            {
                "schema": SCHEMA,
                "role": SCHEDULER,
                "mentors": f"{SCHEMA}.peer_mentors",
                "personal": list(PERSONAL_COLUMNS),
            },
        ).scalars()
    )
    if surplus:
        sentence = f"The role {SCHEDULER} has more than it needs: {'; '.join(surplus)}."
        yield Finding("roles", Status.PROBLEM, sentence, "; ".join(f"REVOKE {s} FROM {SCHEDULER}" for s in surplus))


def _open_functions(look: Look) -> Iterator[Finding]:
    """Functions with their owner's rights that anybody may call, that an administrator owns, or that are not pinned."""
    rows = look.connection.execute(
        text(
            "SELECT p.oid::regprocedure::text AS name, rolname AS owner, rolsuper AS is_superusers, "
            "has_function_privilege('public', p.oid, 'EXECUTE') AS is_open, "
            "coalesce(array_to_string(proconfig, ',') LIKE '%search_path=%', false) AS is_pinned "
            "FROM pg_proc p JOIN pg_roles r ON r.oid = proowner "
            "WHERE pronamespace = to_regnamespace(:schema) AND prosecdef ORDER BY 1"
        ),
        {"schema": SCHEMA},
    ).all()
    for row in rows:
        if row.is_open:
            sentence = f"Everybody may call {row.name}, which acts with its owner's rights."
            yield Finding("roles", Status.PROBLEM, sentence, f"REVOKE EXECUTE ON FUNCTION {row.name} FROM PUBLIC")
        if row.is_superusers:
            sentence = f"The function {row.name} acts with the rights of {row.owner}, a superuser."
            yield Finding("roles", Status.PROBLEM, sentence, f"ALTER FUNCTION {row.name} OWNER TO {OWNER}")
        if not row.is_pinned:
            sentence = f"The function {row.name} acts with its owner's rights and does not pin its search_path."
            remedy = f"ALTER FUNCTION {row.name} SET search_path = pg_catalog, pg_temp"
            yield Finding("roles", Status.PROBLEM, sentence, remedy)
    if look.access is Access.FUNCTIONS:
        for sentence, remedy in unfit_functions(look.connection, list(registry())):
            yield Finding("roles", Status.PROBLEM, _sentence(sentence), remedy)


def _views(look: Look) -> Iterator[Finding]:
    found = [Finding("views", Status.PROBLEM, _sentence(s), YOUR_OWN_TABLES) for s in source.misfits(look.connection)]
    yield from found
    if not found:
        yield Finding("views", Status.OK, "The four source views have the columns that an evaluation reads.")


def _row_level_security(look: Look) -> Iterator[Finding]:
    name = "row_level_security"
    connection = look.connection
    hidden = False
    for read, statement in readings(look.access):
        try:
            with connection.begin_nested():
                connection.execute(statement)
        except Exception as exc:  # noqa: BLE001 - told as a finding, by fact
            hidden = True
            reason = classify(exc).error_message
            sentence = f"The role {look.role} may not read all of {read}: {reason}."
            whose = look.role if look.access is Access.VIEWS else OWNER
            remedy = f'GRANT SELECT ON {read} and on what it reads TO "{whose}"; ALTER ROLE "{whose}" BYPASSRLS'
            yield Finding(name, Status.PROBLEM, sentence, remedy)
    unprotected = list(
        connection.execute(
            text(
                "SELECT DISTINCT d.refobjid::regclass::text FROM pg_rewrite r JOIN pg_depend d ON d.objid = r.oid "
                "AND d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass "
                "JOIN pg_class t ON t.oid = d.refobjid AND t.relkind = 'r' AND NOT t.relrowsecurity "
                "WHERE r.ev_class = ANY (CAST(:views AS regclass[])) AND t.relnamespace = to_regnamespace(:schema) "
                "ORDER BY 1"
            ),
            {"views": list(source_metadata.tables), "schema": SCHEMA},
        ).scalars()
    )
    for table in unprotected:
        sentence = f"Row-level security is off on {table}: whoever may read it sees every organisation."
        yield Finding(name, Status.PROBLEM, sentence, f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    if not hidden and not unprotected:
        way = "its own rights" if look.access is Access.VIEWS else "the functions of the owner"
        yield Finding(name, Status.OK, f"The role {look.role} sees all rows of the source by {way}.")


def _activity_index(look: Look) -> Iterator[Finding]:
    """Whether activities can be found by (user_id, activity_date), and whether the statement of a page does so."""
    name = "activity_index"
    connection, activity = look.connection, source_activities
    if look.access is Access.FUNCTIONS:
        exists = look.scalar(
            "SELECT EXISTS (SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE i.indisvalid "
            "AND i.indrelid = to_regclass(:table) AND pg_get_indexdef(i.indexrelid) LIKE '%(user_id, activity_date%')",
            table=f"{SCHEMA}.mentor_activities",
        )
        if exists and source.reads_bundled_tables(connection):
            sentence = "The index on (user_id, activity_date) exists; its use can be seen with the owner's role only."
            yield Finding(name, Status.OK, sentence)
        else:
            sentence = f"The plan of a page cannot be seen by {look.role}."
            yield Finding(name, Status.UNKNOWN, sentence, "scenario-pipeline doctor, with the owner's URL")
        return
    in_order = (activity.c.user_id, activity.c.activity_date)
    # Where an index has this order, nothing need be sorted.
    for other in ("seqscan", "sort", "incremental_sort"):
        connection.execute(text(f"SET LOCAL enable_{other} = off"))
    nodes = list(_nodes(_explain(connection, select(*in_order).order_by(*in_order).limit(1))))
    for other in ("seqscan", "sort", "incremental_sort"):
        connection.execute(text(f"SET LOCAL enable_{other} TO DEFAULT"))
    tables = {(node["Schema"], node["Relation Name"]) for node in nodes if "Relation Name" in node}
    shown = ", ".join(".".join(table) for table in sorted(tables))
    if any("Sort" in node["Node Type"] for node in nodes):
        sentence = f"No index on (user_id, activity_date) serves {activity.fullname}: each page reads all activities."
        remedy = f"CREATE INDEX CONCURRENTLY ON {shown} (user_id, activity_date)"
        yield Finding(name, Status.PROBLEM, sentence, remedy)
        return
    today = look.settings.today(datetime.now(UTC))
    mentor = source.active_mentors(look.access, today, ())
    size = look.settings.page_size or choose_page_size(None, 0)
    page = list(connection.execute(select(mentor.c.id).order_by(mentor.c.id).limit(size)).scalars())
    statement = decision_statement(tuple(registry()), look.access)
    parameters = {"mentor_ids": page, "evaluation_date": today, "invocation_id": _NOBODY}
    scanned = [
        node
        for node in _nodes(_explain(connection, statement, parameters))
        if node["Node Type"] == "Seq Scan" and (node["Schema"], node["Relation Name"]) in tables
    ]
    rows = look.scalar(
        "SELECT coalesce(max(reltuples), 0) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace "
        "WHERE (nspname, relname) IN (SELECT * FROM unnest(CAST(:schemas AS text[]), CAST(:names AS text[])))",
        schemas=[schema for schema, _ in sorted(tables)],
        names=[table for _, table in sorted(tables)],
    )
    if scanned and rows > SMALL_TABLE_ROWS:
        sentence = f"The statement of a page reads all of {shown} in spite of its index."
        yield Finding(name, Status.PROBLEM, sentence, f"ANALYZE {shown}")
    else:
        yield Finding(name, Status.OK, "The statement of a page can use the index on (user_id, activity_date).")


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
        yield Finding(name, Status.PROBLEM, sentence, database.UPGRADE_COMMAND)
    own = {row.organisation_id for row in rows if row.organisation_id is not None}
    unknown = ledger.unknown_organisations(look.connection, tuple(own))
    if unknown:
        sentence = f"The configuration has rows of {len(unknown)} organisations that do not exist, {unknown[0]} is one."
        remedy = f"DELETE FROM {table.fullname} WHERE organisation_id = '{unknown[0]}'"  # noqa: S608 - it is only told
        yield Finding(name, Status.PROBLEM, sentence, remedy)
    if not missing and not unknown:
        yield Finding(name, Status.OK, f"Every one of the {len(registry())} scenarios is configured.")


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
        yield Finding("durability", Status.PROBLEM, sentence, f'ALTER ROLE "{look.role}" SET synchronous_commit = on')
    for name in off:
        if name != "synchronous_commit":
            sentence = f"{name} is off: a crash of the server can destroy the database."
            yield Finding("durability", Status.PROBLEM, sentence, f"ALTER SYSTEM SET {name} = on")
    if not off:
        yield Finding(
            "durability",
            Status.OK,
            f"What is committed is kept: synchronous_commit is {settings['synchronous_commit']}.",
        )


_CHECKS: dict[str, Check] = {
    "server_version": _server_version,
    "schema_version": _schema_version,
    "views": _views,
    "roles": _roles,
    "row_level_security": _row_level_security,
    "configuration": _configuration,
    "activity_index": _activity_index,
    "clock": _clock,
    "time_zones": _time_zones,
    "durability": _durability,
}
# Where one of these finds something, what depends on it is not looked at.
_GATES = frozenset({"schema_version", "views"})
# What can be looked at whatever the schema is.
_ANY_SCHEMA = frozenset({"server_version", "schema_version", "clock", "durability"})


def examine_trigger_engine(settings: Settings) -> Iterator[Finding]:
    """Ask the trigger engine whether it works, if it is a remote one."""
    name = "trigger_engine"
    if settings.engine != "http" or settings.engine_url is None:
        yield Finding(name, Status.OK, "The trigger engine is sql, which is the database itself.")
        return
    failure = health_failure(settings.engine_url, trust_proxy=settings.engine_trust_proxy)
    if failure is None:
        yield Finding(name, Status.OK, "The trigger engine answers that it is well.")
    else:
        remedy = 'curl --fail "$SCENARIO_ENGINE_URL/v1/health"'
        yield Finding(name, Status.PROBLEM, f"{_sentence(failure.error_message)}", remedy)


def examine_web_server() -> Iterator[Finding]:
    """Look whether a web server of Dagster on this machine, which has no login, can be reached from others."""
    name, count = "web_server", 0
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if not any("dagster_webserver" in word or "dagster-webserver" in word for word in words):
                continue
            count += 1
            addresses = {c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        except psutil.Error:
            continue
        exposed = sorted(address for address in addresses if not ip_address(address).is_loopback)
        if exposed:
            sentence = f"Dagster's web server, which has no login, listens at {', '.join(exposed)}."
            remedy = "scenario-pipeline up --host 127.0.0.1, behind a proxy that authenticates"
            yield Finding(name, Status.PROBLEM, sentence, remedy)
            return
    where = "listens on loopback only" if count else "does not run"
    yield Finding(name, Status.OK, f"Dagster's web server {where} on this machine.")


def _sentence(text_: str) -> str:
    return f"{text_[:1].upper()}{text_[1:].rstrip('.')}."
