"""The database fails under a run: stopped, full, locked, read-only, or with a mind of its own."""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Iterator

import psycopg
import pytest

from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.faults import small_world
from scenario_pipeline_tests.faults.checker import Evidence
from scenario_pipeline_tests.faults.crashes import crash, port_of, start_at
from scenario_pipeline_tests.faults.endings import FAILED, LEFT, PARTIAL, ending
from scenario_pipeline_tests.faults.installation import FaultyInstallation
from scenario_pipeline_tests.support.server import as_scheduler
from scenario_pipeline_tests.support.waiting import blocked_backends, wait_until_blocked

pytestmark = pytest.mark.faults


def is_completed(evidence: Evidence) -> bool:
    """Return whether a run has evaluated everybody, as its log says."""
    completed: bool = json.loads(evidence.log.splitlines()[-1])["completed"]
    return completed


def test_a_page_whose_backend_is_terminated_is_evaluated_again(installation: FaultyInstallation) -> None:
    """An administrator ends what looks stuck: the page is rolled back, begun again, and everybody hears today."""
    with installation.held() as run:
        installation.end_backends()
        wait_until_blocked(installation.engine)
        run.go_on()
        evidence = run.end()
    assert is_completed(evidence)
    installation.judge(evidence)


def test_a_statement_that_is_cancelled_fails_the_run(installation: FaultyInstallation) -> None:
    """Somebody wanted it to stop: going on with the next page would overrule them."""
    with installation.held() as run:
        installation.as_owner(f"SELECT pg_cancel_backend({blocked_backends(installation.engine)[0]})")
        evidence = run.end()
    assert ending(evidence) == (FAILED, "timeout_error", LEFT)
    installation.judge(evidence)


