"""The statement that decides and dispatches a page (contract sections 3 and 4), and its halves as functions.

Belongs here: SQL, built once a process. Does not belong here: running it (`engines.sql`), or what makes a scenario due
(`scenarios`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import date
from functools import cache
from hashlib import sha256
from typing import Any

from sqlalchemy import (
    ARRAY,
    Connection,
    Date,
    Executable,
    FromClause,
    Integer,
    Text,
    Uuid,
    bindparam,
    case,
    cast,
    column,
    exists,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    text,
    true,
    union_all,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.exc import CompileError

from scenario_pipeline.batch_stats import DISPATCHED
from scenario_pipeline.errors import ErrorInfo, ErrorType, SystemicError
from scenario_pipeline.scenarios import registry
from scenario_pipeline.storage import source
from scenario_pipeline.storage.database import UPGRADE_COMMAND
from scenario_pipeline.storage.roles import PERSONAL_COLUMNS, SCHEDULER
from scenario_pipeline.storage.source import Access
from scenario_pipeline.storage.tables import (
    SCHEMA,
    scenario_evaluation_config,
    scenario_notifications,
    source_mentors,
    source_metadata,
)

# The cooldown window of a mentor's first notification starts here (contract section 4).
FIRST_WINDOW = date(1970, 1, 1)
EVALUATED, LOST_RACE = "evaluated", "lost_race"
_KEY = Uuid(as_uuid=False)
_KEYS = ARRAY(_KEY)
_MATCH = (
    column("user_id", _KEY),
    column("threshold", Integer),
    column("crossed_on", Date),
    column("dedup_key", Text),
)
# Longer names are cut by Postgres, two of them perhaps to the same.
_MAX_IDENTIFIER = 63
_PERSONAL = re.compile(rf"\b({'|'.join(PERSONAL_COLUMNS)})\b")
_QUOTE = "$scenario_pipeline$"


@cache
def decision_statement(scenario_types: tuple[str, ...], access: Access, by_mentor: bool = False) -> Executable:
    """Build the statement that decides and dispatches for a list of mentors.

    Parameters of the statement: `mentor_ids` (uuid[]), `evaluation_date`, `invocation_id`. It returns rows
    (`counted_for`, `scenario_type`, `outcome`, `n`, `mentor_ids`): one a group of matches with the same outcome, with
    the mentors listed where the outcome is a lost race, and one a group with the mentors evaluated. The groups are
    organisations, or mentors where `by_mentor` asks for it. The source is read as `access` says.
    """
    evaluation_date = cast(bindparam("evaluation_date"), Date)
    mentor_ids = cast(bindparam("mentor_ids"), _KEYS)
    sent = scenario_notifications
    asked = select(func.unnest(mentor_ids, type_=_KEY).label("user_id")).subquery("asked")
    mentor = source.mentors(access, mentor_ids)
    # Left join: a mentor who left since the list was made is evaluated, and matches nothing.
    page = (
        select(asked.c.user_id, mentor.c.organisation_id, mentor.c.joined_on, mentor.c.notifications_opt_out)
        .select_from(asked)
        .join(mentor, (mentor.c.id == asked.c.user_id) & (mentor.c.status == "active"), isouter=True)
        .cte("page")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    configuration = _configuration(page, scenario_types)
    found = {name: _matches(name, access, page, configuration, mentor_ids, evaluation_date) for name in scenario_types}
    due = union_all(*(_due(name, matches, page, configuration) for name, matches in found.items())).cte("due")
    previous = (
        select(func.max(sent.c.evaluation_date).label("on"))
        .where(sent.c.user_id == due.c.user_id, sent.c.scenario_type == due.c.scenario_type)
        .lateral("previous")
    )
    is_duplicate = exists().where(
        sent.c.user_id == due.c.user_id,
        sent.c.scenario_type == due.c.scenario_type,
        or_(sent.c.dedup_key == due.c.dedup_key, sent.c.evaluation_date == evaluation_date),
    )
    reason = case(
        # Whoever may have opted out is not sent anything.
        (page.c.notifications_opt_out.is_not(False), "opted_out"),
        (is_duplicate, "duplicate"),
        # A notification dated after the evaluation date holds as well: the distance is negative.
        (previous.c.on > evaluation_date - due.c.cooldown_days, "cooldown"),
    )
    decided = (
        select(due, page.c.organisation_id, previous.c.on.label("previous"), reason.label("reason"))
        .select_from(due)
        .join(page, page.c.user_id == due.c.user_id)
        .join(previous, true())
        .cte("decided")
    )
    dispatched = (
        insert(sent)
        .from_select(
            [
                sent.c.id,
                sent.c.user_id,
                sent.c.organisation_id,
                sent.c.scenario_type,
                sent.c.evaluation_date,
                sent.c.cooldown_window_start,
                sent.c.dedup_key,
                sent.c.threshold,
                sent.c.crossed_on,
                sent.c.invocation_id,
            ],
            select(
                func.gen_random_uuid(),
                decided.c.user_id,
                decided.c.organisation_id,
                decided.c.scenario_type,
                evaluation_date,
                func.coalesce(decided.c.previous, literal(FIRST_WINDOW, Date)),
                decided.c.dedup_key,
                decided.c.threshold,
                decided.c.crossed_on,
                cast(bindparam("invocation_id"), _KEY),
            )
            .where(decided.c.reason.is_(None))
            # One order for all writers: without it two overlapping pages deadlock.
            .order_by(decided.c.user_id, decided.c.scenario_type),
        )
        .on_conflict_do_nothing()
        .returning(sent.c.user_id, sent.c.scenario_type)
        .cte("dispatched")
    )
    outcome = case(
        (decided.c.reason.is_not(None), decided.c.reason),
        (dispatched.c.user_id.is_not(None), DISPATCHED),
        else_=LOST_RACE,
    )
    matches = (
        select(
            decided.c.user_id,
            (decided.c.user_id if by_mentor else decided.c.organisation_id).label("counted_for"),
            decided.c.scenario_type,
            outcome.label("outcome"),
        )
        .select_from(decided)
        .join(
            dispatched,
            (dispatched.c.user_id == decided.c.user_id) & (dispatched.c.scenario_type == decided.c.scenario_type),
            isouter=True,
        )
        .subquery("matches")
    )
    evaluated_for = page.c.user_id if by_mentor else page.c.organisation_id
    return union_all(
        select(
            evaluated_for.label("counted_for"),
            cast(null(), Text).label("scenario_type"),
            literal(EVALUATED).label("outcome"),
            func.count().label("n"),
            cast(null(), _KEYS).label("mentor_ids"),
        ).group_by(evaluated_for),
        select(
            matches.c.counted_for,
            matches.c.scenario_type,
            matches.c.outcome,
            func.count(),
            func.array_agg(matches.c.user_id, type_=_KEYS).filter(matches.c.outcome == LOST_RACE),
        ).group_by(matches.c.counted_for, matches.c.scenario_type, matches.c.outcome),
    )


def _configuration(page: FromClause, scenario_types: Sequence[str]) -> FromClause:
    """Select the configuration that holds for each organisation of the page: a row a scenario, disabled ones too."""
    config = scenario_evaluation_config
    members = select(page.c.organisation_id).distinct().subquery("members")
    # An organisation's row overrides the default row as a whole: NULLs sort last, so its own row comes first.
    return (
        select(
            members.c.organisation_id,
            config.c.scenario_type,
            config.c.enabled,
            config.c.thresholds,
            config.c.lookback_days,
            config.c.cooldown_days,
        )
        .join(config, or_(config.c.organisation_id == members.c.organisation_id, config.c.organisation_id.is_(None)))
        .where(config.c.scenario_type.in_(scenario_types), members.c.organisation_id.is_not(None))
        .ext(distinct_on(members.c.organisation_id, config.c.scenario_type))
        .order_by(members.c.organisation_id, config.c.scenario_type, config.c.organisation_id.nulls_last())
        .cte("configuration")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )


def _own(name: str, configuration: FromClause) -> FromClause:
    """Select the enabled configuration of one scenario."""
    return (
        select(
            configuration.c.organisation_id,
            configuration.c.thresholds,
            configuration.c.lookback_days,
            configuration.c.cooldown_days,
        )
        .where(configuration.c.scenario_type == name, configuration.c.enabled)
        .subquery()
    )


def _matches(
    name: str, access: Access, page: FromClause, configuration: FromClause, mentor_ids: Any, evaluation_date: Any
) -> FromClause:
    """Select the matches of one scenario: user_id, threshold, crossed_on, dedup_key."""
    if access is Access.FUNCTIONS:
        return source.called(function_name(name), "found", _MATCH, mentor_ids, evaluation_date)
    # Without a name of its own: a scenario may be called as something else in the statement is.
    return registry()[name].matches(page, _own(name, configuration), evaluation_date).subquery()


def _due(name: str, matches: FromClause, page: FromClause, configuration: FromClause) -> Any:
    """Select the matches of one scenario with the name and the cooldown that apply to them."""
    own = _own(name, configuration)
    return (
        select(
            matches.c.user_id,
            literal(name).label("scenario_type"),
            matches.c.threshold,
            matches.c.crossed_on,
            matches.c.dedup_key,
            own.c.cooldown_days,
        )
        .select_from(matches)
        .join(page, page.c.user_id == matches.c.user_id)
        .join(own, own.c.organisation_id == page.c.organisation_id)
    )


def function_name(scenario_type: str) -> str:
    """Return the name of the function that finds a scenario's matches with the owner's rights."""
    name = f"due_{scenario_type}"
    if len(name) <= _MAX_IDENTIFIER:
        return name
    return f"{name[: _MAX_IDENTIFIER - 9]}_{sha256(scenario_type.encode()).hexdigest()[:8]}"


def _function_body(name: str) -> str | None:
    """Return the select of a function's matches; `$1` are mentors, `$2` is the evaluation date.

    None if a value in it cannot be written out, or if it names a personal column: then this scenario needs a role that
    passes row-level security.
    """
    mentor = source_mentors
    page = (
        select(
            mentor.c.id.label("user_id"), mentor.c.organisation_id, mentor.c.joined_on, mentor.c.notifications_opt_out
        )
        .where(mentor.c.id == func.any(literal_column("$1", _KEYS)), mentor.c.status == "active")
        .cte("page")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    configuration = _configuration(page, [name])
    found = registry()[name].matches(page, _own(name, configuration), literal_column("$2", Date)).subquery()
    # `named`: the other styles double a percent sign.
    dialect = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
    statement = select(*(found.c[c.name] for c in _MATCH))
    try:
        compiled = statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    except (CompileError, NotImplementedError):
        return None
    # With the owner's rights it could read what the scheduler's role may not.
    return None if _PERSONAL.search(str(compiled)) else f"\n{compiled}\n"


def _signature(name: str) -> str:
    """Return a scenario's function with the types of its arguments."""
    return f"{function_name(name)}(uuid[], date)"


