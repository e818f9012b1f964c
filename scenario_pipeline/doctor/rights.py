"""What `doctor` looks at: roles, grants, functions with the owner's rights, and row-level security.

Belongs here: who may do what, and who sees which rows. Does not belong here: whether the rest works (`database`).
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import text

from scenario_pipeline.doctor.findings import Finding, Look, Status, as_sentence
from scenario_pipeline.doctor.other_roles import examine_other_roles
from scenario_pipeline.engines.functions import unfit_functions
from scenario_pipeline.engines.source_check import readings
from scenario_pipeline.errors import classify
from scenario_pipeline.scenarios import registry
from scenario_pipeline.storage import database, roles
from scenario_pipeline.storage.roles import GRANTS, OWNER, ROLES_FILE, SCHEDULER
from scenario_pipeline.storage.source import Access
from scenario_pipeline.storage.tables import SCHEMA, metadata, source_metadata


def examine_roles(look: Look) -> Iterator[Finding]:
    """Whether the roles exist, the role in use has what it needs, and the scheduler's role no more than that."""
    problems = [
        *_missing_roles(look),
        *_missing_rights(look),
        *_surplus_rights(look),
        *_open_functions(look),
        *examine_other_roles(look),
    ]
    yield from problems
    if not problems:
        yield Finding("roles", Status.OK, f"The role {look.role} may do what a run needs, and no other role may.")


def _missing_roles(look: Look) -> Iterator[Finding]:
    missing = {*roles.ROLES} - {*roles.existing_roles(look.connection)}
    if missing:
        sentence = f"The server has no role {', '.join(sorted(missing))}."
        remedy = f"psql -v ON_ERROR_STOP=1 -f {ROLES_FILE}, as an administrator, and then {database.UPGRADE_COMMAND}"
        yield Finding("roles", Status.PROBLEM, sentence, remedy)


def _missing_rights(look: Look) -> Iterator[Finding]:
    connection, role = look.connection, str(look.scalar("SELECT current_user"))
    # Whether the source can be read is tried out below: its views may be over anybody's tables.
    needed = [grant for grant in GRANTS if grant.role == SCHEDULER and grant.relation not in roles.SOURCE]
    lacking = [str(grant) for grant in needed if roles.lacks(connection, role, grant)]
    lacking += [
        f"EXECUTE ON FUNCTION {SCHEMA}.{function}"
        for function in roles.SCHEDULERS_FUNCTIONS
        if not roles.may_execute(connection, role, function)
    ]
    if lacking:
        yield Finding("roles", Status.PROBLEM, f"The role {look.role} lacks {'; '.join(lacking)}.", look.rights_remedy)


def _surplus_rights(look: Look) -> Iterator[Finding]:
    """What the scheduler's role could do by mistake or by break-in, and never needs."""
    attributes = look.connection.execute(
        text(
            "SELECT name FROM pg_roles, LATERAL (VALUES ('SUPERUSER', rolsuper), ('CREATEROLE', rolcreaterole), "
            "('CREATEDB', rolcreatedb), ('REPLICATION', rolreplication)) AS attribute (name, is_set) "
            "WHERE rolname = :role AND is_set"
        ),
        {"role": SCHEDULER},
    ).scalars()
    for attribute in attributes:
        sentence = f"The role {SCHEDULER} has more than it needs: {attribute}."
        yield Finding("roles", Status.PROBLEM, sentence, f"ALTER ROLE {SCHEDULER} NO{attribute}")
    groups = look.connection.execute(
        text("SELECT roleid::regrole::text FROM pg_auth_members WHERE member = to_regrole(:role) ORDER BY 1"),
        {"role": SCHEDULER},
    ).scalars()
    for group in groups:
        sentence = f"The role {SCHEDULER} has more than it needs: the rights of {group}."
        yield Finding("roles", Status.PROBLEM, sentence, f"REVOKE {group} FROM {SCHEDULER}")
    granted = {
        (grant.privilege, f"{SCHEMA}.{grant.relation}"): grant.columns for grant in GRANTS if grant.role == SCHEDULER
    }
    for row in look.connection.execute(text(_GRANTED), {"schema": SCHEMA, "role": SCHEDULER, "ours": _OURS}):
        columns = granted.get((row.privilege, row.object))
        if columns is not None and (not columns or row.column_name in columns):
            continue
        of = f" ({row.column_name})" if row.column_name else ""
        right = f"{row.privilege}{of} ON {row.object}"
        whose = f"The role {SCHEDULER} has" if row.grantee == SCHEDULER else "Everybody has"
        remedy = f"REVOKE {right} FROM {row.grantee}"
        if columns is not None:
            # A right on a table is taken back with those on its columns.
            remedy = f"{remedy}; {database.UPGRADE_COMMAND}"
        yield Finding("roles", Status.PROBLEM, f"{whose} more than a run needs: {right}.", remedy)


