"""What `doctor` looks at: the roles that are not this project's, and what they were granted all the same.

Belongs here: who beyond owner and scheduler may write the ledger, read a personal column or execute a function with its
owner's rights. Does not belong here: the rights of the scheduler, or of everybody (`rights`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Row, text

from scenario_pipeline.doctor.findings import Finding, Look, Status
from scenario_pipeline.storage.roles import OWNER, PERSONAL_COLUMNS, SCHEDULER, SOURCE_TABLES, VERSION_TABLE
from scenario_pipeline.storage.tables import SCHEMA, metadata

# A role that may write one of these can have something sent twice, or never. The source has policies of its own.
_LEDGER = [table.name for table in metadata.tables.values() if table.name not in SOURCE_TABLES] + [VERSION_TABLE]
_PARAMETERS = {
    "schema": SCHEMA,
    "owner": OWNER,
    "scheduler": SCHEDULER,
    # Hands messages over, so it reads addresses and nothing else (contract section 9).
    "sender": "scenario_sender",
    "ledger": _LEDGER,
    "personal": list(PERSONAL_COLUMNS),
    "ours": [*metadata.tables, f"{SCHEMA}.{VERSION_TABLE}"],
}
# A clock's role, which the installation chooses, may call this one and nothing else.
_CLOCKS_FUNCTION = f"{SCHEMA}.request_scheduler_run("
_WHAT = {
    "write": "to write the ledger",
    "read": "to read personal columns",
    "execute": "to execute functions with their owner's rights",
}

# Superusers and the owner of the database can do anything, and members of the schema's owner may.
_TRUSTED = """
    WITH home AS (SELECT oid, nspowner FROM pg_namespace WHERE nspname = :schema),
    trusted AS (
        SELECT r.oid FROM pg_roles r, home WHERE rolsuper OR rolname IN (:owner, :scheduler)
            OR pg_has_role(r.oid, nspowner, 'USAGE')
        UNION SELECT datdba FROM pg_database WHERE datname = current_database()
    )"""
_GRANTED = """,
    relations AS (
        SELECT c.oid, c.relkind, c.relowner, c.relacl, c.relname, c.relnamespace = home.oid AND (
                c.relname = ANY (:ledger)
                OR EXISTS (SELECT FROM pg_inherits JOIN pg_class p ON p.oid = inhparent
                    WHERE inhrelid = c.oid AND p.relnamespace = home.oid AND p.relname = ANY (:ledger))
                OR c.relkind = 'S' AND EXISTS (SELECT FROM pg_depend JOIN pg_class p ON p.oid = refobjid
                    WHERE classid = 'pg_class'::regclass AND objid = c.oid AND refclassid = 'pg_class'::regclass
                    AND p.relnamespace = home.oid AND p.relname = ANY (:ledger))) AS is_ledger,
            coalesce(array_to_string(reloptions, ','), '') !~* 'security_invoker=(true|on|yes|1|t|y)' AND (
                c.relnamespace = home.oid AND EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid
                    AND attname = ANY (:personal))
                -- A view that shows them under any name, in any schema.
                OR EXISTS (SELECT FROM pg_rewrite w JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass
                    AND d.objid = w.oid JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                    WHERE w.ev_class = c.oid AND d.refclassid = 'pg_class'::regclass
                    AND d.refobjid = to_regclass(:schema || '.peer_mentors') AND c.oid <> d.refobjid
                    AND a.attname = ANY (:personal))) AS is_personal
        FROM pg_class c, home WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
    ),
    granted AS (
        SELECT CASE WHEN privilege_type = 'SELECT' THEN 'read' ELSE 'write' END AS what, oid::regclass::text AS object,
            CASE relkind WHEN 'S' THEN 'SEQUENCE ' ELSE '' END AS class_, NULL AS column_name, acl.*
        FROM relations, aclexplode(relacl) acl WHERE grantee <> relowner AND (
            is_personal AND privilege_type = 'SELECT' OR is_ledger AND privilege_type = 'UPDATE'
            OR is_ledger AND relkind <> 'S' AND privilege_type IN ('INSERT', 'DELETE', 'TRUNCATE', 'TRIGGER'))
        UNION ALL
        SELECT CASE WHEN privilege_type = 'SELECT' THEN 'read' ELSE 'write' END, r.oid::regclass::text, '',
            quote_ident(attname), acl.*
        FROM relations r JOIN pg_attribute ON attrelid = r.oid, aclexplode(attacl) acl WHERE grantee <> relowner AND (
            is_personal AND privilege_type = 'SELECT' AND (attname = ANY (:personal) OR relkind IN ('v', 'm'))
            OR is_ledger AND privilege_type IN ('INSERT', 'UPDATE'))
        UNION ALL
        SELECT 'execute', p.oid::regprocedure::text, 'FUNCTION ', NULL, acl.*
        FROM pg_proc p JOIN home ON home.oid = pronamespace,
            aclexplode(coalesce(proacl, acldefault('f', proowner))) acl
        WHERE prosecdef AND grantee <> proowner
    )
    SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS grantee, what, class_, object,
        column_name, privilege_type AS privilege, is_grantable,
        ARRAY(SELECT r.oid::regrole::text FROM pg_roles r WHERE grantee <> 0 AND r.oid <> grantee
            AND pg_has_role(r.oid, grantee, 'USAGE') AND r.oid NOT IN (SELECT oid FROM trusted) ORDER BY 1) AS members
    FROM granted WHERE grantee NOT IN (SELECT oid FROM trusted)
        AND (what <> 'read' OR grantee IS DISTINCT FROM to_regrole(:sender)::oid)
        -- What everybody has of our own tables and functions is reported right by right.
        AND (grantee <> 0 OR what <> 'execute' AND object <> ALL (:ours))
    ORDER BY grantee, object, privilege, column_name"""
_OWNED = """
    SELECT c.oid::regclass::text AS object, relowner::regrole::text AS role, nspowner::regrole::text AS owner
    FROM pg_class c JOIN home ON home.oid = relnamespace WHERE relkind IN ('r', 'p')
        AND (relname = ANY (:ledger) OR relname = 'peer_mentors') AND relowner NOT IN (SELECT oid FROM trusted)
    ORDER BY 1"""
_ALL_DATA = """
    SELECT roleid::regrole::text AS role, member::regrole::text AS member FROM pg_auth_members
    WHERE roleid IN (to_regrole('pg_read_all_data'), to_regrole('pg_write_all_data'))
        AND pg_has_role(member, roleid, 'USAGE') AND member NOT IN (SELECT oid FROM trusted)
    ORDER BY 1, 2"""
_DEFAULTS = """
    SELECT DISTINCT defaclrole::regrole::text AS maker, defaclnamespace <> 0 AS is_of_schema,
        CASE defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' ELSE 'FUNCTIONS' END AS objects,
        CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS grantee
    FROM pg_default_acl JOIN home ON defaclnamespace = home.oid OR defaclnamespace = 0 AND defaclrole = nspowner,
        aclexplode(defaclacl)
    WHERE defaclobjtype IN ('r', 'S', 'f') AND grantee <> defaclrole AND grantee NOT IN (SELECT oid FROM trusted)
        -- Built in; each migration takes it away from what it makes.
        AND NOT (defaclobjtype = 'f' AND grantee = 0)
    ORDER BY 1, 2, 3, 4"""


def examine_other_roles(look: Look) -> Iterator[Finding]:
    """Roles beyond owner and scheduler that can write the ledger, read a personal column or act as the owner."""
    by_role: dict[str, list[Row[Any]]] = defaultdict(list)
    for row in look.connection.execute(text(_TRUSTED + _GRANTED), _PARAMETERS):
        by_role[row.grantee].append(row)
    for role, rows in by_role.items():
        if not all(row.object.startswith(_CLOCKS_FUNCTION) for row in rows):
            yield Finding("roles", Status.PROBLEM, _sentence(role, rows), "; ".join(_revokes(role, rows)))
    for row in look.connection.execute(text(_TRUSTED + _OWNED), _PARAMETERS):
        sentence = f"The table {row.object} belongs to the role {row.role}, which may do with it what it likes."
        yield Finding("roles", Status.PROBLEM, sentence, f"ALTER TABLE {row.object} OWNER TO {row.owner}")
    for row in look.connection.execute(text(_TRUSTED + _ALL_DATA), _PARAMETERS):
        what = _WHAT["read" if row.role == "pg_read_all_data" else "write"]
        sentence = f"The role {row.member} is a member of {row.role}, and so has the right {what}."
        yield Finding("roles", Status.PROBLEM, sentence, f"REVOKE {row.role} FROM {row.member}")
    for row in look.connection.execute(text(_TRUSTED + _DEFAULTS), _PARAMETERS):
        where = f" IN SCHEMA {SCHEMA}" if row.is_of_schema else ""
        whom = "everybody" if row.grantee == "PUBLIC" else f"the role {row.grantee}"
        sentence = f"What {row.maker} creates in the schema {SCHEMA} is open to {whom}: default privileges on"
        sentence = f"{sentence} {row.objects.lower()}."
        remedy = f"ALTER DEFAULT PRIVILEGES FOR ROLE {row.maker}{where} REVOKE ALL ON {row.objects} FROM {row.grantee}"
        yield Finding("roles", Status.PROBLEM, sentence, remedy)


def _sentence(role: str, rows: Sequence[Row[Any]]) -> str:
    parts = []
    for what, words in _WHAT.items():
        objects = list(dict.fromkeys(row.object for row in rows if row.what == what))
        if objects:
            more = f" and {len(objects) - 1} more" if len(objects) > 1 else ""
            parts.append(f"{words} ({objects[0]}{more})")
    whose = "Everybody has" if role == "PUBLIC" else f"The role {role} has"
    members = rows[0].members
    joined = f"; its members have them too: {', '.join(members)}" if members else ""
    return f"{whose} rights that only owner and scheduler need: {', '.join(parts)}{joined}."


def _revokes(role: str, rows: Sequence[Row[Any]]) -> Iterator[str]:
    """Yield the fewest statements that take exactly these rights away."""
    whole = {(row.object, row.privilege) for row in rows if row.column_name is None}
    rights: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        if row.column_name is None:
            rights[row.class_, row.object].append(row.privilege)
        # A right on a table is taken back with those on its columns.
        elif (row.object, row.privilege) not in whole:
            rights[row.class_, row.object].append(f"{row.privilege} ({row.column_name})")
    handed_on = {row.object for row in rows if row.is_grantable}
    alike: dict[tuple[str, str, bool], list[str]] = defaultdict(list)
    for (class_, name), privileges in rights.items():
        alike[class_, ", ".join(dict.fromkeys(privileges)), name in handed_on].append(name)
    for (class_, listed, cascades), names in alike.items():
        end = " CASCADE" if cascades else ""
        yield f"REVOKE {listed} ON {class_}{', '.join(names)} FROM {role}{end}"
