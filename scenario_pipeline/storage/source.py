"""The source: the part of an organisation's own data that an evaluation reads (contract section 2).

Belongs here: the four views, whether they fit, and how a role reads them. It reads the views themselves or, if
row-level security restricts the role, functions with the owner's rights. Does not belong here: what is due.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import date
from enum import Enum
from hashlib import sha256
from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnClause,
    ColumnElement,
    Connection,
    Date,
    FromClause,
    Integer,
    Text,
    Uuid,
    cast,
    column,
    func,
    literal,
    select,
    text,
)

from scenario_pipeline.errors import ErrorInfo, ErrorType, SystemicError
from scenario_pipeline.storage import columns
from scenario_pipeline.storage.tables import SCHEMA, source_mentors, source_metadata, source_organisations

_KEY = Uuid(as_uuid=False)


class Access(Enum):
    """How a role reads the source."""

    VIEWS = "the views, with its own rights"
    FUNCTIONS = "functions, with the rights of the owner"


def access_of(connection: Connection) -> Access:
    """Return how this connection's role reads the source; determined once for each connection.

    A role to which policies may apply uses the functions if it may call them. Rows are never left out silently: since
    `row_security` is off in every session, a statement that reads a table with hidden rows fails.

    Raises:
        SystemicError: `row_security` is on in this session, so a policy could hide rows.
    """
    if _ACCESS not in connection.info:
        # Looked up in the catalog, because reading the views would wait for any session that has locked their tables.
        passes_policies, may_call, row_security = connection.execute(_RIGHTS).one()
        if row_security != "off":
            raise SystemicError(_OPTIONS_IGNORED)
        connection.info[_ACCESS] = Access.FUNCTIONS if may_call and not passes_policies else Access.VIEWS
    access: Access = connection.info[_ACCESS]
    return access


_ACCESS = "scenario_access"
# Some poolers drop the startup options of a session, or pass on a session that another client has changed.
_OPTIONS_IGNORED = ErrorInfo(
    ErrorType.DATABASE,
    "row_security is on in this session, which was started with off: "
    "where a pooler has dropped the options of a session, run ALTER ROLE ... SET row_security = off",
)
# A mentor whom a view returns twice would be counted twice, but notified once.
AMBIGUOUS = ErrorInfo(
    ErrorType.DATABASE, "the view scenario.source_mentors has a mentor twice or without id: define the view again"
)
_RIGHTS = text(
    "SELECT rolsuper OR rolbypassrls OR pg_has_role(nspowner, 'USAGE'), "
    "coalesce(has_function_privilege(to_regprocedure('scenario.mentors_of(uuid[])'), 'EXECUTE'), false), "
    "current_setting('row_security') "
    "FROM pg_roles, pg_namespace WHERE rolname = current_user AND nspname = 'scenario'"
)


def misfits(connection: Connection) -> Iterator[str]:
    """Yield one sentence for each view, and each column of one, that is missing or has another type than it must."""
    return columns.misfits(connection, source_metadata.tables.values(), "view")


def check_views(connection: Connection) -> None:
    """Refuse views that do not fit: a run would fail midway, or match nobody.

    Raises:
        SystemicError: the message names the first view and column.
    """
    for sentence in misfits(connection):
        raise SystemicError(ErrorInfo(ErrorType.DATABASE, f"{sentence}: define the view again"))


def check_functions(connection: Connection) -> None:
    """Refuse functions that would leave out rows which a policy hides from their owner.

    Raises:
        SystemicError: the message names the first one.
    """
    statement = text(
        "SELECT proname FROM pg_proc WHERE pronamespace = to_regnamespace(:schema) AND prosecdef "
        "AND NOT coalesce('row_security=off' = ANY (proconfig), false) ORDER BY 1 LIMIT 1"
    )
    name = connection.execute(statement, {"schema": SCHEMA}).scalar_one_or_none()
    if name is not None:
        sentence = f"the function {SCHEMA}.{name} has row_security on: run scenario-pipeline doctor"
        raise SystemicError(ErrorInfo(ErrorType.DATABASE, sentence))


def reads_bundled_tables(connection: Connection) -> bool:
    """Whether all four views read only the tables that come with the project."""
    statement = text(
        "SELECT count(DISTINCT v.oid) FROM pg_class v JOIN pg_rewrite r ON r.ev_class = v.oid "
        "JOIN pg_depend d ON d.objid = r.oid AND d.classid = 'pg_rewrite'::regclass "
        "AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> v.oid "
        "JOIN pg_class t ON t.oid = d.refobjid AND t.relkind IN ('r', 'p') "
        "WHERE v.relnamespace = to_regnamespace(:schema) AND t.relnamespace = v.relnamespace "
        "AND v.relname = ANY (:views)"
    )
    views = [view.name for view in source_metadata.tables.values()]
    found: int = connection.execute(statement, {"schema": SCHEMA, "views": views}).scalar_one()
    return found == len(views)


def mentors(access: Access, mentor_ids: ColumnElement[Any]) -> FromClause:
    """Return a relation with the columns of `source_mentors` and at least these mentors, as far as they exist."""
    if access is Access.VIEWS:
        return source_mentors
    return called("mentors_of", "mentors", source_mentors.columns, mentor_ids)


def organisations(access: Access, organisation_ids: Collection[str]) -> FromClause:
    """Return a relation with the columns of `source_organisations` and at least these, as far as they exist."""
    if access is Access.VIEWS:
        return source_organisations
    return called("organisations_of", "organisations", source_organisations.columns, keys(organisation_ids))


def active_mentors(access: Access, evaluation_date: date, organisation_ids: Collection[str]) -> FromClause:
    """Return a relation of the ids of the mentors to evaluate on a date; no organisations means all."""
    if access is Access.FUNCTIONS:
        wanted = (literal(evaluation_date), keys(organisation_ids))
        return called("active_mentors", "active", [source_mentors.c.id], *wanted)
    mentor = source_mentors
    statement = select(mentor.c.id).where(mentor.c.status == "active", mentor.c.joined_on <= evaluation_date)
    if organisation_ids:
        statement = statement.where(mentor.c.organisation_id.in_(organisation_ids))
    return statement.subquery("active")


def keys(values: Collection[str]) -> ColumnElement[Any]:
    """Return ids as a Postgres array."""
    return cast(list(values), ARRAY(_KEY))


def called(name: str, alias: str, columns: Iterable[ColumnClause[Any]], *arguments: ColumnElement[Any]) -> FromClause:
    """Return the rows of a set-returning function of the schema, with the names and types of `columns`."""
    function = getattr(func.scenario, name)(*arguments)
    found: FromClause = function.table_valued(*(column(c.name, c.type) for c in columns), name=alias)
    return found


def unknown_organisations(connection: Connection, organisation_ids: tuple[str, ...]) -> list[str]:
    """Return those ids that belong to no organisation."""
    return sorted(set(organisation_ids) - organisation_names(connection, organisation_ids).keys())


def organisations_of(connection: Connection, mentor_ids: Sequence[str]) -> dict[str, str]:
    """Return the organisation of each active mentor among these."""
    asked = keys(mentor_ids)
    mentor = mentors(access_of(connection), asked)
    statement = select(mentor.c.id, mentor.c.organisation_id).where(
        mentor.c.id == func.any(asked), mentor.c.status == "active"
    )
    return {row.id: row.organisation_id for row in connection.execute(statement)}


def organisation_names(connection: Connection, organisation_ids: Collection[str]) -> dict[str, str]:
    """Return the names of organisations by id."""
    table = organisations(access_of(connection), organisation_ids)
    rows = connection.execute(select(table.c.id, table.c.name).where(table.c.id.in_(organisation_ids)))
    return {row.id: row.name for row in rows}


# What a scenario's select returns.
MATCH_COLUMNS = (
    column("user_id", _KEY),
    column("threshold", Integer),
    column("crossed_on", Date),
    column("dedup_key", Text),
)


# Postgres truncates longer names, and two of them could become equal.
_MAX_IDENTIFIER = 63


def function_name(scenario_type: str) -> str:
    """Return the name of the function that finds a scenario's matches with the owner's rights."""
    name = f"due_{scenario_type}"
    if len(name) <= _MAX_IDENTIFIER:
        return name
    return f"{name[: _MAX_IDENTIFIER - 9]}_{sha256(scenario_type.encode()).hexdigest()[:8]}"
