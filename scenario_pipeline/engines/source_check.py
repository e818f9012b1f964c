"""Checks whether the source can be read as an evaluation needs it.

Belongs here: the checks of the views and functions before a run. Does not belong here: defining them (`storage.source`,
`engines.functions`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, Date, Executable, cast, literal, select

from scenario_pipeline.engines.functions import unfit_functions
from scenario_pipeline.errors import ErrorInfo, ErrorType, SystemicError
from scenario_pipeline.records import FIRST_WINDOW
from scenario_pipeline.scenarios import registry
from scenario_pipeline.storage import source
from scenario_pipeline.storage.source import MATCH_COLUMNS, Access, function_name
from scenario_pipeline.storage.tables import SCHEMA, source_metadata


def readings(access: Access) -> Iterator[tuple[str, Executable]]:
    """Yield each part of the source by name, with a statement that fails if the role may not read it.

    The statements return no rows.
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
        found = source.called(function, "found", MATCH_COLUMNS, nobody, cast(literal(FIRST_WINDOW), Date))
        yield f"{SCHEMA}.{function}", select(found)


def check_source(connection: Connection, scenario_types: Sequence[str]) -> None:
    """Refuse a source that cannot be read as these scenarios need it.

    Raises:
        SystemicError: a view does not fit, the role may not read it, or a function differs from this code.
    """
    source.check_views(connection)
    if source.access_of(connection) is Access.FUNCTIONS:
        for sentence, remedy in unfit_functions(connection, scenario_types):
            raise SystemicError(ErrorInfo(ErrorType.DATABASE, f"{sentence}: run {remedy}"))
        source.check_functions(connection)