_OURS = [*metadata.tables, *source_metadata.tables, f"{SCHEMA}.{roles.VERSION_TABLE}"]
# What was granted to the scheduler or to everybody, right by right.
_GRANTED = """
    SELECT privilege_type AS privilege, object, column_name, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE :role END AS grantee
    FROM (
        SELECT oid::regclass::text AS object, NULL AS column_name, relacl AS acl FROM pg_class
        UNION ALL SELECT attrelid::regclass::text, quote_ident(attname), attacl FROM pg_attribute
        UNION ALL SELECT 'SCHEMA ' || nspname, NULL, nspacl FROM pg_namespace WHERE nspname = :schema
    ) AS objects, aclexplode(acl)
    WHERE (object = ANY (:ours) OR object LIKE 'SCHEMA %' AND privilege_type <> 'USAGE')
        AND grantee IN (0, to_regrole(:role))
    ORDER BY object, privilege, column_name"""


def _open_functions(look: Look) -> Iterator[Finding]:
    """Functions with their owner's rights that anybody may call, that an administrator owns, or that are not pinned."""
    rows = look.connection.execute(
        text(
            "SELECT p.oid::regprocedure::text AS name, rolname AS owner, "
            "rolsuper OR rolcreaterole AS is_administrators, "
            "has_function_privilege('public', p.oid, 'EXECUTE') AS is_open, "
            "coalesce(array_to_string(proconfig, ',') LIKE '%search_path=%', false) AS is_pinned, "
            "coalesce('row_security=off' = ANY (proconfig), false) AS hides_nothing "
            "FROM pg_proc p JOIN pg_roles r ON r.oid = proowner "
            "WHERE pronamespace = to_regnamespace(:schema) AND prosecdef ORDER BY 1"
        ),
        {"schema": SCHEMA},
    ).all()
    for row in rows:
        if row.is_open:
            sentence = f"Everybody may call {row.name}, which acts with its owner's rights."
            yield Finding("roles", Status.PROBLEM, sentence, f"REVOKE EXECUTE ON FUNCTION {row.name} FROM PUBLIC")
        if row.is_administrators:
            sentence = f"The function {row.name} acts with the rights of {row.owner}, an administrator."
            yield Finding("roles", Status.PROBLEM, sentence, f"ALTER FUNCTION {row.name} OWNER TO {OWNER}")
        if not row.is_pinned:
            sentence = f"The function {row.name} acts with its owner's rights and does not pin its search_path."
            remedy = f"ALTER FUNCTION {row.name} SET search_path = pg_catalog, pg_temp"
            yield Finding("roles", Status.PROBLEM, sentence, remedy)
        if not row.hides_nothing:
            sentence = f"The function {row.name} leaves out what a policy hides from its owner."
            remedy = f"ALTER FUNCTION {row.name} SET row_security = off"
            yield Finding("roles", Status.PROBLEM, sentence, remedy)
    if look.access is Access.FUNCTIONS:
        for sentence, remedy in unfit_functions(look.connection, list(registry())):
            yield Finding("roles", Status.PROBLEM, as_sentence(sentence), remedy)


