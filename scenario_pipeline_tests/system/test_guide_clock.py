"""The guide's pg_cron entries, as they stand on the page."""

from __future__ import annotations

import psycopg
import pytest

from scenario_pipeline.storage import database
from scenario_pipeline.storage.roles import OWNER
from scenario_pipeline.upgrade import upgrade
from scenario_pipeline_tests.support.deployment import (
    execute,
    sql,
)
from scenario_pipeline_tests.system.conftest import wait_until

pytestmark = pytest.mark.system

USER, LOGIN = "alice", "the-password-of-alice"


def test_pg_cron_asks_for_runs_and_tidies_up_as_the_page_says(debian_url: str) -> None:
    """Both entries are made once and then forgotten: they must not fail every night unseen."""

    def as_role(role: str) -> str:
        return debian_url.replace("postgres@", f"{role}@")

    engine = database.connect(debian_url)
    upgrade(engine)
    engine.dispose()
    execute(debian_url, f"ALTER ROLE {OWNER} LOGIN")
    title = "how-to/pg-cron"
    for role, url in (
        ("a superuser", debian_url),
        (OWNER, as_role(OWNER)),
        ("scenario_clock", as_role("scenario_clock")),
    ):
        [block] = sql(title, role)
        execute(url, block.replace("0 * * * *", "* * * * *"))
    statement, scheduling = sql("how-to/retention", OWNER)
    scheduling = scheduling.replace("STATEMENT", statement.rstrip().rstrip(";")).replace("30 3 * * *", "* * * * *")
    with psycopg.connect(as_role(OWNER), autocommit=True) as connection:
        connection.execute(scheduling.encode())
        connection.execute(
            "INSERT INTO scenario.scheduler_run_requests "
            "(requested_at, requested_by, scenario_types, organisation_ids, dispatch_mode, refusal) "
            "VALUES (now() - interval '3 years', 'somebody', '{}', '{}', 'auto', 'too old')"
        )
    done = "SELECT DISTINCT username, status FROM cron.job_run_details WHERE end_time IS NOT NULL ORDER BY 1"
    wait_until(lambda: len(execute(debian_url, done)) >= 2, "both entries have run", 150)
    execute(debian_url, "SELECT cron.unschedule(jobid) FROM cron.job")
    assert execute(debian_url, done) == [("scenario_clock", "succeeded"), (OWNER, "succeeded")]
    requested = execute(debian_url, "SELECT DISTINCT requested_by FROM scenario.scheduler_run_requests")
    assert requested == [("scenario_clock",)]
