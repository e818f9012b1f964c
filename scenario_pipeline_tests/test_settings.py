"""What the environment may say, and how a foreign error becomes one of the four types."""

from __future__ import annotations

import errno
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
import sqlalchemy.exc
from psycopg.pq import DiagnosticField

from scenario_pipeline.errors import BudgetSpentError, ErrorInfo, ErrorType, SystemicError, UserError, classify
from scenario_pipeline.settings import PROJECT_FOLDER, Settings, check_page_size, check_time_budget

CANARY = "kari.nordmann@example.org"
NETWORK, TIMEOUT = ErrorType.NETWORK, ErrorType.TIMEOUT
LOGIC, DATABASE = ErrorType.EVALUATION_LOGIC, ErrorType.DATABASE


def test_nothing_needs_to_be_set() -> None:
    assert Settings.from_environment({}) == Settings(
        home=PROJECT_FOLDER / ".scenario",
        database_url=None,
        dagster_database_url=None,
        timezone=ZoneInfo("Europe/Oslo"),
        time_budget_seconds=30.0,
        page_size=None,
        engine="sql",
        engine_url=None,
        engine_token=None,
        engine_concurrency=4,
        engine_chunk_size=100,
        engine_trust_proxy=False,
        cron="0 * * * *",
        max_error_rate=0.01,
    )


def test_the_process_environment_is_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCENARIO_PAGE_SIZE", "7")
    assert Settings.from_environment().page_size == 7
    assert Settings.from_environment({}).page_size is None


@pytest.mark.parametrize(
    ("variable", "value", "attribute", "expected"),
    [
        ("SCENARIO_HOME", "/srv/scenario", "home", Path("/srv/scenario")),
        ("SCENARIO_HOME", "/srv/../srv/scenario/", "home", Path("/srv/scenario")),
        ("SCENARIO_HOME", "~/scenario", "home", Path.home().resolve() / "scenario"),
        ("SCENARIO_HOME", "scenario", "home", Path.cwd() / "scenario"),
        ("SCENARIO_DATABASE_URL", "postgresql://u:p@h:5432/d", "database_url", "postgresql://u:p@h:5432/d"),
        ("SCENARIO_DATABASE_URL", "postgres://h/d", "database_url", "postgres://h/d"),
        ("SCENARIO_DAGSTER_DATABASE_URL", "postgresql:///d", "dagster_database_url", "postgresql:///d"),
        ("SCENARIO_TIMEZONE", "America/St_Johns", "timezone", ZoneInfo("America/St_Johns")),
        ("SCENARIO_TIMEZONE", "UTC", "timezone", ZoneInfo("UTC")),
        ("SCENARIO_TIME_BUDGET_SECONDS", "0.25", "time_budget_seconds", 0.25),
        ("SCENARIO_TIME_BUDGET_SECONDS", "86400", "time_budget_seconds", 86_400.0),
        ("SCENARIO_PAGE_SIZE", "1", "page_size", 1),
        ("SCENARIO_MAX_ERROR_RATE", "0", "max_error_rate", 0.0),
        ("SCENARIO_MAX_ERROR_RATE", "1", "max_error_rate", 1.0),
        ("SCENARIO_PAGE_SIZE", "100000", "page_size", 100_000),
        ("SCENARIO_ENGINE", "sql", "engine", "sql"),
        ("SCENARIO_ENGINE_URL", "https://engine.example/base", "engine_url", "https://engine.example/base"),
        ("SCENARIO_ENGINE_URL", "https://engine.example:8443/", "engine_url", "https://engine.example:8443"),
        ("SCENARIO_ENGINE_URL", "http://127.0.0.1:8642", "engine_url", "http://127.0.0.1:8642"),
        ("SCENARIO_ENGINE_URL", "http://[::1]:8642", "engine_url", "http://[::1]:8642"),
        ("SCENARIO_ENGINE_URL", "http://localhost", "engine_url", "http://localhost"),
        ("SCENARIO_ENGINE_TOKEN", "t0ken", "engine_token", "t0ken"),
        ("SCENARIO_ENGINE_CONCURRENCY", "64", "engine_concurrency", 64),
        ("SCENARIO_ENGINE_CHUNK_SIZE", "1000", "engine_chunk_size", 1000),
        ("SCENARIO_ENGINE_TRUST_PROXY", "true", "engine_trust_proxy", True),
        ("SCENARIO_CRON", "*/15 6-22 * * 1-5", "cron", "*/15 6-22 * * 1-5"),
    ],
)
def test_a_variable_sets_its_own_value_and_no_other(variable: str, value: str, attribute: str, expected: Any) -> None:
    default, changed = Settings.from_environment({}), Settings.from_environment({variable: f" {value} "})
    assert {name: getattr(changed, name) for name in vars(default)} == {**vars(default), attribute: expected}


