"""`scenario-pipeline doctor`: each thing that can be wrong is found, named, and given a command; nothing is changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, make_url, text

from scenario_pipeline.cli import main
from scenario_pipeline.doctor.findings import Finding, Status, in_time
from scenario_pipeline.installation import upgrade
from scenario_pipeline.storage import database
from scenario_pipeline.storage.embedded import EmbeddedPostgres
from scenario_pipeline_tests import world
from scenario_pipeline_tests.conftest import TOKEN, as_scheduler, set_fsync
from scenario_pipeline_tests.test_cli import everything_in
from scenario_pipeline_tests.world import DAY, D

CHECKS = [
    "database_connection",
    "server_version",
    "server_encoding",
    "session_options",
    "writable",
    "schema_version",
    "views",
    "roles",
    "row_level_security",
    "mentors",
    "configuration",
    "activity_index",
    "clock",
    "time_zones",
    "durability",
    "dagster_instance",
    "variables",
    "trigger_engine",
    "web_server",
]


@pytest.fixture(scope="module", autouse=True)
def _durable(server: EmbeddedPostgres) -> Iterator[None]:
    """A server as it should be; the other tests do without fsync."""
    set_fsync(server, on=True)
    yield
    set_fsync(server, on=False)


class Examined:
    """What one call of `doctor --json` said."""

    def __init__(self, exit_status: int, report: dict[str, Any]) -> None:
        self.exit_status, self.status, self.findings = exit_status, report["status"], report["findings"]

    @property
    def wrong(self) -> list[dict[str, str]]:
        return [finding for finding in self.findings if finding["status"] != "ok"]


Examine = Callable[[], Examined]


@pytest.fixture
def examine(scheduler_url: str, dagster_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """Examines an installation of this test's own, as the scheduler's role."""
    monkeypatch.setenv("SCENARIO_DATABASE_URL", scheduler_url)
    monkeypatch.setenv("SCENARIO_DAGSTER_DATABASE_URL", dagster_url)
    monkeypatch.setenv("SCENARIO_HOME", str(tmp_path / "home"))

    def call() -> Examined:
        result = CliRunner().invoke(main, ["doctor", "--json"])
        assert "Traceback" not in result.stderr
        return Examined(result.exit_code, json.loads(result.stdout))

    return call


@pytest.mark.parametrize("way", ["bypassrls", "functions"])
def test_an_installation_that_works_has_nothing_to_mend(
    examine: Examine, database_url: str, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A doctor who always finds something is soon not asked any more."""
    monkeypatch.setenv("SCENARIO_DATABASE_URL", as_scheduler(database_url, way))
    examined = examine()
    assert (examined.exit_status, examined.status, examined.wrong) == (0, "ok", [])
    assert [finding["check"] for finding in examined.findings] == CHECKS


def test_it_changes_nothing(examine: Examine, database_url: str, dagster_url: str, tmp_path: Path) -> None:
    """Whoever looks at a production database must be sure of that."""

    def everything() -> tuple[str, str, list[str]]:
        with psycopg.connect(database_url) as connection:
            catalog = connection.execute("""
                SELECT string_agg(line, E'\\n' ORDER BY line) FROM (
                    SELECT format('%s %s %s', oid::regclass, relacl, reloptions) AS line FROM pg_class
                        WHERE relnamespace = 'scenario'::regnamespace
                    UNION ALL SELECT pg_get_functiondef(oid) || proacl::text FROM pg_proc
                        WHERE pronamespace = 'scenario'::regnamespace) AS lines""").fetchone()  # fmt: skip
        rows = everything_in(database_url) + everything_in(dagster_url)
        return str(catalog), rows, sorted(str(path) for path in tmp_path.rglob("*"))

    before = everything()
    examine()
    assert everything() == before


GRANTED = "scenario_scheduler"


