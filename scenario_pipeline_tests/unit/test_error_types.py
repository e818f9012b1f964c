"""Exceptions in four classes, by what they are and never by their text."""

from __future__ import annotations

import errno
import socket

import psycopg
import pytest
import sqlalchemy.exc
from psycopg.pq import DiagnosticField

from scenario_pipeline.errors import BudgetSpentError, ErrorInfo, ErrorType, SystemicError, UserError, classify
from scenario_pipeline_tests.support.names import CANARY

NETWORK, TIMEOUT = ErrorType.NETWORK, ErrorType.TIMEOUT
LOGIC, DATABASE = ErrorType.EVALUATION_LOGIC, ErrorType.DATABASE


def of_the_server(sqlstate: str, primary: str = f"about {CANARY}", **names: str) -> psycopg.Error:
    """A driver error as it comes from a server: its texts quote a row, its names belong to the schema."""
    fields = {
        DiagnosticField.SQLSTATE: sqlstate,
        DiagnosticField.MESSAGE_PRIMARY: primary,
        DiagnosticField.MESSAGE_DETAIL: f"Key (email)=({CANARY}) already exists.",
        DiagnosticField.CONTEXT: f"PL/pgSQL function about {CANARY}",
        **{DiagnosticField[name.upper()]: value for name, value in names.items()},
    }
    kind = psycopg.errors.lookup(sqlstate)
    return kind(f"{primary}\nDETAIL: {CANARY}", info={field: text.encode() for field, text in fields.items()})


def through_sqlalchemy(orig: Exception, *, invalidated: bool = False) -> sqlalchemy.exc.DBAPIError:
    """The same as SQLAlchemy raises it: with the statement and its parameters in the text."""
    exc = sqlalchemy.exc.DBAPIError.instance(
        f"SELECT '{CANARY}'", {"email": CANARY}, orig, psycopg.Error, connection_invalidated=invalidated
    )
    assert isinstance(exc, sqlalchemy.exc.DBAPIError)
    assert CANARY in str(exc)
    return exc


@pytest.mark.parametrize(
    ("sqlstate", "error_type"),
    [
        ("08006", NETWORK),
        ("57P01", NETWORK),
        ("57P02", NETWORK),
        ("57P03", NETWORK),
        ("57014", TIMEOUT),
        ("55P03", TIMEOUT),
        ("25P03", TIMEOUT),
        ("25P04", TIMEOUT),
        ("22023", LOGIC),
        ("22003", LOGIC),
        ("22P02", LOGIC),
        ("22012", LOGIC),
        ("22008", LOGIC),
        ("21000", LOGIC),
        ("P0001", LOGIC),
        ("23514", LOGIC),
        ("23502", LOGIC),
        ("23505", LOGIC),
        ("23P01", LOGIC),
        ("23503", LOGIC),
        ("40P01", DATABASE),
        ("40001", DATABASE),
        ("53100", DATABASE),
        ("53200", DATABASE),
        ("53400", DATABASE),
        ("42501", DATABASE),
        ("42P01", DATABASE),
        ("42703", DATABASE),
        ("42601", DATABASE),
        ("XX000", DATABASE),
    ],
)
def test_an_error_of_the_server_is_told_by_its_sqlstate_and_quotes_no_row(sqlstate: str, error_type: ErrorType) -> None:
    bare = of_the_server(sqlstate)
    info = classify(through_sqlalchemy(bare))
    assert (info.error_type, info.sqlstate) == (error_type, sqlstate)
    assert info.error_message.startswith(f"SQLSTATE {sqlstate} ")
    assert [part for part in (CANARY, "kari", "nordmann", "SELECT", "\n", "None") if part in info.error_message] == []
    assert classify(bare) == info


def test_an_error_of_the_server_names_its_condition_constraint_and_table() -> None:
    """What an operator needs to find the rule that refused."""
    exc = of_the_server("23514", constraint_name="positive_threshold", table_name="scenario_notifications")
    sentence = "SQLSTATE 23514 check_violation, constraint positive_threshold, table scenario_notifications"
    assert classify(exc) == ErrorInfo(LOGIC, sentence, "23514")


def test_an_error_without_a_servers_diagnostics_has_none_made_up() -> None:
    sentence = "SQLSTATE 40P01 deadlock_detected"
    assert classify(psycopg.errors.lookup("40P01")(CANARY)) == ErrorInfo(DATABASE, sentence, "40P01")


@pytest.mark.parametrize(
    ("exc", "error_type"),
    [
        pytest.param(psycopg.OperationalError(f"connection refused {CANARY}"), NETWORK, id="port closed"),
        pytest.param(psycopg.errors.ConnectionTimeout(CANARY), NETWORK, id="no answer while connecting"),
        pytest.param(
            psycopg.OperationalError(f"FATAL:  the database system is starting up {CANARY}"), NETWORK, id="starting up"
        ),
        pytest.param(
            psycopg.OperationalError(f"FATAL:  the database system is in recovery mode {CANARY}"),
            NETWORK,
            id="recovery",
        ),
        pytest.param(
            psycopg.OperationalError(f'FATAL:  password authentication failed for user "{CANARY}"'),
            DATABASE,
            id="wrong password",
        ),
        pytest.param(
            psycopg.OperationalError(f'FATAL:  database "{CANARY}" does not exist'), DATABASE, id="no such database"
        ),
        pytest.param(psycopg.ProgrammingError(f"cannot adapt type {CANARY}"), DATABASE, id="misuse of the driver"),
        pytest.param(psycopg.DataError(f"bad value {CANARY}"), DATABASE, id="value the driver refuses"),
    ],
)
def test_an_error_without_a_sqlstate_tells_an_unreachable_server_from_one_that_says_no(
    exc: psycopg.Error, error_type: ErrorType
) -> None:
    for each in (exc, through_sqlalchemy(exc)):
        info = classify(each)
        assert (info.error_type, info.sqlstate) == (error_type, None)
        assert CANARY not in info.error_message