def _present_body(connection: Connection, name: str) -> str | None:
    """Return what a scenario's function in this database consists of, or None if there is none."""
    statement = text("SELECT prosrc FROM pg_proc WHERE oid = to_regprocedure(:function)")
    body: str | None = connection.execute(statement, {"function": f"{SCHEMA}.{_signature(name)}"}).scalar_one_or_none()
    return body


def replace_functions(connection: Connection) -> list[str]:
    """Make the functions of all installed scenarios anew; the current role owns the schema.

    Returns:
        Their names with the types of their arguments.
    """
    # Like the select in a run, a function may name what is not there yet: that is for the run to report.
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
        # Neither colons nor percent signs of the body are parameters.
        connection.exec_driver_sql(statement.replace("%", "%%"))
    return made


def unfit_functions(connection: Connection, scenario_types: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield a sentence and its remedy for each scenario whose function is not what this code would make."""
    for name in scenario_types:
        body = _function_body(name)
        if body is None:
            yield f"the scenario {name} cannot be a function", f"ALTER ROLE {SCHEDULER} BYPASSRLS"
            continue
        if _present_body(connection, name) != body:
            yield f"the function of the scenario {name} is not this release's", UPGRADE_COMMAND


def readings(access: Access) -> Iterator[tuple[str, Executable]]:
    """Yield what an evaluation reads of the source, by name, with a statement that fails where that is not allowed.

    No row is returned.
    """
    if access is Access.VIEWS:
        for view in source_metadata.tables.values():
            yield view.fullname, select(view).limit(0)
        return
    nobody = source.keys(())
    yield f"{SCHEMA}.organisations_of", select(source.organisations(access, ()))
    yield f"{SCHEMA}.mentors_of", select(source.mentors(access, nobody))
    for name in registry():
        function = function_name(name)
        found = source.called(function, "found", _MATCH, nobody, cast(literal(FIRST_WINDOW), Date))
        yield f"{SCHEMA}.{function}", select(found)


def check_source(connection: Connection, scenario_types: Sequence[str]) -> None:
    """Refuse a source that cannot be read as these scenarios need it.

    Raises:
        SystemicError: a view does not fit, the role may not read it, or a function is not this code's; with a sentence.
    """
    source.check_views(connection)
    if source.access_of(connection) is Access.FUNCTIONS:
        for sentence, remedy in unfit_functions(connection, scenario_types):
            raise SystemicError(ErrorInfo(ErrorType.DATABASE, f"{sentence}: run {remedy}"))
        source.check_functions(connection)
