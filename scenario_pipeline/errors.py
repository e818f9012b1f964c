"""The one place where foreign errors are translated into the failure taxonomy of `failures`.

Belongs here: `classify`, which tells foreign exceptions apart by class, SQLSTATE and errno. The taxonomy is handed on,
so that code that translates imports one module. Does not belong here: what to do about a failure.
"""

from __future__ import annotations

import errno
import os
import re
import socket

import psycopg
import sqlalchemy.exc

from scenario_pipeline.failures import BudgetSpentError, ErrorInfo, ErrorType, SystemicError, UserError

__all__ = ["BudgetSpentError", "ErrorInfo", "ErrorType", "SystemicError", "UserError", "classify"]

# PostgreSQL's condition names stand in psycopg as class names: DivisionByZero -> division_by_zero.
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_TIMEOUT_STATES = frozenset({"57014", "55P03", "25P03", "25P04"})
_LOGIC_CLASSES = ("21", "22")
# Classes whose primary message names objects of the schema and settings of the server, never a value of a row.
_NO_VALUES = ("25", "40", "42", "53", "55", "57")
_NETWORK_ERRNOS = frozenset({errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH})
_LOGIC_STATES = frozenset({"P0001", "23502", "23514"})


def classify(exc: BaseException) -> ErrorInfo:
    """Translate any exception into an `ErrorInfo`, by fact and never by the text of its message.

    A driver's message may quote row values, so no foreign text is passed on: the sentence is built from SQLSTATE,
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
        case Exception(__cause__=sqlalchemy.exc.DBAPIError() as cause):  # as dagster-postgres wraps what it gives up on
            return classify(cause)
        case _:
            return ErrorInfo(ErrorType.EVALUATION_LOGIC, f"{type(exc).__name__} was raised; its text is withheld")


def _system_message(exc: OSError) -> str | None:
    return None if exc.errno is None else f"{os.strerror(exc.errno)} (errno {exc.errno})"


def _classify_driver_error(orig: BaseException | None, *, disconnected: bool) -> ErrorInfo:
    """Apply the table of SQLSTATEs: see the PostgreSQL manual, appendix A, for the codes."""
    # psycopg 3 and psycopg2, which Dagster speaks, call it differently.
    state = getattr(orig, "sqlstate", None) or getattr(orig, "pgcode", None)
    if isinstance(orig, psycopg.errors.ConnectionTimeout):
        return ErrorInfo(ErrorType.NETWORK, "the database did not answer the connection attempt in time")
    if state is None:
        if disconnected or (type(orig).__name__ == "OperationalError" and _is_unreachable(orig)):
            return ErrorInfo(ErrorType.NETWORK, "the connection to the database was refused or lost")
        return ErrorInfo(ErrorType.DATABASE, "the database refused the connection or the statement")
    name = _CAMEL.sub("_", type(orig).__name__).lower()
    sentence = f"SQLSTATE {state} {name}"
    diagnostic = getattr(orig, "diag", None)
    if state.startswith(_NO_VALUES) and (reported := getattr(diagnostic, "message_primary", None)):
        sentence += f": {reported}"
    for label, value in (
        ("constraint", getattr(diagnostic, "constraint_name", None)),
        ("table", getattr(diagnostic, "table_name", None)),
    ):
        if value:
            sentence += f", {label} {value}"
    if state in _TIMEOUT_STATES:
        return ErrorInfo(ErrorType.TIMEOUT, sentence, state)
    if state.startswith(("08", "57P0")):
        return ErrorInfo(ErrorType.NETWORK, sentence, state)
    if state[:2] in _LOGIC_CLASSES or state in _LOGIC_STATES:
        return ErrorInfo(ErrorType.EVALUATION_LOGIC, sentence, state)
    return ErrorInfo(ErrorType.DATABASE, sentence, state)


def _is_unreachable(orig: BaseException | None) -> bool:
    """Tell a server that cannot be reached from one that answers "no".

    libpq gives neither a SQLSTATE while connecting. A server that answered sends `FATAL:`; it is out of reach all
    the same while it starts up, recovers or shuts down.
    """
    text = str(orig)
    if "FATAL" not in text:
        return True
    return any(word in text for word in ("starting up", "recovery", "shutting down"))