@pytest.mark.parametrize(
    ("damage", "check", "sentence", "remedy"),
    [
        (
            "DELETE FROM scenario.alembic_version",
            "schema_version",
            "The database has no schema of this project.",
            "scenario-pipeline db upgrade",
        ),
        (
            "UPDATE scenario.alembic_version SET version_num = '0001'",
            "schema_version",
            "The schema of the database has version 0001 and not ",
            "scenario-pipeline db upgrade",
        ),
        (
            "ALTER VIEW scenario.source_mentors RENAME COLUMN status TO state",
            "views",
            "The view scenario.source_mentors has no column status, which must be text.",
            "docs/deploy.md",
        ),
        (
            f"REVOKE INSERT ON scenario.scenario_notifications FROM {GRANTED}",
            "roles",
            "The role scenario_scheduler lacks INSERT ON scenario.scenario_notifications.",
            "scenario-pipeline db upgrade",
        ),
        (
            f"GRANT DELETE ON scenario.scheduler_runs TO {GRANTED}",
            "roles",
            "The role scenario_scheduler has more than a run needs: DELETE ON scenario.scheduler_runs.",
            "REVOKE DELETE ON scenario.scheduler_runs FROM scenario_scheduler",
        ),
        (
            f"GRANT SELECT ON scenario.peer_mentors TO {GRANTED}",
            "roles",
            "The role scenario_scheduler has more than a run needs: SELECT ON scenario.peer_mentors.",
            "REVOKE SELECT ON scenario.peer_mentors FROM scenario_scheduler; scenario-pipeline db upgrade",
        ),
        (
            f"GRANT CREATE ON SCHEMA scenario TO {GRANTED}",
            "roles",
            "The role scenario_scheduler has more than a run needs: CREATE ON SCHEMA scenario.",
            "REVOKE CREATE ON SCHEMA scenario FROM scenario_scheduler",
        ),
        (
            f"GRANT SELECT (email) ON scenario.peer_mentors TO {GRANTED}",
            "roles",
            "The role scenario_scheduler has more than a run needs: SELECT (email) ON scenario.peer_mentors.",
            "REVOKE SELECT (email) ON scenario.peer_mentors FROM scenario_scheduler",
        ),
        (
            "GRANT UPDATE ON scenario.scenario_notifications TO PUBLIC",
            "roles",
            "Everybody has more than a run needs: UPDATE ON scenario.scenario_notifications.",
            "REVOKE UPDATE ON scenario.scenario_notifications FROM PUBLIC",
        ),
        (
            "GRANT EXECUTE ON FUNCTION scenario.mentors_of TO PUBLIC",
            "roles",
            "Everybody may call scenario.mentors_of(uuid[]), which acts with its owner's rights.",
            "REVOKE EXECUTE ON FUNCTION scenario.mentors_of(uuid[]) FROM PUBLIC",
        ),
        (
            "ALTER FUNCTION scenario.mentors_of RESET row_security",
            "roles",
            "The function scenario.mentors_of(uuid[]) leaves out what a policy hides from its owner.",
            "ALTER FUNCTION scenario.mentors_of(uuid[]) SET row_security = off",
        ),
        (
            "ALTER FUNCTION scenario.mentors_of RESET search_path",
            "roles",
            "The function scenario.mentors_of(uuid[]) acts with its owner's rights and does not pin its search_path.",
            "ALTER FUNCTION scenario.mentors_of(uuid[]) SET search_path = pg_catalog, pg_temp",
        ),
        (
            "ALTER FUNCTION scenario.active_mentors OWNER TO scenario",
            "roles",
            "The function scenario.active_mentors(date,uuid[]) acts with the rights of scenario, an administrator.",
            "ALTER FUNCTION scenario.active_mentors(date,uuid[]) OWNER TO scenario_owner",
        ),
        (
            f"REVOKE EXECUTE ON FUNCTION scenario.remove_old_replies FROM {GRANTED}",
            "roles",
            "The role scenario_scheduler lacks EXECUTE ON FUNCTION scenario.remove_old_replies(interval, int).",
            "scenario-pipeline db upgrade",
        ),
        (
            "ALTER TABLE scenario.mentor_certifications DISABLE ROW LEVEL SECURITY",
            "row_level_security",
            "Row-level security is off on scenario.mentor_certifications: whoever may read it sees every organisation.",
            "ALTER TABLE scenario.mentor_certifications ENABLE ROW LEVEL SECURITY",
        ),
        (
            f"REVOKE SELECT ON scenario.mentor_activities FROM {GRANTED}",
            "row_level_security",
            "The role scenario_scheduler may not read all of scenario.source_activities: SQLSTATE 42501 ",
            "GRANT SELECT ON the tables and views that it reads TO scenario_scheduler",
        ),
        (
            "DELETE FROM scenario.scenario_evaluation_config WHERE scenario_type = 'milestone'",
            "configuration",
            "There is no default configuration of milestone.",
            "scenario-pipeline db upgrade",
        ),
        (
            "INSERT INTO scenario.scenario_evaluation_config SELECT '00000000-0000-4000-8000-000000000000', "
            "scenario_type, enabled, thresholds, lookback_days, cooldown_days "
            "FROM scenario.scenario_evaluation_config WHERE scenario_type = 'milestone'",
            "configuration",
            "The configuration has rows of 1 organisations that do not exist, 00000000-0000-4000-8000-000000000000",
            "DELETE FROM scenario.scenario_evaluation_config WHERE organisation_id = '00000000-",
        ),
        (
            "DROP INDEX scenario.mentor_activities_user_date",
            "activity_index",
            "No index on (user_id, activity_date) serves scenario.source_activities: each page reads all activities.",
            "CREATE INDEX CONCURRENTLY ON scenario.mentor_activities (user_id, activity_date)",
        ),
        (
            "DROP INDEX scenario.mentor_activities_user_date; "
            "CREATE INDEX ON scenario.mentor_activities (activity_date, user_id)",
            "activity_index",
            "No index on (user_id, activity_date) serves scenario.source_activities: each page reads all activities.",
            "CREATE INDEX CONCURRENTLY ON scenario.mentor_activities (user_id, activity_date)",
        ),
    ],
)
def test_what_is_wrong_is_named_with_the_command_that_mends_it(
    examine: Examine, engine: Engine, damage: str, check: str, sentence: str, remedy: str
) -> None:
    """One sentence and one command, and no finding that is not there."""
    with engine.begin() as connection:
        connection.execute(text(damage))
    examined = examine()
    # What cannot be looked at for that reason is told as well.
    [finding] = [finding for finding in examined.wrong if finding["status"] != "unknown"]
    assert (examined.exit_status, examined.status) == (1, "problem")
    assert (finding["check"], finding["status"]) == (check, "problem")
    assert finding["finding"].startswith(sentence)
    assert remedy in finding["remedy"]


