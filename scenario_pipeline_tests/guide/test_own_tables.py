"""The guide's example of own tables, run as it stands there."""

import json
import uuid
from collections.abc import Iterator

import psycopg
import pytest

from scenario_pipeline.doctor.findings import YOUR_OWN_TABLES, Finding, Status
from scenario_pipeline.errors import SystemicError
from scenario_pipeline.storage.roles import OWNER, READER, SCHEDULER
from scenario_pipeline_tests.support.deployed import (
    ADMINISTRATOR,
    connected,
    findings,
    no_superuser,
    sent,
)
from scenario_pipeline_tests.support.deployment import (
    PASSWORD,
    Deployment,
    blocks,
    execute,
    sql,
)
from scenario_pipeline_tests.support.people import (
    DAY,
    FIRST_WINDOW,
    D,
)
from scenario_pipeline_tests.support.runs import Log, run_invocation
from scenario_pipeline_tests.support.stranger import stranger_accepts


def key(number: int) -> str:
    """Return the id that the example makes of a number."""
    return str(uuid.UUID(int=number))


# Longer than 32 bits, as keys of real systems are.
LONG = 9_007_199_254_740_993
PEOPLE = f"""
INSERT INTO crm.teams VALUES (7, 'Nord', NULL), (8, 'Syd', 'Europe/Oslo');
INSERT INTO crm.volunteers VALUES
    (1, 7, 'Kari', 'A', '2015-01-01', NULL), (2, 7, 'Ola', 'A', '2015-01-01', false),
    (3, 8, 'Ada', 'A', '2015-01-01', false), (4, 8, 'Per', 'A', '2015-01-01', true),
    (5, 8, 'Eva', 'P', '2015-01-01', false), ({LONG}, 8, 'Liv', 'A', '2015-01-01', false);
INSERT INTO crm.visits VALUES
    (1, 'home', '2023-05-01'), (1, NULL, '{D - 30 * DAY} 12:00+00'),
    (2, 'first', '{D - DAY} 23:30+00'),
    (3, 'home', '2023-05-01'), (3, 'home', '{D - DAY} 12:00+00'),
    (4, 'home', '2023-05-01'), (4, 'home', '{D - 30 * DAY} 12:00+00'),
    (5, 'home', '2023-05-01'), (5, 'home', '{D - 30 * DAY} 12:00+00'),
    ({LONG}, 'home', '2023-05-01'), ({LONG}, 'home', '{D - 90 * DAY} 12:00+00');
INSERT INTO crm.licences VALUES (3, 'first aid', '{D + 30 * DAY} 18:00'), (1, NULL, NULL), (2, 'driving', '2030-01-01');
"""
DUE = [
    (key(1), "inactivity", D, FIRST_WINDOW, f"{D - 30 * DAY}:30", 30, D),
    # At half past eleven in the evening in UTC it is the next day in Oslo.
    (key(2), "milestone", D, FIRST_WINDOW, "1", 1, D),
    (key(3), "certification_expiry", D, FIRST_WINDOW, f"first aid:{D + 30 * DAY}:30", 30, D),
    (key(LONG), "inactivity", D, FIRST_WINDOW, f"{D - 90 * DAY}:90", 90, D),
]


@pytest.fixture
def crm(installation: Deployment) -> Iterator[Deployment]:
    """An installation over the example's foreign tables, made by the page's blocks."""
    execute(installation.url(ADMINISTRATOR), f"CREATE ROLE crm_owner LOGIN PASSWORD '{PASSWORD}'")
    execute(
        installation.url(ADMINISTRATOR), "GRANT crm_owner TO CURRENT_USER;\nCREATE SCHEMA crm AUTHORIZATION crm_owner"
    )
    try:
        there_already, shown = sql("how-to/your-own-tables", "crm_owner")
        for block in (there_already, PEOPLE, shown):
            execute(installation.url("crm_owner"), block)
        [pointed] = sql("how-to/your-own-tables", OWNER)
        execute(installation.url(OWNER), pointed)
        yield installation
    finally:
        execute(installation.url(ADMINISTRATOR), "DROP OWNED BY crm_owner CASCADE;\nDROP ROLE crm_owner")


def test_the_example_of_own_tables_dispatches_exactly_what_is_due(crm: Deployment) -> None:
    """Whoever has mentors in a system of their own copies this; a wrong cast would tell the wrong people."""
    with connected(crm, SCHEDULER) as engine:
        report = run_invocation(engine)
    assert (report.stats.total_evaluated, report.totals()["suppressed_by_reason"]) == (5, {"opted_out": 1})
    assert sent(crm) == DUE
    assert [finding for finding in findings(crm) if finding.status is not Status.OK] == []


@no_superuser
def test_the_commands_work_over_own_tables(crm: Deployment) -> None:
    """The page says to look, to try, and then to run."""
    looking, trying = blocks("how-to/your-own-tables", "sh")[0].splitlines()[1:]
    assert "views: The four source views have the columns" in crm.shell(looking)[0]
    dry, _ = crm.shell(trying)
    assert json.loads(dry.splitlines()[0])["dispatch_mode"] == "dry_run"
    stdout, _ = crm.command("run", "--date", D.isoformat(), "--dispatch-mode", "live")
    stranger_accepts(stdout)
    assert sent(crm) == DUE


def test_the_crms_own_policies_hold_for_everybody_else(crm: Deployment) -> None:
    """The views open the tables to the scheduler, and to nobody on the way."""
    with psycopg.connect(crm.url(SCHEDULER), autocommit=True) as connection:
        for table in ("teams", "volunteers", "visits", "licences"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"SELECT * FROM crm.{table}".encode())
    with (
        psycopg.connect(crm.url(READER), autocommit=True) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("SELECT * FROM crm.scenario_mentors")


@no_superuser
def test_a_view_that_is_wrong_is_named_by_doctor_and_stops_a_run(crm: Deployment) -> None:
    """A moment where a date must stand shifts crossings by a day: nothing may be sent by such a view."""
    wrong = "SELECT id, organisation_id, status, joined_on::timestamp AS joined_on, notifications_opt_out"
    [pointed] = sql("how-to/your-own-tables", OWNER)
    assert "SELECT id, organisation_id, status, joined_on, notifications_opt_out" in pointed
    mistaken = pointed.replace("SELECT id, organisation_id, status, joined_on, notifications_opt_out", wrong)
    with pytest.raises(psycopg.errors.InvalidTableDefinition):
        execute(crm.url(OWNER), mistaken)
    execute(crm.url(OWNER), f"DROP VIEW scenario.source_mentors;\n{mistaken}")
    execute(crm.url(OWNER), f"GRANT SELECT ON scenario.source_mentors TO {SCHEDULER}")
    sentence = "column joined_on of the view scenario.source_mentors is timestamp without time zone, and must be date"
    told = [finding for finding in findings(crm) if finding.check == "views"]
    assert told == [Finding("views", Status.PROBLEM, f"The {sentence}.", YOUR_OWN_TABLES)]
    log = Log()
    with connected(crm, SCHEDULER) as engine, pytest.raises(SystemicError):
        run_invocation(engine, log=log)
    assert log.entries[1]["error_message"] == f"the {sentence}: define the view again"
    assert sent(crm) == []