def examine_row_level_security(look: Look) -> Iterator[Finding]:
    """Whether the role sees all rows of the source, and nobody sees more than they should."""
    problems = [*_hidden(look), *_unprotected(look)]
    yield from problems
    if not problems:
        way = "its own rights" if look.access is Access.VIEWS else "the functions of the owner"
        sentence = f"The role {look.role} sees all rows of the source by {way}."
        yield Finding("row_level_security", Status.OK, sentence)


_AS_INVOKER = "security_invoker=(true|on|yes|1|t|y)"


def _hidden(look: Look) -> Iterator[Finding]:
    """What the role may not read, or not all of."""
    asking = look.role if look.access is Access.VIEWS else OWNER
    # A view that does not read with the rights of whoever asks reads with its owner's.
    readers = look.connection.execute(
        text(
            "SELECT DISTINCT CASE WHEN coalesce(array_to_string(reloptions, ','), '') ~* :as_invoker "
            "THEN :asking ELSE relowner::regrole::text END FROM pg_class WHERE oid::regclass::text = ANY (:views)"
        ),
        {"asking": asking, "views": list(source_metadata.tables), "as_invoker": _AS_INVOKER},
    ).scalars()
    passing = "; ".join(f"ALTER ROLE {reader} BYPASSRLS" for reader in sorted(readers))
    for read, statement in readings(look.access):
        try:
            with look.connection.begin_nested():
                look.connection.execute(statement)
        except Exception as exc:  # noqa: BLE001 - told as a finding, by fact
            reason = classify(exc).error_message
            remedy = passing
            if "permission denied" in reason:
                remedy = f"GRANT SELECT ON the tables and views that it reads TO {asking}"
            sentence = f"The role {look.role} may not read all of {read}: {reason}."
            yield Finding("row_level_security", Status.PROBLEM, sentence, remedy)


_SOURCE = [f"{SCHEMA}.{table}" for table in roles.SOURCE_TABLES]
# A policy of a partitioned table does not hold for who reads a partition by its own name.
_OPEN_TABLES = """
    SELECT whole::regclass::text, array_agg(c.oid::regclass::text ORDER BY c.oid::regclass::text)
    FROM pg_class c, LATERAL (
        SELECT c.oid UNION SELECT relid FROM pg_partition_ancestors(c.oid) WHERE c.relispartition
    ) AS ancestors (whole)
    WHERE whole::regclass::text = ANY (:tables) AND NOT relrowsecurity AND c.relkind IN ('r', 'p')
    GROUP BY whole, whole = c.oid ORDER BY 1, (whole = c.oid) DESC"""


def _unprotected(look: Look) -> Iterator[Finding]:
    """What shows every organisation to whoever may read it."""
    name = "row_level_security"
    for table, partitions in look.connection.execute(text(_OPEN_TABLES), {"tables": _SOURCE}):
        what = f"{len(partitions)} partitions of {table}" if table not in partitions else table
        sentence = f"Row-level security is off on {what}: whoever may read it sees every organisation."
        remedy = "; ".join(f"ALTER TABLE {partition} ENABLE ROW LEVEL SECURITY" for partition in partitions)
        yield Finding(name, Status.PROBLEM, sentence, remedy)
    for row in look.connection.execute(
        text(
            "SELECT DISTINCT oid::regclass::text AS view, "
            "CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS reader "
            "FROM pg_class, aclexplode(relacl) WHERE oid::regclass::text = ANY (:views) AND grantee <> relowner "
            "AND coalesce(array_to_string(reloptions, ','), '') !~* :as_invoker "
            "AND grantee::regrole::text <> ALL (:ours) ORDER BY 1, 2"
        ),
        {"views": list(source_metadata.tables), "ours": list(roles.ROLES), "as_invoker": _AS_INVOKER},
    ):
        sentence = f"The view {row.view} shows every organisation to {row.reader}: it reads with its owner's rights."
        remedy = f"ALTER VIEW {row.view} SET (security_invoker = true)"
        yield Finding(name, Status.PROBLEM, sentence, remedy)
