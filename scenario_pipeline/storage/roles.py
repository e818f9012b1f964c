"""The roles of an installation and what each may do (contract section 2; docs/how-to/install.md).

Belongs here: the grants, stated once for the code that gives them and the code that checks them. Does not belong here:
creating the roles, which is in `roles.sql`, since an administrator may have to run it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, text

from scenario_pipeline.storage.tables import SCHEMA, metadata, source_metadata

OWNER, SCHEDULER, READER = "scenario_owner", "scenario_scheduler", "scenario_reader"
ROLES = (OWNER, SCHEDULER, READER)
ROLES_FILE = Path(__file__).parent / "roles.sql"
# Names, addresses and telephone numbers of people: no role but the owner may read them.
PERSONAL_COLUMNS = ("full_name", "email", "phone")
VERSION_TABLE = "alembic_version"
SOURCE_TABLES = ("organisations", "peer_mentors", "mentor_activities", "mentor_certifications")
# The tables that are evaluated and come with the project; a user may put others behind the views.
SOURCE = frozenset({*SOURCE_TABLES, *(view.name for view in source_metadata.tables.values())})
# They act with the owner's rights, so only the named roles may call them. The same holds for `request_scheduler_run`,
# but the role of the clock that requests runs is chosen by the installation.
SCHEDULERS_FUNCTIONS = (
    "active_mentors(date, uuid[])",
    "activities_plan()",
    "mentors_of(uuid[])",
    "mentors_summary()",
    "organisations_of(uuid[])",
    "remove_old_replies(interval, int)",
)


@dataclass(frozen=True)
class Grant:
    """One privilege that a role needs on one table or view.

    Attributes:
        role: the role that needs it.
        privilege: `SELECT`, `INSERT` or `UPDATE`.
        relation: table or view of the schema `scenario`.
        columns: the columns to which it is limited; empty for all.
    """

    role: str
    privilege: str
    relation: str
    columns: tuple[str, ...] = ()

    def __str__(self) -> str:
        of = f" ({', '.join(self.columns)})" if self.columns else ""
        return f"{self.privilege}{of} ON {SCHEMA}.{self.relation}"


def _grants() -> Iterator[Grant]:
    for view in source_metadata.tables.values():
        yield Grant(SCHEDULER, "SELECT", view.name)
    # The views read with the rights of the role that queries them.
    for table in SOURCE_TABLES:
        columns = tuple(column.name for column in metadata.tables[f"{SCHEMA}.{table}"].columns)
        open_ones = tuple(name for name in columns if name not in PERSONAL_COLUMNS)
        yield Grant(SCHEDULER, "SELECT", table, open_ones if open_ones != columns else ())
    for table, privileges in {
        "scenario_notifications": ("SELECT", "INSERT"),
        "scheduler_runs": ("SELECT", "INSERT", "UPDATE"),
        "scheduler_run_pages": ("SELECT", "INSERT", "UPDATE"),
        "trigger_engine_replies": ("SELECT", "INSERT", "UPDATE"),
        "scheduler_run_requests": ("SELECT",),
        "scenario_evaluation_config": ("SELECT",),
        VERSION_TABLE: ("SELECT",),
    }.items():
        for privilege in privileges:
            yield Grant(SCHEDULER, privilege, table)
    yield Grant(SCHEDULER, "UPDATE", "scheduler_run_requests", ("invocation_id", "refusal"))
    yield Grant(SCHEDULER, "UPDATE", "scenario_evaluation_config", ("last_evaluated_count", "last_evaluated_at"))
    for table in (
        "scenario_notifications",
        "scheduler_runs",
        "scheduler_run_pages",
        "scheduler_run_requests",
        "scenario_evaluation_config",
        "organisations",
        "source_organisations",
        VERSION_TABLE,
    ):
        yield Grant(READER, "SELECT", table)


GRANTS = tuple(_grants())


def may_create_roles(connection: Connection) -> bool:
    """Whether the current role may create roles."""
    statement = text("SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user")
    return bool(connection.execute(statement).scalar_one())


def may_upgrade(connection: Connection) -> bool:
    """Whether the current role may act as the owner of the schema, or there is no schema yet."""
    statement = text("SELECT bool_and(pg_has_role(nspowner, 'USAGE')) FROM pg_namespace WHERE nspname = :schema")
    return connection.execute(statement, {"schema": SCHEMA}).scalar_one() is not False


def create_roles(connection: Connection) -> None:
    """Create the missing roles, as an administrator would with `roles.sql`."""
    connection.execute(text(ROLES_FILE.read_text(encoding="utf-8")))


def existing_roles(connection: Connection) -> list[str]:
    """Return which of the three roles exist on the server."""
    statement = text("SELECT rolname FROM pg_roles WHERE rolname = ANY (:names) ORDER BY rolname")
    return list(connection.execute(statement, {"names": list(ROLES)}).scalars())


def become_owner(connection: Connection) -> None:
    """Give the schema to `scenario_owner`, and act as its owner until the transaction ends.

    Only objects that the current role created are given away, and only if it may act as `scenario_owner`. A role that
    upgrades without that right remains the owner.
    """
    connection.execute(text(_HAND_OVER))
    owner = connection.execute(
        text("SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = :schema"), {"schema": SCHEMA}
    ).scalar_one()
    may = text("SELECT pg_has_role(to_regrole(:owner), 'MEMBER') AND to_regrole(:owner) <> current_user::regrole")
    if connection.execute(may, {"owner": owner}).scalar_one():
        connection.execute(text(f"SET LOCAL ROLE {owner}"))


_HAND_OVER = """
DO $$
DECLARE
    object text;
