"""A row is never stronger than its page: whatever a value of one mentor causes costs that mentor alone.

Belongs here: SQLSTATEs that a value, a trigger or a scenario causes for one mentor, in both engines. Does not belong
here: failures of the server or the schema for everybody (`test_sql_engine`).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from sqlalchemy import Date, Engine, Integer, Text, cast, func, select

from scenario_pipeline.engines import TriggerEngine
from scenario_pipeline.engines.http.client import RemoteOptions
from scenario_pipeline.engines.http.engine import HttpTriggerEngine
from scenario_pipeline.engines.sql import SqlTriggerEngine
from scenario_pipeline.errors import ErrorInfo, ErrorType, SystemicError
from scenario_pipeline.scenarios import Configuration, EvaluationDate, Matches, Page, Scenario, certifications
from scenario_pipeline.sqlstates import CLASSES_OF_A_ROW, CLASSES_OF_THE_RUN
from scenario_pipeline.storage import database
from scenario_pipeline_tests.support.invariants import check_invariants, sent
from scenario_pipeline_tests.support.people import (
    DAY,
    D,
    Mentor,
    configure,
    insert_mentors,
    insert_organisation,
    mentor_id,
)
from scenario_pipeline_tests.support.runs import Log, make_page, make_request, run_invocation, run_page
from scenario_pipeline_tests.support.server import SCHEDULERS, as_scheduler
from scenario_pipeline_tests.support.service import TOKEN

ENGINES = ["sql", "http"]
SICK = mentor_id(4)
ROW_STATES = [
    *("23503", "23505", "23P01", "23001", "45000", "P0000", "P0002", "P0003", "P0004", "0A000", "54000", "54001"),
    *("02000", "09000", "20000", "22P05", "24000", "27000", "2F005", "38000", "39004", "42602", "44000", "MY001"),
]
RUN_STATES = [
    *("08006", "25006", "28000", "3F000", "40002", "42501", "42P01", "53100", "53200", "55000", "57014", "58030"),
    *("HV000", "XX000", "XX001"),
]


@contextmanager
def trigger_engine(name: str, engine: Engine, served: str) -> Iterator[TriggerEngine]:
    """The engine of a name; `http` asks the project's own service, over a socket, for three mentors at a time."""
    if name == "sql":
        yield SqlTriggerEngine(engine)
        return
    http = HttpTriggerEngine(
        engine, RemoteOptions(served, token=TOKEN, concurrency=2, chunk_size=3, backoff_seconds=0.01)
    )
    yield http
    http.close()


def errors_of(log: Log) -> list[tuple[str, str]]:
    return [(e["peer_mentor_id"], e["error_type"]) for e in log.entries if e["event"] == "mentor_evaluation_error"]


def seven_quiet_mentors(engine: Engine) -> list[str]:
    """Mentors for whom `inactivity` is due on D."""
    with engine.begin() as connection:
        insert_organisation(connection)
        mentors = [Mentor(i, activities=[D - 40 * DAY, D - 30 * DAY]) for i in range(1, 8)]
        return insert_mentors(connection, mentors)


def refuse(engine: Engine, mentor_id: str, errcode: str, *, at_commit: bool = False) -> None:
    """Let a trigger on the notifications of one mentor raise this SQLSTATE."""
    trigger, moment, deferred = ("TRIGGER", "BEFORE", "")
    if at_commit:
        trigger, moment, deferred = ("CONSTRAINT TRIGGER", "AFTER", "DEFERRABLE INITIALLY DEFERRED")
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"""
            CREATE FUNCTION scenario.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF NEW.user_id = '{mentor_id}' THEN
                    RAISE EXCEPTION USING ERRCODE = '{errcode}', MESSAGE = 'refused: Kari Nordmann';
                END IF;
                RETURN NEW;
            END $$;
            CREATE {trigger} refuse {moment} INSERT ON scenario.scenario_notifications {deferred}
                FOR EACH ROW EXECUTE FUNCTION scenario.refuse();
            """
        )


def test_every_class_of_the_manual_belongs_either_to_the_run_or_to_a_row() -> None:
    """A class that nobody has judged would be judged by chance on the day it comes up."""
    known = {
        kind.sqlstate[:2] for kind in vars(psycopg.errors).values() if isinstance(getattr(kind, "sqlstate", None), str)
    }
    # Beyond the manual's: the SQL standard's class for what a rule raises, which no error of Postgres' own has.
    assert known | {"45"} == CLASSES_OF_THE_RUN.keys() | CLASSES_OF_A_ROW.keys()
    assert CLASSES_OF_THE_RUN.keys() & CLASSES_OF_A_ROW.keys() == set()


@pytest.mark.parametrize("errcode", ROW_STATES)
def test_a_state_that_a_row_causes_is_about_that_row(errcode: str) -> None:
    """Otherwise one mentor ends the run of everybody, today and tomorrow."""
    assert ErrorInfo(ErrorType.EVALUATION_LOGIC, "refused", errcode).is_about_a_row


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("errcode", ["23503", "23505", "23P01", "45000", "P0002", "0A000", "54001", "2F005", "MY001"])
def test_a_trigger_that_refuses_one_mentor_costs_that_mentor_alone(
    engine: Engine, served: str, name: str, errcode: str
) -> None:
    """An organisation's own rule on the table fails for one person, and six others wait for their message."""
    mentors = seven_quiet_mentors(engine)
    refuse(engine, SICK, errcode)
    log = Log()

    with trigger_engine(name, engine, served) as chosen:
        report = run_invocation(engine, log=log, trigger_engine=chosen)

    assert errors_of(log) == [(SICK, "evaluation_logic_error")]
    assert "Kari" not in str(log.entries)
    assert (report.status, report.stats.total_evaluated, report.stats.total_errors) == ("completed", 6, 1)
    assert [row[0] for row in sent(engine)] == [mentor for mentor in mentors if mentor != SICK]
    with engine.connect() as connection:
        check_invariants(connection)