def test_the_command_that_it_names_mends_what_it_found(examine: Examine, engine: Engine) -> None:
    """A command that does not work would be worse than none."""
    with engine.begin() as connection:
        connection.execute(text(f"REVOKE ALL ON ALL TABLES IN SCHEMA scenario FROM {GRANTED}"))
        connection.execute(text("DELETE FROM scenario.scenario_evaluation_config"))
    [finding] = examine().wrong
    assert (finding["check"], finding["status"]) == ("schema_version", "unknown")
    assert finding["remedy"] == "scenario-pipeline db upgrade, as scenario_owner"
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("GRANT DELETE, TRUNCATE ON scenario.scheduler_runs TO scenario_scheduler"))
        connection.execute(text("ALTER FUNCTION scenario.mentors_of RESET search_path"))
    for finding in examine().wrong:
        with engine.begin() as connection:
            connection.execute(text(finding["remedy"]))
    assert examine().wrong == []


def many_activities(engine: Engine) -> None:
    with engine.begin() as connection:
        world.insert_organisation(connection)
        world.insert_mentors(connection, [world.Mentor(n, activities=[D - n * DAY] * 2000) for n in range(1, 21)])
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))


def test_a_plan_that_passes_the_index_by_is_found(examine: Examine, engine: Engine) -> None:
    """An index that no page uses costs hours, and looks fine in the catalog."""
    many_activities(engine)
    assert examine().wrong == []
    with engine.begin() as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        # As a wrong cost setting would; the planner may not choose anything but the whole table.
        for kind in ("indexscan", "indexonlyscan", "bitmapscan"):
            connection.execute(text(f"ALTER DATABASE {name} SET enable_{kind} = off"))
    [finding] = examine().wrong
    assert (finding["check"], finding["status"]) == ("activity_index", "problem")
    assert finding["finding"] == (
        "The statement of a page reads all of scenario.mentor_activities, since enable_indexscan is off."
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(finding["remedy"]))
    assert examine().wrong == []


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
    """The budget of a second process is told by both of them."""
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
        env=_environment() | {"PYTHONTZPATH": str(tmp_path / "zones"), "SCENARIO_TIMEZONE": zone},
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
        world.insert_organisation(connection)
        world.insert_mentors(connection, [world.Mentor(n) for n in range(1, 4)])
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
    """Whoever replaces a view forgets its options, and an app's users see everybody."""
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


