"""Scenario selects as SECURITY DEFINER functions, for a scheduler that row-level security restricts.

Belongs here: making these functions from the selects, and comparing existing functions with this release. Does not
belong here: calling them in a page's statement (`engines.statement`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, Date, func, literal_column, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import CompileError

from scenario_pipeline.engines.statement import KEYS, configuration_of, own_configuration
from scenario_pipeline.scenarios import registry
from scenario_pipeline.storage.database import UPGRADE_COMMAND
from scenario_pipeline.storage.roles import PERSONAL_COLUMNS, SCHEDULER
from scenario_pipeline.storage.source import MATCH_COLUMNS, function_name
from scenario_pipeline.storage.tables import SCHEMA, source_mentors

_PERSONAL = re.compile(rf"\b({'|'.join(PERSONAL_COLUMNS)})\b")
_QUOTE = "$scenario_pipeline$"


def _function_body(name: str) -> str | None:
    """Return the select of a function's matches; `$1` holds the mentors, `$2` the evaluation date.

    None if a value in it cannot be written out, or if it names a personal column. Then this scenario needs a role that
    bypasses row-level security.
    """
    mentor = source_mentors
    page = (
        select(
            mentor.c.id.label("user_id"), mentor.c.organisation_id, mentor.c.joined_on, mentor.c.notifications_opt_out
        )
        .where(mentor.c.id == func.any(literal_column("$1", KEYS)), mentor.c.status == "active")
        .cte("page")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    configuration = configuration_of(page, [name])
    found = (
        registry()[name].matches(page, own_configuration(name, configuration), literal_column("$2", Date)).subquery()
    )
    # `named`, because the other styles double a percent sign.
    dialect = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
    statement = select(*(found.c[c.name] for c in MATCH_COLUMNS))
    try:
        compiled = statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    except (CompileError, NotImplementedError):
        return None
    # With the owner's rights, it could read columns that the scheduler's role may not read.
    return None if _PERSONAL.search(str(compiled)) else f"\n{compiled}\n"


def _signature(name: str) -> str:
    """Return the name of a scenario's function with its argument types."""
    return f"{function_name(name)}(uuid[], date)"


def _present_body(connection: Connection, name: str) -> str | None:
    """Return the body of a scenario's function in this database, or None if there is none."""
    statement = text("SELECT prosrc FROM pg_proc WHERE oid = to_regprocedure(:function)")
    body: str | None = connection.execute(statement, {"function": f"{SCHEMA}.{_signature(name)}"}).scalar_one_or_none()
    return body


def replace_functions(connection: Connection) -> list[str]:
    """Create or replace the functions of all installed scenarios; the current role owns the schema.

    Returns:
        Their names with their argument types.
    """
    # A function may name a relation that does not exist yet. The select in a run may do so too, and the run reports it.
    connection.execute(text("SET LOCAL check_function_bodies = off"))
    made = []
    for name in registry():
        body = _function_body(name)
        if body is None:
            continue
        made.append(_signature(name))
        if _present_body(connection, name) == body:
            continue
        statement = (
            f"CREATE OR REPLACE FUNCTION {SCHEMA}.{function_name(name)}(mentor_ids uuid[], evaluation_date date) "
            "RETURNS TABLE (user_id uuid, threshold int, crossed_on date, dedup_key text) LANGUAGE sql STABLE "
            "SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off "
            f"AS {_QUOTE}{body}{_QUOTE}"
        )
        # Colons and percent signs in the body are not parameters.
        connection.exec_driver_sql(statement.replace("%", "%%"))
    return made


def unfit_functions(connection: Connection, scenario_types: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield a sentence and its remedy for each scenario whose function differs from what this code would create."""
    for name in scenario_types:
        body = _function_body(name)
        if body is None:
            yield f"the scenario {name} cannot be a function", f"ALTER ROLE {SCHEDULER} BYPASSRLS"
            continue
        if _present_body(connection, name) != body:
            yield f"the function of the scenario {name} is not this release's", UPGRADE_COMMAND