BEGIN
    IF to_regrole('scenario_owner') IS NULL OR current_user = 'scenario_owner'
        OR NOT pg_has_role('scenario_owner', 'MEMBER')
        OR (SELECT nspowner FROM pg_namespace WHERE nspname = 'scenario') <> current_user::regrole THEN
        RETURN;
    END IF;
    ALTER SCHEMA scenario OWNER TO scenario_owner;
    FOR object IN
        SELECT format('TABLE %s', oid::regclass) FROM pg_class
            WHERE relnamespace = 'scenario'::regnamespace AND relkind IN ('r', 'p')
                AND relowner = current_user::regrole
        UNION ALL SELECT format('FUNCTION %s', oid::regprocedure) FROM pg_proc
            WHERE pronamespace = 'scenario'::regnamespace AND proowner = current_user::regrole
    LOOP
        EXECUTE format('ALTER %s OWNER TO scenario_owner', object);
    END LOOP;
EXCEPTION WHEN insufficient_privilege THEN
    NULL;
END $$
"""


def lacks(connection: Connection, role: str, needed: Grant) -> bool:
    """Whether a role lacks the privilege of a grant; also true if the table or view does not exist."""
    statement = text(
        "SELECT coalesce(bool_and(coalesce(CASE WHEN name = '' THEN has_table_privilege(:role, c.oid, :privilege) "
        "ELSE has_column_privilege(:role, c.oid, name, :privilege) END, false)), false) "
        "FROM pg_class c, unnest(CAST(:columns AS text[])) AS name WHERE c.oid = to_regclass(:relation) "
        "AND (name = '' OR EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attname = name))"
    )
    parameters = {
        "role": role,
        "privilege": needed.privilege,
        "relation": f"{SCHEMA}.{needed.relation}",
        "columns": list(needed.columns) or [""],
    }
    return not connection.execute(statement, parameters).scalar_one()


def may_execute(connection: Connection, role: str, function: str) -> bool:
    """Whether a role may call a function of the schema, given as name and argument types."""
    statement = text("SELECT coalesce(has_function_privilege(:role, to_regprocedure(:function), 'EXECUTE'), false)")
    parameters = {"role": role, "function": f"{SCHEMA}.{function}"}
    return bool(connection.execute(statement, parameters).scalar_one())


def grant(connection: Connection, scheduler_functions: Sequence[str]) -> None:
    """Give existing roles the privileges that they lack; the current role owns the schema.

    Existing grants are not repeated, so an upgrade with nothing to do takes no lock. A view with another owner is
    skipped, because only its owner can grant on it.

    Args:
        connection: inside a transaction.
        scheduler_functions: further functions of the schema for the scheduler, as name and argument types.
    """
    existing = existing_roles(connection)
    owned = text(
        "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(:schema) AND pg_has_role(relowner, 'USAGE')"
    )
    relations = set(connection.execute(owned, {"schema": SCHEMA}).scalars())
    uses = text("SELECT has_schema_privilege(:role, :schema, 'USAGE')")
    statements = [
        f"GRANT USAGE ON SCHEMA {SCHEMA} TO {role}"
        for role in (SCHEDULER, READER)
        if role in existing and not connection.execute(uses, {"role": role, "schema": SCHEMA}).scalar_one()
    ]
    statements += [
        f"GRANT {needed} TO {needed.role}"
        for needed in GRANTS
        if needed.role in existing and needed.relation in relations and lacks(connection, needed.role, needed)
    ]
    for function in (*SCHEDULERS_FUNCTIONS, *scheduler_functions):
        is_open = may_execute(connection, "public", function)
        if is_open:
            statements.append(f"REVOKE ALL ON FUNCTION {SCHEMA}.{function} FROM PUBLIC")
        if SCHEDULER in existing and (is_open or not may_execute(connection, SCHEDULER, function)):
            statements.append(f"GRANT EXECUTE ON FUNCTION {SCHEMA}.{function} TO {SCHEDULER}")
    policies = text("SELECT count(*) FROM pg_policies WHERE schemaname = :schema AND policyname = :name")
    if READER in existing and not connection.execute(policies, {"schema": SCHEMA, "name": READER}).scalar_one():
        statements.append(f"CREATE POLICY {READER} ON {SCHEMA}.organisations FOR SELECT TO {READER} USING (true)")
    for statement in statements:
        connection.execute(text(statement))