@pytest.mark.parametrize(
    "variable",
    [
        "SCENARIO_HOME",
        "SCENARIO_DATABASE_URL",
        "SCENARIO_DAGSTER_DATABASE_URL",
        "SCENARIO_TIMEZONE",
        "SCENARIO_TIME_BUDGET_SECONDS",
        "SCENARIO_PAGE_SIZE",
        "SCENARIO_ENGINE",
        "SCENARIO_ENGINE_URL",
        "SCENARIO_ENGINE_TOKEN",
        "SCENARIO_CRON",
    ],
)
@pytest.mark.parametrize("empty", ["", "  "], ids=["empty", "blank"])
def test_an_empty_variable_counts_as_unset(variable: str, empty: str) -> None:
    """Compose files pass variables on that nobody has set."""
    assert Settings.from_environment({variable: empty}) == Settings.from_environment({})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SCENARIO_HOME", "~no-such-user-here/scenario"),
        ("SCENARIO_DATABASE_URL", "mysql://kari:s3cret@db/scenario"),
        ("SCENARIO_DATABASE_URL", "postgresql+psycopg://kari:s3cret@db/scenario"),
        ("SCENARIO_DATABASE_URL", "host=db password=s3cret"),
        ("SCENARIO_DAGSTER_DATABASE_URL", "sqlite:///s3cret.db"),
        ("SCENARIO_TIMEZONE", "Europe/Atlantis"),
        ("SCENARIO_TIMEZONE", "Europe"),
        ("SCENARIO_TIMEZONE", "../../etc/passwd"),
        ("SCENARIO_TIMEZONE", "/etc/localtime"),
        pytest.param("SCENARIO_TIMEZONE", "Ærø/" + "x" * 300, id="SCENARIO_TIMEZONE-long"),
        ("SCENARIO_TIME_BUDGET_SECONDS", "0"),
        ("SCENARIO_TIME_BUDGET_SECONDS", "-1"),
        ("SCENARIO_TIME_BUDGET_SECONDS", "nan"),
        ("SCENARIO_TIME_BUDGET_SECONDS", "inf"),
        ("SCENARIO_TIME_BUDGET_SECONDS", "86400.1"),
        ("SCENARIO_TIME_BUDGET_SECONDS", "thirty"),
        ("SCENARIO_PAGE_SIZE", "0"),
        ("SCENARIO_PAGE_SIZE", "-5"),
        ("SCENARIO_PAGE_SIZE", "1.5"),
        ("SCENARIO_PAGE_SIZE", "100001"),
        ("SCENARIO_MAX_ERROR_RATE", "-0.1"),
        ("SCENARIO_MAX_ERROR_RATE", "1.1"),
        ("SCENARIO_MAX_ERROR_RATE", "nan"),
        ("SCENARIO_MAX_ERROR_RATE", "5%"),
        pytest.param("SCENARIO_PAGE_SIZE", "9" * 5000, id="SCENARIO_PAGE_SIZE-5000 digits"),
        ("SCENARIO_ENGINE", "SQL"),
        ("SCENARIO_ENGINE", "grpc"),
        ("SCENARIO_ENGINE_URL", "ftp://kari:s3cret@engine"),
        ("SCENARIO_ENGINE_URL", "s3cret"),
        ("SCENARIO_ENGINE_URL", "https://kari:s3cret@engine.example"),
        ("SCENARIO_ENGINE_URL", "https://engine.example/?token=s3cret"),
        ("SCENARIO_ENGINE_URL", "https://engine.example/#s3cret"),
        ("SCENARIO_ENGINE_URL", "http://engine.example"),
        ("SCENARIO_ENGINE_URL", "http://127.0.0.1.s3cret.example"),
        ("SCENARIO_ENGINE_URL", "https://"),
        ("SCENARIO_ENGINE_URL", "https://engine.example:99999"),
        ("SCENARIO_ENGINE_URL", "https://[::1"),
        ("SCENARIO_ENGINE_URL", "https://engine.example/s3 cret"),
        ("SCENARIO_ENGINE_TOKEN", "s3cret kari"),
        ("SCENARIO_ENGINE_TOKEN", "s3cret\nkari"),
        ("SCENARIO_ENGINE_TOKEN", "s3cr\u00e9t"),
        ("SCENARIO_ENGINE_CONCURRENCY", "0"),
        ("SCENARIO_ENGINE_CONCURRENCY", "65"),
        ("SCENARIO_ENGINE_CHUNK_SIZE", "1001"),
        ("SCENARIO_ENGINE_CHUNK_SIZE", "-1"),
        ("SCENARIO_ENGINE_TRUST_PROXY", "yes"),
    ],
)
def test_a_value_that_cannot_work_is_one_sentence_that_names_the_variable(variable: str, value: str) -> None:
    """Whoever set it must find it, and whoever reads the log of the start must not find a password."""
    with pytest.raises(UserError) as caught:
        Settings.from_environment({variable: value})
    sentence = str(caught.value)
    assert sentence.startswith(f"{variable} ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert caught.value.exit_status == 2
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert [part for part in ("s3cret", "kari", "passwd", "Atlantis", "99999") if part in sentence] == []


def test_the_http_engine_needs_a_url() -> None:
    with pytest.raises(UserError, match=r"^SCENARIO_ENGINE_URL "):
        Settings.from_environment({"SCENARIO_ENGINE": "http"})
    url = "https://engine.example"
    assert Settings.from_environment({"SCENARIO_ENGINE": "http", "SCENARIO_ENGINE_URL": url}).engine == "http"


def test_secrets_do_not_stand_in_a_repr() -> None:
    """Dagster shows the repr of what a resource holds; so does every traceback with local variables."""
    settings = Settings.from_environment(
        {
            "SCENARIO_DATABASE_URL": "postgresql://u:s3cret@h/d",
            "SCENARIO_DAGSTER_DATABASE_URL": "postgresql://u:s3cret@h/d",
            "SCENARIO_ENGINE_URL": "https://engine.example/s3cret",
            "SCENARIO_ENGINE_TOKEN": "s3cret",
            "SCENARIO_TIMEZONE": "UTC",
        }
    )
    assert "s3cret" not in f"{settings!r} {settings}"
    assert "key='UTC'" in repr(settings)


@pytest.mark.parametrize(
    ("timezone", "today"),
    [("Europe/Oslo", "2026-03-01"), ("UTC", "2026-02-28"), ("Pacific/Kiritimati", "2026-03-01")],
)
def test_the_evaluation_date_changes_at_midnight_of_the_configured_zone(timezone: str, today: str) -> None:
    settings = Settings.from_environment({"SCENARIO_TIMEZONE": timezone})
    assert settings.today(datetime(2026, 2, 28, 23, 30, tzinfo=UTC)).isoformat() == today


def test_a_refused_option_is_named_as_it_was_given() -> None:
    """The command line checks its options with the same rules."""
    with pytest.raises(UserError, match=r"^--time-budget "):
        check_time_budget("--time-budget", -1.0)
    with pytest.raises(UserError, match=r"^--page-size "):
        check_page_size("--page-size", 0)
    assert (check_time_budget("--time-budget", 5), check_page_size("--page-size", 20)) == (5.0, 20)
    assert check_page_size("--page-size", None) is None


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
    """A message may hold the row that was in hand."""
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