@pytest.mark.parametrize("errcode", RUN_STATES)
def test_a_failure_of_the_server_or_the_schema_is_no_mentors(engine: Engine, errcode: str) -> None:
    """A thousand mentor errors would hide that the disk is full."""
    mentors = seven_quiet_mentors(engine)
    refuse(engine, SICK, errcode)
    with pytest.raises(SystemicError) as caught:
        run_page(engine, make_page(mentors))
    assert caught.value.info.sqlstate == errcode
    assert sent(engine) == []


@pytest.mark.parametrize("name", ENGINES)
def test_a_constraint_that_waits_for_the_commit_costs_one_mentor_as_well(
    engine: Engine, served: str, name: str
) -> None:
    """It used to fail where the page is committed, behind the savepoints that keep mentors apart."""
    mentors = seven_quiet_mentors(engine)
    refuse(engine, SICK, "23503", at_commit=True)
    log = Log()
    with trigger_engine(name, engine, served) as chosen:
        report = run_invocation(engine, log=log, trigger_engine=chosen)
    assert (report.status, errors_of(log)) == ("completed", [(SICK, "evaluation_logic_error")])
    assert [row[0] for row in sent(engine)] == [mentor for mentor in mentors if mentor != SICK]


def with_certifications(engine: Engine, *types: str) -> list[str]:
    """Mentors who each have one certification that expires 30 days after D."""
    with engine.begin() as connection:
        insert_organisation(connection)
        mentors = [Mentor(i, certifications=[(name, D + 30 * DAY)]) for i, name in enumerate(types, start=1)]
        return insert_mentors(connection, mentors)


def long_text(length: int = 2720) -> str:
    """Text that no compression makes fit for an index."""
    return random.Random(1).randbytes(length // 2).hex()


@pytest.mark.parametrize("way", SCHEDULERS)
def test_free_text_of_any_length_enters_a_key(engine: Engine, database_url: str, way: str) -> None:
    """A certification whose name was a pasted document once ended every run of everybody."""
    texts = {
        "first aid": "first aid",
        "x" * 200: "x" * 200,
        "x" * 201: hashlib.sha256(b"x" * 201).hexdigest(),
        "å" * 100: "å" * 100,
        "å" * 101: hashlib.sha256(("å" * 101).encode()).hexdigest(),
        long_text(): hashlib.sha256(long_text().encode()).hexdigest(),
        long_text(200_000): hashlib.sha256(long_text(200_000).encode()).hexdigest(),
    }
    mentors = with_certifications(engine, *texts)
    scheduler = database.connect(as_scheduler(database_url, way))
    reports = [run_invocation(scheduler) for _ in range(2)]
    scheduler.dispose()
    keys = [f"{key}:{D + 30 * DAY}:30" for key in texts.values()]
    assert [(row[0], row[4]) for row in sent(engine)] == list(zip(mentors, keys, strict=True))
    assert [report.stats.total_errors for report in reports] == [0, 0]
    assert reports[1].stats.suppressed_by_reason == {"duplicate": len(texts)}


def unbounded(page: Page, configuration: Configuration, evaluation_date: EvaluationDate) -> Matches:
    """Find everybody with a certification; the key is its name, however long."""
    return (
        select(
            page.c.user_id,
            cast(1, Integer).label("threshold"),
            cast(evaluation_date, Date).label("crossed_on"),
            cast(func.min(certifications.c.certification_type), Text).label("dedup_key"),
        )
        .select_from(page)
        .join(configuration, configuration.c.organisation_id == page.c.organisation_id)
        .join(certifications, certifications.c.user_id == page.c.user_id)
        .group_by(page.c.user_id)
    )


@pytest.mark.parametrize("name", ENGINES)
def test_a_scenario_of_another_package_with_a_key_too_large_costs_one_mentor(
    engine: Engine, served: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its author need not know what an index holds; the others hear all the same."""
    scenario = Scenario("pasted", "A certification.", (1,), 7, 1, unbounded)
    for module in ("engines.statement", "engines.service.app"):
        monkeypatch.setattr(f"scenario_pipeline.{module}.registry", lambda: {"pasted": scenario})
    mentors = with_certifications(engine, "a", "b", "c", long_text(4000), "e")
    with engine.begin() as connection:
        configure(connection, "pasted", thresholds=[1])
    log = Log()
    with trigger_engine(name, engine, served) as chosen:
        report = run_invocation(engine, make_request(scenario_types=["pasted"]), log=log, trigger_engine=chosen)
    assert errors_of(log) == [(SICK, "evaluation_logic_error")]
    assert (report.status, report.stats.dispatched_by_scenario) == ("completed", {"pasted": 4})
    assert [row[0] for row in sent(engine)] == [mentor for mentor in mentors if mentor != SICK]