def test_a_lock_on_dagsters_records_is_not_waited_for(examine: Examine, dagster_url: str) -> None:
    """An answer within seconds is what makes a doctor worth asking."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", _MAKE_TABLES], check=True, timeout=60, env=_environment())
    with psycopg.connect(dagster_url) as connection:
        connection.execute("LOCK TABLE daemon_heartbeats")
        [finding] = examine().wrong
    assert (finding["check"], finding["status"]) == ("dagster_instance", "unknown")


def test_a_server_that_stops_answering_is_not_waited_for_for_ever() -> None:
    """What bounds a statement is the server's own clock, and that one stands still."""
    said = Finding("database_connection", Status.OK, "It answers.")
    stopped = threading.Event()

    def findings() -> Iterator[Finding]:
        yield said
        stopped.wait(60)

    heard = in_time("database_connection", findings(), seconds=0.2)
    assert next(heard) == said
    assert next(heard).status is Status.UNKNOWN
    assert list(heard) == []
    stopped.set()


def test_a_database_out_of_reach_is_no_all_clear(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be looked at is neither well nor ill."""
    monkeypatch.setenv("SCENARIO_DATABASE_URL", "postgresql://user:a-secret@127.0.0.1:1/nowhere")
    examined = examine()
    [finding] = examined.wrong
    assert (examined.exit_status, examined.status) == (2, "unknown")
    assert finding["check"] == "database_connection"
    assert finding["finding"].startswith("The database of SCENARIO_DATABASE_URL cannot be used: ")
    assert finding["remedy"] == "pg_isready -h 127.0.0.1 -p 1"
    assert "a-secret" not in str(examined.findings)


def test_an_embedded_server_that_does_not_run_is_not_started(
    examine: Examine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Looking must not create a database."""
    monkeypatch.delenv("SCENARIO_DATABASE_URL")
    monkeypatch.delenv("SCENARIO_DAGSTER_DATABASE_URL")
    examined = examine()
    assert (examined.exit_status, [finding["check"] for finding in examined.wrong]) == (
        2,
        ["database_connection", "dagster_instance"],
    )
    assert not (tmp_path / "home").exists()


def test_a_setting_that_cannot_work_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to look at then."""
    monkeypatch.setenv("SCENARIO_PAGE_SIZE", "0")
    result = CliRunner().invoke(main, ["doctor", "--json"])
    [finding] = json.loads(result.stdout)["findings"]
    assert (result.exit_code, finding["check"], finding["status"]) == (2, "settings", "unknown")
    assert finding["finding"].startswith("SCENARIO_PAGE_SIZE must be")


def test_a_person_reads_sentences(examine: Examine, engine: Engine) -> None:
    """Without --json each finding is a line, and what mends it stands below."""
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM scenario.alembic_version"))
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert (
        "problem schema_version: The database has no schema of this project.\n"
        "        mend it with: scenario-pipeline db upgrade\n"
    ) in result.stdout


def test_dagsters_records_out_of_reach_or_not_to_be_made_are_found(
    examine: Examine, monkeypatch: pytest.MonkeyPatch, server: EmbeddedPostgres, dagster_url: str
) -> None:
    """A run goes on without them, and nobody sees it in the web UI."""
    monkeypatch.setenv("SCENARIO_DAGSTER_DATABASE_URL", "postgresql://user:a-secret@127.0.0.1:1/nowhere")
    [finding] = examine().wrong
    assert (finding["check"], finding["status"]) == ("dagster_instance", "unknown")
    assert "a-secret" not in str(finding)
    # A database that belongs to somebody else, and is empty.
    name = "somebody_elses"
    database.create_database(server.url("postgres"), name)
    monkeypatch.setenv("SCENARIO_DAGSTER_DATABASE_URL", as_scheduler(server.url(name)))
    [finding] = examine().wrong
    assert (finding["finding"], finding["remedy"]) == (
        "Dagster's database has no tables, and this role may not create them.",
        "ALTER DATABASE dagster OWNER TO scenario_scheduler",
    )


def test_the_tables_of_another_application_are_not_dagsters(
    examine: Examine, monkeypatch: pytest.MonkeyPatch, server: EmbeddedPostgres
) -> None:
    """Dagster's migrations would stumble over the other's."""
    name = "another_application"
    database.create_database(server.url("postgres"), name)
    with psycopg.connect(server.url(name), autocommit=True) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num text)")
    monkeypatch.setenv("SCENARIO_DAGSTER_DATABASE_URL", as_scheduler(server.url(name)))
    [finding] = examine().wrong
    assert (finding["check"], finding["status"]) == ("dagster_instance", "problem")
    assert finding["finding"].startswith("Dagster's database holds the tables of another application")


def test_a_daemon_that_fell_silent_is_found(
    examine: Examine, monkeypatch: pytest.MonkeyPatch, server: EmbeddedPostgres
) -> None:
    """No schedule ticks without it, and nothing else says so."""
    name = "records_of_a_daemon"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} OWNER scenario_scheduler")
    url = as_scheduler(server.url(name))
    monkeypatch.setenv("SCENARIO_DAGSTER_DATABASE_URL", url)

    def told() -> str:
        [finding] = [finding for finding in examine().findings if finding["check"] == "dagster_instance"]
        return str(finding["finding"])

    assert told() == "Dagster's database has no tables yet: the first run creates them."
    subprocess.run([sys.executable, "-W", "ignore", "-c", _MAKE_TABLES], check=True, timeout=60, env=_environment())
    assert told() == "Dagster's records can be used; its daemon never ran, so no schedule ticks."
    insert = (
        "INSERT INTO daemon_heartbeats (daemon_type, daemon_id, timestamp, body) "
        "VALUES ('SCHEDULER', 'x', timezone('UTC', now()) - interval '{} seconds', '')"
    )
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(insert.format(3600))
        assert told() == "Dagster's daemon was silent for 1:00:00: no schedule ticks."
        connection.execute("DELETE FROM daemon_heartbeats")
        connection.execute(insert.format(10))
        assert told() == "Dagster's records can be used, and its daemon gives signs of life."
        connection.execute("UPDATE alembic_version SET version_num = 'another'")
        assert told() == "The tables of Dagster are those of another release of Dagster."


_MAKE_TABLES = """
from scenario_pipeline.defs.instance import load_instance
from scenario_pipeline.settings import Settings
with load_instance(Settings.from_environment()) as instance:
    instance.get_runs_count()
"""


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("SCENARIO_")} | {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
    }


def test_a_remote_engine_is_asked_for_its_health(
    examine: Examine, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run would find out too, with everybody left to the next one."""
    monkeypatch.setenv("SCENARIO_ENGINE", "http")
    monkeypatch.setenv("SCENARIO_ENGINE_TOKEN", TOKEN)
    for url, wrong in (
        (served, []),
        (f"{served}/elsewhere", ["The trigger engine answered with HTTP status 404"]),
        ("http://127.0.0.1:1", ["The connection to the trigger engine was refused or lost."]),
    ):
        monkeypatch.setenv("SCENARIO_ENGINE_URL", url)
        found = [finding for finding in examine().wrong if finding["check"] == "trigger_engine"]
        assert [finding["finding"][: len(sentence)] for finding, sentence in zip(found, wrong, strict=True)] == wrong


@pytest.mark.parametrize(("host", "wrong"), [("127.0.0.1", []), ("0.0.0.0", ["web_server"])])
def test_a_web_server_that_others_can_reach_is_found(examine: Examine, host: str, wrong: list[str]) -> None:
    """Dagster asks nobody for a password: whoever reaches it launches runs."""
    listener = (
        "import socket, sys; s = socket.create_server((sys.argv[2], 0)); print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", listener, "dagster_webserver", host]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert [finding["check"] for finding in examine().wrong] == wrong
        process.communicate()
