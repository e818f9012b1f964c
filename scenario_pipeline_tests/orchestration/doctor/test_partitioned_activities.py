"""Activities in partitions under their own name: loading, running and `doctor` do as with one table."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, text

from scenario_pipeline.cli import main
from scenario_pipeline.storage import database
from scenario_pipeline.upgrade import upgrade
from scenario_pipeline_tests.support.csv_folders import GOOD, activities, write
from scenario_pipeline_tests.support.doctor import Examine
from scenario_pipeline_tests.support.runs import run_invocation

PARTITIONS = ["scenario.mentor_activities_0", "scenario.mentor_activities_1"]
PARTITIONED = """
SET LOCAL ROLE scenario_owner;
DROP VIEW scenario.source_activities;
DROP TABLE scenario.mentor_activities;
CREATE TABLE scenario.mentor_activities (
    id bigint GENERATED ALWAYS AS IDENTITY,
    user_id uuid NOT NULL REFERENCES scenario.peer_mentors (id) ON DELETE CASCADE,
    activity_type text NOT NULL,
    activity_date date NOT NULL CHECK (isfinite(activity_date)),
    PRIMARY KEY (user_id, id)
) PARTITION BY HASH (user_id);
CREATE TABLE scenario.mentor_activities_0 PARTITION OF scenario.mentor_activities
    FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE scenario.mentor_activities_1 PARTITION OF scenario.mentor_activities
    FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE INDEX ON scenario.mentor_activities (user_id, activity_date);
CREATE VIEW scenario.source_activities WITH (security_invoker = true) AS
    SELECT user_id, activity_type, activity_date FROM scenario.mentor_activities;
"""


@pytest.fixture
def partitioned(engine: Engine) -> Engine:
    with engine.begin() as connection:
        connection.execute(text(PARTITIONED))
    upgrade(engine)
    return engine


def test_import_and_demo_load_into_partitions(
    partitioned: Engine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An organisation with a hundred million activities partitions them, and still imports every night."""
    monkeypatch.setenv("SCENARIO_DATABASE_URL", database_url)
    monkeypatch.setenv("SCENARIO_HOME", str(tmp_path / "home"))
    loaded = CliRunner().invoke(main, ["demo", "--mentors", "50"])
    assert loaded.exit_code == 0, loaded.stderr
    made = sum(activities(partitioned).values())
    imported = CliRunner().invoke(main, ["import", str(write(tmp_path / "import", GOOD))])
    assert imported.exit_code == 0, imported.stderr
    assert sum(activities(partitioned).values()) == made + 3
    assert run_invocation(partitioned).stats.total_errors == 0


def test_row_level_security_is_looked_for_on_each_partition(
    examine: Examine, partitioned: Engine, scheduler_url: str
) -> None:
    """A policy of the whole does not hold for who reads a part by its name."""
    wrong = [(finding["finding"], finding["remedy"]) for finding in examine().wrong]
    switch = "ALTER TABLE {} ENABLE ROW LEVEL SECURITY"
    off = "Row-level security is off on {}: a role that may read it sees every organisation."
    assert wrong == [
        (off.format("scenario.mentor_activities"), switch.format("scenario.mentor_activities")),
        (off.format("2 partitions of scenario.mentor_activities"), "; ".join(map(switch.format, PARTITIONS))),
    ]
    with partitioned.begin() as connection:
        for _, remedy in wrong:
            connection.execute(text(str(remedy)))
    assert examine().wrong == []
    scheduler = database.connect(scheduler_url)
    assert run_invocation(scheduler).status == "completed"
    scheduler.dispose()
