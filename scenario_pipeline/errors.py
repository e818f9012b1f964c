"""The failure taxonomy as values, and the one place where foreign errors are translated into it.

Belongs here: the closed set of error types (contract section 5), the exception a user's mistake raises, and
`classify`, which tells foreign exceptions apart by class, SQLSTATE and errno.
Does not belong here: what to do about a failure.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from dataclasses import dataclass
from enum import StrEnum

import psycopg
import sqlalchemy.exc

from scenario_pipeline.sanitiser import sanitise


class ErrorType(StrEnum):
    """Why an evaluation or a run failed: a closed set (contract section 5)."""

    NETWORK = "network_error"
    TIMEOUT = "timeout_error"
    EVALUATION_LOGIC = "evaluation_logic_error"
    DATABASE = "database_error"


@dataclass(frozen=True)
class ErrorInfo:
    """A failure as a value.

    Attributes:
        error_type: one of the four types.
        error_message: one sentence that holds no value from a row, sanitised when it is made: it also goes where the
            logger does not stand, into the ledger, into step outputs and into Dagster's events.
        sqlstate: the five-character SQLSTATE where the database named one.
    """

    error_type: ErrorType
    error_message: str
    sqlstate: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "error_message", sanitise(self.error_message))

    @property
    def is_about_a_row(self) -> bool:
        """Whether the database refused a value, so that other mentors of the page may still be evaluated.

        What is not, by the table of SQLSTATEs in this module, is systemic (contract section 6).
        """
        return self.sqlstate is not None and _is_of_a_row(self.sqlstate)

    @property
    def is_worth_a_retry(self) -> bool:
        """Whether the same transaction may succeed when repeated at once (deadlock, serialization failure)."""
        return self.sqlstate in {"40P01", "40001"}


class UserError(Exception):
    """A mistake that one clear sentence explains: what is wrong, where, and what to do.

    Args:
        message: the sentence; it never holds a personal value or a secret.
        exit_status: what the command line ends with: 2 for wrong usage, 1 for anything else (contract section 5).
    """

    def __init__(self, message: str, *, exit_status: int = 2) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class SystemicError(Exception):
    """A failure that concerns the run and not a mentor; carries what the closing events report.

    Raised `from None` on purpose: Dagster stores the text of every chained exception.
    """

    def __init__(self, info: ErrorInfo) -> None:
        super().__init__(info.error_message)
        self.info = info


class BudgetSpentError(Exception):
    """The time budget ended while a page was in hand; the page was rolled back and is left to the next run."""


# PostgreSQL's condition names stand in psycopg as class names: DivisionByZero -> division_by_zero.
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_TIMEOUT_STATES = frozenset({"57014", "55P03", "25P03", "25P04"})
# Classes whose primary message names objects of the schema and settings of the server, never a value of a row.
_NO_VALUES = ("25", "40", "42", "53", "55", "57")
_NETWORK_ERRNOS = frozenset({errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH})
# Each class of SQLSTATEs in the PostgreSQL manual, appendix A, belongs to the run or to a row. The run's are those that
# the state of the connection, server or schema causes for all mentors alike: to bisect for a missing table would report
# every mentor as broken.
CLASSES_OF_THE_RUN = {
    "03": "SQL statement not yet complete: the connection is out of step",
    "08": "connection",
    "0B": "transaction initiation",
    "0L": "a grantor without the right to grant",
    "0P": "a role that is not there",
    "25": "transaction state, its time-outs included",
    "26": "a prepared statement that is not there, as behind a pooler",
    "28": "authorization",
    "2B": "dependent privileges",
    "3B": "savepoints, which only the engine sets",
    "3D": "a database that is not there",
    "3F": "a schema that is not there",
    "40": "rollback: deadlocks and serialization failures are repeated, others end the run",
    "42": "syntax, rights and missing tables, columns or functions: a migration or a grant is missing",
    "53": "resources of the server",
    "55": "an object that is locked, in use or not ready",
    "57": "an operator or a limit of time",
    "58": "an error of the server's system",
    "72": "a snapshot too old",
    "F0": "a configuration file of the server",
    "HV": "a foreign server",
    "XX": "an internal error, or damage that must not hide among mentors",
}
# The engine's own statement raises these for a value only, or not at all: then a rule, a trigger, a view or a function
# raised it for the row that it was called for.
CLASSES_OF_A_ROW = {
    "02": "no data; an error only where a rule raises it",
    "09": "triggered action",
    "0A": "a feature that a value asks for, such as an unknown part of a date",
    "0F": "locator; only a rule raises it",
    "0Z": "diagnostics asked for outside a handler",
    "10": "an XPath expression that a value makes invalid",
    "20": "CASE without a branch for a value",
    "21": "a subquery with two rows for one mentor",
    "22": "data exception",
    "23": "constraints, also of tables that a trigger writes",
    "24": "cursors, which only a function opens",
    "27": "a trigger that changes the row it is called for",
    "2D": "a function that ends the transaction",
    "2F": "a function that a value leads astray, such as past its last RETURN",
    "34": "a cursor that a function has not opened",
    "38": "raised by a function in another language",
    "39": "the protocol of triggers and functions, such as null for a strict one",
    "44": "WITH CHECK OPTION of a view",
    "45": "raised by a rule: the SQL standard's class for it",
    "54": "limits of size, such as a key too large for an index or too deep a recursion",
    "P0": "raised by PL/pgSQL",
}
# Only a value is read as a name while a statement runs: the engine's own names are fixed.
_OF_A_ROW = frozenset({"42602", "42622"})


def _is_of_a_row(state: str) -> bool:
    """Whether a SQLSTATE belongs to a row; a class that the manual does not know is one that a rule made up."""
    return state in _OF_A_ROW or state[:2] not in CLASSES_OF_THE_RUN


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
    sentence = f"SQLSTATE {state}"
    # A state that a rule made up has the class of its whole family, whose name would say something else.
    if type(orig).__module__.endswith(".errors"):
        sentence += f" {_CAMEL.sub('_', type(orig).__name__).lower()}"
    diagnostic = getattr(orig, "diag", None)
    if state.startswith(_NO_VALUES) and not _is_of_a_row(state):
        reported = getattr(diagnostic, "message_primary", None)
        sentence += f": {reported}" if reported else ""
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
    if _is_of_a_row(state):
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