@pytest.fixture
def limited_role(installation: FaultyInstallation) -> Iterator[str]:
    """A role that the runs connect with and whose connections can be limited, as a superuser's cannot."""
    role = f"limited_{uuid.uuid4().hex}"
    installation.as_owner(f"CREATE ROLE {role} LOGIN PASSWORD '{role}' IN ROLE scenario_scheduler")
    installation.variables["SCENARIO_DATABASE_URL"] = re.sub("//[^@]+@", f"//{role}:{role}@", installation.url)
    yield role
    installation.as_owner(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_a_run_that_finds_no_connection_free_says_so(installation: FaultyInstallation, limited_role: str) -> None:
    """Somebody else's pool has the last one."""
    installation.as_owner(f"ALTER ROLE {limited_role} CONNECTION LIMIT 1")
    with psycopg.connect(installation.environment["SCENARIO_DATABASE_URL"]), installation.running() as run:
        evidence = run.end(ledger_lost=True)
    assert ending(evidence) == (FAILED, "database_error", None)
    installation.judge(evidence)


def test_a_run_that_loses_its_connection_and_gets_no_other_says_so(
    installation: FaultyInstallation, limited_role: str
) -> None:
    """The log is closed when the budget is spent, although the ledger cannot be reached any more."""
    with installation.held(time_budget_seconds=6) as run:
        installation.as_owner(f"ALTER ROLE {limited_role} CONNECTION LIMIT 0")
        installation.end_backends()
        evidence = run.end(ledger_lost=True)
    assert ending(evidence) == (FAILED, "database_error", LEFT)
    installation.judge(evidence)


@pytest.mark.parametrize("table", ["mentor_activities", "scenario_notifications"])
def test_a_table_locked_by_a_migration_costs_the_time_budget_and_no_more(
    installation: FaultyInstallation, table: str
) -> None:
    """A migration takes minutes; the schedule must not hang behind it."""
    with installation.engine.connect() as migration:
        migration.exec_driver_sql(f"LOCK TABLE scenario.{table} IN ACCESS EXCLUSIVE MODE")
        with installation.running(time_budget_seconds=2) as run:
            evidence = run.end()
    assert ending(evidence) == (PARTIAL, "time_budget", 25)
    installation.judge(evidence)


def test_a_configuration_that_somebody_is_editing_keeps_no_run_from_ending(installation: FaultyInstallation) -> None:
    """An administrator's open transaction once failed every run that had evaluated everybody."""
    with psycopg.connect(installation.url) as administrator:
        administrator.execute("UPDATE scenario.scenario_evaluation_config SET enabled = enabled")
        with installation.running() as run:
            evidence = run.end()
    assert json.loads(evidence.log.splitlines()[-1])["completed"] is True
    installation.judge(evidence)


def test_a_ledger_locked_by_a_migration_keeps_a_run_from_beginning_for_its_budget(
    installation: FaultyInstallation,
) -> None:
    """Without a row nothing can be evaluated, and the log has to say it all."""
    with installation.engine.connect() as migration:
        migration.exec_driver_sql("LOCK TABLE scenario.scheduler_runs IN ACCESS EXCLUSIVE MODE")
        with installation.running(time_budget_seconds=2) as run:
            evidence = run.end(ledger_lost=True)
    assert ending(evidence) == (FAILED, "timeout_error", None)
    assert 2000 <= json.loads(evidence.log.splitlines()[-1])["duration_ms"] <= 4000
    installation.judge(evidence)


def test_a_ledger_locked_between_two_pages_costs_the_budget_and_the_time_for_closing(
    installation: FaultyInstallation,
) -> None:
    """The worst moment for a migration: neither the next page nor the end of the run can be written."""
    with psycopg.connect(installation.url) as migration:
        lock = threading.Thread(
            target=migration.execute, args=("LOCK TABLE scenario.scheduler_runs IN ACCESS EXCLUSIVE MODE",)
        )
        with installation.held(time_budget_seconds=6) as run:
            lock.start()
            wait_until_blocked(installation.engine, 2)
            run.go_on()
            lock.join()
            evidence = run.end(ledger_lost=True)
    assert ending(evidence) == (FAILED, "timeout_error", 25 - 2 * small_world.PAGE_SIZE)
    installation.judge(evidence)


@pytest.mark.parametrize("when", ["before the run", "in the middle of a page"])
def test_a_server_that_only_reads_fails_the_run(installation: FaultyInstallation, when: str) -> None:
    """A failover leads the URL to a standby."""
    if when == "before the run":
        installation.as_owner(read_only_statement(installation, "on"))
        with installation.running() as run:
            evidence = run.end(ledger_lost=True)
        assert ending(evidence) == (FAILED, "database_error", None)
    else:
        with installation.held() as run:
            installation.as_owner(read_only_statement(installation, "on"))
            installation.end_backends()
            evidence = run.end(ledger_lost=True)
        assert ending(evidence) == (FAILED, "database_error", LEFT)
    installation.as_owner(read_only_statement(installation, "off"))
    installation.judge(evidence)


def read_only_statement(installation: FaultyInstallation, value: str) -> str:
    """Return what lets new sessions of this database write or not."""
    name = installation.url.rsplit("/", 1)[1]
    return f"ALTER DATABASE {name} SET default_transaction_read_only = {value}"


def test_the_embedded_server_stopped_in_the_middle_of_a_page_and_started_again(
    own_server: EmbeddedPostgres, own_installation: FaultyInstallation
) -> None:
    """Dagster's database is on the same server: the log was once closed half a minute after the end of the budget."""
    with own_installation.held(time_budget_seconds=8) as run:
        crash(own_server)
        own_server.start()
        evidence = run.end(ledger_lost=True)
    assert ending(evidence) == (FAILED, "network_error", LEFT)
    # It listens on another port now.
    own_installation.move_to(own_server.url("scenario"))
    own_installation.judge(evidence)


def test_a_server_stopped_in_the_middle_of_a_page_and_back_at_its_address(
    own_server: EmbeddedPostgres, own_installation: FaultyInstallation
) -> None:
    """The run and Dagster wait for their databases and go on: nobody has to ask for the rest of the mentors."""
    address = own_server.url("scenario")
    own_installation.variables |= {
        "SCENARIO_DATABASE_URL": as_scheduler(address),
        "SCENARIO_DAGSTER_DATABASE_URL": own_server.url("dagster"),
    }
    port = port_of(own_server)
    with own_installation.held() as run:
        crash(own_server)
        start_at(own_server, port)
        evidence = run.end()
    assert is_completed(evidence)
    assert "Dagster could not keep its record" not in run.stderr
    own_installation.judge(evidence)
