"""What a real server names of its catalog comes out whole; what a rule says in the same fields is sanitised."""

from __future__ import annotations

import select

import psycopg
import pytest
from sqlalchemy import Engine, text

from scenario_pipeline.errors import ErrorInfo, ErrorType, classify

DATABASE, LOGIC, TIMEOUT = ErrorType.DATABASE, ErrorType.EVALUATION_LOGIC, ErrorType.TIMEOUT
NAME = "Kari_Nordmann"
OWN_TABLE = "CREATE TABLE vaktliste_nord (id int PRIMARY KEY, vakt int CONSTRAINT bare_fem_vakter CHECK (vakt < 6))"
RAISING = f"""
    CREATE FUNCTION pg_temp.refuse() RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION '{NAME} refused' USING ERRCODE = '%s', CONSTRAINT = '{NAME}', TABLE = '{NAME}';
    END $$"""
PUTTING_TOGETHER = f"""
    CREATE FUNCTION pg_temp.refuse() RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        EXECUTE 'SELECT {NAME} FROM scenario.peer_mentors';
    END $$"""


def failure_of(engine: Engine, *statements: str) -> ErrorInfo:
    """What the last of these statements fails with; nothing of them is kept."""
    with engine.connect() as connection:
        for statement in statements[:-1]:
            connection.execute(text(statement))
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the whole value is compared
            connection.execute(text(statements[-1]))
        return classify(caught.value)


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        pytest.param(
            ["SELECT 1 FROM scenario.vaktliste_nord"],
            ErrorInfo(
                DATABASE, 'SQLSTATE 42P01 undefined_table: relation "scenario.vaktliste_nord" does not exist', "42P01"
            ),
            id="no such table",
        ),
        pytest.param(
            ["SELECT vaktleder FROM scenario.peer_mentors"],
            ErrorInfo(DATABASE, 'SQLSTATE 42703 undefined_column: column "vaktleder" does not exist', "42703"),
            id="no such column",
        ),
        pytest.param(
            ["SELECT scenario.finn_vakt()"],
            ErrorInfo(
                DATABASE, "SQLSTATE 42883 undefined_function: function scenario.finn_vakt() does not exist", "42883"
            ),
            id="no such function",
        ),
        pytest.param(
            [OWN_TABLE, "INSERT INTO vaktliste_nord VALUES (1, 7)"],
            ErrorInfo(
                LOGIC, "SQLSTATE 23514 check_violation, constraint bare_fem_vakter, table vaktliste_nord", "23514"
            ),
            id="check",
        ),
        pytest.param(
            [OWN_TABLE, "INSERT INTO vaktliste_nord VALUES (1, 1), (1, 2)"],
            ErrorInfo(
                LOGIC, "SQLSTATE 23505 unique_violation, constraint vaktliste_nord_pkey, table vaktliste_nord", "23505"
            ),
            id="unique",
        ),
        pytest.param(
            [
                OWN_TABLE,
                "CREATE TABLE bytter (vakt int CONSTRAINT bare_kjente_vakter REFERENCES vaktliste_nord)",
                "INSERT INTO bytter VALUES (9)",
            ],
            ErrorInfo(
                LOGIC, "SQLSTATE 23503 foreign_key_violation, constraint bare_kjente_vakter, table bytter", "23503"
            ),
            id="foreign key",
        ),
        pytest.param(
            ["CREATE DOMAIN vaktnummer AS int CONSTRAINT bare_smaa CHECK (value < 9)", "SELECT '12'::vaktnummer"],
            ErrorInfo(LOGIC, "SQLSTATE 23514 check_violation, constraint bare_smaa", "23514"),
            id="domain",
        ),
    ],
)
def test_the_names_of_ones_own_objects_come_out_whole(
    untouched: Engine, statements: list[str], expected: ErrorInfo
) -> None:
    """The person on call would read that the table [word] does not exist."""
    assert failure_of(untouched, *statements) == expected


@pytest.mark.parametrize(
    ("statements", "sentence"),
    [
        pytest.param(
            [RAISING % "42P01", "SELECT pg_temp.refuse()"],
            "SQLSTATE 42P01 undefined_table: [word] refused, constraint [word], table [word]",
            id="raised as a missing table",
        ),
        pytest.param(
            [RAISING % "23514", "SELECT pg_temp.refuse()"],
            "SQLSTATE 23514 check_violation, constraint [word], table [word]",
            id="raised as a check",
        ),
        pytest.param(
            [PUTTING_TOGETHER, "SELECT pg_temp.refuse()"],
            'SQLSTATE 42703 undefined_column: column "[word]" does not exist',
            id="a statement that a rule puts together",
        ),
        pytest.param(
            [f"SELECT name::regclass FROM (VALUES ('{NAME}')) AS people (name)"],
            'SQLSTATE 42P01 undefined_table: relation "[word]" does not exist',
            id="a value cast to a table",
        ),
        pytest.param(
            [f"SELECT name::regtype FROM (VALUES ('{NAME}')) AS people (name)"],
            'SQLSTATE 42704 undefined_object: type "[word]" does not exist',
            id="a value cast to a type",
        ),
    ],
)
def test_what_a_rule_says_in_the_same_fields_names_nobody(
    untouched: Engine, statements: list[str], sentence: str
) -> None:
    """A trigger writes whatever it likes into the constraint's name, a mentor's name included."""
    assert failure_of(untouched, *statements).error_message == sentence


def test_a_session_that_waited_too_long_in_a_transaction_says_so(untouched: Engine) -> None:
    """It once read "[secret] connection due to idle-in-transaction timeout"."""
    url = untouched.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, options="-c idle_in_transaction_session_timeout=1") as connection:
        connection.execute("SELECT 1")
        assert select.select([connection.fileno()], [], [], 30)[0]
        with pytest.raises(psycopg.Error) as caught:
            connection.execute("SELECT 1")
    assert classify(caught.value) == ErrorInfo(
        TIMEOUT,
        "SQLSTATE 25P03 idle_in_transaction_session_timeout: terminating connection due to idle-in-transaction timeout",
        "25P03",
    )
