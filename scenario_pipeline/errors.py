"""The one place where foreign errors are translated into the failure taxonomy of `failures`.

Belongs here: `classify`, which distinguishes foreign exceptions by class, SQLSTATE and errno. The taxonomy is
re-exported, so that code which translates imports one module. Does not belong here: what to do about a failure.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from typing import Any

import psycopg
import sqlalchemy.exc

from scenario_pipeline.failures import BudgetSpentError, ErrorInfo, ErrorType, SystemicError, UserError
from scenario_pipeline.sanitiser import sanitise
from scenario_pipeline.sqlstates import is_of_a_row

__all__ = ["BudgetSpentError", "ErrorInfo", "ErrorType", "SystemicError", "UserError", "classify"]


class NoConnectionError(psycopg.OperationalError):
    """A connection to a database that could not be made, with the reason in our own words (`storage.refusals`).

    Args:
        info: what the closing events report.
        remedy: what to do, for `doctor`; `{name}` stands for the variable that names the database, and `{address}` for
            the options of `pg_isready`.
    """

    def __init__(self, info: ErrorInfo, remedy: str) -> None:
        super().__init__(info.error_message)
        self.info, self.remedy = info, remedy


# psycopg uses PostgreSQL's condition names as class names: DivisionByZero -> division_by_zero.
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_TIMEOUT_STATES = frozenset({"57014", "55P03", "25P03", "25P04"})
# Classes whose primary message names schema objects and server settings, never a value of a row.
_NO_VALUES = ("25", "40", "42", "53", "55", "57")
_NETWORK_ERRNOS = frozenset({errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH})


def classify(exc: BaseException) -> ErrorInfo:
    """Translate any exception into an `ErrorInfo`, by fact and never by its message text.

    A driver's message may quote row values, so no foreign text is passed on. The sentence is built from SQLSTATE,
    condition name, constraint and table name, errno or the class of the exception.

    Args:
        exc: what was caught.

    Returns:
        The type, a sentence without any value of a row, and the SQLSTATE if there is one.
    """
    match exc:
        case SystemicError():
            return exc.info
        case BudgetSpentError():
            return ErrorInfo(ErrorType.TIMEOUT, "the time budget was spent")
        case UserError():
            return ErrorInfo(ErrorType.EVALUATION_LOGIC, str(exc))
        case sqlalchemy.exc.DBAPIError():
            return _classify_driver_error(exc.orig, disconnected=exc.connection_invalidated)
        case psycopg.Error():
            return _classify_driver_error(exc, disconnected=False)
        case sqlalchemy.exc.TimeoutError():
            return ErrorInfo(ErrorType.TIMEOUT, "no database connection became free in time")
        case TimeoutError():
            return ErrorInfo(ErrorType.TIMEOUT, "an operation timed out")
        case socket.gaierror():
            return ErrorInfo(ErrorType.NETWORK, "the name of a host could not be resolved")
        case ConnectionError():
            return ErrorInfo(ErrorType.NETWORK, _system_message(exc) or "a connection was refused or lost")
        case OSError():
            kind = ErrorType.NETWORK if exc.errno in _NETWORK_ERRNOS else ErrorType.EVALUATION_LOGIC
            return ErrorInfo(kind, _system_message(exc) or "the operating system refused an operation")
        case Exception(
            __cause__=sqlalchemy.exc.DBAPIError() as cause
        ):  # dagster-postgres wraps the error on which it gives up
            return classify(cause)
        case _:
            return ErrorInfo(ErrorType.EVALUATION_LOGIC, f"{type(exc).__name__} was raised; its text is withheld")


def _system_message(exc: OSError) -> str | None:
    return None if exc.errno is None else f"{os.strerror(exc.errno)} (errno {exc.errno})"


def _classify_driver_error(orig: BaseException | None, *, disconnected: bool) -> ErrorInfo:
    """Apply the table of SQLSTATEs; the codes are in the PostgreSQL manual, appendix A."""
    if isinstance(orig, NoConnectionError):
        return orig.info
    # psycopg 3 and psycopg2 (which Dagster uses) have different names for it.
    state = getattr(orig, "sqlstate", None) or getattr(orig, "pgcode", None)
    if isinstance(orig, psycopg.errors.ConnectionTimeout):
        return ErrorInfo(ErrorType.NETWORK, "the database did not answer the connection attempt in time")
    if state is None:
        if disconnected or (type(orig).__name__ == "OperationalError" and _is_unreachable(orig)):
            return ErrorInfo(ErrorType.NETWORK, "the connection to the database was refused or lost")
        return ErrorInfo(ErrorType.DATABASE, "the database refused the connection or the statement")
    sentence = f"SQLSTATE {state}"
    # psycopg gives a state that a rule invented the class of its whole family; that name would mislead.
    if type(orig).__module__.endswith(".errors"):
        sentence += f" {_CAMEL.sub('_', type(orig).__name__).lower()}"
    diagnostic = getattr(orig, "diag", None)
    if state.startswith(_NO_VALUES) and not is_of_a_row(state):
        reported = getattr(diagnostic, "message_primary", None)
        sentence += f": {_trusted(diagnostic, reported)}" if reported else ""
    if state == "22P05":
        sentence += ": the encoding of the database cannot represent a letter; use a database in UTF8"
    for label, value in (
        ("constraint", getattr(diagnostic, "constraint_name", None)),
        ("table", getattr(diagnostic, "table_name", None)),
    ):
        if value:
            sentence += f", {label} {_trusted(diagnostic, value)}"
    if state in _TIMEOUT_STATES:
        return ErrorInfo(ErrorType.TIMEOUT, sentence, state)
    if state.startswith(("08", "57P0")):
        return ErrorInfo(ErrorType.NETWORK, sentence, state)
    if is_of_a_row(state):
        return ErrorInfo(ErrorType.EVALUATION_LOGIC, sentence, state)
    return ErrorInfo(ErrorType.DATABASE, sentence, state)


# Files of the server's source whose messages and names are of objects in the catalog, settings and limits, read through
# in PostgreSQL 15 for the classes of `_NO_VALUES`. A rule or a trigger can put anything into the same fields; then the
# file is that of its language (`pl_exec.c` for PL/pgSQL).
_FILES_ABOUT_THE_CATALOG = frozenset(
    f"{name}.c"
    for name in (
        *("aclchk", "domains", "execExprInterp", "execIndexing", "execMain", "execPartition", "nbtinsert", "postgres"),
        *("postinit", "proc", "ri_triggers", "rls"),
    )
)
# Files whose messages name what a statement names. Only of a statement that this project sent: one that a trigger puts
# together may hold a person's name where a column's was meant. A cast to `regclass` or `regtype` quotes a value.
_FILES_ABOUT_THE_STATEMENT = frozenset(
    {"parse_func.c", "parse_oper.c", "parse_relation.c", "parse_target.c", "parse_type.c"}
)


def _trusted(diagnostic: Any, text: str) -> str:
    """Return text from the server itself unchanged; sanitise text that a rule may have written."""
    file = (getattr(diagnostic, "source_file", None) or "").rpartition("/")[2]
    # The server gives a position for a statement of the client's only, and an internal one for a rule's.
    is_of_ours = file in _FILES_ABOUT_THE_STATEMENT and getattr(diagnostic, "statement_position", None) is not None
    return text if is_of_ours or file in _FILES_ABOUT_THE_CATALOG else sanitise(text)


def _is_unreachable(orig: BaseException | None) -> bool:
    """Distinguish a server that cannot be reached from one that refuses.

    libpq gives no SQLSTATE for either while connecting. A server that answered sends `FATAL:`. It still counts as out
    of reach while it starts up, recovers or shuts down.
    """
    text = str(orig)
    if "FATAL" not in text:
        return True
    return any(word in text for word in ("starting up", "recovery", "shutting down"))
