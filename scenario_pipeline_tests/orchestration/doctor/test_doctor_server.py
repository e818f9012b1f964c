"""`doctor` looks at the server, its clocks and zones, at roles, policies and views."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url, text

from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests.support.doctor import Examine, environment
from scenario_pipeline_tests.support.people import Mentor, insert_mentors, insert_organisation
from scenario_pipeline_tests.support.server import as_scheduler, set_fsync


def test_commits_that_a_crash_can_forget_are_found(examine: Examine, engine: Engine) -> None:
    """A notification that was counted as sent, and is gone, is sent again."""
    with engine.begin() as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.execute(text(f"ALTER DATABASE {name} SET synchronous_commit = off"))
    [finding] = examine().wrong
    assert (finding["check"], finding["remedy"]) == (
        "durability",
        "ALTER ROLE scenario_scheduler SET synchronous_commit = on",
    )


def test_a_disk_that_is_not_waited_for_is_found(examine: Examine, server: EmbeddedPostgres) -> None:
    """A power failure would leave nothing that can be trusted."""
    set_fsync(server, on=False)
    try:
        [finding] = examine().wrong
        assert finding["finding"] == "fsync is off: a crash of the server can destroy the database."
        assert finding["remedy"] == "ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf()"
    finally:
        set_fsync(server, on=True)
    assert examine().wrong == []


@pytest.mark.parametrize("seconds", [-3600.0, 5.0])
def test_clocks_that_differ_are_found(examine: Examine, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Both processes report the budget of the second."""
    now = time.time
    monkeypatch.setattr("scenario_pipeline.doctor.database.time.time", lambda: now() + seconds)
    [finding] = examine().wrong
    assert finding["check"] == "clock"
    assert finding["finding"] == (
        f"The clocks of the database and of this machine are {abs(seconds):.1f} seconds apart."
    )


