"""The oldest server that is supported, from Debian's packages: its rights and plans differ from those of newer ones."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from scenario_pipeline.doctor.database import examine_database
from scenario_pipeline.doctor.findings import Status
from scenario_pipeline.loading.merge import import_folder
from scenario_pipeline.records import parse_date
from scenario_pipeline.settings import Settings
from scenario_pipeline.storage import database
from scenario_pipeline.storage.source import Access, access_of
from scenario_pipeline.upgrade import upgrade
from scenario_pipeline_tests.support.installation import EXPECTED
from scenario_pipeline_tests.support.project import COMMUNITY
from scenario_pipeline_tests.support.runs import make_request, run_invocation

pytestmark = pytest.mark.system


def as_role(url: str, role: str) -> str:
    return make_url(url).set(username=role).render_as_string(hide_password=False)


@pytest.fixture
def administrators_url(debian_url: str) -> str:
    """A database whose owner may create roles and is no superuser, as managed servers have it."""
    with psycopg.connect(debian_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE administrator LOGIN CREATEROLE")
        connection.execute("ALTER DATABASE scenario OWNER TO administrator")
    return as_role(debian_url, "administrator")


def test_the_community_hears_the_same_in_both_ways_of_reading(
    debian_url: str, administrators_url: str, tmp_path: Path
) -> None:
    """A site with PostgreSQL 15 and no superuser gets the same as any other."""
    administrator = database.connect(administrators_url)
    upgrade(administrator)
    import_folder(administrator, COMMUNITY)
    with psycopg.connect(debian_url, autocommit=True) as connection:
        connection.execute("ALTER ROLE scenario_scheduler LOGIN")
        # Only a superuser of this version may give the attribute away.
        may_pass = "SELECT rolbypassrls FROM pg_roles WHERE rolname = 'scenario_scheduler'"
        assert connection.execute(may_pass).fetchone() == (False,)
        owners = "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relnamespace = 'scenario'::regnamespace"
        assert connection.execute(owners).fetchall() == [("scenario_owner",)]
    scheduler_url = as_role(debian_url, "scenario_scheduler")
    for access in (Access.FUNCTIONS, Access.VIEWS):
        scheduler = database.connect(scheduler_url)
        with scheduler.connect() as connected:
            assert access_of(connected) is access
        for evaluation_date, expected in EXPECTED.items():
            date = parse_date(evaluation_date)
            assert date is not None
            report = run_invocation(scheduler, make_request(date))
            stats = report.stats
            assert (report.total_active_mentors, stats.dispatched_by_scenario, stats.suppressed_by_reason) == expected
        settings = Settings.from_environment({"SCENARIO_DATABASE_URL": scheduler_url, "SCENARIO_HOME": str(tmp_path)})
        assert [finding for finding in examine_database(settings) if finding.status is not Status.OK] == []
        scheduler.dispose()
        with psycopg.connect(debian_url, autocommit=True) as connection:
            connection.execute("TRUNCATE scenario.scenario_notifications, scenario.scheduler_runs CASCADE")
            connection.execute("ALTER ROLE scenario_scheduler BYPASSRLS")
    administrator.dispose()