def test_a_connection_that_was_cut_is_a_network_error_whatever_the_driver_says() -> None:
    exc = psycopg.OperationalError(f"FATAL:  {CANARY}")
    assert classify(through_sqlalchemy(exc)).error_type == DATABASE
    assert classify(through_sqlalchemy(exc, invalidated=True)).error_type == NETWORK


class UnknownError(Exception):
    """What nobody has thought of."""


@pytest.mark.parametrize(
    ("exc", "error_type"),
    [
        pytest.param(ConnectionRefusedError(errno.ECONNREFUSED, CANARY), NETWORK, id="refused"),
        pytest.param(ConnectionResetError(errno.ECONNRESET, CANARY), NETWORK, id="reset"),
        pytest.param(ConnectionResetError(CANARY), NETWORK, id="reset, no errno"),
        pytest.param(BrokenPipeError(errno.EPIPE, CANARY), NETWORK, id="broken pipe"),
        pytest.param(OSError(errno.EHOSTUNREACH, CANARY), NETWORK, id="no route"),
        pytest.param(OSError(errno.ENETUNREACH, CANARY), NETWORK, id="no network"),
        pytest.param(socket.gaierror(socket.EAI_NONAME, CANARY), NETWORK, id="unknown host"),
        pytest.param(OSError(errno.ETIMEDOUT, CANARY), TIMEOUT, id="connection timed out"),
        pytest.param(TimeoutError(CANARY), TIMEOUT, id="timeout"),
        pytest.param(sqlalchemy.exc.TimeoutError(CANARY), TIMEOUT, id="pool exhausted"),
        pytest.param(BudgetSpentError(CANARY), TIMEOUT, id="budget spent"),
        pytest.param(OSError(errno.ENOSPC, CANARY), LOGIC, id="disk full"),
        pytest.param(FileNotFoundError(errno.ENOENT, CANARY, f"/home/{CANARY}"), LOGIC, id="missing file"),
        pytest.param(OSError(CANARY), LOGIC, id="operating system, no errno"),
        pytest.param(ValueError(CANARY), LOGIC, id="value"),
        pytest.param(KeyError(CANARY), LOGIC, id="key"),
        pytest.param(UnknownError(CANARY), LOGIC, id="unknown"),
        pytest.param(ExceptionGroup(CANARY, [ValueError(CANARY)]), LOGIC, id="group"),
        pytest.param(KeyboardInterrupt(CANARY), LOGIC, id="interrupt"),
        pytest.param(sqlalchemy.exc.StatementError(CANARY, "SELECT", {}, ValueError(CANARY)), LOGIC, id="statement"),
    ],
)
def test_any_other_exception_has_one_of_four_types_and_its_text_is_withheld(
    exc: BaseException, error_type: ErrorType
) -> None:
    """A message may hold the row that was being written."""
    info = classify(exc)
    assert (info.error_type, info.sqlstate) == (error_type, None)
    assert info.error_message
    assert [part for part in (CANARY, "kari", "\n", "Unknown error") if part in info.error_message] == []


def test_the_unknown_is_named_by_its_class_alone() -> None:
    assert classify(UnknownError(CANARY)) == ErrorInfo(LOGIC, "UnknownError was raised; its text is withheld")


def test_a_users_mistake_keeps_its_sentence() -> None:
    assert classify(UserError("SCENARIO_PAGE_SIZE must be a number.")) == ErrorInfo(
        LOGIC, "SCENARIO_PAGE_SIZE must be a number."
    )


def test_what_was_classified_once_stays_as_it_is() -> None:
    info = ErrorInfo(NETWORK, "the engine refused the connection", "08006")
    assert classify(SystemicError(info)) is info
    assert str(SystemicError(info)) == info.error_message


def test_the_types_are_a_closed_set() -> None:
    assert [str(each) for each in ErrorType] == [
        "network_error",
        "timeout_error",
        "evaluation_logic_error",
        "database_error",
    ]


@pytest.mark.parametrize(
    ("sqlstate", "is_about_a_row", "is_worth_a_retry"),
    [
        ("22023", True, False),
        ("22003", True, False),
        ("22P02", True, False),
        ("22012", True, False),
        ("22008", True, False),
        ("21000", True, False),
        ("P0001", True, False),
        ("23514", True, False),
        ("23502", True, False),
        ("23505", True, False),
        ("23P01", True, False),
        ("23503", True, False),
        ("40P01", False, True),
        ("40001", False, True),
        ("40002", False, False),
        ("57014", False, False),
        ("55P03", False, False),
        ("25P03", False, False),
        ("57P01", False, False),
        ("08006", False, False),
        ("53100", False, False),
        ("42501", False, False),
        ("42P01", False, False),
        ("P0002", True, False),
        (None, False, False),
    ],
)
def test_only_a_refused_value_is_about_a_row_and_only_a_lost_race_is_worth_a_retry(
    sqlstate: str | None, is_about_a_row: bool, is_worth_a_retry: bool
) -> None:
    """To bisect a page for a missing table would report every mentor of it as broken."""
    info = ErrorInfo(LOGIC, "message", sqlstate)
    assert (info.is_about_a_row, info.is_worth_a_retry) == (is_about_a_row, is_worth_a_retry)