@pytest.mark.parametrize(
    ("zone", "sentence"),
    [
        ("Mars/Base", "The server does not know the time zone Mars/Base."),
        ("Europe/Oslo", "The server and Python have different rules for the time zone Europe/Oslo."),
    ],
)
def test_time_zones_that_differ_are_found(examine: Examine, tmp_path: Path, zone: str, sentence: str) -> None:
    """The day would change at one moment for the schedule and at another for the clock in the database."""
    target = tmp_path / "zones" / zone
    target.parent.mkdir(parents=True)
    target.write_bytes(resources.files("tzdata").joinpath("zoneinfo/Asia/Tokyo").read_bytes())
    # In a process of its own: Python keeps a zone that it has read.
    done = subprocess.run(
        [sys.executable, "-m", "scenario_pipeline", "doctor", "--json"],
        env=environment() | {"PYTHONTZPATH": str(tmp_path / "zones"), "SCENARIO_TIMEZONE": zone},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    wrong = [finding for finding in json.loads(done.stdout)["findings"] if finding["status"] != "ok"]
    assert [(finding["check"], finding["finding"]) for finding in wrong] == [("time_zones", sentence)]


def test_a_role_that_a_policy_holds_for_is_told_how_it_gets_past_it(
    examine: Examine, engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a role's runs fail; why, is a question for an administrator."""
    with engine.begin() as connection:
        connection.execute(text("CREATE ROLE stranger LOGIN PASSWORD 'secret'"))
        connection.execute(text("GRANT USAGE ON SCHEMA scenario TO stranger"))
        connection.execute(text("GRANT SELECT ON ALL TABLES IN SCHEMA scenario TO stranger"))
        connection.execute(text("REVOKE SELECT ON scenario.peer_mentors FROM stranger"))
        columns = "id, organisation_id, status, joined_on, notifications_opt_out"
        connection.execute(text(f"GRANT SELECT ({columns}) ON scenario.peer_mentors TO stranger"))
    try:
        address = make_url(database_url).set(username="stranger", password="secret")
        monkeypatch.setenv("SCENARIO_DATABASE_URL", address.render_as_string(hide_password=False))
        wrong = examine().wrong
        [lacks] = [finding for finding in wrong if finding["check"] == "roles"]
        assert lacks["remedy"] == "GRANT scenario_scheduler TO stranger"
        hidden = [finding["finding"] for finding in wrong if finding["check"] == "row_level_security"]
        assert len(hidden) == 4
        assert "query would be affected by row-level security policy" in hidden[0]
        with engine.begin() as connection:
            connection.execute(text(lacks["remedy"]))
        assert examine().wrong == []
    finally:
        with engine.begin() as connection:
            connection.execute(text("DROP OWNED BY stranger; DROP ROLE stranger"))


OWN_VIEW = """
    CREATE OR REPLACE VIEW scenario.source_mentors WITH (security_invoker = true) AS
    SELECT id, organisation_id, {status} AS status, joined_on, {opt_out} AS notifications_opt_out
    FROM scenario.peer_mentors{more}"""


@pytest.mark.parametrize("way", ["bypassrls", "functions"])
@pytest.mark.parametrize(
    ("view", "sentence"),
    [
        (
            OWN_VIEW.format(status="upper(status)", opt_out="notifications_opt_out", more=""),
            "The view scenario.source_mentors has 3 mentors, and the status of none is 'active'.",
        ),
        (
            OWN_VIEW.format(status="status", opt_out="NULL::boolean", more=""),
            "The view scenario.source_mentors has 3 rows whose mentor lacks an id, an organisation, a status, a date "
            "of joining or an opt-out.",
        ),
        (
            OWN_VIEW.format(status="status", opt_out="notifications_opt_out", more=", generate_series(1, 2)"),
            "The view scenario.source_mentors has 3 rows whose mentor is there more than once.",
        ),
    ],
    ids=["another word for active", "no opt-out", "twice"],
)
def test_mentors_who_are_not_what_an_evaluation_needs_are_found(
    examine: Examine,
    engine: Engine,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    view: str,
    sentence: str,
    way: str,
) -> None:
    """A view over tables of one's own has no constraint that says so."""
    with engine.begin() as connection:
        insert_organisation(connection)
        insert_mentors(connection, [Mentor(n) for n in range(1, 4)])
        connection.execute(text(view))
    monkeypatch.setenv("SCENARIO_DATABASE_URL", as_scheduler(database_url, way))
    assert [finding["finding"] for finding in examine().wrong] == [sentence]


@pytest.mark.parametrize("index", ["(activity_date, user_id)", "(user_id, activity_date) WHERE activity_type = 'x'"])
def test_an_index_that_does_not_serve_is_found_without_the_rights_to_see_a_plan(
    examine: Examine, engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch, index: str
) -> None:
    """A scheduler that reads through the functions of the owner sees no plan of its own."""
    with engine.begin() as connection:
        connection.execute(text("DROP INDEX scenario.mentor_activities_user_date"))
        connection.execute(text(f"CREATE INDEX ON scenario.mentor_activities {index}"))
    monkeypatch.setenv("SCENARIO_DATABASE_URL", as_scheduler(database_url, "functions"))
    [finding] = examine().wrong
    assert (finding["check"], finding["status"]) == ("activity_index", "problem")


def test_a_view_that_shows_every_organisation_is_found(examine: Examine, engine: Engine) -> None:
    """A person who replaces a view forgets its options, and an app's users see everybody."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CREATE ROLE app LOGIN"))
        connection.execute(text("GRANT SELECT ON scenario.source_mentors TO app"))
        assert examine().wrong == []
        connection.execute(text("ALTER VIEW scenario.source_mentors RESET (security_invoker)"))
        [finding] = examine().wrong
        assert finding["finding"] == (
            "The view scenario.source_mentors shows every organisation to app: it reads with its owner's rights."
        )
        connection.execute(text(finding["remedy"]))
        assert examine().wrong == []
        connection.execute(text("DROP OWNED BY app"))
        connection.execute(text("DROP ROLE app"))


def test_a_database_that_only_reads_is_found(examine: Examine, engine: Engine) -> None:
    """A standby, or a setting left behind by a failover: every run would fail."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
        [finding] = examine().wrong
        assert (finding["check"], finding["status"]) == ("writable", "problem")
        connection.execute(text(finding["remedy"]))
    assert examine().wrong == []


@pytest.mark.parametrize("attribute", ["CREATEROLE", "CREATEDB", "REPLICATION", "a group"])
def test_a_scheduler_that_may_do_more_on_the_server_is_found(examine: Examine, engine: Engine, attribute: str) -> None:
    """A right that is nowhere among the grants is a right all the same."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if attribute == "a group":
            connection.execute(text("GRANT scenario_owner TO scenario_scheduler"))
        else:
            connection.execute(text(f"ALTER ROLE scenario_scheduler {attribute}"))
        [finding] = [finding for finding in examine().wrong if finding["check"] == "roles"]
        assert finding["finding"].startswith("The role scenario_scheduler has more than it needs: ")
        connection.execute(text(finding["remedy"]))
    assert examine().wrong == []
