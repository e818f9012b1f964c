"""The guide's roles, run as they stand there."""

import json
import re
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from scenario_pipeline.storage import database
from scenario_pipeline.storage.roles import OWNER, READER, SCHEDULER
from scenario_pipeline.storage.source import Access
from scenario_pipeline_tests.support.deployed import (
    ADMINISTRATOR,
    ADMINISTRATORS,
    access_of_the_scheduler,
    another_database,
    connected,
    in_database,
    no_superuser,
    upgraded,
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
    D,
    insert_mentor,
    insert_organisation,
)
from scenario_pipeline_tests.support.runs import run_invocation
from scenario_pipeline_tests.support.stranger import stranger_accepts


def test_an_administrator_of_either_kind_gets_an_installation_that_runs(deployed: Deployment, rights: str) -> None:
    """Where nobody is a superuser, the page must lead to a scheduler that sees every organisation all the same."""
    [upgrade_and_run] = [
        block for block in blocks("how-to/install#Schema and first run", "sh") if "db upgrade" in block
    ]
    upgrading, *running = upgrade_and_run.splitlines()[1:]
    deployed.shell(upgrading)
    owners = "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relnamespace = 'scenario'::regnamespace"
    assert execute(deployed.url(OWNER), owners) == [(OWNER,)]
    with in_database(deployed) as connection:
        for n in (1, 2):
            insert_organisation(connection, n)
            insert_mentor(connection, n, organisation=n)
    stdout, _ = deployed.shell("\n".join(running))
    log = "".join(line + "\n" for line in stdout.splitlines() if line.startswith('{"timestamp"'))
    stranger_accepts(log)
    completed = json.loads(log.splitlines()[-1])
    assert (completed["completed"], completed["total_evaluated"]) == (True, 2)
    findings = stdout.removesuffix(log)
    assert re.findall(r"^(?!ok ).*", findings, flags=re.M) == [""]
    assert access_of_the_scheduler(deployed) is ADMINISTRATORS[rights]
    told = "its own rights" if ADMINISTRATORS[rights] is Access.VIEWS else "the functions of the owner"
    assert f"sees all rows of the source by {told}" in findings


def test_a_scheduler_whose_attribute_was_taken_away_reads_through_functions(
    installation: Deployment, rights: str
) -> None:
    """Security asks for it one day; the next run must neither fail nor leave anybody out."""
    [block] = sql("how-to/install", "a superuser")
    if rights != "SUPERUSER":
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            execute(installation.url(ADMINISTRATOR), block)
        return
    with in_database(installation) as connection:
        insert_organisation(connection)
        insert_mentor(connection, activities=[D - 30 * DAY])
    execute(installation.url(ADMINISTRATOR), block)
    try:
        assert access_of_the_scheduler(installation) is Access.FUNCTIONS
        with connected(installation, SCHEDULER) as engine:
            report = run_invocation(engine)
        assert report.totals()["dispatched_by_scenario"] == {"inactivity": 1}
    finally:
        execute(installation.url(ADMINISTRATOR), f"ALTER ROLE {SCHEDULER} BYPASSRLS")


def test_an_administrator_who_upgrades_leaves_the_schema_to_its_owner(deployed: Deployment, tmp_path: Path) -> None:
    """Otherwise the next release's `db upgrade`, run as scenario_owner as the page says, is refused."""
    installation = upgraded(another_database(deployed, tmp_path), ADMINISTRATOR)
    upgraded(installation, OWNER)
    with in_database(installation) as connection:
        assert database.schema_version(connection) == database.code_version()


@no_superuser
def test_a_reader_sees_reports_and_no_people(installation: Deployment) -> None:
    """A dashboard's password lies about; it must not open the list of names."""
    with psycopg.connect(installation.url(READER), autocommit=True) as connection:
        for table in ("scenario_notifications", "scheduler_runs", "scheduler_run_pages", "organisations"):
            connection.execute(f"SELECT * FROM scenario.{table}".encode())
        for table in ("peer_mentors", "mentor_activities", "source_mentors"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"SELECT * FROM scenario.{table}".encode())


def counted_by_app(installation: Deployment, setting: str) -> int:
    """Return how many mentors an app user sees after a statement of its own."""
    [(mentors,)] = execute(installation.url("app"), f"{setting};\nSELECT count(*) FROM scenario.peer_mentors")
    return int(mentors)


@no_superuser
def test_app_users_see_their_own_organisation_and_nobody_else_sees_any(installation: Deployment) -> None:
    """The app's database user is everybody's: what it may see must hang on whom it works for."""
    execute(installation.url(ADMINISTRATOR), f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
    first, second = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
    with in_database(installation) as connection:
        for n, (organisation, mentors) in enumerate([(first, 2), (second, 3)]):
            connection.execute(
                text("INSERT INTO scenario.organisations VALUES (:id, 'one of two', 'Europe/Oslo')"),
                {"id": organisation},
            )
            connection.execute(
                text(
                    "INSERT INTO scenario.peer_mentors (id, organisation_id, status, full_name, joined_on) SELECT "
                    "lpad(to_hex(10 * :n + i), 32, '0')::uuid, :id, 'active', 'Kari', '2020-01-01' "
                    "FROM generate_series(1, :mentors) i".replace("::", r"\:\:")
                ),
                {"n": n, "id": organisation, "mentors": mentors},
            )
    granting, by_claim = sql("how-to/install", OWNER)
    execute(installation.url(OWNER), granting)
    [as_app] = sql("how-to/install", "app")
    assert execute(installation.url("app"), as_app) == [(2,)]
    assert execute(installation.url("app"), as_app.replace(first, second)) == [(3,)]
    assert counted_by_app(installation, "RESET scenario.organisation_id") == 0
    for table in ("scenario_notifications", "source_mentors", "scheduler_runs"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            execute(installation.url("app"), f"SELECT * FROM scenario.{table}")

    execute(installation.url(OWNER), by_claim)
    upgraded(installation)
    claim = json.dumps({"sub": "somebody", "app_metadata": {"organisation_id": second}})
    assert counted_by_app(installation, f"SET request.jwt.claims = '{claim}'") == 3
    forged = json.dumps({"user_metadata": {"organisation_id": second}})
    assert counted_by_app(installation, f"SET request.jwt.claims = '{forged}'") == 0
    assert counted_by_app(installation, f"SET scenario.organisation_id = '{second}'") == 0
