"""`scenario-pipeline doctor`: each thing that can be wrong is found, named, and given a command; nothing is changed."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, text

from scenario_pipeline.upgrade import upgrade
from scenario_pipeline_tests.support.doctor import CHECKS, Examine
from scenario_pipeline_tests.support.installation import everything_in
from scenario_pipeline_tests.support.people import DAY, D, Mentor, insert_mentors, insert_organisation
from scenario_pipeline_tests.support.server import as_scheduler


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
    """People who look at a production database must be sure of that."""

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
            "docs/how-to/your-own-tables.md",
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
            "Row-level security is off on scenario.mentor_certifications: a role that may read it sees every "
            "organisation.",
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
    # Checks that cannot run for that reason are named as well.
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
        insert_organisation(connection)
        insert_mentors(connection, [Mentor(n, activities=[D - n * DAY] * 2000) for n in range(1, 21)])
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
