"""What the trigger engine's service commits: only under its own schema, and only for a run that is open.

Belongs here: the request's transaction beside another one. Does not belong here: HTTP (`test_service_strangers`), or
what is due (`test_engine_service`).
"""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from scenario_pipeline.storage import database
from scenario_pipeline_tests import world
from scenario_pipeline_tests.test_engine_service import a_request, post, quiet_mentors


def set_version(engine: Engine, version: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE scenario.alembic_version SET version_num = :version"), {"version": version})


@pytest.mark.parametrize("version", ["0001", "9999"])
def test_a_service_whose_database_was_upgraded_does_not_evaluate(served: str, engine: Engine, version: str) -> None:
    """Health said 503 while messages went out by rules that the new schema may no longer mean."""
    asked = a_request(quiet_mentors(engine, 2))
    set_version(engine, version)
    reply = post(served, asked)
    assert (reply.status_code, reply.headers["Retry-After"]) == (503, "1")
    assert reply.json()["error"]["error_type"] == "database_error"
    assert world.sent(engine) == []
    set_version(engine, database.code_version())
    assert post(served, asked).status_code == 200
    assert len(world.sent(engine)) == 2


def test_a_service_whose_schema_is_gone_does_not_evaluate(served: str, engine: Engine) -> None:
    """A database that was dropped and made anew is empty, and not this release's."""
    asked = a_request(quiet_mentors(engine, 1))
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE scenario.alembic_version"))
    assert post(served, asked).status_code == 503
    assert world.sent(engine) == []
